//! The metadata store in one file, for a single manager.
//!
//! redb is synchronous, so one thread owns the file and answers calls in the order of their arrival;
//! a commit is answered after fsync. When a call fails, the file is closed and opened again for the
//! next one: a disk that was full and has room again needs no restart.

use super::calls::{self, Reply};
use faasnet_actors::world::{Batch, BatchLimits, Condition, Metadata, MetadataError, Row, Table, Write};
use futures::future::BoxFuture;
use redb::{
    CommitError, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError, TransactionError,
};
use std::{
    fs::{self, File},
    future::ready,
    io,
    path::{Path, PathBuf},
};
use tokio::sync::{mpsc, oneshot};

/// Raised when a table or key changes its meaning. Values carry versions of their own.
const FORMAT_VERSION: u64 = 1;
/// Kept apart from the rows of users, so that a scan never shows it.
const FORMAT: TableDefinition<&str, u64> = TableDefinition::new("faasnet_format");
const FORMAT_KEY: &str = "version";

/// Calls that may wait for the thread; further callers wait for a place. Its users group their
/// writes, so a few are enough to keep it busy.
const CALLS_QUEUED_MAX: usize = 64;

/// The file takes more; this much is written within a few tens of milliseconds, so that nothing waits
/// long behind it.
const BATCH: BatchLimits = BatchLimits { operations_max: 20_000, bytes_max: 16 << 20 };

enum Call {
    Scan { table: Table, reply: Reply<Vec<Row>> },
    Commit { batch: Batch, reply: Reply<()> },
    Close { reply: oneshot::Sender<()> },
}

/// A metadata store in one file. The file is released when this value and all its calls are gone, or by
/// [`Metadata::close`].
pub struct RedbMetadata {
    calls: mpsc::Sender<Call>,
}

impl RedbMetadata {
    /// Opens the file, or makes it when there is none. Blocks; a file left by a crash is repaired.
    ///
    /// Refuses a file that another process has open, that is damaged, or that is not ours.
    pub fn open(path: &Path) -> Result<Self, MetadataError> {
        let mut store = Store { path: path.to_owned(), database: None };
        if !path.try_exists().map_err(|error| unwritable(path, &error))? {
            create(path)?;
        }
        store.database()?;
        let (calls, mut received) = mpsc::channel(CALLS_QUEUED_MAX);
        let serve = move || {
            while let Some(call) = received.blocking_recv() {
                if let Call::Close { reply } = call {
                    drop(store);
                    let _ = reply.send(());
                    return;
                }
                store.answer(call);
            }
        };
        std::thread::Builder::new()
            .name("metadata".into())
            .spawn(serve)
            .map_err(|error| unwritable(path, &error))?;
        Ok(Self { calls })
    }

    fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(Reply<T>) -> Call + Send + 'static,
    ) -> BoxFuture<'static, Result<T, MetadataError>> {
        calls::call(&self.calls, || MetadataError::Unwritable("its thread has ended".into()), call)
    }
}

impl Metadata for RedbMetadata {
    fn limits(&self) -> BatchLimits {
        BATCH
    }

    fn scan(&self, table: Table) -> BoxFuture<'static, Result<Vec<Row>, MetadataError>> {
        self.call(move |reply| Call::Scan { table, reply })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), MetadataError>> {
        if !BATCH.allow(&batch) {
            return Box::pin(ready(Err(MetadataError::TooLarge(batch.bytes()))));
        }
        self.call(move |reply| Call::Commit { batch, reply })
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        calls::close(&self.calls, |reply| Call::Close { reply })
    }
}

/// Makes the file under another name and renames it when it is complete, so that a crash never
/// leaves half a file under the right name.
fn create(path: &Path) -> Result<(), MetadataError> {
    let unfinished = path.with_extension("new");
    let io_error = |error: io::Error| unwritable(path, &error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    let write = || -> Result<(), redb::Error> {
        let database = Database::create(&unfinished)?;
        let transaction = database.begin_write()?;
        transaction.open_table(FORMAT)?.insert(FORMAT_KEY, FORMAT_VERSION)?;
        transaction.commit()?;
        Ok(())
    };
    write().map_err(|error| unwritable(path, &error))?;
    fs::rename(&unfinished, path).map_err(io_error)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error)
}

fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> MetadataError {
    MetadataError::Unwritable(format!("{}: {error}", path.display()))
}

/// The thread's side: the file, open unless the last call failed.
struct Store {
    path: PathBuf,
    database: Option<Database>,
}

impl Store {
    fn answer(&mut self, call: Call) {
        // A caller that went away needs no answer.
        match call {
            Call::Scan { table, reply } => {
                let _ = reply.send(self.with_database(|database| scan(database, table)));
            }
            Call::Close { .. } => unreachable!("the thread ends with it"),
            Call::Commit { batch, reply } => {
                let _ = reply.send(self.with_database(|database| commit(database, &batch)));
            }
        }
    }

    fn with_database<T>(
        &mut self,
        work: impl FnOnce(&Database) -> Result<T, Failure>,
    ) -> Result<T, MetadataError> {
        let result = work(self.database()?);
        result.map_err(|failure| {
            if !matches!(failure, Failure::Conflict { .. }) {
                self.database = None;
            }
            failure.at(&self.path)
        })
    }

    fn database(&mut self) -> Result<&Database, MetadataError> {
        if self.database.is_none() {
            let database = Database::open(&self.path).map_err(|error| Failure::from(error).at(&self.path))?;
            check_format(&database).map_err(|failure| failure.at(&self.path))?;
            self.database = Some(database);
        }
        Ok(self.database.as_ref().expect("it was opened above"))
    }
}

fn check_format(database: &Database) -> Result<(), Failure> {
    let foreign = || Failure::Damaged("it is a database of another program".into());
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(FORMAT) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Err(foreign()),
    };
    let version = table.get(FORMAT_KEY)?.ok_or_else(foreign)?.value();
    if version == FORMAT_VERSION {
        return Ok(());
    }
    Err(Failure::Damaged(format!(
        "it has format {version}, this release reads {FORMAT_VERSION}; use the release that wrote it"
    )))
}

fn scan(database: &Database, table: Table) -> Result<Vec<Row>, Failure> {
    let transaction = database.begin_read()?;
    let opened = match transaction.open_table(rows_of(table)) {
        Ok(opened) => opened,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut rows = Vec::new();
    for entry in opened.iter()? {
        let (key, value) = entry?;
        rows.push(Row { table, key: key.value().to_owned(), value: value.value().to_vec() });
    }
    Ok(rows)
}

fn commit(database: &Database, batch: &Batch) -> Result<(), Failure> {
    // redb's default durability returns from commit only after fsync.
    let transaction = database.begin_write()?;
    for Condition { table, key, value } in &batch.conditions {
        let rows = transaction.open_table(rows_of(*table))?;
        let found = rows.get(key.as_str())?;
        if found.as_ref().map(|found| found.value()) != value.as_deref() {
            return Err(Failure::Conflict { table: *table, key: key.clone() });
        }
    }
    if batch.writes.is_empty() {
        return Ok(());
    }
    for write in &batch.writes {
        match write {
            Write::Put(row) => {
                transaction.open_table(rows_of(row.table))?.insert(row.key.as_str(), row.value.as_slice())?;
            }
            Write::Delete { table, key } => {
                transaction.open_table(rows_of(*table))?.remove(key.as_str())?;
            }
        }
    }
    Ok(transaction.commit()?)
}

fn rows_of(table: Table) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(table.name())
}

/// Why the file does not do it, without its name.
enum Failure {
    Unwritable(String),
    Full(String),
    Conflict { table: Table, key: String },
    Damaged(String),
}

impl Failure {
    fn at(self, path: &Path) -> MetadataError {
        match self {
            Self::Unwritable(reason) => MetadataError::Unwritable(format!("{}: {reason}", path.display())),
            Self::Full(reason) => {
                let advice = "make room on its disk, it goes on by itself";
                MetadataError::Full(format!("{}: {reason}; {advice}", path.display()))
            }
            Self::Conflict { table, key } => MetadataError::Conflict { table, key },
            Self::Damaged(reason) => MetadataError::Damaged(format!("{}: {reason}", path.display())),
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupted(reason) => Self::Damaged(reason),
            // redb says so of a file that does not begin as its own do.
            StorageError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                Self::Damaged(error.to_string())
            }
            StorageError::Io(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::Full(error.to_string())
            }
            error => Self::Unwritable(error.to_string()),
        }
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Storage(error) => error.into(),
            DatabaseError::DatabaseAlreadyOpen => {
                Self::Unwritable("another process has it open; is a manager running already?".into())
            }
            error @ (DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_)) => {
                Self::Damaged(error.to_string())
            }
            error => Self::Unwritable(error.to_string()),
        }
    }
}

impl From<TableError> for Failure {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            error => Self::Damaged(error.to_string()),
        }
    }
}

impl From<TransactionError> for Failure {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::Storage(error) => error.into(),
            error => Self::Unwritable(error.to_string()),
        }
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Storage(error) => error.into(),
            error => Self::Unwritable(error.to_string()),
        }
    }
}

//! The metadata store in etcd, for managers whose disks may be lost, through etcd's JSON gateway.
//!
//! The gateway is part of every etcd since 3.4, and needs nothing that is not here already: no protocol
//! compiler, no second HTTP stack, the same TLS.
//!
//! **Once, and in order.** A request whose answer is lost may have been carried out, and may be carried out
//! later, by an etcd that was stopped and reads it when it goes on. Therefore every commit names the commit
//! before it: it is a transaction on the condition that the row of this writer, its mark, is still at the revision that
//! the last known commit gave it, and it writes the mark itself, with a number of its own. A commit can be sent
//! again until one of its copies was applied, the number says which it was, and copies of what was given up
//! can not come after a later commit.
//!
//! ```text
//! PREFIX/format           the version of this layout
//! PREFIX/marks/WRITER     the number of the writer's last commit
//! PREFIX/rows/TABLE/KEY   a row
//! ```

mod api;
mod client;

use super::calls::{self, Reply};
use crate::settings::MetadataSettings;
use anyhow::Context;
use api::{
    Bytes, Compaction, Compare, DeleteRange, KeyValue, Nothing, Operation, Put, PutAnswer, Range,
    RangeAnswer, Txn, TxnAnswer,
};
use client::{EtcdClient, Trouble};
use faasnet_actors::world::{Batch, BatchLimits, Condition, Metadata, MetadataError, Row, Table, Write};
use futures::future::{BoxFuture, ready};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at},
};

/// Raised when a key changes its meaning. Values carry versions of their own.
const FORMAT_VERSION: &[u8] = b"1";

/// Rows in one answer: of the largest rows, batches of starts, these are 4 MB.
const PAGE_ROWS: usize = 1000;

/// Calls that may wait; further callers wait for a place. Its users group their writes.
const CALLS_QUEUED_MAX: usize = 64;

/// The mark that goes with each commit.
const OWN_OPERATIONS: usize = 1;

/// Where etcd is and what may be asked of it.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    pub endpoints: Vec<String>,
    /// Before all keys; ends with a slash.
    pub prefix: String,
    /// Who is trusted; none for the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key that are shown.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User and password.
    pub credentials: Option<(String, String)>,
    pub connect: Duration,
    /// For one answer; then the next endpoint is asked.
    pub request: Duration,
    /// For one commit or page of a scan, with all attempts.
    pub deadline: Duration,
    /// What etcd takes in one transaction.
    pub limits: BatchLimits,
    /// How much history is kept for others; zero leaves it to etcd.
    pub history: Duration,
}

impl EtcdOptions {
    pub fn new(settings: &MetadataSettings) -> anyhow::Result<Self> {
        let millis = Duration::from_millis;
        let file = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        let password = match file(&settings.etcd_password_file) {
            Some(path) => {
                let text = std::fs::read_to_string(&path);
                text.with_context(|| format!("reading metadata.etcd_password_file {}", path.display()))?
            }
            None => String::new(),
        };
        let user = settings.etcd_user.clone();
        Ok(Self {
            endpoints: settings.etcd_endpoints.clone(),
            prefix: settings.etcd_prefix.clone(),
            ca_file: file(&settings.etcd_ca_file),
            identity: file(&settings.etcd_certificate_file).zip(file(&settings.etcd_key_file)),
            credentials: (!user.is_empty()).then(|| (user, password.trim_end().to_owned())),
            connect: millis(settings.etcd_connect_ms),
            request: millis(settings.etcd_request_ms),
            deadline: millis(settings.etcd_commit_ms),
            limits: BatchLimits {
                operations_max: settings.etcd_operations_max,
                bytes_max: settings.etcd_bytes_max,
            },
            history: millis(settings.etcd_history_ms),
        })
    }
}

pub struct EtcdMetadata {
    keys: Keys,
    client: Arc<EtcdClient>,
    deadline: Duration,
    limits: BatchLimits,
    calls: mpsc::Sender<Call>,
}

enum Call {
    Commit { batch: Batch, reply: Reply<()> },
    Close { reply: oneshot::Sender<()> },
}

impl EtcdMetadata {
    /// Reaches etcd and begins to write. Refuses one that is away, or that holds another format.
    pub async fn open(options: EtcdOptions) -> anyhow::Result<Self> {
        let client = Arc::new(EtcdClient::new(&options)?);
        let keys = Keys { prefix: options.prefix };
        check_format(&client, &keys, Instant::now() + options.deadline).await.context("reaching etcd")?;
        let limits = BatchLimits {
            operations_max: options.limits.operations_max - OWN_OPERATIONS,
            bytes_max: options.limits.bytes_max,
        };
        let writer = Writer {
            keys: keys.clone(),
            client: Arc::clone(&client),
            deadline: options.deadline,
            mark: keys.mark(&uuid::Uuid::now_v7().to_string()),
            revision: None,
            commits: 0,
            compact_to: None,
        };
        let (calls, received) = mpsc::channel(CALLS_QUEUED_MAX);
        writer.forget_others().await.context("reaching etcd")?;
        tokio::spawn(writer.run(received, options.history));
        Ok(Self { keys, client, deadline: options.deadline, limits, calls })
    }
}

impl Metadata for EtcdMetadata {
    fn limits(&self) -> BatchLimits {
        self.limits
    }

    fn scan(&self, table: Table) -> BoxFuture<'static, Result<Vec<Row>, MetadataError>> {
        let (client, keys, patience) = (Arc::clone(&self.client), self.keys.clone(), self.deadline);
        Box::pin(async move { scan(&client, &keys, table, patience).await })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), MetadataError>> {
        if !self.limits.allow(&batch) {
            return Box::pin(ready(Err(MetadataError::TooLarge(batch.bytes()))));
        }
        let ended = || MetadataError::Unavailable("it is closed".into());
        calls::call(&self.calls, ended, |reply| Call::Commit { batch, reply })
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        calls::close(&self.calls, |reply| Call::Close { reply })
    }
}

#[derive(Clone)]
struct Keys {
    prefix: String,
}

impl Keys {
    fn format(&self) -> Bytes {
        Bytes(format!("{}format", self.prefix).into_bytes())
    }

    fn mark(&self, writer: &str) -> Bytes {
        Bytes(format!("{}marks/{writer}", self.prefix).into_bytes())
    }

    fn row(&self, table: Table, key: &str) -> Bytes {
        Bytes(format!("{}rows/{}/{key}", self.prefix, table.name()).into_bytes())
    }
}

/// The end of the range of all keys that begin so: `0` follows `/`.
fn end_of(folder: &Bytes) -> Bytes {
    let mut end = folder.0.clone();
    debug_assert_eq!(end.last(), Some(&b'/'));
    *end.last_mut().expect("it ends with a slash") = b'0';
    Bytes(end)
}

async fn check_format(client: &EtcdClient, keys: &Keys, deadline: Instant) -> Result<(), MetadataError> {
    let make = Txn {
        compare: vec![Compare::Mod { key: keys.format(), mod_revision: 0 }],
        success: vec![Operation::Put(Put { key: keys.format(), value: Bytes(FORMAT_VERSION.to_vec()) })],
        failure: vec![Operation::Range(Range { key: keys.format(), ..Range::default() })],
    };
    let answer: TxnAnswer = client.ask("kv/txn", &make, deadline).await?;
    let found = answer.responses.into_iter().flat_map(|one| one.response_range.kvs).next();
    match found {
        _ if answer.succeeded => Ok(()),
        Some(found) if found.value.0 == FORMAT_VERSION => Ok(()),
        _ => Err(MetadataError::Damaged(format!(
            "etcd holds another format below {:?}; use the release that wrote it, or another metadata.etcd_prefix",
            keys.prefix
        ))),
    }
}

/// Page by page, all of one revision.
async fn scan(
    client: &EtcdClient,
    keys: &Keys,
    table: Table,
    patience: Duration,
) -> Result<Vec<Row>, MetadataError> {
    let folder = keys.row(table, "");
    let mut range = Range {
        key: folder.clone(),
        range_end: Some(end_of(&folder)),
        limit: Some(PAGE_ROWS),
        revision: None,
    };
    let mut rows = Vec::new();
    loop {
        let page: RangeAnswer = client.ask("kv/range", &range, Instant::now() + patience).await?;
        range.revision.get_or_insert(page.header.revision);
        for KeyValue { key, value, .. } in page.kvs {
            range.key = Bytes([key.0.as_slice(), &[0]].concat());
            let foreign = || MetadataError::Damaged("etcd holds a key that is not text".into());
            let key = String::from_utf8(key.0[folder.0.len()..].to_vec()).map_err(|_| foreign())?;
            rows.push(Row { table, key, value: value.0 });
        }
        if !page.more {
            return Ok(rows);
        }
    }
}

/// The one task that writes, so that commits have an order.
struct Writer {
    keys: Keys,
    client: Arc<EtcdClient>,
    deadline: Duration,
    mark: Bytes,
    /// Of the mark, if it is known.
    revision: Option<i64>,
    commits: u64,
    /// What was the newest revision a while ago.
    compact_to: Option<i64>,
}

impl Writer {
    async fn run(mut self, mut calls: mpsc::Receiver<Call>, history: Duration) {
        // No timer takes no time at all.
        let period = if history.is_zero() { Duration::from_secs(3600) } else { history };
        let mut compact = interval_at(Instant::now() + period, period);
        compact.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let call = tokio::select! {
                call = calls.recv() => call,
                _ = compact.tick(), if !history.is_zero() => {
                    self.compact().await;
                    continue;
                }
            };
            // Whoever asked may be gone.
            match call {
                None => break,
                Some(Call::Commit { batch, reply }) => {
                    let _ = reply.send(self.commit(&batch).await);
                }
                Some(Call::Close { reply }) => {
                    self.leave().await;
                    let _ = reply.send(());
                    break;
                }
            }
        }
    }

    /// Marks of managers before this one would stay for ever. One that still lives makes its own again.
    async fn forget_others(&self) -> Result<(), MetadataError> {
        let folder = self.keys.mark("");
        let all = DeleteRange { range_end: Some(end_of(&folder)), key: folder };
        let _: Nothing = self.client.ask("kv/deleterange", &all, Instant::now() + self.deadline).await?;
        Ok(())
    }

    /// Takes the mark away. Left behind it does no harm.
    async fn leave(&self) {
        let own = DeleteRange { key: self.mark.clone(), range_end: None };
        let deadline = Instant::now() + self.deadline;
        let left: Result<Nothing, _> = self.client.once("kv/deleterange", &own, deadline).await;
        if left.is_err() {
            tracing::debug!("the mark of this manager stays in etcd");
        }
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), MetadataError> {
        self.commits += 1;
        let number = self.commits.to_string().into_bytes();
        let deadline = Instant::now() + self.deadline;
        loop {
            let trouble = match self.attempt(batch, &number, deadline).await {
                Ok(Some(result)) => return result,
                // Another copy of this commit or of one before it changed the mark meanwhile.
                Ok(None) => Trouble::Unknown("commits overtake one another".into()),
                Err(trouble) => trouble,
            };
            // After a refusal too: what was sent before it may have been applied.
            self.revision = None;
            self.client.recover(trouble, deadline).await?;
        }
    }

    /// None when it is to be tried again.
    async fn attempt(
        &mut self,
        batch: &Batch,
        number: &[u8],
        deadline: Instant,
    ) -> Result<Option<Result<(), MetadataError>>, Trouble> {
        let revision = match self.revision {
            Some(revision) => revision,
            None => match self.find_mark(deadline).await? {
                Some(mark) if mark.value.0 == number => {
                    self.revision = Some(mark.mod_revision);
                    return Ok(Some(Ok(())));
                }
                Some(mark) => mark.mod_revision,
                None => self.make_mark(deadline).await?,
            },
        };
        let txn = self.txn(batch, number, revision);
        let answer: TxnAnswer = self.client.once("kv/txn", &txn, deadline).await?;
        if answer.succeeded {
            self.revision = Some(answer.header.revision);
            return Ok(Some(Ok(())));
        }
        let mut found = answer.responses.into_iter().map(|one| one.response_range.kvs.into_iter().next());
        let mark = found.next().flatten();
        if mark.as_ref().is_none_or(|mark| mark.mod_revision != revision) {
            self.revision = None;
            return Ok(None);
        }
        self.revision = Some(revision);
        let differs = |condition: &&Condition| {
            let value = found.next().flatten().map(|row| row.value.0);
            value != condition.value
        };
        Ok(batch.conditions.iter().find(differs).map(|condition| {
            Err(MetadataError::Conflict { table: condition.table, key: condition.key.clone() })
        }))
    }

    async fn find_mark(&self, deadline: Instant) -> Result<Option<KeyValue>, Trouble> {
        let range = Range { key: self.mark.clone(), ..Range::default() };
        let answer: RangeAnswer = self.client.once("kv/range", &range, deadline).await?;
        Ok(answer.kvs.into_iter().next())
    }

    async fn make_mark(&self, deadline: Instant) -> Result<i64, Trouble> {
        let put = Put { key: self.mark.clone(), value: Bytes::default() };
        let answer: PutAnswer = self.client.once("kv/put", &put, deadline).await?;
        Ok(answer.header.revision)
    }

    fn txn(&self, batch: &Batch, number: &[u8], revision: i64) -> Txn {
        let mut compare = vec![Compare::Mod { key: self.mark.clone(), mod_revision: revision }];
        let mut failure = vec![Operation::Range(Range { key: self.mark.clone(), ..Range::default() })];
        for condition in &batch.conditions {
            let key = self.keys.row(condition.table, &condition.key);
            failure.push(Operation::Range(Range { key: key.clone(), ..Range::default() }));
            compare.push(match &condition.value {
                Some(value) => Compare::Value { key, value: Bytes(value.clone()) },
                None => Compare::Mod { key, mod_revision: 0 },
            });
        }
        // etcd takes no two writes to one key: the last one counts.
        let last: BTreeMap<_, _> = batch.writes.iter().map(|write| (write.place(), write)).collect();
        let mut success: Vec<Operation> = (last.into_iter())
            .map(|((table, key), write)| {
                let key = self.keys.row(table, key);
                match write {
                    Write::Put(row) => Operation::Put(Put { key, value: Bytes(row.value.clone()) }),
                    Write::Delete { .. } => Operation::Delete(DeleteRange { key, range_end: None }),
                }
            })
            .collect();
        success.push(Operation::Put(Put { key: self.mark.clone(), value: Bytes(number.to_vec()) }));
        Txn { compare, success, failure }
    }

    /// etcd keeps every value that a row ever had until it is told not to. What was the newest state at the
    /// last call becomes the oldest that is kept.
    async fn compact(&mut self) {
        let newest = self.revision;
        if let Some(revision) = std::mem::replace(&mut self.compact_to, newest) {
            let request = Compaction { revision };
            let deadline = Instant::now() + self.deadline;
            let compacted: Result<Nothing, _> = self.client.once("kv/compaction", &request, deadline).await;
            if let Err(trouble) = compacted {
                tracing::debug!(?trouble, "the history in etcd was not shortened");
            }
        }
    }
}

//! What every adapter of the metadata store must hold to. A new adapter adds a `conformance!` and gets
//! all of it.

use super::RedbMetadata;
use faasnet_actors::world::{Batch, Condition, Metadata, MetadataError, Row, Table, Write};
use std::{
    fs,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// Opens and closes one kind of store, as a process that starts and ends does.
trait Adapter: Metadata + Sized {
    fn open_in(folder: &Path) -> impl Future<Output = Result<Self, MetadataError>>;
    fn close_now(self) -> impl Future<Output = ()>;
}

impl Adapter for RedbMetadata {
    async fn open_in(folder: &Path) -> Result<Self, MetadataError> {
        Self::open(&folder.join("metadata.redb"))
    }

    async fn close_now(self) {
        self.close().await;
    }
}

fn put(table: Table, key: &str, value: &[u8]) -> Write {
    Write::Put(Row { table, key: key.into(), value: value.into() })
}

fn only_if(table: Table, key: &str, value: Option<&[u8]>) -> Condition {
    Condition { table, key: key.into(), value: value.map(Into::into) }
}

fn delete(table: Table, key: &str) -> Write {
    Write::Delete { table, key: key.into() }
}

async fn keys(store: &impl Metadata, table: Table) -> Vec<String> {
    store.scan(table).await.expect("scanned").into_iter().map(|row| row.key).collect()
}

async fn rows_survive_and_tables_are_apart<A: Adapter>() {
    let folder = TempDir::new().expect("folder");
    let store = A::open_in(folder.path()).await.expect("opened");
    for table in Table::ALL {
        assert_eq!(store.scan(table).await, Ok(vec![]), "{}", table.name());
    }
    for table in Table::ALL {
        store.commit(vec![put(table, "key", table.name().as_bytes())].into()).await.expect("committed");
    }
    store.close_now().await;

    let store = A::open_in(folder.path()).await.expect("opened again");
    for table in Table::ALL {
        let row = Row { table, key: "key".into(), value: table.name().into() };
        assert_eq!(store.scan(table).await, Ok(vec![row]));
    }
}

async fn rows_come_in_the_order_of_their_keys<A: Adapter>() {
    let folder = TempDir::new().expect("folder");
    let store = A::open_in(folder.path()).await.expect("opened");
    let writes = ["b", "a/2", "c", "a"].map(|key| put(Table::Functions, key, key.as_bytes()));
    store.commit(writes.to_vec().into()).await.expect("committed");
    assert_eq!(keys(&store, Table::Functions).await, ["a", "a/2", "b", "c"]);
}

async fn later_writes_of_a_batch_win<A: Adapter>() {
    let folder = TempDir::new().expect("folder");
    let store = A::open_in(folder.path()).await.expect("opened");
    let batch = vec![
        put(Table::Values, "replaced", b"1"),
        put(Table::Values, "replaced", b"2"),
        put(Table::Values, "gone", b"1"),
        delete(Table::Values, "gone"),
        delete(Table::Values, "never there"),
        put(Table::Values, "empty", b""),
    ];
    store.commit(batch.into()).await.expect("committed");
    let rows = store.scan(Table::Values).await.expect("scanned");
    let found: Vec<_> = rows.iter().map(|row| (row.key.as_str(), row.value.as_slice())).collect();
    assert_eq!(found, [("empty", b"".as_slice()), ("replaced", b"2".as_slice())]);
}

async fn a_commit_is_seen_by_the_next_scan_of_another_task<A: Adapter>() {
    let folder = TempDir::new().expect("folder");
    let store = A::open_in(folder.path()).await.expect("opened");
    let commits =
        (0..50).map(|number| store.commit(vec![put(Table::Vms, &format!("{number:03}"), b"")].into()));
    futures::future::try_join_all(commits).await.expect("committed");
    assert_eq!(keys(&store, Table::Vms).await.len(), 50);
}

async fn a_batch_is_applied_only_if_all_its_conditions_hold<A: Adapter>() {
    let folder = TempDir::new().expect("folder");
    let store = A::open_in(folder.path()).await.expect("opened");
    let absent = || only_if(Table::Vms, "a", None);
    let insert =
        |value: &[u8]| Batch { conditions: vec![absent()], writes: vec![put(Table::Vms, "a", value)] };
    let conflict = |key: &str| Err(MetadataError::Conflict { table: Table::Vms, key: key.into() });
    store.commit(insert(b"1")).await.expect("there was none");
    assert_eq!(store.commit(insert(b"2")).await, conflict("a"));

    let replace = |old: &[u8], other: Option<&[u8]>| Batch {
        conditions: vec![only_if(Table::Vms, "a", Some(old)), only_if(Table::Vms, "b", other)],
        writes: vec![put(Table::Vms, "a", b"3"), put(Table::Vms, "b", b"")],
    };
    assert_eq!(store.commit(replace(b"2", None)).await, conflict("a"));
    assert_eq!(store.commit(replace(b"1", Some(b""))).await, conflict("b"));
    assert_eq!(keys(&store, Table::Vms).await, ["a"], "nothing of a refused batch");
    store.commit(replace(b"1", None)).await.expect("both hold");
    store.commit(replace(b"3", Some(b""))).await.expect("an empty value is a value");
    let check = |value| Batch { conditions: vec![only_if(Table::Vms, "b", value)], writes: vec![] };
    store.commit(check(Some(b""))).await.expect("a batch may only look");
    assert_eq!(store.commit(check(None)).await, conflict("b"));
}

/// Everybody adds 1 to what he read, and tries again when another was faster.
async fn no_update_is_lost_under_concurrency<A: Adapter>() {
    let folder = TempDir::new().expect("folder");
    let store = A::open_in(folder.path()).await.expect("opened");
    store.commit(vec![put(Table::Values, "counter", b"0")].into()).await.expect("committed");
    let add = || async {
        loop {
            let rows = store.scan(Table::Values).await.expect("scanned");
            let read = rows[0].value.clone();
            let number: u32 = String::from_utf8_lossy(&read).parse().expect("a number");
            let batch = Batch {
                conditions: vec![only_if(Table::Values, "counter", Some(&read))],
                writes: vec![put(Table::Values, "counter", (number + 1).to_string().as_bytes())],
            };
            match store.commit(batch).await {
                Ok(()) => return,
                Err(MetadataError::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    futures::future::join_all((0..20).map(|_| add())).await;
    let rows = store.scan(Table::Values).await.expect("scanned");
    assert_eq!(rows[0].value, b"20");
}

async fn a_batch_of_the_greatest_size_is_taken_and_a_larger_one_refused<A: Adapter>() {
    let folder = TempDir::new().expect("folder");
    let store = A::open_in(folder.path()).await.expect("opened");
    let limits = store.limits();
    let many = |count: usize| -> Vec<Write> {
        (0..count).map(|number| put(Table::Starts, &format!("{number:06}"), b"")).collect()
    };
    store.commit(many(limits.operations_max).into()).await.expect("as many as it says");
    assert_eq!(keys(&store, Table::Starts).await.len(), limits.operations_max);
    let too_many = store.commit(many(limits.operations_max + 1).into()).await;
    assert!(matches!(too_many, Err(MetadataError::TooLarge(_))), "{too_many:?}");
    let large = |bytes: usize| vec![put(Table::Values, "", &vec![7; bytes])];
    store.commit(large(limits.bytes_max).into()).await.expect("as large as it says");
    let too_large = store.commit(large(limits.bytes_max + 1).into()).await;
    assert!(matches!(too_large, Err(MetadataError::TooLarge(_))), "{too_large:?}");
}

/// A child process commits pairs of rows and says so on its output; it is killed in the middle.
async fn what_was_acknowledged_survives_kill_9<A: Adapter>(child_test: &str) {
    let folder = TempDir::new().expect("folder");
    let mut child = Command::new(std::env::current_exe().expect("the test's own binary"))
        .args([child_test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_FOLDER, folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let output = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut acknowledged = Vec::new();
    for line in output {
        if let Some((_, key)) = line.expect("text").split_once("committed ") {
            acknowledged.push(key.to_owned());
        }
        if acknowledged.len() == 40 {
            child.kill().expect("killed");
        }
    }
    child.wait().expect("ended");
    assert!(acknowledged.len() >= 40, "{} acknowledged", acknowledged.len());

    let store = A::open_in(folder.path()).await.expect("opened after the crash");
    let functions = keys(&store, Table::Functions).await;
    for key in &acknowledged {
        assert!(functions.contains(key), "{key} was acknowledged and is lost");
    }
    assert_eq!(functions, keys(&store, Table::Starts).await, "a batch is all or none");
}

const CHILD_FOLDER: &str = "FAASNET_TEST_METADATA_FOLDER";

/// Without its variable this is a test that does nothing: it is the child of the one above.
async fn commit_until_killed<A: Adapter>() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
    let store = A::open_in(Path::new(&folder)).await.expect("opened");
    for number in 0_u64.. {
        let key = format!("{number:012}");
        let batch = vec![put(Table::Functions, &key, b"one"), put(Table::Starts, &key, b"two")];
        store.commit(batch.into()).await.expect("committed");
        let mut output = std::io::stdout().lock();
        writeln!(output, "committed {key}").expect("the parent reads until the end");
    }
}

macro_rules! conformance {
    ($name:ident, $adapter:ty, [$($test:ident),* $(,)?]) => {
        mod $name {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test::<$adapter>().await;
                }
            )*

            #[tokio::test]
            async fn what_was_acknowledged_survives_kill_9() {
                let child = concat!("metadata::tests::", stringify!($name), "::commit_until_killed");
                super::what_was_acknowledged_survives_kill_9::<$adapter>(child).await;
            }
        }
    };
}

conformance!(
    redb,
    super::RedbMetadata,
    [
        rows_survive_and_tables_are_apart,
        rows_come_in_the_order_of_their_keys,
        later_writes_of_a_batch_win,
        a_commit_is_seen_by_the_next_scan_of_another_task,
        a_batch_is_applied_only_if_all_its_conditions_hold,
        no_update_is_lost_under_concurrency,
        a_batch_of_the_greatest_size_is_taken_and_a_larger_one_refused,
        commit_until_killed,
    ]
);

/// What only a store in a file can get wrong.
mod file {
    use super::*;
    use ::redb::{Database, TableDefinition};

    fn refusal(path: &Path) -> String {
        match RedbMetadata::open(path) {
            Ok(_) => panic!("opened {}", path.display()),
            Err(MetadataError::Damaged(reason)) => format!("damaged: {reason}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_file_of_another_kind_is_refused_and_left_as_it_is() {
        let folder = TempDir::new().expect("folder");
        let path = folder.path().join("metadata.redb");
        fs::write(&path, "a text of the user").expect("written");
        assert!(refusal(&path).starts_with("damaged"), "{}", refusal(&path));
        assert_eq!(fs::read(&path).expect("read"), b"a text of the user");

        fs::write(&path, "").expect("emptied");
        let refused = refusal(&path);
        assert!(refused.contains("metadata.redb"), "{refused}");
    }

    #[test]
    fn a_database_of_another_program_is_refused() {
        let folder = TempDir::new().expect("folder");
        let path = folder.path().join("metadata.redb");
        Database::create(&path).expect("made");
        let refused = refusal(&path);
        assert!(refused.contains("another program"), "{refused}");
    }

    #[test]
    fn a_newer_format_is_refused() {
        let folder = TempDir::new().expect("folder");
        let path = folder.path().join("metadata.redb");
        let database = Database::create(&path).expect("made");
        let transaction = database.begin_write().expect("begun");
        let format = TableDefinition::<&str, u64>::new("faasnet_format");
        transaction.open_table(format).expect("opened").insert("version", 99).expect("written");
        transaction.commit().expect("committed");
        drop(database);
        let refused = refusal(&path);
        assert!(refused.contains("format 99"), "{refused}");
    }

    #[tokio::test]
    async fn a_damaged_file_is_refused() {
        let folder = TempDir::new().expect("folder");
        let path = folder.path().join("metadata.redb");
        let store = RedbMetadata::open(&path).expect("made");
        store.commit(vec![put(Table::Values, "key", &[7; 5000])].into()).await.expect("committed");
        store.close().await;
        let mut bytes = fs::read(&path).expect("read");
        bytes[64..320].fill(0xff); // both slots of the header that name the newest tree
        fs::write(&path, bytes).expect("written");
        let refused = refusal(&path);
        assert!(refused.starts_with("damaged"), "{refused}");
    }

    #[test]
    fn a_second_process_is_told_that_the_file_is_in_use() {
        let folder = TempDir::new().expect("folder");
        let path = folder.path().join("metadata.redb");
        let _first = RedbMetadata::open(&path).expect("made");
        let refused = refusal(&path);
        assert!(refused.contains("is a manager running already"), "{refused}");
    }

    #[tokio::test]
    async fn a_creation_that_was_cut_off_is_begun_again() {
        let folder = TempDir::new().expect("folder");
        let path = folder.path().join("metadata.redb");
        fs::write(path.with_extension("new"), "half a file").expect("written");
        let store = RedbMetadata::open(&path).expect("made");
        store.commit(vec![put(Table::Values, "key", b"value")].into()).await.expect("committed");
    }

    /// A file system of 8 MiB of its own; unmounted when dropped, also by a failing test.
    struct SmallDisk(TempDir);

    impl SmallDisk {
        fn mount() -> Self {
            let folder = TempDir::new().expect("folder");
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=8m", "faasnet-test"]).arg(folder.path());
            assert!(mount.status().expect("started").success(), "mounting needs root");
            Self(folder)
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            // Lazily: a test that failed may still have files open.
            let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }

    #[tokio::test]
    async fn a_full_disk_loses_nothing_and_is_survived() {
        let disk = SmallDisk::mount();
        let store = RedbMetadata::open(&disk.0.path().join("metadata.redb")).expect("made");
        let mut acknowledged = Vec::new();
        let refused = loop {
            let key = format!("{:03}", acknowledged.len());
            match store.commit(vec![put(Table::Values, &key, &[7; 100_000])].into()).await {
                Ok(()) => acknowledged.push(key),
                Err(error) => break error,
            }
            assert!(acknowledged.len() < 100, "the disk takes more than it has");
        };
        assert!(matches!(&refused, MetadataError::Full(_)), "{refused}");
        assert_eq!(keys(&store, Table::Values).await, acknowledged);

        let more_room = Command::new("mount").args(["-o", "remount,size=64m"]).arg(disk.0.path()).status();
        assert!(more_room.expect("started").success());
        store.commit(vec![put(Table::Values, "later", b"")].into()).await.expect("there is room again");
        acknowledged.push("later".into());
        assert_eq!(keys(&store, Table::Values).await, acknowledged);
        store.close().await;
    }
}

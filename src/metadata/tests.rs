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

/// Opens one kind of store, as a process that starts does.
trait Adapter: Metadata + Sized {
    /// Where the rows are, also while no process has the store open.
    type Home;
    fn home() -> Self::Home;
    /// All that a process must know to open it.
    fn address(home: &Self::Home) -> String;
    fn open_at(address: &str) -> impl Future<Output = Self>;

    async fn open_in(home: &Self::Home) -> Self {
        Self::open_at(&Self::address(home)).await
    }
}

impl Adapter for RedbMetadata {
    type Home = TempDir;

    fn home() -> TempDir {
        TempDir::new().expect("folder")
    }

    fn address(home: &TempDir) -> String {
        home.path().join("metadata.redb").display().to_string()
    }

    async fn open_at(address: &str) -> Self {
        Self::open(Path::new(address)).expect("opened")
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
    let home = A::home();
    let store = A::open_in(&home).await;
    for table in Table::ALL {
        assert_eq!(store.scan(table).await, Ok(vec![]), "{}", table.name());
    }
    for table in Table::ALL {
        store.commit(vec![put(table, "key", table.name().as_bytes())].into()).await.expect("committed");
    }
    store.close().await;
    let after = store.commit(vec![delete(Table::Values, "a")].into()).await;
    assert!(after.is_err(), "a closed store takes nothing: {after:?}");
    drop(store);

    let store = A::open_in(&home).await;
    for table in Table::ALL {
        let row = Row { table, key: "key".into(), value: table.name().into() };
        assert_eq!(store.scan(table).await, Ok(vec![row]));
    }
}

async fn rows_come_in_the_order_of_their_keys<A: Adapter>() {
    let home = A::home();
    let store = A::open_in(&home).await;
    let writes = ["b", "a/2", "c", "a"].map(|key| put(Table::Functions, key, key.as_bytes()));
    store.commit(writes.to_vec().into()).await.expect("committed");
    assert_eq!(keys(&store, Table::Functions).await, ["a", "a/2", "b", "c"]);
}

async fn later_writes_of_a_batch_win<A: Adapter>() {
    let home = A::home();
    let store = A::open_in(&home).await;
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
    let home = A::home();
    let store = A::open_in(&home).await;
    let commits =
        (0..50).map(|number| store.commit(vec![put(Table::Vms, &format!("{number:03}"), b"")].into()));
    futures::future::try_join_all(commits).await.expect("committed");
    assert_eq!(keys(&store, Table::Vms).await.len(), 50);
}

async fn a_batch_is_applied_only_if_all_its_conditions_hold<A: Adapter>() {
    let home = A::home();
    let store = A::open_in(&home).await;
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
    let home = A::home();
    let store = A::open_in(&home).await;
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
    let home = A::home();
    let store = A::open_in(&home).await;
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
    let home = A::home();
    let mut child = Command::new(std::env::current_exe().expect("the test's own binary"))
        .args([child_test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_ADDRESS, A::address(&home))
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

    let store = A::open_in(&home).await;
    let functions = keys(&store, Table::Functions).await;
    for key in &acknowledged {
        assert!(functions.contains(key), "{key} was acknowledged and is lost");
    }
    assert_eq!(functions, keys(&store, Table::Starts).await, "a batch is all or none");
}

const CHILD_ADDRESS: &str = "FAASNET_TEST_METADATA";

/// Without its variable this is a test that does nothing: it is the child of the one above.
async fn commit_until_killed<A: Adapter>() {
    let Ok(address) = std::env::var(CHILD_ADDRESS) else { return };
    let store = A::open_at(&address).await;
    for number in 0_u64.. {
        let key = format!("{number:012}");
        let batch = vec![put(Table::Functions, &key, b"one"), put(Table::Starts, &key, b"two")];
        store.commit(batch.into()).await.expect("committed");
        let mut output = std::io::stdout().lock();
        writeln!(output, "committed {key}").expect("the parent reads until the end");
    }
}

macro_rules! conformance {
    ($name:ident, $adapter:ty) => {
        conformance!($name, $adapter, [
            rows_survive_and_tables_are_apart,
            rows_come_in_the_order_of_their_keys,
            later_writes_of_a_batch_win,
            a_commit_is_seen_by_the_next_scan_of_another_task,
            a_batch_is_applied_only_if_all_its_conditions_hold,
            no_update_is_lost_under_concurrency,
            a_batch_of_the_greatest_size_is_taken_and_a_larger_one_refused,
            commit_until_killed,
        ]);
    };
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

conformance!(redb, super::RedbMetadata);
#[cfg(feature = "etcd")]
conformance!(etcd, crate::metadata::EtcdMetadata);

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

/// What only a store behind a network can get wrong, and the etcd of all these tests.
#[cfg(feature = "etcd")]
mod server {
    use super::*;
    use crate::metadata::{EtcdMetadata, EtcdOptions};
    use faasnet_actors::world::BatchLimits;
    use faasnet_loadtest::rig::Etcd;
    use std::time::Duration;

    /// Longer than etcd takes to begin on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn options(urls: &[String]) -> EtcdOptions {
        EtcdOptions {
            endpoints: urls.to_vec(),
            prefix: "/test/".into(),
            ca_file: None,
            identity: None,
            credentials: None,
            connect: Duration::from_secs(5),
            request: Duration::from_secs(20),
            deadline: PATIENCE,
            limits: BatchLimits { operations_max: 128, bytes_max: 1 << 20 },
            history: Duration::ZERO,
        }
    }

    /// An etcd and its folder.
    pub struct Server {
        etcd: Etcd,
        folder: TempDir,
    }

    impl Server {
        fn start(arguments: &[&str]) -> Self {
            let folder = TempDir::new().expect("folder");
            let etcd = Etcd::start_with(folder.path(), arguments).expect("etcd starts");
            Self { etcd, folder }
        }

        async fn open(&self) -> EtcdMetadata {
            EtcdMetadata::open(options(&[self.etcd.url()])).await.expect("opened")
        }

        /// One that gives up soon.
        async fn open_hasty(&self) -> EtcdMetadata {
            self.open().await.close().await;
            let hasty = Duration::from_millis(300);
            let options = EtcdOptions { request: hasty, deadline: hasty, ..options(&[self.etcd.url()]) };
            EtcdMetadata::open(options).await.expect("opened")
        }
    }

    impl Adapter for EtcdMetadata {
        type Home = Server;

        fn home() -> Server {
            Server::start(&[])
        }

        fn address(home: &Server) -> String {
            home.etcd.url()
        }

        async fn open_at(address: &str) -> Self {
            Self::open(options(&[address.to_owned()])).await.expect("opened")
        }
    }

    /// Commits again and again, as callers do that were told to come back.
    async fn commit_when_possible(store: &EtcdMetadata, key: &str) {
        while store.commit(vec![put(Table::Values, key, b"")].into()).await.is_err() {}
    }

    #[tokio::test]
    async fn two_writers_at_once_disturb_each_other_only_by_their_conditions() {
        let server = Server::start(&[]);
        // The second takes away the mark of the first when it opens.
        let (first, second) = (server.open().await, server.open().await);
        let write =
            |store: &str, number: usize| vec![put(Table::Vms, &format!("{store}-{number:02}"), b"")].into();
        let both = (0..20).flat_map(|number| {
            [first.commit(write("first", number)), second.commit(write("second", number))]
        });
        futures::future::try_join_all(both).await.expect("committed");
        assert_eq!(keys(&second, Table::Vms).await.len(), 40);
    }

    #[tokio::test]
    async fn a_commit_that_was_given_up_never_comes_after_a_later_one() {
        let server = Server::start(&[]);
        let store = server.open_hasty().await;
        commit_when_possible(&store, "before").await;
        server.etcd.freeze().expect("frozen");
        // What a frozen etcd was sent it reads when it goes on.
        for number in 0..3 {
            let lost = store.commit(vec![put(Table::Functions, "f", &[number])].into()).await;
            assert!(matches!(lost, Err(MetadataError::Unavailable(_))), "{lost:?}");
        }
        server.etcd.thaw().expect("thawed");
        while store.commit(vec![put(Table::Functions, "f", b"newest")].into()).await.is_err() {}
        // Every commit is behind whatever was still on its way.
        for number in 0..20 {
            commit_when_possible(&store, &format!("after-{number}")).await;
            let rows = store.scan(Table::Functions).await.expect("scanned");
            assert_eq!(rows[0].value, b"newest");
        }
    }

    #[tokio::test]
    async fn nothing_acknowledged_is_lost_when_etcd_is_killed_and_comes_back() {
        let mut server = Server::start(&[]);
        let store = server.open_hasty().await;
        let mut acknowledged = Vec::new();
        for round in 0..3 {
            for number in 0..5 {
                let key = format!("{round}-{number}");
                commit_when_possible(&store, &key).await;
                acknowledged.push(key);
            }
            server.etcd.kill().expect("killed");
            let away = store.commit(vec![put(Table::Values, "away", b"")].into()).await;
            assert!(matches!(away, Err(MetadataError::Unavailable(_))), "{away:?}");
            server.etcd.start_again().expect("started");
        }
        commit_when_possible(&store, "last").await;
        let kept = loop {
            if let Ok(rows) = store.scan(Table::Values).await {
                break rows.into_iter().map(|row| row.key).collect::<Vec<_>>();
            }
        };
        acknowledged.push("last".into());
        assert!(acknowledged.iter().all(|key| kept.contains(key)), "{kept:?}");
    }

    #[tokio::test]
    async fn a_commit_under_way_waits_for_an_etcd_that_is_started_again_soon() {
        let mut server = Server::start(&[]);
        let store = server.open().await;
        server.etcd.kill().expect("killed");
        let commit = store.commit(vec![put(Table::Values, "key", b"")].into());
        let (committed, ()) = tokio::join!(commit, async { server.etcd.start_again().expect("started") });
        committed.expect("it came back in time");
        assert_eq!(keys(&store, Table::Values).await, ["key"]);
    }

    #[tokio::test]
    async fn the_next_endpoint_is_asked_when_one_is_away() {
        let server = Server::start(&[]);
        let away = "http://127.0.0.1:9".to_owned();
        let store = EtcdMetadata::open(options(&[away, server.etcd.url()])).await.expect("opened");
        store.commit(vec![put(Table::Values, "key", b"")].into()).await.expect("committed");
        assert_eq!(keys(&store, Table::Values).await, ["key"]);
    }

    #[tokio::test]
    async fn a_full_etcd_says_so_keeps_everything_and_goes_on_when_it_has_room() {
        let mut server = Server::start(&["--quota-backend-bytes", "1000000"]);
        let store = server.open().await;
        let mut acknowledged = Vec::new();
        let (uncertain, refused) = loop {
            let key = format!("{:03}", acknowledged.len());
            match store.commit(vec![put(Table::Values, &key, &[7; 100_000])].into()).await {
                Ok(()) => acknowledged.push(key),
                Err(error) => break (key, error),
            }
            assert!(acknowledged.len() < 100, "it takes more than its quota");
        };
        assert!(matches!(&refused, MetadataError::Full(text) if text.contains("alarm disarm")), "{refused}");
        // etcd asks for its quota when it takes a write and when it applies it; it applies it all the same.
        assert!(refused.is_uncertain());
        let kept = async || {
            let mut kept = keys(&store, Table::Values).await;
            kept.retain(|key| *key != uncertain);
            kept
        };
        assert_eq!(kept().await, acknowledged, "reads go on");

        server.etcd.kill().expect("killed");
        server.etcd.start_again().expect("with the usual quota");
        let disarm = || {
            let mut etcdctl = Command::new("etcdctl");
            etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &server.etcd.url(), "alarm", "disarm"]);
            etcdctl.stderr(Stdio::null()).stdout(Stdio::null()).status().expect("started").success()
        };
        while !disarm() {}
        commit_when_possible(&store, "later").await;
        acknowledged.push("later".into());
        assert_eq!(kept().await, acknowledged);
    }

    #[tokio::test]
    async fn another_format_is_refused() {
        let server = Server::start(&[]);
        server.open().await.close().await;
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args([
            "--endpoints",
            &server.etcd.url(),
            "put",
            "/test/format",
            "99",
        ]);
        assert!(etcdctl.stdout(Stdio::null()).status().expect("started").success());
        let refused = EtcdMetadata::open(options(&[server.etcd.url()])).await.err().expect("refused");
        assert!(format!("{refused:#}").contains("another format"), "{refused:#}");
        assert!(server.folder.path().exists());
    }

    #[tokio::test]
    async fn an_etcd_with_users_wants_the_right_password() {
        let server = Server::start(&[]);
        let open = server.open().await;
        open.close().await;
        let url = server.etcd.url();
        let etcdctl = |arguments: &[&str]| {
            let mut etcdctl = Command::new("etcdctl");
            etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &url]).args(arguments);
            assert!(etcdctl.stdout(Stdio::null()).status().expect("started").success(), "{arguments:?}");
        };
        etcdctl(&["user", "add", "root:secret"]);
        etcdctl(&["user", "grant-role", "root", "root"]);
        etcdctl(&["auth", "enable"]);
        let with = |credentials: Option<(&str, &str)>| {
            let credentials = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
            EtcdMetadata::open(EtcdOptions { credentials, ..options(std::slice::from_ref(&url)) })
        };
        let store = with(Some(("root", "secret"))).await.expect("opened");
        store.commit(vec![put(Table::Values, "key", b"")].into()).await.expect("committed");
        assert_eq!(keys(&store, Table::Values).await, ["key"]);
        for wrong in [None, Some(("root", "guessed"))] {
            let refused = with(wrong).await.err().expect("refused");
            assert!(format!("{refused:#}").contains("user"), "{refused:#}");
        }
    }
}

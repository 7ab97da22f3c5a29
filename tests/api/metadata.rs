//! A real manager whose metadata store is full, away, or taken over by another manager.

use super::world::PATIENCE;
use faasnet::up::ManagerReady;
use faasnet_loadtest::rig::Etcd;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

struct Manager {
    child: Child,
    log: PathBuf,
    api: String,
    token: String,
    client: reqwest::Client,
}

impl Manager {
    /// Starts one on the data folder and waits until it is ready.
    async fn start(data: &Path, settings: &[(&str, String)]) -> Self {
        std::fs::create_dir_all(data).expect("the data folder");
        let log = data.with_extension("log");
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_faasnet"));
        command.arg("manager").arg("--data").arg(data);
        command.env("FAASNET__HTTP__LISTEN", "127.0.0.1:0").env("FAASNET__MANAGER__LISTEN", "127.0.0.1:0");
        for (key, value) in settings {
            command.env(format!("FAASNET__{key}"), value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).kill_on_drop(true);
        let mut child = command.spawn().expect("started");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let line = output.lines().next_line().await.expect("text");
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let line = line.unwrap_or_else(|| panic!("the manager is not ready: {}", said()));
        let ready: ManagerReady = serde_json::from_str(&line).expect("what a manager says");
        // A second manager on one store has the tokens of the first.
        let token = std::fs::read_to_string(&ready.token_file).unwrap_or_default().trim().to_owned();
        Self { child, log, api: ready.api, token, client: client() }
    }

    async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    async fn put(&self, name: &str, env: &str) -> reqwest::Response {
        let spec = json!({ "image": "oci:/nowhere:latest", "env": { "TEXT": env } });
        let request = self.client.put(format!("{}/v1/functions/{name}", self.api));
        request.bearer_auth(&self.token).json(&spec).send().await.expect("answered")
    }

    /// Puts it again and again, as a caller does that is told to come back.
    async fn put_at_last(&self, name: &str) {
        while !self.put(name, "").await.status().is_success() {}
    }

    async fn functions(&self) -> Vec<String> {
        let request = self.client.get(format!("{}/v1/functions", self.api)).bearer_auth(&self.token);
        let answer: Value = request.send().await.expect("answered").json().await.expect("json");
        let functions = answer["functions"].as_array().expect("functions").iter();
        functions.map(|function| function["name"].as_str().expect("a name").to_owned()).collect()
    }
}

fn client() -> reqwest::Client {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("client")
}

/// The code and the words of a refusal that says when to come back.
async fn refusal(response: reqwest::Response) -> (String, String) {
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let problem: Value = response.json().await.expect("json");
    let text = |key: &str| problem[key].as_str().expect("text").to_owned();
    (text("code"), text("detail"))
}

/// A small file system of its own; unmounted when dropped, also by a failing test.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(options: &str, disk: &Path) {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "faasnet-test"]).arg(disk);
        assert!(mount.status().expect("started").success(), "mounting needs root");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have files open.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_manager_on_a_full_disk_says_so_reads_on_and_recovers() {
    let disk = SmallDisk(TempDir::new().expect("folder"));
    SmallDisk::mount("size=8m", disk.0.path());
    let data = disk.0.path().join("data");
    let manager = Manager::start(&data, &[]).await;
    let text = "x".repeat(60_000);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let name = format!("f{:03}", acknowledged.len());
        let answer = manager.put(&name, &text).await;
        if !answer.status().is_success() {
            break refusal(answer).await;
        }
        acknowledged.push(name);
        assert!(acknowledged.len() < 500, "the disk takes more than it has");
    };
    assert_eq!(refused.0, "metadata_full");
    assert!(refused.1.contains("make room"), "{}", refused.1);
    assert_eq!(manager.functions().await, acknowledged, "reads go on");

    SmallDisk::mount("remount,size=64m", disk.0.path());
    manager.put_at_last("later").await;
    acknowledged.push("later".into());
    manager.kill().await;
    assert_eq!(Manager::start(&data, &[]).await.functions().await, acknowledged);
}

async fn etcd(folder: &TempDir) -> (Etcd, [(&'static str, String); 4]) {
    let etcd = Etcd::start(folder.path()).expect("etcd starts");
    let settings = [
        ("METADATA__STORE", "etcd".into()),
        ("METADATA__ETCD_ENDPOINTS", etcd.url()),
        ("METADATA__ETCD_REQUEST_MS", "1000".into()),
        ("METADATA__ETCD_COMMIT_MS", "2000".into()),
    ];
    let client = client();
    while !client.get(format!("{}/health", etcd.url())).send().await.is_ok_and(|it| it.status().is_success())
    {
    }
    (etcd, settings)
}

#[tokio::test]
async fn a_manager_without_its_etcd_says_so_reads_on_and_recovers() {
    let folder = TempDir::new().expect("folder");
    let (etcd, settings) = etcd(&folder).await;
    let data = folder.path().join("data");
    let manager = Manager::start(&data, &settings).await;
    manager.put_at_last("before").await;

    etcd.freeze().expect("frozen");
    let (code, detail) = refusal(manager.put("lost", "").await).await;
    assert_eq!(code, "metadata_unavailable");
    assert!(detail.contains("no answer within"), "{detail}");
    assert_eq!(manager.functions().await, ["before"], "reads go on");

    etcd.thaw().expect("thawed");
    manager.put_at_last("later").await;
    manager.kill().await;
    let kept = Manager::start(&data, &settings).await.functions().await;
    assert!(["before", "later"].iter().all(|name| kept.iter().any(|kept| kept == name)), "{kept:?}");
}

#[tokio::test]
async fn a_manager_that_was_superseded_ends_and_says_why() {
    let folder = TempDir::new().expect("folder");
    let (_etcd, settings) = etcd(&folder).await;
    let mut first = Manager::start(&folder.path().join("first"), &settings).await;
    first.put_at_last("by-the-first").await;
    let mut second = Manager::start(&folder.path().join("second"), &settings).await;
    let ended =
        tokio::time::timeout(PATIENCE, first.child.wait()).await.expect("it ends").expect("waited for");
    assert!(!ended.success());
    let said = std::fs::read_to_string(&first.log).expect("a log");
    assert!(said.contains("another manager has taken over"), "{said}");
    second.token.clone_from(&first.token);
    second.put_at_last("by-the-second").await;
    assert_eq!(second.functions().await, ["by-the-first", "by-the-second"]);
}

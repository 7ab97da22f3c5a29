//! Verbs that show what changes until Ctrl-C, as the real binary.

use super::{
    cli::command,
    world::{PATIENCE, World},
};
use faasnet_actors::{
    event_log::{Happening, News},
    function_tree::TreeNews,
    id::{Digest, Epoch},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
};

/// A running verb.
struct Follower {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Follower {
    fn start(world: &World, arguments: &[&str]) -> Self {
        let mut command = command(arguments);
        command.env("FAASNET_API", &world.url).env("FAASNET_TOKEN", &world.admin);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        let out = BufReader::new(child.stdout.take().expect("piped")).lines();
        let err = BufReader::new(child.stderr.take().expect("piped")).lines();
        Self { child, out, err }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.out.next_line()).await.expect("in time");
        line.expect("read").expect("a line")
    }

    async fn said(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.err.next_line()).await.expect("in time");
        line.expect("read").expect("a line")
    }

    /// What Ctrl-C does to it: its exit code, and what it still printed.
    async fn interrupted(mut self) -> (Option<i32>, Option<String>) {
        let id = self.child.id().expect("it runs");
        kill_process(Pid::from_raw(id as i32).expect("an id"), Signal::INT).expect("sent");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("in time");
        (status.expect("ended").code(), self.out.next_line().await.expect("read"))
    }
}

impl World {
    /// Lets the tree of the function have this many VMs, and tells of it.
    async fn grow(&self, vms: usize) {
        let spec = json!({
            "image": "registry.example/app:1", "min_instances": vms, "max_instances": 9,
        });
        let put = self.as_admin("PUT", "/v1/functions/grown").json(&spec).send().await.expect("answered");
        assert!(put.status().is_success(), "{}", put.text().await.expect("text"));
        self.tell_of("grown");
    }

    /// Tells that the tree of the function has changed.
    fn tell_of(&self, function: &str) {
        let image = Digest::from_bytes([1; 32]);
        // From this the log knows whose tree that of the image is.
        let view = json!({
            "name": function, "image": "app:1", "ready": 0, "starting": 0, "waiting": 0,
            "image_state": {"state": "ready", "id": image, "source": image, "plain_bytes": 1, "stored_bytes": 1},
        });
        let view = Happening::Function(serde_json::from_value(view).expect("a view"));
        let left = TreeNews::Left { vm: "vm-9".parse().expect("name"), epoch: Epoch::default() };
        for happening in [view, Happening::of_tree(image, left)] {
            self.log.teller.tell(News::of(&"default".parse().expect("name"), happening));
        }
    }
}

#[actix_web::test]
async fn a_tree_that_is_watched_is_drawn_when_it_changes() {
    let world = World::new().await;
    let mut watch = Follower::start(&world, &["tree", "grown", "--watch"]);
    assert_eq!(watch.said().await, "there is no tree; watching for it");
    world.grow(1).await;
    assert!(watch.line().await.ends_with("VMs 1"));
    assert_eq!(watch.line().await, "vm-0  ● ████████████████████ 100/100");
    // What leaves it as it is shows nothing.
    world.tell_of("grown");
    world.grow(2).await;
    assert_eq!(watch.line().await, "");
    assert!(watch.line().await.ends_with("VMs 2"));
    assert_eq!(watch.line().await, "vm-0      ● ████████████████████ 100/100");
    assert_eq!(watch.line().await, "└── vm-1  ● ███████████████░░░░░ 75/100");
    assert_eq!(watch.interrupted().await, (Some(130), None));
}

#[actix_web::test]
async fn a_watch_waits_for_a_manager_that_is_away() {
    let world = World::new().await;
    world.grow(1).await;
    let mut watch = Follower::start(&world, &["tree", "grown", "--watch", "--json"]);
    let vms = |line: String| {
        let tree: Value = serde_json::from_str(&line).expect("one object a line");
        tree["members"].as_array().expect("members").len()
    };
    assert_eq!(vms(watch.line().await), 1);
    world.ready.send_replace(false);
    assert_eq!(watch.said().await, "the stream has ended; waiting for the manager");
    world.ready.send_replace(true);
    assert_eq!(vms(watch.line().await), 1, "it is back");
    world.grow(3).await;
    assert_eq!(vms(watch.line().await), 3);
    assert_eq!(watch.interrupted().await, (Some(130), None));
}

#[actix_web::test]
async fn events_end_with_ctrl_c() {
    let world = World::new().await;
    world.tell_of("app");
    let mut events = Follower::start(&world, &["events", "--since", "0", "--kind", "member_left"]);
    assert!(events.line().await.ends_with("vm-9          app               left the tree"));
    assert_eq!(events.interrupted().await, (Some(130), None));
}

#[actix_web::test]
async fn in_a_terminal_a_tree_is_drawn_in_its_place() {
    let world = World::new().await;
    world.grow(1).await;
    // A terminal of four rows, of which the last is the cursor's.
    let verb = format!("stty rows 4 columns 120; exec {} tree grown --watch", env!("CARGO_BIN_EXE_faasnet"));
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &verb, "/dev/null"]).kill_on_drop(true);
    terminal.env("FAASNET_API", &world.url).env("FAASNET_TOKEN", &world.admin).env("TERM", "xterm");
    terminal.env("SHELL", "/bin/sh");
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let mut out = child.stdout.take().expect("piped");
    let mut seen = String::new();
    let mut until = async |wanted: &str| {
        while !seen.ends_with(wanted) {
            let mut bytes = [0; 1024];
            let got = tokio::time::timeout(PATIENCE, out.read(&mut bytes)).await;
            let got = got.unwrap_or_else(|_| panic!("{wanted:?} is not in {seen:?}")).expect("read");
            assert!(got > 0, "{wanted:?} is not in {seen:?}");
            seen += &String::from_utf8_lossy(&bytes[..got]);
        }
        std::mem::take(&mut seen)
    };
    until("100/100\r\n").await;
    world.grow(4).await;
    let drawn = until("... and 3 more\r\n").await;
    assert!(drawn.starts_with("\u{1b}[2A\r\u{1b}[Jsha256:"), "{drawn:?}");
    child.stdin.as_mut().expect("piped").write_all(b"\x03").await.expect("typed");
    until("\r\n").await;
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("in time").expect("ended");
    assert_eq!(status.code(), Some(130));
}

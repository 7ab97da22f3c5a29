//! The holder as a process: alone in its folder, detached from the agent, and tidy.

use crate::support::{Agent, Holder, PATIENCE, PROGRAM, TestImage, ends_within, file_system};
use faasnet::holder::spawn_program;
use faasnet_actors::wire::holder::{Exit, FromHolder, ToHolder};
use rustix::process::{Pid, Signal, getsid, kill_process};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

/// Its own log and those of containers.
const LOGS: [&str; 2] = ["holder.log", "logs"];

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("lists").flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[test]
fn a_shutdown_leaves_only_logs() {
    let image = TestImage::new();
    let mut holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let forking = agent.run(image.run("start-1", "sleep 1000 & sleep 1000")).expect("runs");
    let polite =
        agent.run(image.run("start-2", "trap 'exit 0' TERM; while :; do sleep 0.05; done")).expect("runs");
    assert!(!holder.cgroups().is_empty());
    assert!(holder.mounts() >= 6, "{}", holder.mounts());
    agent.order(&ToHolder::Shutdown { grace_ms: 300 });
    agent.until(|message| (*message == FromHolder::Bye).then_some(()));
    assert!(holder.ended().success());
    for pid in [forking, polite] {
        assert!(ends_within(pid, std::time::Duration::ZERO));
    }
    assert_eq!(holder.remains(), Vec::<String>::new());
    assert_eq!(holder.cgroups(), Vec::<std::path::PathBuf>::new());
    assert_eq!(names(holder.data.path()), ["logs"]);
}

#[test]
fn signals_end_it_as_a_shutdown_does() {
    for signal in [Signal::TERM, Signal::INT] {
        let image = TestImage::new();
        let mut holder = Holder::start();
        let mut agent = holder.agent(&image);
        agent.mount(image.mount_whole()).expect("mounts");
        let pid = agent
            .run(image.run("start-1", "trap 'exit 0' TERM; while :; do sleep 0.05; done"))
            .expect("runs");
        drop(agent);
        kill_process(Pid::from_child(&holder.child), signal).expect("sent");
        assert!(holder.ended().success());
        assert!(ends_within(pid, std::time::Duration::ZERO));
        assert_eq!(holder.remains(), Vec::<String>::new());
        assert_eq!(holder.cgroups(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn an_end_without_an_agent_is_told_to_the_next() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let mut run =
        image.run("start-1", "read line < /dev/shm/x || while [ ! -e /tmp/go ]; do sleep 0.01; done; exit 4");
    run.port = 77;
    let pid = agent.run(run).expect("runs");
    drop(agent);
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").expect("written into the container");
    assert!(ends_within(pid, PATIENCE));
    // Its end is told when it was cleaned up, which may be after the next agent said hello.
    let mut next = holder.agent(&image);
    let (mounts, instances) = next.state();
    assert_eq!(mounts, [image.id]);
    let held = &instances[0];
    assert_eq!((held.start.as_str(), held.image, held.port), ("start-1", image.id, 77));
    assert_eq!(held.exit.unwrap_or_else(|| next.exit()), Exit::Code(4));
    drop(next);
    // Told again, because we did nothing that shows that we know; then no more.
    let mut third = holder.agent(&image);
    assert_eq!(third.state().1[0].exit, Some(Exit::Code(4)));
    third.mount(image.mount_whole()).expect("is mounted");
    drop(third);
    assert_eq!(holder.agent(&image).state(), (vec![image.id], Vec::new()));
}

#[test]
fn the_next_holder_clears_what_a_killed_one_left() {
    let image = TestImage::new();
    let mut holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let pid = agent.run(image.run("start-1", "exec sleep 1000")).expect("runs");
    drop(agent);
    holder.child.kill().expect("killed");
    holder.ended();
    // Whether the container outlives its holder depends on which pages it needs next.
    assert!(!holder.remains().is_empty());
    holder.child = Holder::launch(&mut Holder::command(holder.data.path(), &[]));
    assert!(ends_within(pid, std::time::Duration::ZERO), "the next holder ended it before it was ready");
    assert_eq!(holder.remains(), Vec::<String>::new());
    let mut agent = holder.agent(&image);
    assert_eq!(agent.state(), (Vec::new(), Vec::new()));
    agent.mount(image.mount_whole()).expect("mounts");
    agent.run(image.run("start-1", "exit 0")).expect("runs again");
    assert_eq!(agent.exit(), Exit::Code(0));
}

#[test]
fn a_killed_holder_is_gone_whatever_hangs_on_its_reads() {
    let image = TestImage::new();
    let mut holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.serves = false;
    // The mount waits for the first block.
    agent.order(&ToHolder::Mount(image.mount(&[])));
    agent.until(|message| matches!(message, FromHolder::Miss { .. }).then_some(()));
    drop(agent);
    holder.child.kill().expect("killed");
    holder.ended();

    holder.child = Holder::launch(&mut Holder::command(holder.data.path(), &[]));
    let mut agent = holder.agent(&image);
    agent.serves = false;
    let missing = image.block_of(2_000_000);
    agent.mount(image.mount_without(missing)).expect("mounts");
    agent.run(image.run("start-1", "exec cat /data/big")).expect("runs");
    agent.until_asked(missing);
    drop(agent);
    holder.child.kill().expect("killed");
    holder.ended();
    holder.child = Holder::launch(&mut Holder::command(holder.data.path(), &[]));
    assert_eq!(holder.remains(), Vec::<String>::new());
}

#[test]
fn a_runtime_does_not_outlive_its_holder() {
    let image = TestImage::new();
    let folder = tempfile::tempdir().expect("folder");
    let (runtime, pid_file) = (folder.path().join("runtime"), folder.path().join("pid"));
    // Hangs as a runtime on a slow machine may, and says who it is.
    let script =
        format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}; exec sleep 1000\n", pid_file.display());
    fs::write(&runtime, script).expect("written");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("mode");
    let mut holder = Holder::start_with(&[("runtime", runtime.to_str().expect("text"))]);
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    agent.order(&ToHolder::Run(Box::new(image.run("start-1", "true"))));
    let pid = agent.serve_until(|| fs::read_to_string(&pid_file).ok()?.trim().parse().ok());
    drop(agent);
    holder.child.kill().expect("killed");
    holder.ended();
    assert!(ends_within(pid, PATIENCE));
}

#[test]
fn it_is_started_once_detached_and_reused() {
    let image = TestImage::new();
    let data = tempfile::tempdir().expect("folder");
    spawn_program(Path::new(PROGRAM), data.path(), None).expect("starts");
    let mut agent = Agent::connect(data.path(), &image);
    let pid = agent.holder_pid();
    assert_eq!(getsid(Pid::from_raw(pid as i32)).expect("session"), Pid::from_raw(pid as i32).expect("pid"));
    let parent = fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("namespace");
    assert_ne!(parent, fs::read_link("/proc/self/ns/mnt").expect("namespace"));
    spawn_program(Path::new(PROGRAM), data.path(), None).expect("is there");
    agent.mount(image.mount_whole()).expect("is the same one, still connected");
    assert!(file_system(pid, data.path(), &image).join("data/big").exists());
    agent.order(&ToHolder::Shutdown { grace_ms: 0 });
    agent.until(|message| (*message == FromHolder::Bye).then_some(()));
    assert!(ends_within(pid, PATIENCE));
    assert_eq!(names(data.path()), LOGS);
}

#[test]
fn a_second_holder_for_the_same_folder_is_refused() {
    let holder = Holder::start();
    let mut second = Holder::command(holder.data.path(), &[]);
    let second = second.stdin(Stdio::null()).output().expect("runs");
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("another holder serves"), "{text}");
    let image = TestImage::new();
    holder.agent(&image).state();
}

#[test]
fn others_cannot_reach_the_socket() {
    let holder = Holder::start();
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(holder.data.path()), 0o700);
    assert_eq!(mode(&holder.data.path().join("holder.sock")), 0o600);
}

#[test]
fn without_fuse_the_reason_says_so() {
    let image = TestImage::new();
    let data = tempfile::tempdir().expect("folder");
    let mut command = Command::new("unshare");
    let hidden =
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec \"$@\"";
    command.args(["--mount", "sh", "-c", hidden, "sh", PROGRAM, "holder", "--data"]).arg(data.path());
    let child = Holder::launch(&mut command);
    let holder = Holder { data, child };
    let mut agent = holder.agent(&image);
    let reason = agent.mount(image.mount_whole()).expect_err("no device");
    assert!(reason.contains("/dev/fuse") && reason.contains("modprobe fuse"), "{reason}");
}

#[test]
fn what_is_not_understood_ends_the_connection_only() {
    use std::io::{Read, Write};
    let image = TestImage::new();
    let holder = Holder::start();
    let long = [255; 64];
    let not_hello =
        faasnet_actors::wire::frame::encode_head(&ToHolder::Shutdown { grace_ms: 0 }, 0).expect("encodes");
    let too_new =
        faasnet_actors::wire::frame::encode_head(&ToHolder::Hello { version: 99 }, 0).expect("encodes");
    for bytes in [&long[..], &not_hello, &too_new] {
        let mut stream = std::os::unix::net::UnixStream::connect(holder.data.path().join("holder.sock"))
            .expect("connects");
        stream.write_all(bytes).expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("is hung up on");
    }
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
}

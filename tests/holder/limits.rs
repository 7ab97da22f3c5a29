//! The limits of a container hold.

use crate::support::{Holder, TestImage};
use faasnet_actors::wire::holder::{Exit, Run};

fn finished(script: &str, change: impl FnOnce(&mut Run)) -> (Exit, String, u64) {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let mut run = image.run("start-1", script);
    change(&mut run);
    agent.run(run).expect("runs");
    let exit = agent.exit();
    let logs = std::fs::read_dir(holder.data.path().join("logs")).expect("lists").flatten();
    let log_bytes = logs.map(|entry| entry.metadata().expect("is there").len()).sum();
    (exit, holder.log("start-1"), log_bytes)
}

#[test]
fn memory_is_limited_and_the_reason_is_told() {
    let script = "echo before; exec tail -c 200000000 /dev/zero";
    let (exit, log, _) = finished(script, |run| run.memory_bytes = 32 << 20);
    assert_eq!((exit, log.as_str()), (Exit::OutOfMemory, "before\n"));
}

#[test]
fn the_reason_is_told_when_only_a_child_ran_out_of_memory() {
    let script = "tail -c 200000000 /dev/zero; exit 9";
    assert_eq!(finished(script, |run| run.memory_bytes = 32 << 20).0, Exit::OutOfMemory);
    // Who survives it was not ended by it.
    let script = "tail -c 200000000 /dev/zero; exit 0";
    assert_eq!(finished(script, |run| run.memory_bytes = 32 << 20).0, Exit::Code(0));
}

#[test]
fn processes_are_limited() {
    let script = "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 100 & echo up; done; exit 0";
    let (_, log, _) = finished(script, |run| run.pids_max = 8);
    assert_eq!(log.matches("up\n").count(), 7, "{log}");
    assert!(log.contains("can't fork"), "{log}");
}

#[test]
fn what_may_be_written_is_limited() {
    let script = "dd if=/dev/zero of=/data/x bs=65536 count=100; busybox rm /data/x; n=0; \
                  while true > /tmp/f$n && [ $n -lt 3000 ]; do n=$((n+1)); done; echo files=$n";
    let (_, log, _) = finished(script, |run| run.writable_bytes = 4 << 20);
    assert!(log.contains("No space left on device"), "{log}");
    let files: u32 = log.lines().find_map(|line| line.strip_prefix("files=")?.parse().ok()).expect("counted");
    assert!(files < 3000, "{log}");
}

#[test]
fn output_is_bounded_and_the_newest_is_kept() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo the end";
    let (exit, log, log_bytes) = finished(script, |run| run.log_bytes_max = 10_000);
    assert_eq!(exit, Exit::Code(0));
    assert!(log.ends_with("line 19999\nthe end\n"), "{}", &log[log.len() - 100..]);
    assert!((5_000..=10_000).contains(&log.len()), "{}", log.len());
    assert!(log_bytes <= 10_000, "{log_bytes}");
}

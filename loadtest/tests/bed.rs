//! The test bed on real namespaces. Needs root and iproute2.

#![allow(clippy::unwrap_used, reason = "clippy knows test functions, but not the helpers beside them")]

use faasnet_loadtest::bed::{Bed, BedSpec, HostSpec, LinkChange, Rate, list, remove};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn bed(hosts: &[(&str, Option<Rate>)]) -> Bed {
    let hosts = hosts.iter().map(|(name, rate)| HostSpec::new(*name, *rate)).collect();
    Bed::up(BedSpec { hosts }).expect("the bed goes up")
}

fn listen(bed: &Bed, host: &str) -> TcpListener {
    let address = bed.address(host).unwrap();
    bed.inside(host, || TcpListener::bind((address, 0))).unwrap().unwrap()
}

fn connect(bed: &Bed, host: &str, to: SocketAddr, within: Duration) -> std::io::Result<TcpStream> {
    bed.inside(host, || TcpStream::connect_timeout(&to, within)).unwrap()
}

/// Sends that many bytes over TCP; the time until the receiver has the last of them.
fn transfer(bed: &Bed, from: &str, to: &str, bytes: usize) -> Duration {
    let listener = listen(bed, to);
    let mut sender = connect(bed, from, listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
    let begin = Instant::now();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    for _ in 0..bytes / 65536 {
        sender.write_all(&[7; 65536]).unwrap();
    }
    drop(sender);
    assert_eq!(receiver.join().unwrap(), bytes as u64);
    begin.elapsed()
}

#[test]
fn a_link_carries_its_rate_and_counts_what_was_sent() {
    const BYTES: usize = 192 * 65536;
    let rate = Rate::mbit(100);
    let bed = bed(&[("fast", None), ("slow", Some(rate))]);
    let ideal = BYTES as f64 / rate.bytes_per_s() as f64;
    for (from, to) in [("slow", "fast"), ("fast", "slow")] {
        let (sent, received) = (bed.counters(from).unwrap(), bed.counters(to).unwrap());
        let seconds = transfer(&bed, from, to, BYTES).as_secs_f64();
        let sent = bed.counters(from).unwrap().sent_bytes - sent.sent_bytes;
        let received = bed.counters(to).unwrap().received_bytes - received.received_bytes;
        eprintln!("{from} to {to}: {seconds:.2} s, ideal {ideal:.2} s, sent {sent}, received {received}");
        // The burst passes at once, so slightly faster than ideal is right; a busy machine is slower.
        assert!((0.9..5.0).contains(&(seconds / ideal)), "{seconds} s, ideal {ideal} s");
        // Headers, and what the shaper dropped and TCP sent again.
        for counted in [sent, received] {
            let ratio = counted as f64 / BYTES as f64;
            assert!((1.0..1.25).contains(&ratio), "{counted} bytes counted for {BYTES}");
        }
    }
}

#[test]
fn a_link_can_be_reshaped() {
    let bed = bed(&[("one", Some(Rate::mbit(1000))), ("two", Some(Rate::mbit(1000)))]);
    let fast = transfer(&bed, "one", "two", 32 * 65536);
    bed.set_link("one", LinkChange::Rate(Rate::mbit(10))).unwrap();
    let slow = transfer(&bed, "one", "two", 32 * 65536);
    assert!(slow > fast * 4, "{fast:?} at 1 Gbit/s, {slow:?} at 10 Mbit/s");
}

#[test]
fn a_partition_silences_two_hosts_and_no_third() {
    let bed = bed(&[("a", None), ("b", None), ("c", None)]);
    let listener = listen(&bed, "b");
    let address = listener.local_addr().unwrap();
    let short = Duration::from_millis(300);
    connect(&bed, "a", address, short).expect("connected before");
    bed.partition("a", "b").unwrap();
    let error = connect(&bed, "a", address, short).expect_err("silence");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    connect(&bed, "c", address, short).expect("the third host is not concerned");
    bed.heal("a", "b").unwrap();
    connect(&bed, "a", address, Duration::from_secs(5)).expect("healed");
}

#[test]
fn a_pulled_link_is_silent_until_it_is_plugged_again() {
    let bed = bed(&[("a", None), ("b", None)]);
    let listener = listen(&bed, "b");
    let address = listener.local_addr().unwrap();
    bed.set_link("b", LinkChange::Down).unwrap();
    assert!(connect(&bed, "a", address, Duration::from_millis(300)).is_err());
    bed.set_link("b", LinkChange::Up).unwrap();
    connect(&bed, "a", address, Duration::from_secs(10)).expect("plugged again");
}

#[test]
fn beds_stand_side_by_side() {
    let (one, other) = (bed(&[("a", None), ("b", None)]), bed(&[("a", None), ("b", None)]));
    let listener = listen(&one, "b");
    let address = listener.local_addr().unwrap();
    assert_eq!(one.address("b").unwrap(), other.address("b").unwrap());
    connect(&one, "a", address, Duration::from_secs(5)).expect("reached in its own bed");
    connect(&other, "a", address, Duration::from_secs(5)).expect_err("nobody listens in the other bed");
}

#[test]
fn a_dropped_bed_leaves_no_process_and_no_namespace() {
    let bed = bed(&[("a", Some(Rate::mbit(1000)))]);
    let id = bed.id().to_owned();
    let mut command = bed.command("a", "sh").unwrap();
    let mut child =
        command.args(["-c", "echo ready; exec sleep 1000"]).stdout(Stdio::piped()).spawn().unwrap();
    // Before that it may not have entered the namespace yet, and nobody would find it there.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    drop(bed);
    assert!(!child.wait().unwrap().success(), "it was killed");
    assert_gone(&id);
}

#[test]
fn a_bed_whose_maker_is_gone_is_taken_down_by_name() {
    let program = env!("CARGO_BIN_EXE_faasnet-loadtest");
    let run = |arguments: &[&str]| {
        let output = Command::new(program).arg("bed").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let id = run(&["up", "--vms", "2", "--rate", "1gbit", "--network-only"]).trim().to_owned();
    assert!(run(&["status"]).contains(&format!("{id}: 2 hosts, stands until `bed down`")));
    assert!(run(&["exec", &id, "vm-2", "ip", "-br", "address"]).contains("10.77.0.2/16"));
    run(&["shape", &id, "vm-1", "10mbit"]);
    assert!(run(&["exec", &id, "vm-1", "tc", "qdisc", "show", "dev", "eth0"]).contains("rate 10Mbit"));
    let mut inside = Command::new(program)
        .args(["bed", "exec", &id, "vm-1", "sh", "-c", "echo ready; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    inside.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    std::fs::remove_file(format!("/run/faasnet-bed/{id}.json")).unwrap();
    run(&["down", &id]);
    assert!(!inside.wait().unwrap().success(), "it was killed");
    assert_gone(&id);
}

/// As `ip netns add` leaves it when it is killed: a name that is no namespace yet.
#[test]
fn a_bed_that_was_interrupted_while_it_was_made_is_taken_down() {
    let kept = bed(&[("a", None)]).keep(None).unwrap();
    let half_made = format!("/run/netns/fbed-{}-b", kept.id());
    std::fs::write(&half_made, "").unwrap();
    remove(kept.id()).unwrap();
    assert_gone(kept.id());
    let nobody = format!("{:x}x0", u32::MAX);
    for name in [format!("fbed-{nobody}"), format!("fbed-{nobody}-a")] {
        std::fs::write(format!("/run/netns/{name}"), "").unwrap();
    }
    remove(&nobody).unwrap();
    assert_gone(&nobody);
}

#[test]
fn what_runs_on_a_host_is_paused_and_killed_by_hand_and_who_is_not_root_is_told() {
    let bed = bed(&[("a", None)]);
    let program = env!("CARGO_BIN_EXE_faasnet-loadtest");
    let verb = |arguments: &[&str]| {
        let output = Command::new(program).arg("bed").args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_fine, said) = verb(&["pause", bed.id(), "a"]);
    assert!(!is_fine && said.contains("nothing runs on a"), "{said}");
    let mut command = bed.command("a", "sh").unwrap();
    let mut child =
        command.args(["-c", "echo ready; exec sleep 1000"]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    assert!(verb(&["pause", bed.id(), "a"]).0);
    faasnet_loadtest::rig::wait_until("the process to stop", Duration::from_secs(20), || {
        Ok(state().contains(") T ").then_some(()))
    })
    .unwrap();
    assert!(verb(&["resume", bed.id(), "a"]).0);
    let (is_fine, said) = verb(&["kill", bed.id(), "a", "--agent"]);
    assert!(!is_fine && said.contains("no agent runs on a"), "{said}");
    assert!(verb(&["kill", bed.id(), "a"]).0);
    assert!(!child.wait().unwrap().success(), "it was killed");

    // Another user cannot read the folders of this build: the program is copied to where it can.
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let copy = folder.path().join("faasnet-loadtest");
    std::fs::copy(program, &copy).unwrap();
    let mut command = Command::new(&copy);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    let output = command.args(["bed", "up", "--network-only"]).current_dir("/").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("needs root"), "{said}");
}

#[test]
fn a_bed_that_is_not_there_is_said_so() {
    let program = env!("CARGO_BIN_EXE_faasnet-loadtest");
    let output = Command::new(program).args(["bed", "down", "nonesuch"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("there is no test bed nonesuch"), "{said}");
}

#[test]
fn hosts_that_cannot_be_named_are_refused() {
    for name in ["", "A", "a/b", "..", "a b"] {
        let spec = BedSpec { hosts: vec![HostSpec::new(name, None)] };
        assert!(Bed::up(spec).is_err(), "{name:?}");
    }
    assert!(remove("../../etc").is_err());
}

fn assert_gone(id: &str) {
    assert!(!list().unwrap().contains(&id.to_owned()));
    let names = std::fs::read_dir("/run/netns").unwrap().flatten().map(|entry| entry.file_name());
    assert!(!names.into_iter().any(|name| name.to_string_lossy().contains(id)));
}

//! What a container sees, and how its start and end are told.

use crate::support::{Holder, TestImage};
use faasnet_actors::wire::holder::{Exit, FromHolder, Run, ToHolder};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    thread,
};

/// Runs a container on a whole image to its end.
fn finished(change: impl FnOnce(&mut Run), script: &str) -> (Exit, String) {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let mut run = image.run("start-1", script);
    change(&mut run);
    agent.run(run).expect("runs");
    (agent.exit(), holder.log("start-1"))
}

fn refused(change: impl FnOnce(&mut Run)) -> String {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let mut run = image.run("start-1", "true");
    change(&mut run);
    let reason = agent.run(run).expect_err("refused");
    assert_eq!(holder.remains(), Vec::<String>::new());
    reason
}

#[test]
fn a_container_answers_http_from_an_image_that_comes_block_by_block() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    assert_eq!(agent.state(), (Vec::new(), Vec::new()));
    agent.mount(image.mount(&[])).expect("mounts");
    let port = TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address").port();
    let mut run = image.run("start-1", "exec httpd -f -p 127.0.0.1:$PORT -h /data");
    run.port = port;
    agent.run(run).expect("runs");
    let mut connection = agent.serve_until(|| TcpStream::connect(("127.0.0.1", port)).ok());
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asks");
    let answer = thread::spawn(move || {
        let mut text = String::new();
        connection.read_to_string(&mut text).map(|_| text)
    });
    agent.serve_until(|| answer.is_finished().then_some(()));
    let text = answer.join().expect("reads").expect("answer");
    assert!(text.contains("hello from an instance"), "{text}");
    let mut asked = agent.asked.clone();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), agent.asked.len(), "a block was asked for twice: {:?}", agent.asked);
    agent.order(&ToHolder::Unmount { image: image.id });
    let refusal = agent.until(|message| match message {
        FromHolder::MountFailed { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(refusal.contains("start-1"), "{refusal}");
    agent.order(&ToHolder::Stop { start: "start-1".parse().expect("name"), grace_ms: 0 });
    assert_eq!(agent.exit(), Exit::Signal(9));
}

#[test]
fn a_container_finds_what_image_and_function_say() {
    let script = "echo port=$PORT image=$IMAGE both=$BOTH; id -u; id -g; id -G; echo cwd=$(pwd); \
                  hostname; cat /etc/hosts; ls -d /dev/pts /dev/shm /proc/self /sys/fs/cgroup; echo $PATH";
    let change = |run: &mut Run| {
        run.runtime.entrypoint = vec!["/bin/busybox".into(), "sh".into(), "-c".into()];
        run.runtime.env = [("IMAGE", "a"), ("BOTH", "b")].map(|(k, v)| (k.into(), v.into())).into();
        run.env = [("BOTH", "c"), ("PORT", "9")].map(|(k, v)| (k.into(), v.into())).into();
        run.port = 8123;
        (run.runtime.uid, run.runtime.gid) = (1000, 1001);
        run.runtime.additional_gids = vec![1002];
        run.runtime.cwd = "/data".into();
    };
    let (exit, log) = finished(change, script);
    assert_eq!(exit, Exit::Code(0), "{log}");
    let wanted =
        ["port=8123 image=a both=c", "\n1000\n1001\n1001 1002\n", "cwd=/data\nstart-1\n127.0.0.1 localhost"];
    for part in
        wanted.into_iter().chain(["/dev/pts\n/dev/shm\n/proc/self\n/sys/fs/cgroup", "/usr/local/bin:"])
    {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
}

#[test]
fn a_container_is_confined() {
    // Each line is something that must be refused; it prints its number when it was not.
    let script = "mount -t tmpfs none /tmp && echo 1
                  (echo x > /proc/sys/kernel/hostname) && echo 2
                  [ -s /proc/kcore ] && echo 3
                  (echo 1 > /sys/kernel/uevent_seqnum) && echo 4
                  mknod /tmp/disk b 254 0 && cat /tmp/disk && echo 5
                  unshare -m true && echo 6
                  grep -q 'NoNewPrivs:.1' /proc/self/status || echo 7
                  grep -q 'Seccomp:.2' /proc/self/status || echo 8
                  grep CapEff /proc/self/status
                  [ $$ = 1 ] || echo 9
                  [ \"$(ls /proc | grep -c '^[0-9]')\" -lt 6 ] || echo 10
                  chroot / true || echo 11
                  dd if=/dev/fuse count=0 && echo 12; true";
    let busybox =
        |run: &mut Run| run.runtime.entrypoint = ["/bin/busybox", "sh", "-c"].map(Into::into).to_vec();
    let (exit, log) = finished(busybox, script);
    assert_eq!(exit, Exit::Code(0), "{log}");
    // Docker's default set, a80425fb, without CAP_NET_RAW (bit 13).
    assert!(log.contains("CapEff:\t00000000a80405fb"), "{log}");
    let not_refused = log.lines().filter(|line| line.parse::<u32>().is_ok()).collect::<Vec<_>>();
    assert!(not_refused.is_empty(), "{not_refused:?} in {log}");
}

#[test]
fn code_and_signal_of_the_end_are_told() {
    assert_eq!(finished(|_| {}, "exit 7").0, Exit::Code(7));
    assert_eq!(finished(|_| {}, "sleep 100 & kill -9 $!; wait $!; exit $?").0, Exit::Code(137));
    let (exit, log) = finished(|_| {}, "echo out; echo err >&2; exit 0");
    assert_eq!((exit, log.as_str()), (Exit::Code(0), "out\nerr\n"));
}

#[test]
fn a_stopped_container_gets_its_own_signal_and_time() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let mut run = image.run("start-1", "trap 'exit 3' USR1; echo trapped; while :; do sleep 0.05; done");
    run.runtime.stop_signal = 10;
    agent.run(run).expect("runs");
    agent.serve_until(|| holder.log("start-1").contains("trapped").then_some(()));
    agent.order(&ToHolder::Stop { start: "start-1".parse().expect("name"), grace_ms: 20_000 });
    assert_eq!(agent.exit(), Exit::Code(3));
}

#[test]
fn a_container_that_waits_for_a_block_is_stopped_at_once() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.serves = false;
    let missing = image.block_of(2_000_000);
    agent.mount(image.mount_without(missing)).expect("mounts");
    // `cat` is in sendfile(2), and holds the lock of the pipe to its log.
    agent.run(image.run("start-1", "exec cat /data/big")).expect("runs");
    agent.until_asked(missing);
    agent.order(&ToHolder::Stop { start: "start-1".parse().expect("name"), grace_ms: 0 });
    assert_eq!(agent.exit(), Exit::Signal(9));
    assert_eq!(holder.remains(), Vec::<String>::new());
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let command = |command: &str| {
        let args = vec![command.to_owned()];
        move |run: &mut Run| {
            run.runtime.entrypoint = args;
            run.runtime.cmd = Vec::new();
        }
    };
    let reason = refused(command("nope"));
    assert_eq!(reason, "exec: \"nope\": executable file not found in $PATH");
    let reason = refused(command("/data/index.html"));
    assert!(reason.contains("/data/index.html") && reason.contains("permission denied"), "{reason}");
    let reason = refused(|run| (run.runtime.entrypoint, run.runtime.cmd) = Default::default());
    assert!(reason.contains("ENTRYPOINT or CMD"), "{reason}");
    let reason = refused(|run| run.runtime.cwd = "/data/index.html".into());
    assert!(reason.contains("not a directory"), "{reason}");
    let reason = refused(|run| run.runtime.cwd = "data".into());
    assert!(reason.contains("absolute"), "{reason}");
    let reason = refused(|run| run.image = faasnet_actors::id::Digest::from_bytes([0; 32]));
    assert!(reason.contains("not mounted"), "{reason}");
}

#[test]
fn without_the_runtime_the_reason_names_it() {
    let image = TestImage::new();
    let holder = Holder::start_with(&[("runtime", "/nonexistent/runc")]);
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let reason = agent.run(image.run("start-1", "true")).expect_err("no runc");
    assert!(reason.contains("/nonexistent/runc is not installed"), "{reason}");
}

#[test]
fn the_image_below_stays_as_it_was() {
    let image = TestImage::with(|root| {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o751)).expect("mode");
    });
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    for (start, seen) in [("start-1", "751 hello"), ("start-2", "751 hello")] {
        let script = "/bin/busybox stat -c %a /; head -c 5 /data/index.html; echo changed > /data/index.html; \
                      /bin/busybox rm -r /data/big";
        agent.run(image.run(start, script)).expect("runs");
        assert_eq!(agent.exit(), Exit::Code(0));
        assert_eq!(holder.log(start).replace('\n', " "), seen);
    }
}

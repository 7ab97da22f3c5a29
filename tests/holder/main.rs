//! The holder as a process, driven over its socket by a test in the place of the agent. Needs root,
//! `runc`, `mkfs.erofs` and a static busybox.

mod support;

use faasnet_actors::wire::holder::{Exit, FromHolder, ToHolder};
use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    thread,
};
use support::{Holder, PATIENCE, TestImage};

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
    agent.order(&ToHolder::Stop { start: "start-1".parse().expect("name"), grace_ms: 0 });
    assert_eq!(agent.exit(), Exit::Signal(9));
}

#[test]
fn reads_wait_for_their_blocks_and_see_the_right_bytes() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount(&[])).expect("mounts");
    let path = holder.file_system(&image).join("data/big");
    let reading = thread::spawn(move || {
        let file = File::open(path).expect("opens");
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).expect("reads");
        // Beyond the end, and across it.
        let mut rest = [7; 100];
        assert_eq!(file.read_at(&mut rest, bytes.len() as u64).expect("reads"), 0);
        assert_eq!(file.read_at(&mut rest, bytes.len() as u64 - 10).expect("reads"), 10);
        bytes
    });
    agent.serve_until(|| reading.is_finished().then_some(()));
    assert!(reading.join().expect("reads") == image.big);
    let _ = PATIENCE;
    let _ = FromHolder::Bye;
}

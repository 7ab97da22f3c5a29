//! Reads of a mounted image whose blocks come late, one by one, or never.

use crate::support::{Agent, Holder, PATIENCE, TestImage};
use faasnet_actors::{
    id::BlockId,
    wire::holder::{FromHolder, ToHolder},
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    thread::{self, JoinHandle},
    time::Instant,
};

/// Place of a byte in the middle of `data/big` that metadata and other files do not share a block with.
const FAR: u64 = 2_000_000;

fn read_far(path: PathBuf) -> JoinHandle<io::Result<[u8; 100]>> {
    thread::spawn(move || {
        let mut bytes = [0; 100];
        File::open(path)?.read_exact_at(&mut bytes, FAR).map(|()| bytes)
    })
}

/// Mounts, and makes everything present that opening the file takes.
fn mounted(holder: &Holder, agent: &mut Agent<'_>, image: &TestImage) -> PathBuf {
    agent.mount(image.mount(&[])).expect("mounts");
    let path = holder.file_system(image).join("data/big");
    let opening = thread::spawn({
        let path = path.clone();
        move || File::open(path).map(drop)
    });
    agent.serve_until(|| opening.is_finished().then_some(()));
    opening.join().expect("opens").expect("opens");
    path
}

fn missed(agent: &mut Agent<'_>) -> Vec<BlockId> {
    agent.until(|message| match message {
        FromHolder::Miss { blocks, .. } => Some(blocks.clone()),
        _ => None,
    })
}

#[test]
fn reads_see_the_right_bytes_and_are_short_at_the_end() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    let path = mounted(&holder, &mut agent, &image);
    let reading = thread::spawn(move || {
        let file = File::open(path).expect("opens");
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).expect("reads");
        let mut rest = [7; 100];
        assert_eq!(file.read_at(&mut rest, bytes.len() as u64).expect("reads"), 0);
        assert_eq!(file.read_at(&mut rest, bytes.len() as u64 - 10).expect("reads"), 10);
        bytes
    });
    agent.serve_until(|| reading.is_finished().then_some(()));
    assert!(reading.join().expect("reads") == image.big);
}

#[test]
fn the_file_below_is_read_at_any_place_and_length() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    agent.mount(image.mount_whole()).expect("mounts");
    let path = holder.file_system(&image).with_file_name("file");
    let file = File::open(path).expect("opens");
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).expect("reads");
    assert!(bytes == image.bytes);
    let block = 512 * 1024;
    let mut across = vec![0; block + 2];
    file.read_exact_at(&mut across, block as u64 - 1).expect("reads");
    assert!(across == image.bytes[block - 1..2 * block + 1]);
    assert_eq!(file.read_at(&mut across, image.bytes.len() as u64 + 5).expect("reads"), 0);
    assert!(agent.asked.is_empty(), "nothing is missing: {:?}", agent.asked);
}

#[test]
fn many_readers_of_one_block_cause_one_miss() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    let path = mounted(&holder, &mut agent, &image);
    agent.asked.clear();
    let readers: Vec<_> = (0..8).map(|_| read_far(path.clone())).collect();
    agent.serve_until(|| readers.iter().all(JoinHandle::is_finished).then_some(()));
    for reader in readers {
        let bytes = reader.join().expect("reads").expect("reads");
        assert_eq!(bytes[..], image.big[FAR as usize..FAR as usize + 100]);
    }
    let mut asked = agent.asked.clone();
    asked.sort();
    asked.dedup();
    assert!(!asked.is_empty());
    assert_eq!(asked.len(), agent.asked.len(), "asked twice: {:?}", agent.asked);
}

#[test]
fn a_read_outlives_its_agent() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    let path = mounted(&holder, &mut agent, &image);
    agent.serves = false;
    let reading = read_far(path);
    let asked = missed(&mut agent);
    drop(agent);

    let mut next = holder.agent(&image);
    next.serves = false;
    assert_eq!(next.state(), (vec![image.id], Vec::new()));
    assert_eq!(missed(&mut next), asked);
    // Already mounted: answered at once, and what its map has beyond ours counts.
    next.mount(image.mount_whole()).expect("is mounted");
    let bytes = reading.join().expect("reads").expect("reads");
    assert_eq!(bytes[..], image.big[FAR as usize..FAR as usize + 100]);
}

#[test]
fn a_new_agent_replaces_the_old() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut old = holder.agent(&image);
    old.state();
    let mut new = holder.agent(&image);
    new.state();
    assert!(old.hung_up());
    new.mount(image.mount_whole()).expect("mounts");
}

#[test]
fn a_read_fails_at_its_deadline_without_an_agent() {
    let image = TestImage::new();
    let holder = Holder::start_with(&[("read_deadline_ms", "1100")]);
    let mut agent = holder.agent(&image);
    let path = mounted(&holder, &mut agent, &image);
    drop(agent);
    let started = Instant::now();
    let error = read_far(path).join().expect("ends").expect_err("nobody has the block");
    assert_eq!(error.raw_os_error(), Some(5));
    assert!((1.0..10.0).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
}

#[test]
fn a_block_that_cannot_be_had_fails_the_read_and_is_asked_for_again() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    let path = mounted(&holder, &mut agent, &image);
    agent.serves = false;
    let reading = read_far(path.clone());
    let deadline = Instant::now() + PATIENCE;
    while !reading.is_finished() {
        assert!(Instant::now() < deadline);
        if let Some(FromHolder::Miss { image, blocks }) = agent.next(std::time::Duration::from_millis(5)) {
            agent.order(&ToHolder::Unavailable { image, blocks });
        }
    }
    let error = reading.join().expect("ends").expect_err("cannot be had");
    assert_eq!(error.raw_os_error(), Some(5));
    agent.serves = true;
    let reading = read_far(path);
    agent.serve_until(|| reading.is_finished().then_some(()));
    reading.join().expect("reads").expect("can be had now");
}

#[test]
fn what_is_no_file_system_is_not_mounted() {
    let mut image = TestImage::new();
    image.bytes[1024..1028].fill(0);
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    let reason = agent.mount(image.mount_whole()).expect_err("no magic");
    assert!(reason.contains("not a valid EROFS"), "{reason}");
    let mut order = image.mount(&[]);
    order.present.push(0);
    let reason = agent.mount(order).expect_err("one byte too many");
    assert!(reason.contains("does not match"), "{reason}");
    let mut order = image.mount(&[]);
    order.plain_path = "/nonexistent/cache".into();
    let reason = agent.mount(order).expect_err("no cache file");
    assert!(reason.contains("/nonexistent/cache"), "{reason}");
    assert_eq!(fs::read_dir(holder.data.path().join("images")).map_or(0, Iterator::count), 0);
}

#[test]
fn a_mount_whose_blocks_do_not_come_ends_at_its_deadline() {
    let image = TestImage::new();
    let holder = Holder::start_with(&[("call_deadline_ms", "300")]);
    let mut agent = holder.agent(&image);
    agent.serves = false;
    let reason = agent.mount(image.mount(&[])).expect_err("no block comes");
    assert!(reason.contains("could not be read in time"), "{reason}");
    agent.serves = true;
    agent.mount(image.mount_whole()).expect("mounts now");
}

#[test]
fn an_image_is_unmounted_and_mounted_again() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    for _ in 0..3 {
        agent.mount(image.mount_whole()).expect("mounts");
        let page = fs::read(holder.file_system(&image).join("data/index.html")).expect("reads");
        assert_eq!(page, b"hello from an instance\n");
        agent.order(&ToHolder::Unmount { image: image.id });
    }
}

#[test]
fn an_agent_that_comes_with_another_cache_file_is_believed_about_that_one_only() {
    let image = TestImage::new();
    let holder = Holder::start();
    let mut agent = holder.agent(&image);
    let path = mounted(&holder, &mut agent, &image);
    drop(agent);
    // Somebody removes the cache while the agent is away; what it writes then is in a file of another inode.
    fs::remove_file(image.cache_path()).expect("removed");
    let mut next = holder.agent(&image);
    next.state();
    next.mount(image.mount(&[image.block_of(FAR as usize)])).expect("is mounted");
    let bytes = read_far(path.clone());
    next.serve_until(|| bytes.is_finished().then_some(()));
    let bytes = bytes.join().expect("reads").expect("reads");
    assert_eq!(bytes[..], image.big[FAR as usize..FAR as usize + 100]);
    // All of it, whatever was in the first file.
    let reading = thread::spawn(move || fs::read(path));
    next.serve_until(|| reading.is_finished().then_some(()));
    assert!(reading.join().expect("reads").expect("reads") == image.big);
    // Without a cache file nothing that is said of it counts; the agent comes back.
    let mut order = image.mount(&[]);
    order.plain_path = "/nonexistent/cache".into();
    next.order(&ToHolder::Mount(order));
    assert!(next.hung_up());
}

//! A cache that somebody has changed while the agent was away: containers see the right bytes all the same.

use super::*;
use faasnet_actors::image::BlockImage;
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

const MIB: usize = 1 << 20;

/// Two images of which one VM has all blocks, and what their big files hold.
struct Tampered {
    world: World,
    images: Vec<(BlockImage, Vec<u8>)>,
    agent: Agent,
    starts: usize,
}

impl Tampered {
    async fn new() -> Self {
        let world = World::new().await;
        let make = |number: u64| {
            // Half of it shrinks, so that both forms of blocks are there.
            let mut big = noise(60 + number, 3 * MIB);
            big.extend(noise(70 + number, MIB).chunks(64).flat_map(|piece| piece.repeat(3)));
            (world.image(&format!("web-{number}"), &website(&big), SERVE), big)
        };
        let images = vec![make(0), make(1)];
        let agent = Agent::start(&world, "vm-1", &[]);
        Self { world, images, agent, starts: 0 }
    }

    fn folder(&self, number: usize) -> PathBuf {
        self.agent.data.join("images").join(format!("acme.{}", self.images[number].0.id.hex()))
    }

    /// The start, and what the origin gave for it.
    async fn start(&mut self, session: &mut Session, number: usize) -> (String, u64) {
        self.starts += 1;
        let start = format!("s{}", self.starts);
        let image = &self.images[number].0;
        session
            .orders
            .send(self.world.order(&start, image, "vm-1", session, vec![Upstream::Origin]))
            .unwrap();
        let report = session.ready(&start).await;
        (start, report.bytes.origin)
    }

    async fn reads_right(&self, session: &Session, start: &str, number: usize, case: &str) {
        let read = self.world.get(session, "vm-1", start, "/big").await;
        assert!(read.is_ok_and(|read| read == self.images[number].1), "{case}: image {number} reads wrong");
        assert_eq!(
            self.world.get(session, "vm-1", start, "/").await,
            Ok(Bytes::from_static(b"hello")),
            "{case}"
        );
    }

    /// Starts both images and reads all of them, then ends containers, agent and holder. What the origin gave.
    async fn run_all(&mut self, case: &str) -> u64 {
        let mut session = self.world.session("vm-1").await;
        let mut bytes = 0;
        for number in 0..2 {
            let (start, origin) = self.start(&mut session, number).await;
            bytes += origin;
            self.reads_right(&session, &start, number, case).await;
        }
        self.agent.terminate();
        assert!(self.agent.ends().await);
        assert!(!self.agent.log().contains("panicked"), "{case}: {}", self.agent.log());
        bytes
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes.iter_mut().step_by(100_003).for_each(|byte| *byte ^= 1);
    write_in_place(path, &bytes);
}

fn write_in_place(path: &Path, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, 0).unwrap();
}

fn exchange(one: &Path, other: &Path) {
    let between = one.with_extension("between");
    fs::rename(one, &between).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(between, other).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_done_to_the_cache_containers_read_the_right_bytes() {
    let mut vm = Tampered::new().await;
    assert!(vm.run_all("nothing is there").await > 0);
    vm.agent.again();
    assert_eq!(vm.run_all("untouched").await, 0, "what agent and holder left is not used");
    let (first, second) = (vm.folder(0), vm.folder(1));
    let victim = vm.world.folder.path().join("victim");
    let precious = noise(80, MIB);
    fs::write(&victim, &precious).unwrap();
    let each = |change: &dyn Fn(&Path)| [&first, &second].iter().for_each(|folder| change(folder));
    let instead = |name: &str, put: &dyn Fn(&Path)| {
        each(&|folder| {
            fs::remove_file(folder.join(name)).unwrap();
            put(&folder.join(name));
        });
    };
    let cases: [(&str, &dyn Fn()); 11] = [
        ("stored bytes flipped", &|| each(&|folder| flip(&folder.join("stored")))),
        ("plain bytes flipped", &|| each(&|folder| flip(&folder.join("plain")))),
        ("plain cut off", &|| {
            each(&|folder| {
                fs::File::options()
                    .write(true)
                    .open(folder.join("plain"))
                    .unwrap()
                    .set_len(MIB as u64)
                    .unwrap()
            });
        }),
        ("blocks in other places", &|| {
            each(&|folder| {
                let mut bytes = fs::read(folder.join("plain")).unwrap();
                bytes[..4 * MIB].rotate_left(MIB / 2);
                write_in_place(&folder.join("plain"), &bytes);
            });
        }),
        ("marks without bytes", &|| {
            each(&|folder| fs::File::create(folder.join("plain")).map(drop).unwrap());
            each(&|folder| fs::write(folder.join("present"), [1; 1000]).unwrap());
        }),
        ("files of another image", &|| {
            ["plain", "stored"].iter().for_each(|name| exchange(&first.join(name), &second.join(name)));
        }),
        ("folders of another image", &|| exchange(&first, &second)),
        ("links", &|| instead("plain", &|path| symlink(&victim, path).unwrap())),
        ("folders", &|| instead("stored", &|path| fs::create_dir_all(path.join("deep")).unwrap())),
        ("flipped records and indexes", &|| {
            each(&|folder| ["record", "index"].iter().for_each(|name| flip(&folder.join(name))));
        }),
        ("no records", &|| instead("record", &|path| fs::create_dir(path).unwrap())),
    ];
    for (case, change) in cases {
        change();
        vm.agent.again();
        vm.run_all(case).await;
        assert!(fs::read(&victim).unwrap() == precious, "{case}: written through a link");
    }
    std::mem::forget(vm.agent); // it has ended, and there is no holder to end
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_reads_on_when_its_cache_was_removed_while_the_agent_was_away() {
    type Removal = fn(&Path);
    let removals: [(&str, Removal); 3] = [
        ("one file", |folder| fs::remove_file(folder.join("plain")).unwrap()),
        ("another file in its place", |folder| {
            fs::copy(folder.join("stored"), folder.join("other")).unwrap();
            fs::rename(folder.join("other"), folder.join("plain")).unwrap();
        }),
        ("the folder", |folder| fs::remove_dir_all(folder).unwrap()),
    ];
    let mut vm = Tampered::new().await;
    let mut session = vm.world.session("vm-1").await;
    for (number, (case, remove)) in removals.into_iter().enumerate() {
        let number = number % 2;
        let (start, _) = vm.start(&mut session, number).await;
        vm.agent.kill();
        remove(&vm.folder(number));
        vm.agent.again();
        session = vm.world.session("vm-1").await;
        assert!(session.hello.instances.iter().any(|running| running.start.as_str() == start), "{case}");
        vm.reads_right(&session, &start, number, case).await;
        session.orders.send(ToAgent::Stop { start: start.parse().unwrap() }).unwrap();
        session.ended(&start).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_is_served_from_is_mended_when_the_agent_finds_it_damaged() {
    let mut vm = Tampered::new().await;
    let mut session = vm.world.session("vm-1").await;
    let (start, _) = vm.start(&mut session, 0).await;
    vm.reads_right(&session, &start, 0, "untouched").await;
    let plain = vm.folder(0).join("plain");
    vm.agent.kill();
    let whole = fs::read(&plain).unwrap();
    flip(&plain);
    vm.agent.again();
    let session = vm.world.session("vm-1").await;
    patiently(async {
        while fs::read(&plain).unwrap() != whole {
            tokio::task::yield_now().await;
        }
    })
    .await;
    vm.reads_right(&session, &start, 0, "mended").await;
}

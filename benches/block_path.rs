//! What a block costs on its way through an agent: in parts, over TLS against plain TCP, and as a whole.
//!
//! ```text
//! cargo bench --bench block_path [-- parts | links | agent] [MEBIBYTES]
//! ```
//!
//! `agent` needs root, runc and `/bin/busybox`, as the tests of agents do: a real agent takes an image from
//! its parent, another agent, and gives it to two children. CPU is that of threads or processes by the
//! kernel's count, user and system; a GB is 10^9 stored bytes that come in.

#![allow(clippy::unwrap_used)] // A benchmark that cannot go on has failed.

#[allow(dead_code)] // Made for the tests; not all of it is used here.
#[path = "../tests/agent/world.rs"]
mod world;

#[allow(dead_code)]
#[path = "../tests/agent/child.rs"]
mod child;

use anyhow::ensure;
use bytes::Bytes;
use child::Asking;
use faasnet::{
    agent::Cache,
    image::blocks::{BlockWriter, decode_block},
    net::{
        Purpose,
        framed::{self, FrameReader},
        identity::{Authority, Identity, new_request},
        tls::{Acceptor, Dialer},
    },
};
use faasnet_actors::{
    agent::world::Disk,
    id::{BlockId, VmId},
    image::{BLOCK_BYTES, BlockImage, Index},
    wire::{control::Upstream, frame::FrameLimits, peer::FromParent},
};
use rustix::{
    process::Pid,
    time::{ClockId, clock_gettime},
};
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use world::{Agent, World, tree_of};

const FRAME: FrameLimits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 64 << 20 };
const HOUR: Duration = Duration::from_secs(3600);
/// Blocks that a child of the benchmark asks for at once.
const WINDOW: usize = 16;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|text| !text.starts_with("--")).collect();
    let mebibytes = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(384);
    let chosen = |name: &str| {
        let is_named = |text: &String| ["parts", "links", "agent"].contains(&text.as_str());
        !arguments.iter().any(is_named) || arguments.iter().any(|text| text == name)
    };
    let content = content(mebibytes << 20)?;
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if chosen("parts") || chosen("links") {
        let blocks = Blocks::new(&content, folder.path())?;
        println!(
            "{} MiB of this machine's libraries in {} blocks, {:.0} % of that stored",
            mebibytes,
            blocks.stored.len(),
            100.0 * blocks.bytes() as f64 / content.len() as f64
        );
        if chosen("parts") {
            parts(&blocks, folder.path(), &runtime)?;
        }
        if chosen("links") {
            links(&blocks)?;
        }
    }
    if chosen("agent") {
        runtime.block_on(agent(content))?;
    }
    Ok(())
}

/// What images are made of: this machine's shared libraries and programs, in the order of their paths.
fn content(bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes);
    let mut folders = vec!["/usr/bin".into(), "/usr/lib".into()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir::<std::path::PathBuf>(folder)?;
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() && out.len() < bytes {
                File::open(path)?.take((bytes - out.len()) as u64).read_to_end(&mut out)?;
            }
        }
    }
    ensure!(
        out.len() == bytes,
        "this machine has only {} bytes of libraries; give a smaller size",
        out.len()
    );
    Ok(out)
}

struct Blocks {
    index: Arc<Index>,
    stored: Vec<Bytes>,
}

impl Blocks {
    fn new(content: &[u8], folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("blob");
        let mut writer = BlockWriter::new(File::create(&path)?, 0, 3)?;
        writer.write_all(content)?;
        let blob = writer.finish()?;
        let mut bytes = Bytes::from(fs::read(&path)?);
        fs::remove_file(path)?;
        let stored = blob.entries.iter().map(|entry| bytes.split_to(entry.stored_bytes as usize)).collect();
        Ok(Self { index: Arc::new(Index::new(content.len() as u64, 1, blob.entries)?), stored })
    }

    fn each(&self) -> impl Iterator<Item = (BlockId, &Bytes)> {
        (0..).map(BlockId).zip(&self.stored)
    }

    fn bytes(&self) -> u64 {
        self.index.blob_bytes()
    }
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Prints how fast `work` takes the blocks, and what CPU it needs for a GB of them.
fn measure(name: &str, blocks: &Blocks, mut work: impl FnMut(BlockId, &Bytes)) {
    let (wall, cpu) = (Instant::now(), seconds(ClockId::ProcessCPUTime));
    for (block, stored) in blocks.each() {
        work(block, stored);
    }
    let gigabytes = blocks.bytes() as f64 / 1e9;
    let cpu = seconds(ClockId::ProcessCPUTime) - cpu;
    println!(
        "{name:28} {:6.2} GB/s {:7.3} CPU s/GB",
        gigabytes / wall.elapsed().as_secs_f64(),
        cpu / gigabytes
    );
}

/// One block after the other, each step by itself.
fn parts(blocks: &Blocks, folder: &Path, runtime: &Runtime) -> anyhow::Result<()> {
    let _context = runtime.enter(); // the cache starts its work at once
    let index = &blocks.index;
    measure("hash (BLAKE3)", blocks, |block, stored| assert!(index.verify(block, stored)));
    let plain = |block: BlockId, stored: &[u8]| {
        decode_block(index.entry(block).unwrap(), index.plain_len(block), stored).unwrap()
    };
    measure("decode (zstd 3)", blocks, |block, stored| drop(plain(block, stored)));
    let file = File::create(folder.join("stored"))?;
    let write =
        |file: &File, bytes: &[u8], at| std::os::unix::fs::FileExt::write_all_at(file, bytes, at).unwrap();
    measure("write stored bytes", blocks, |block, stored| {
        write(&file, stored, index.entry(block).unwrap().offset)
    });
    let file = File::create(folder.join("plain"))?;
    let most = vec![7; BLOCK_BYTES as usize];
    measure("write plain bytes", blocks, |block, _| {
        write(&file, &most[..index.plain_len(block) as usize], index.plain_offset(block));
    });
    let image = blocks.image();
    let tree = tree_of(&image);
    let cache = Cache::open(&folder.join("cache"), 2)?;
    runtime.block_on(cache.open(&tree, &image))?;
    runtime.block_on(cache.save_index(&tree, index.encode().into()))?;
    measure("keep (decode, write)", blocks, |block, stored| {
        runtime.block_on(cache.keep(&tree, Arc::clone(index), block, stored.clone())).unwrap();
    });
    measure("load for a child (and hash)", blocks, |block, _| {
        runtime.block_on(cache.load(&tree, Arc::clone(index), block)).unwrap();
    });
    let begin = Instant::now();
    let opened = runtime.block_on(cache.open(&tree, &image))?;
    let found = opened.unverified.len();
    println!("open a cache of {found} blocks     {:6.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    measure("verify what was found", blocks, |block, _| {
        assert!(runtime.block_on(cache.check(&tree, Arc::clone(index), block)).unwrap());
    });
    fs::remove_dir_all(folder.join("cache"))?;
    Ok(())
}

impl Blocks {
    fn image(&self) -> BlockImage {
        let digest = faasnet::image::artifact::digest_of(&self.index.encode());
        BlockImage {
            id: digest,
            source: digest,
            index_digest: digest,
            index_bytes: self.index.encode().len() as u64,
            blob_digest: digest,
            blob_bytes: self.index.blob_bytes(),
            plain_bytes: self.index.plain_bytes(),
            location: faasnet_actors::image::ImageLocation::Folder { path: "/".into() },
            runtime: faasnet_actors::image::RuntimeConfig::default(),
        }
    }
}

/// Frames of blocks from one thread to another over loopback; plain TCP exists only here.
fn links(blocks: &Blocks) -> anyhow::Result<()> {
    println!("one connection, a thread at each end   MB/s   CPU s/GB: sender receiver");
    let ends = Ends::new()?;
    for _ in 0..2 {
        link(
            "plain TCP, unframed",
            blocks,
            &ends,
            |ends, address| {
                let blocks = ends.blocks.clone();
                Box::pin(async move { raw(TcpStream::connect(address).await?, &blocks).await })
            },
            |_, stream, total| Box::pin(drain(stream, total)),
        )?;
        link(
            "plain TCP, framed",
            blocks,
            &ends,
            |ends, address| {
                let blocks = ends.blocks.clone();
                Box::pin(async move { send(TcpStream::connect(address).await?, &blocks).await })
            },
            |_, stream, total| Box::pin(receive(stream, total)),
        )?;
        link(
            "TLS 1.3, framed",
            blocks,
            &ends,
            |ends, address| {
                let (dialer, blocks) = (ends.dialer.clone(), ends.blocks.clone());
                Box::pin(
                    async move { send(dialer.vm(&vm(), address, Purpose::Blocks).await?, &blocks).await },
                )
            },
            |ends, stream, total| {
                let acceptor = ends.acceptor.clone();
                Box::pin(async move { receive(acceptor.accept(stream).await?.stream, total).await })
            },
        )?;
    }
    Ok(())
}

fn vm() -> VmId {
    "vm-1".parse().unwrap()
}

#[derive(Clone)]
struct Ends {
    acceptor: Acceptor,
    dialer: Dialer,
    blocks: Vec<Bytes>,
}

impl Ends {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::open(folder.path(), SystemTime::now())?;
        let (key, request) = new_request()?;
        let (certificate, _) = authority.issue_vm(&vm(), &request, SystemTime::now(), HOUR)?;
        let identity = Identity::store(folder.path(), &key, &certificate, authority.certificate_pem())?;
        let acceptor = Acceptor::agent(&identity, Duration::from_secs(10))?;
        let dialer = Dialer::new(&identity, Duration::from_secs(10))?;
        Ok(Self { acceptor, dialer, blocks: Vec::new() })
    }
}

type Work = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

fn link(
    name: &str,
    blocks: &Blocks,
    ends: &Ends,
    sender: impl FnOnce(Ends, SocketAddr) -> Work + Send + 'static,
    receiver: impl FnOnce(Ends, TcpStream, u64) -> Work,
) -> anyhow::Result<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let near = runtime()?;
    let listener = near.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let far = Ends { blocks: blocks.stored.clone(), ..ends.clone() };
    let begin = Instant::now();
    let sending = std::thread::spawn(move || {
        runtime()?.block_on(sender(far, address))?;
        anyhow::Ok(seconds(ClockId::ThreadCPUTime))
    });
    let cpu = seconds(ClockId::ThreadCPUTime);
    near.block_on(async {
        let (stream, _) = listener.accept().await?;
        receiver(ends.clone(), stream, blocks.bytes()).await
    })?;
    let received = seconds(ClockId::ThreadCPUTime) - cpu;
    let took = begin.elapsed().as_secs_f64();
    let sent = sending.join().expect("no panic")?;
    let gigabytes = blocks.bytes() as f64 / 1e9;
    println!(
        "{name:35} {:7.0} {:17.3} {:8.3}",
        1e3 * gigabytes / took,
        sent / gigabytes,
        received / gigabytes
    );
    Ok(())
}

async fn raw(mut stream: TcpStream, blocks: &[Bytes]) -> anyhow::Result<()> {
    for stored in blocks {
        tokio::io::AsyncWriteExt::write_all(&mut stream, stored).await?;
    }
    Ok(())
}

async fn drain(mut stream: TcpStream, total: u64) -> anyhow::Result<()> {
    let (mut buffer, mut seen) = (vec![0; 64 << 10], 0);
    while seen < total {
        seen += tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await? as u64;
    }
    Ok(())
}

async fn send(mut stream: impl AsyncRead + AsyncWrite + Unpin, blocks: &[Bytes]) -> anyhow::Result<()> {
    for (number, stored) in (0..).zip(blocks) {
        framed::write(&mut stream, &FromParent::Block { block: BlockId(number) }, stored).await?;
    }
    // A connection that is dropped with session tickets unread is reset, and its last bytes with it.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    Ok(())
}

async fn receive(stream: impl AsyncRead + Unpin, total: u64) -> anyhow::Result<()> {
    let mut frames = FrameReader::<_, FromParent>::new(stream, FRAME);
    let mut seen = 0;
    while seen < total {
        seen += frames.next().await?.map_or(0, |frame| frame.body.len() as u64);
    }
    Ok(())
}

/// CPU seconds of a process so far.
fn cpu_seconds(pid: Pid) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// The whole path: origin, parent, the agent that is measured, two children.
async fn agent(content: Vec<u8>) -> anyhow::Result<()> {
    let world = World::new().await;
    let files = [("opt/content", 0o644, content), ("www/index.html", 0o644, b"hello".to_vec())];
    let image = world.image("content", &files, "exec busybox httpd -f -p 127.0.0.1:$PORT -h /www");
    drop(files);
    let (_parent_agent, measured) = (Agent::start(&world, "vm-1", &[]), Agent::start(&world, "vm-2", &[]));
    let (mut parent, mut middle) = (world.session("vm-1").await, world.session("vm-2").await);
    parent.orders.send(world.order("s1", &image, "vm-1", &parent, vec![Upstream::Origin]))?;
    parent.ready("s1").await;
    middle.orders.send(world.order("s2", &image, "vm-2", &middle, vec![parent.upstream("vm-1")]))?;
    middle.ready("s2").await;
    let (before, at_rest) = (cpu_seconds(measured.pid())?, measured.resident_bytes());
    let begin = Instant::now();
    let mut first = Asking::open(&world, "vm-8", &image, &middle).await?;
    let mut second = Asking::open(&world, "vm-9", &image, &middle).await?;
    let first = tokio::spawn(async move { first.take_all(WINDOW).await });
    let second = tokio::spawn(async move { second.take_all(WINDOW).await });
    let mut samples = Vec::new();
    while !(first.is_finished() && second.is_finished()) {
        samples.push(measured.resident_bytes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begin.elapsed().as_secs_f64();
    let gigabytes = first.await?? as f64 / 1e9;
    ensure!(second.await?? as f64 / 1e9 == gigabytes);
    println!(
        "an agent between a parent and two children: {:.0} MB in, {:.0} MB/s to each child, {:.3} CPU s/GB",
        gigabytes * 1e3,
        gigabytes * 1e3 / took,
        (cpu_seconds(measured.pid())? - before) / gigabytes,
    );
    let mebibytes = |(all, own): (u64, u64)| format!("{} ({} without files)", all >> 20, own >> 20);
    let most = |part: &[(u64, u64)]| mebibytes(*part.iter().max().unwrap());
    println!("its resident memory in MiB: {} at rest, at most in each quarter:", mebibytes(at_rest));
    samples.chunks(samples.len().div_ceil(4)).for_each(|part| println!("    {}", most(part)));
    Ok(())
}

//! CPU of what agents do with connections and blocks.

use anyhow::{Context, ensure};
use bytes::Bytes;
use faasnet::{
    agent::Cache,
    image::{artifact::digest_of, blocks::BlockWriter},
    net::{
        Purpose,
        framed::{self, FrameReader},
        identity::{Authority, Identity, new_request},
        tls::{Acceptor, Dialer},
    },
};
use faasnet_actors::{
    agent::world::Disk,
    id::{BlockId, TreeId},
    image::{BlockImage, ImageLocation, Index, RuntimeConfig},
    wire::{frame::FrameLimits, peer::FromParent},
};
use rustix::time::{ClockId, clock_gettime};
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, runtime::Runtime};

const FRAME: FrameLimits = FrameLimits { header_bytes_max: 1 << 20, body_bytes_max: 64 << 20 };
const DEADLINE: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 100;
/// Libraries that blocks are made of.
const CONTENT_BYTES: usize = 96 << 20;

fn cpu_ms(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

struct Ends {
    acceptor: Acceptor,
    dialer: Dialer,
}

impl Ends {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join("authority");
        fs::create_dir_all(&folder)?;
        let vm = "vm-1".parse()?;
        let authority = Authority::open(&folder, SystemTime::now())?;
        let (key, request) = new_request()?;
        let (certificate, _) = authority.issue_vm(&vm, &request, SystemTime::now(), 360 * DEADLINE)?;
        let identity = Identity::store(&folder, &key, &certificate, authority.certificate_pem())?;
        Ok(Self {
            acceptor: Acceptor::agent(&identity, DEADLINE)?,
            dialer: Dialer::new(&identity, DEADLINE)?,
        })
    }
}

/// CPU of client and server for each of some handshakes, full ones, in ms.
pub fn handshakes(folder: &Path) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let near = runtime()?;
    let listener = near.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let folder = folder.to_owned();
    let ends = Ends::new(&folder)?;
    let clients = thread::spawn(move || {
        let far = runtime()?;
        let vm = "vm-1".parse()?;
        let mut taken = Vec::new();
        for _ in 0..HANDSHAKES {
            // A new dialer knows no tickets of earlier sessions.
            let dialer = Ends::new(&folder)?.dialer;
            let before = cpu_ms(ClockId::ThreadCPUTime);
            far.block_on(dialer.vm(&vm, address, Purpose::Blocks))?;
            taken.push(cpu_ms(ClockId::ThreadCPUTime) - before);
        }
        anyhow::Ok(taken)
    });
    let mut taken = Vec::new();
    for _ in 0..HANDSHAKES {
        let (stream, _) = near.block_on(listener.accept())?;
        let before = cpu_ms(ClockId::ThreadCPUTime);
        near.block_on(ends.acceptor.accept(stream))?;
        taken.push(cpu_ms(ClockId::ThreadCPUTime) - before);
    }
    let clients = clients.join().map_err(|_| anyhow::anyhow!("the thread of the clients panicked"))??;
    Ok((clients, taken))
}

pub struct Blocks {
    index: Arc<Index>,
    stored: Vec<Bytes>,
}

impl Blocks {
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let content = libraries()?;
        let path = folder.join("blob");
        let mut writer = BlockWriter::new(File::create(&path)?, 0, 3)?;
        writer.write_all(&content)?;
        let blob = writer.finish()?;
        let mut bytes = Bytes::from(fs::read(&path)?);
        fs::remove_file(path)?;
        let stored = blob.entries.iter().map(|entry| bytes.split_to(entry.stored_bytes as usize)).collect();
        Ok(Self { index: Arc::new(Index::new(content.len() as u64, 1, blob.entries)?), stored })
    }

    /// As they are stored.
    pub fn mean_bytes(&self) -> f64 {
        self.index.blob_bytes() as f64 / self.stored.len() as f64
    }

    /// CPU of checking each block, in ms.
    pub fn hash(&self) -> anyhow::Result<Vec<f64>> {
        self.each(|block, stored| {
            ensure!(self.index.verify(block, stored), "a block does not have its hash");
            Ok(())
        })
    }

    /// CPU of the process for each block, in ms.
    fn each(&self, mut work: impl FnMut(BlockId, &Bytes) -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
        let mut taken = Vec::new();
        for (block, stored) in (0..).map(BlockId).zip(&self.stored) {
            let before = cpu_ms(ClockId::ProcessCPUTime);
            work(block, stored)?;
            taken.push(cpu_ms(ClockId::ProcessCPUTime) - before);
        }
        Ok(taken)
    }

    /// CPU of sender and receiver for a block over TLS, in ms, on average.
    pub fn links(&self, folder: &Path) -> anyhow::Result<(f64, f64)> {
        let near = runtime()?;
        let listener = near.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let Ends { acceptor, dialer } = Ends::new(folder)?;
        let (stored, count) = (self.stored.clone(), self.stored.len() as f64);
        let sending = thread::spawn(move || {
            let far = runtime()?;
            let vm = "vm-1".parse()?;
            let mut stream = far.block_on(dialer.vm(&vm, address, Purpose::Blocks))?;
            let before = cpu_ms(ClockId::ThreadCPUTime);
            far.block_on(async {
                for (number, stored) in (0..).zip(&stored) {
                    framed::write(&mut stream, &FromParent::Block { block: BlockId(number) }, stored).await?;
                }
                anyhow::Ok(())
            })?;
            let taken = cpu_ms(ClockId::ThreadCPUTime) - before;
            // Until the other end has read everything.
            far.block_on(tokio::io::copy(&mut stream, &mut tokio::io::sink())).ok();
            anyhow::Ok(taken)
        });
        let received = near.block_on(async {
            let (stream, _) = listener.accept().await?;
            let stream = acceptor.accept(stream).await?.stream;
            let mut frames = FrameReader::<_, FromParent>::new(stream, FRAME);
            let before = cpu_ms(ClockId::ThreadCPUTime);
            for _ in &self.stored {
                frames.next().await?.context("the sender has ended")?;
            }
            anyhow::Ok(cpu_ms(ClockId::ThreadCPUTime) - before)
        })?;
        let sent = sending.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
        Ok((sent / count, received / count))
    }

    /// CPU of keeping each block, and of reading it for a child, in ms.
    pub fn cache(&self, folder: &Path) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
        let runtime = Runtime::new()?;
        let _context = runtime.enter(); // the cache starts its work at once
        let digest = digest_of(&self.index.encode());
        let image = BlockImage {
            id: digest,
            source: digest,
            index_digest: digest,
            index_bytes: self.index.encode().len() as u64,
            blob_digest: digest,
            blob_bytes: self.index.blob_bytes(),
            plain_bytes: self.index.plain_bytes(),
            location: ImageLocation::Folder { path: PathBuf::from("/") },
            runtime: RuntimeConfig::default(),
        };
        let tree = TreeId { tenant: "acme".parse()?, image: digest };
        let cache = Cache::open(folder, 2)?;
        runtime.block_on(cache.open(&tree, &image))?;
        runtime.block_on(cache.save_index(&tree, self.index.encode().into()))?;
        let index = || Arc::clone(&self.index);
        let keep = self.each(|block, stored| {
            Ok(runtime.block_on(cache.keep(&tree, index(), block, stored.clone()))?)
        })?;
        let load =
            self.each(|block, _| Ok(runtime.block_on(cache.load(&tree, index(), block)).map(drop)?))?;
        Ok((keep, load))
    }
}

/// What images are made of: this machine's shared libraries, in the order of their paths.
fn libraries() -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(CONTENT_BYTES);
    let mut folders = vec![PathBuf::from("/usr/lib")];
    while let Some(folder) = folders.pop().filter(|_| content.len() < CONTENT_BYTES) {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() && content.len() < CONTENT_BYTES {
                let room = (CONTENT_BYTES - content.len()) as u64;
                File::open(path)?.take(room).read_to_end(&mut content)?;
            }
        }
    }
    ensure!(content.len() == CONTENT_BYTES, "/usr/lib has only {} bytes of libraries", content.len());
    Ok(content)
}

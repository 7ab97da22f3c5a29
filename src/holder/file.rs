//! The file that a block image's file system is read from: one FUSE mount whose root is that file.
//!
//! A read whose blocks are all present is answered on the FUSE thread from the cache file. Any other
//! leaves for the desk and is answered later by the image's own thread ([`answer_reads`]).

use super::{desk::Input, reads::ReadId, recording::Recording};
use faasnet_actors::{
    id::{BlockId, ImageId},
    image::BLOCK_BYTES,
    wire::holder::Mount,
};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};
use std::{
    cell::RefCell,
    ffi::OsStr,
    fs::File,
    io,
    ops::RangeInclusive,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
        mpsc::{Receiver, SyncSender},
    },
    time::{Duration, UNIX_EPOCH},
};

/// Nothing ever changes the file, so the kernel may remember its attributes as long as it likes.
const ATTRIBUTES_VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// A cache file, and which blocks are in it, as FUSE threads see it. Bits are only ever set, after the
/// block is in the file; the truth is the core's.
pub struct CacheFile {
    file: File,
    present: Vec<AtomicU8>,
}

impl CacheFile {
    /// Opens the file that an order to mount names.
    pub fn open(mount: &Mount) -> Result<Self, String> {
        let path = &mount.plain_path;
        let file = File::open(path)
            .map_err(|error| format!("the cache file {} cannot be opened: {error}", path.display()))?;
        // One bit for each block, whatever the agent sent: a block without one would never count as present here,
        // and its reads would go between the desk and this file for ever.
        let blocks = mount.plain_bytes.div_ceil(u64::from(BLOCK_BYTES));
        let bytes = usize::try_from(blocks.div_ceil(8)).map_err(|_| "the image is too large".to_owned())?;
        let present = mount.present.iter().copied().chain(std::iter::repeat(0)).take(bytes);
        Ok(Self { file, present: present.map(AtomicU8::new).collect() })
    }

    pub fn set(&self, blocks: &[BlockId]) {
        for BlockId(block) in blocks {
            if let Some(byte) = self.present.get(*block as usize / 8) {
                byte.fetch_or(1 << (block % 8), Ordering::Release);
            }
        }
    }

    /// Takes over what another has, if it is the same file.
    pub fn merge(&self, other: &Self) -> bool {
        let name = |cache: &Self| cache.file.metadata().map(|found| (found.dev(), found.ino()));
        let is_same = matches!((name(self), name(other)), (Ok(own), Ok(others)) if own == others);
        if is_same {
            for (byte, more) in self.present.iter().zip(&other.present) {
                byte.fetch_or(more.load(Ordering::Acquire), Ordering::Release);
            }
        }
        is_same
    }

    fn has(&self, blocks: RangeInclusive<u32>) -> bool {
        let has = |block: u32| {
            let byte = self.present.get(block as usize / 8);
            byte.is_some_and(|byte| byte.load(Ordering::Acquire) & (1 << (block % 8)) != 0)
        };
        blocks.into_iter().all(has)
    }
}

/// The cache file of a mounted image. An agent may come back with another one, when somebody has removed the
/// first; whoever reads takes file and bits together. The lock is held to clone or replace only.
pub struct Backing(RwLock<Arc<CacheFile>>);

impl Backing {
    pub fn new(cache: CacheFile) -> Self {
        Self(RwLock::new(Arc::new(cache)))
    }

    pub fn get(&self) -> Arc<CacheFile> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn replace(&self, cache: CacheFile) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(cache);
    }
}

/// What is read of one image while it is recorded. FUSE threads share it; a look at a flag is all that it
/// costs them afterwards.
pub struct Recorder {
    is_recording: AtomicBool,
    recording: Mutex<Recording>,
}

impl Recorder {
    /// `record` says whether it begins at once; it never begins later.
    pub fn new(record: bool, ranges_max: usize) -> Self {
        let recording = Mutex::new(Recording::new(ranges_max));
        Self { is_recording: AtomicBool::new(record), recording }
    }

    fn read(&self, offset: u64, length: u64) {
        if self.is_recording.load(Ordering::Relaxed) {
            self.recording.lock().unwrap_or_else(PoisonError::into_inner).read(offset, length);
        }
    }

    /// What was read; nothing the second time.
    pub fn finish(&self) -> Recording {
        self.is_recording.store(false, Ordering::Relaxed);
        let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *recording, Recording::new(0))
    }
}

/// A read that waits for blocks, with the way to answer it.
pub struct PendingRead {
    pub image: ImageId,
    pub blocks: RangeInclusive<u32>,
    offset: u64,
    len: usize,
    reply: ReplyData,
}

impl PendingRead {
    pub fn fail(self) {
        self.reply.error(Errno::EIO);
    }
}

/// Identifies a pending read between core and shell, and counts.
#[derive(Default)]
pub struct ReadNumbers(u64);

impl ReadNumbers {
    pub fn next(&mut self) -> ReadId {
        self.0 += 1;
        ReadId(self.0)
    }
}

pub struct ImageFile {
    pub image: ImageId,
    pub backing: Arc<Backing>,
    pub plain_bytes: u64,
    pub recorder: Arc<Recorder>,
    pub desk: SyncSender<Input>,
    pub read_ahead_bytes: u32,
    pub background_max: u16,
}

impl ImageFile {
    fn attributes(&self) -> FileAttr {
        FileAttr {
            ino: INodeNo::ROOT,
            size: self.plain_bytes,
            blocks: self.plain_bytes.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o400,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for ImageFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if let Err(nearest) = config.set_max_readahead(self.read_ahead_bytes) {
            let _ = config.set_max_readahead(nearest);
        }
        // Reads that wait for blocks count as background requests. At the kernel's default of 12, a
        // dozen of them would hold up every hit behind them.
        let _ = config.set_max_background(self.background_max);
        // Without it, direct reads of EROFS wait for each other.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOTDIR);
    }

    fn getattr(&self, _request: &Request, _ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ATTRIBUTES_VALID, &self.attributes());
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.plain_bytes.saturating_sub(offset));
        if len == 0 {
            return reply.data(&[]);
        }
        self.recorder.read(offset, len);
        let block_of = |place: u64| (place / u64::from(BLOCK_BYTES)) as u32;
        let blocks = block_of(offset)..=block_of(offset + len - 1);
        answer(
            &self.backing.get(),
            PendingRead { image: self.image, blocks, offset, len: len as usize, reply },
            &self.desk,
        );
    }
}

/// Answers reads of one image whose blocks have arrived, until the desk hangs up.
pub fn answer_reads(backing: &Backing, reads: &Receiver<PendingRead>, desk: &SyncSender<Input>) {
    while let Ok(read) = reads.recv() {
        answer(&backing.get(), read, desk);
    }
}

/// Answers a read from the cache file, or has it wait for what is not in the file.
fn answer(cache: &CacheFile, read: PendingRead, desk: &SyncSender<Input>) {
    if !cache.has(read.blocks.clone()) {
        // The desk never waits for a thread that answers, so this ends.
        if let Err(unsent) = desk.send(Input::Read(read))
            && let Input::Read(read) = unsent.0
        {
            read.fail();
        }
        return;
    }
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < read.len {
            buffer.resize(read.len, 0);
        }
        match cache.file.read_exact_at(&mut buffer[..read.len], read.offset) {
            Ok(()) => read.reply.data(&buffer[..read.len]),
            Err(error) => {
                tracing::error!(image = %read.image, offset = read.offset, %error, "reading the cache file");
                read.fail();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::id::Digest;

    #[test]
    fn blocks_count_when_they_come_whatever_the_agent_knew_before() {
        let cache = tempfile::NamedTempFile::new().unwrap();
        for present in [vec![], vec![0b10], vec![0b10, 0, 0]] {
            let mount = Mount {
                image: Digest::from_bytes([7; 32]),
                plain_path: cache.path().to_owned(),
                plain_bytes: 10 * u64::from(BLOCK_BYTES),
                present: present.clone(),
                record: false,
                packed: false,
            };
            let file = CacheFile::open(&mount).unwrap();
            assert_eq!(file.has(1..=1), !present.is_empty());
            file.set(&[BlockId(1), BlockId(9), BlockId(99)]);
            assert!(file.has(1..=1) && file.has(9..=9) && !file.has(8..=9), "{present:?}");
        }
    }
}

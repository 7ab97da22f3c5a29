//! The cache of block images in the VM's data folder.
//!
//! ```text
//! images/TENANT.HEX/record    the block image and the VM's last place in its tree, while it is a member
//!                   /left     the same when it has left: the image is cold
//!                   /index    the encoded index
//!                   /stored   sparse: stored bytes at their place in the blob, for children
//!                   /plain    sparse: plain bytes at their place in the file system, for the holder
//!                   /present  a byte for each block: 1 when all of it was written
//! orders/START                an instance that was ordered
//! ```
//!
//! A block that did not shrink is only in `plain`, where both find it; one of zeros is a hole there.
//!
//! A block is marked present after its bytes were written, without waiting for the disk. After a crash of the
//! agent the page cache has everything. What is found marked when an image is opened is verified block by
//! block before it is used: a crash of the machine may have left any of it unwritten, and somebody may have
//! changed it. Nothing is written through a link that somebody has put into the place of a file: what is no regular
//! file with one name gives way.

mod records;

use self::records::{RecordWrites, encoded, read_index, replace};
use crate::image::blocks::BlockDecoder;
use bytes::Bytes;
use faasnet_actors::{
    agent::world::{Disk, DiskError, InstanceRecord, OpenedImage, TreeRecord},
    id::{BlockId, StartId, TreeId},
    image::{BlockImage, Codec, Index},
};
use futures::future::BoxFuture;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Below one data folder. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    data: Arc<PathBuf>,
    records: Arc<RecordWrites>,
    open: Arc<OpenImages>,
    /// As many blocks are decoded at once as there are threads for it.
    decoding: Arc<Semaphore>,
    /// Work under way on the runtime's blocking threads.
    tasks: TaskTracker,
}

fn failed(error: io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full,
        io::ErrorKind::ReadOnlyFilesystem => DiskError::ReadOnly,
        _ => DiskError::Io(error.to_string()),
    }
}

/// Removes what stands in the place of a file: anything but a regular file that has no other name.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.nlink() == 1 => Ok(()),
        _ => remove(path),
    }
}

/// Removes whatever is there. A link's target stays.
fn remove(path: &Path) -> io::Result<()> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    match if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Cache {
    /// `threads` decode and verify blocks.
    pub fn open(data: &Path, threads: usize) -> io::Result<Self> {
        fs::create_dir_all(data.join("images"))?;
        fs::create_dir_all(data.join("orders"))?;
        Ok(Self {
            data: Arc::new(data.to_owned()),
            records: Arc::default(),
            open: Arc::default(),
            decoding: Arc::new(Semaphore::new(threads)),
            tasks: TaskTracker::new(),
        })
    }

    /// Waits until all that was begun is done. Whoever calls it lets nothing else be begun.
    pub async fn at_rest(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs file and CPU work on the runtime's blocking threads.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DiskError>> {
        let running = self.tasks.spawn_blocking(work);
        Box::pin(async move { running.await.unwrap_or_else(|error| Err(DiskError::Io(error.to_string()))) })
    }

    fn folder(&self, tree: &TreeId) -> PathBuf {
        self.data.join("images").join(format!("{}.{}", tree.tenant, tree.image.hex()))
    }

    fn write_in_turn(
        &self,
        path: PathBuf,
        bytes: Option<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        self.records.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back((path, bytes));
        let records = Arc::clone(&self.records);
        self.blocking(move || records.write_next())
    }

    /// Runs work that decodes blocks, when a thread for it is free.
    fn decoding<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DiskError>> {
        let (turn, tasks) = (Arc::clone(&self.decoding).acquire_owned(), self.tasks.clone());
        Box::pin(self.tasks.track_future(async move {
            let _turn = turn.await.map_err(|_| DiskError::Io("the cache is closed".into()))?;
            let running = tasks.spawn_blocking(work);
            running.await.unwrap_or_else(|error| Err(DiskError::Io(error.to_string())))
        }))
    }
}

/// The files of one image, open for as long as it is in use.
struct Files {
    stored: File,
    plain: File,
    marks: File,
}

impl Files {
    /// Makes what is missing. What is no file of the image's own gives way.
    fn make(folder: &Path) -> io::Result<Self> {
        for name in ["stored", "plain", "present"] {
            make_way(&folder.join(name))?;
        }
        Self::open_with(folder, File::options().create(true).truncate(false))
    }

    /// Those of an image that was opened before. A file that has gone meanwhile is not made anew: the holder reads
    /// the one before.
    fn open(folder: &Path) -> io::Result<Self> {
        Self::open_with(folder, &mut File::options())
    }

    fn open_with(folder: &Path, options: &mut fs::OpenOptions) -> io::Result<Self> {
        let options = options.read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let open = |name: &str| options.open(folder.join(name));
        Ok(Self { stored: open("stored")?, plain: open("plain")?, marks: open("present")? })
    }

    /// Makes room for an image. What is there stays.
    fn set_lengths(&self, image: &BlockImage) -> io::Result<()> {
        self.stored.set_len(image.blob_bytes)?;
        self.plain.set_len(image.plain_bytes)
    }

    fn mark(&self, block: BlockId, is_present: bool) -> io::Result<()> {
        self.marks.write_all_at(&[u8::from(is_present)], u64::from(block.0))
    }

    /// The blocks that were written, as far as the marks say.
    fn marked(&self, index: &Index) -> io::Result<BTreeSet<BlockId>> {
        self.marks.set_len(u64::from(index.block_count()))?;
        let mut marks = vec![0; index.block_count() as usize];
        self.marks.read_exact_at(&mut marks, 0)?;
        Ok((0..).map(BlockId).zip(marks).filter(|(_, mark)| *mark == 1).map(|(block, _)| block).collect())
    }

    fn keep(&self, index: &Index, block: BlockId, stored: &[u8]) -> Result<(), DiskError> {
        let entry = index.entry(block).ok_or(DiskError::Corrupt(block))?;
        let (plain_len, plain_at) = (index.plain_len(block), index.plain_offset(block));
        DECODER.with_borrow_mut(|decoder| {
            let plain = decoder.decode(entry, plain_len, stored).map_err(|_| DiskError::Corrupt(block))?;
            if plain.iter().all(|byte| *byte == 0) {
                // Whatever was there before.
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.plain, hole, plain_at, u64::from(plain_len)).map_err(io::Error::from)
            } else {
                self.plain.write_all_at(plain, plain_at)
            }
            .map_err(failed)
        })?;
        if entry.codec != Codec::Plain {
            self.stored.write_all_at(stored, entry.offset).map_err(failed)?;
        }
        self.mark(block, true).map_err(failed)
    }

    /// The stored bytes of a block, if they are what the index says.
    fn load(&self, index: &Index, block: BlockId) -> Result<Vec<u8>, DiskError> {
        let entry = index.entry(block).ok_or(DiskError::Corrupt(block))?;
        let (file, at) = match entry.codec {
            Codec::Plain => (&self.plain, index.plain_offset(block)),
            Codec::Zstd => (&self.stored, entry.offset),
        };
        let mut stored = vec![0; entry.stored_bytes as usize];
        file.read_exact_at(&mut stored, at).map_err(failed)?;
        if !index.verify(block, &stored) {
            return Err(DiskError::Corrupt(block));
        }
        Ok(stored)
    }

    /// Whether all that is kept of a block is what the index says.
    fn is_whole(&self, index: &Index, block: BlockId) -> Result<bool, DiskError> {
        let stored = match self.load(index, block) {
            Err(DiskError::Corrupt(_)) => return Ok(false),
            loaded => loaded?,
        };
        let entry = index.entry(block).ok_or(DiskError::Corrupt(block))?;
        if entry.codec == Codec::Plain {
            return Ok(true);
        }
        DECODER.with_borrow_mut(|decoder| {
            let Ok(plain) = decoder.decode(entry, index.plain_len(block), &stored) else {
                return Ok(false);
            };
            let mut kept = vec![0; plain.len()];
            self.plain.read_exact_at(&mut kept, index.plain_offset(block)).map_err(failed)?;
            Ok(kept == plain)
        })
    }
}

thread_local! {
    /// Threads that decode are few, and so are these.
    static DECODER: RefCell<BlockDecoder> = RefCell::default();
}

/// Images whose files are open at once; of more, those used longest ago are opened again when needed.
const OPEN_IMAGES_MAX: usize = 64;

/// The open files of images. The lock is held to look at the map, never while a file is read or written.
#[derive(Default)]
struct OpenImages(Mutex<OpenFiles>);

#[derive(Default)]
struct OpenFiles {
    clock: u64,
    images: BTreeMap<PathBuf, (u64, Arc<Files>)>,
}

impl OpenImages {
    fn get(&self, folder: &Path) -> io::Result<Arc<Files>> {
        if let Some(files) = self.lock().used(folder) {
            return Ok(files);
        }
        let files = Arc::new(Files::open(folder)?);
        Ok(self.lock().add(folder, files))
    }

    /// Opened anew: the folder may be another one than before.
    fn again(&self, folder: &Path) -> io::Result<Arc<Files>> {
        self.close(folder);
        let files = Arc::new(Files::make(folder)?);
        Ok(self.lock().add(folder, files))
    }

    fn close(&self, folder: &Path) {
        self.lock().images.remove(folder);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, OpenFiles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenFiles {
    fn used(&mut self, folder: &Path) -> Option<Arc<Files>> {
        self.clock += 1;
        let (used_at, files) = self.images.get_mut(folder)?;
        *used_at = self.clock;
        Some(Arc::clone(files))
    }

    fn add(&mut self, folder: &Path, files: Arc<Files>) -> Arc<Files> {
        if self.images.len() >= OPEN_IMAGES_MAX {
            let oldest = self.images.iter().min_by_key(|(_, (used_at, _))| *used_at);
            let oldest = oldest.map(|(folder, _)| folder.clone());
            oldest.and_then(|oldest| self.images.remove(&oldest));
        }
        self.clock += 1;
        self.images.entry(folder.to_owned()).or_insert((self.clock, files)).1.clone()
    }
}

fn open_image(open: &OpenImages, folder: &Path, image: &BlockImage) -> Result<OpenedImage, DiskError> {
    if !fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir()) {
        remove(folder).map_err(failed)?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    let files = open.again(folder).map_err(failed)?;
    files.set_lengths(image).map_err(failed)?;
    let index = read_index(folder, image);
    let unverified = index.as_ref().map(|index| files.marked(index)).transpose().map_err(failed)?;
    let plain_path = folder.join("plain");
    Ok(OpenedImage { index: index.map(Arc::new), unverified: unverified.unwrap_or_default(), plain_path })
}

fn check_block(open: &OpenImages, folder: &Path, index: &Index, block: BlockId) -> Result<bool, DiskError> {
    let files = open.get(folder).map_err(failed)?;
    // What the disk does not give back is fetched again as well.
    let is_whole = files.is_whole(index, block).unwrap_or(false);
    if !is_whole {
        tracing::warn!(?block, folder = %folder.display(), "a block on disk is damaged; it is fetched again");
        files.mark(block, false).map_err(failed)?;
    }
    Ok(is_whole)
}

impl Disk for Cache {
    fn open(&self, tree: &TreeId, image: &BlockImage) -> BoxFuture<'static, Result<OpenedImage, DiskError>> {
        let (open, folder, image) = (Arc::clone(&self.open), self.folder(tree), image.clone());
        self.blocking(move || open_image(&open, &folder, &image))
    }

    fn save_index(&self, tree: &TreeId, encoded: Bytes) -> BoxFuture<'static, Result<(), DiskError>> {
        let folder = self.folder(tree);
        self.blocking(move || replace(&folder.join("index"), &encoded).map_err(failed))
    }

    fn keep(
        &self,
        tree: &TreeId,
        index: Arc<Index>,
        block: BlockId,
        stored: Bytes,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        let (open, folder) = (Arc::clone(&self.open), self.folder(tree));
        self.decoding(move || open.get(&folder).map_err(failed)?.keep(&index, block, &stored))
    }

    fn load(
        &self,
        tree: &TreeId,
        index: Arc<Index>,
        block: BlockId,
    ) -> BoxFuture<'static, Result<Bytes, DiskError>> {
        let (open, folder) = (Arc::clone(&self.open), self.folder(tree));
        self.blocking(move || open.get(&folder).map_err(failed)?.load(&index, block).map(Bytes::from))
    }

    fn check(
        &self,
        tree: &TreeId,
        index: Arc<Index>,
        block: BlockId,
    ) -> BoxFuture<'static, Result<bool, DiskError>> {
        let (open, folder) = (Arc::clone(&self.open), self.folder(tree));
        self.decoding(move || check_block(&open, &folder, &index, block))
    }

    fn remove(&self, tree: &TreeId) -> BoxFuture<'static, Result<(), DiskError>> {
        let (open, folder) = (Arc::clone(&self.open), self.folder(tree));
        self.blocking(move || {
            open.close(&folder);
            remove(&folder).map_err(failed)
        })
    }

    fn save_place(&self, tree: &TreeId, record: TreeRecord) -> BoxFuture<'static, Result<(), DiskError>> {
        let path = self.folder(tree).join("record");
        self.write_in_turn(path, Some(encoded(&record)))
    }

    fn save_left(&self, tree: &TreeId, record: TreeRecord) -> BoxFuture<'static, Result<(), DiskError>> {
        let folder = self.folder(tree);
        // In this order: with both the VM is a member still.
        let kept = self.write_in_turn(folder.join("left"), Some(encoded(&record)));
        let ended = self.write_in_turn(folder.join("record"), None);
        Box::pin(async move {
            kept.await?;
            ended.await
        })
    }

    fn save_instance(
        &self,
        start: &StartId,
        record: Option<InstanceRecord>,
    ) -> BoxFuture<'static, Result<(), DiskError>> {
        let path = self.data.join("orders").join(start.as_str());
        self.write_in_turn(path, record.as_ref().map(encoded))
    }
}

#[cfg(test)]
mod tests;

//! The cache of block images in the VM's data folder.
//!
//! ```text
//! images/TENANT.HEX/record    the block image and the VM's last place in its tree
//!                   /index    the encoded index
//!                   /stored   sparse: stored bytes at their place in the blob, for children
//!                   /plain    sparse: plain bytes at their place in the file system, for the holder
//!                   /present  a byte for each block: 1 when both forms were written
//! orders/START                an instance that was ordered
//! ```
//!
//! A block is marked present after both forms were written, without waiting for the disk. After a
//! crash of the agent the page cache has everything; after a crash of the machine what is marked is
//! verified when the image is opened, so that a half-written block is never used.

use crate::image::blocks::decode_block;
use bytes::Bytes;
use faasnet_actors::{
    agent::world::{Disk, DiskError, InstanceRecord, OpenedImage, TreeRecord},
    id::{BlockId, StartId, TreeId},
    image::{BlockImage, Index},
};
use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio_util::task::TaskTracker;

/// Below one data folder. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    data: Arc<PathBuf>,
    records: Arc<RecordWrites>,
    /// Work under way on the runtime's blocking threads.
    tasks: TaskTracker,
}

/// Records that are to be written, in the order in which they were given: two writes of one record must
/// neither meet nor overtake each other. The locks are never held across an await.
#[derive(Default)]
struct RecordWrites {
    queue: Mutex<VecDeque<(PathBuf, Option<Vec<u8>>)>>,
    turn: Mutex<()>,
}

impl RecordWrites {
    /// Writes the oldest; each caller has added one before.
    fn write_next(&self) -> Result<(), DiskError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (path, bytes) = next.expect("as many calls as additions");
        match bytes {
            Some(bytes) => replace(&path, &bytes).map_err(failed),
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            },
        }
    }
}

/// What an agent leaves for the next one on the same folder.
pub struct Records {
    pub trees: Vec<(TreeId, TreeRecord)>,
    pub instances: Vec<(StartId, InstanceRecord)>,
}

fn failed(error: io::Error) -> DiskError {
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        DiskError::Full
    } else {
        DiskError::Io(error.to_string())
    }
}

impl Cache {
    pub fn open(data: &Path) -> io::Result<Self> {
        fs::create_dir_all(data.join("images"))?;
        fs::create_dir_all(data.join("orders"))?;
        Ok(Self { data: Arc::new(data.to_owned()), records: Arc::default(), tasks: TaskTracker::new() })
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

    /// What a former agent was doing. Records that are damaged are left out: the manager orders again.
    pub fn records(&self) -> io::Result<Records> {
        let mut trees = Vec::new();
        for folder in fs::read_dir(self.data.join("images"))? {
            if let Some(record) = read_record::<TreeRecord>(&folder?.path().join("record")) {
                trees.push((record.place.tree.clone(), record));
            }
        }
        let mut instances = Vec::new();
        for file in fs::read_dir(self.data.join("orders"))? {
            let path = file?.path();
            if path.extension().is_some() {
                fs::remove_file(path)?; // the former agent was writing it when it died
            } else if let Some(record) = read_record::<InstanceRecord>(&path) {
                instances.push((record.order.start.clone(), record));
            }
        }
        Ok(Records { trees, instances })
    }
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    let record = rmp_serde::from_slice(&bytes);
    record.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a record is damaged")).ok()
}

/// Writes a file whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

fn encoded(record: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(record).expect("records are plain data")
}

fn open_image(folder: &Path, image: &BlockImage) -> Result<OpenedImage, DiskError> {
    fs::create_dir_all(folder).map_err(failed)?;
    let open = |name: &str| {
        File::options().read(true).write(true).create(true).truncate(false).open(folder.join(name))
    };
    let (stored, plain) = (open("stored").map_err(failed)?, open("plain").map_err(failed)?);
    let marks = open("present").map_err(failed)?;
    stored.set_len(image.blob_bytes).map_err(failed)?;
    plain.set_len(image.plain_bytes).map_err(failed)?;
    let index = fs::read(folder.join("index")).ok().and_then(|encoded| {
        let is_right = <[u8; 32]>::from(Sha256::digest(&encoded)) == *image.index_digest.as_bytes();
        is_right.then(|| Index::decode(&encoded).ok()).flatten()
    });
    let mut present = BTreeSet::new();
    if let Some(index) = &index {
        marks.set_len(u64::from(index.block_count())).map_err(failed)?;
        let mut marked = vec![0; index.block_count() as usize];
        marks.read_exact_at(&mut marked, 0).map_err(failed)?;
        for block in (0..).map(BlockId).take(marked.len()).filter(|block| marked[block.0 as usize] == 1) {
            // What the disk does not give back is fetched again as well.
            if is_whole(index, block, &stored, &plain).unwrap_or(false) {
                present.insert(block);
            } else {
                tracing::warn!(?block, folder = %folder.display(), "a block on disk is damaged; it is fetched again");
                marks.write_all_at(&[0], u64::from(block.0)).map_err(failed)?;
            }
        }
    }
    Ok(OpenedImage { index: index.map(Arc::new), present, plain_path: folder.join("plain") })
}

/// Whether both forms of a block are what the index says.
fn is_whole(index: &Index, block: BlockId, stored: &File, plain: &File) -> io::Result<bool> {
    let entry = index.entry(block).expect("counted by the index");
    let mut bytes = vec![0; entry.stored_bytes as usize];
    stored.read_exact_at(&mut bytes, entry.offset)?;
    if !index.verify(block, &bytes) {
        return Ok(false);
    }
    let Ok(decoded) = decode_block(entry, index.plain_len(block), &bytes) else {
        return Ok(false);
    };
    let mut kept = vec![0; decoded.len()];
    plain.read_exact_at(&mut kept, index.plain_offset(block))?;
    Ok(kept == decoded)
}

fn keep_block(folder: &Path, index: &Index, block: BlockId, stored: &[u8]) -> Result<(), DiskError> {
    let entry = index.entry(block).ok_or(DiskError::Corrupt(block))?;
    let decoded =
        decode_block(entry, index.plain_len(block), stored).map_err(|_| DiskError::Corrupt(block))?;
    let open = |name: &str| File::options().write(true).open(folder.join(name)).map_err(failed);
    open("stored")?.write_all_at(stored, entry.offset).map_err(failed)?;
    open("plain")?.write_all_at(&decoded, index.plain_offset(block)).map_err(failed)?;
    open("present")?.write_all_at(&[1], u64::from(block.0)).map_err(failed)
}

fn load_block(folder: &Path, index: &Index, block: BlockId) -> Result<Bytes, DiskError> {
    let entry = index.entry(block).ok_or(DiskError::Corrupt(block))?;
    let mut stored = vec![0; entry.stored_bytes as usize];
    let file = File::open(folder.join("stored")).map_err(failed)?;
    file.read_exact_at(&mut stored, entry.offset).map_err(failed)?;
    if !index.verify(block, &stored) {
        return Err(DiskError::Corrupt(block));
    }
    Ok(stored.into())
}

impl Disk for Cache {
    fn open(&self, tree: &TreeId, image: &BlockImage) -> BoxFuture<'static, Result<OpenedImage, DiskError>> {
        let (folder, image) = (self.folder(tree), image.clone());
        self.blocking(move || open_image(&folder, &image))
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
        let folder = self.folder(tree);
        self.blocking(move || keep_block(&folder, &index, block, &stored))
    }

    fn load(
        &self,
        tree: &TreeId,
        index: Arc<Index>,
        block: BlockId,
    ) -> BoxFuture<'static, Result<Bytes, DiskError>> {
        let folder = self.folder(tree);
        self.blocking(move || load_block(&folder, &index, block))
    }

    fn remove(&self, tree: &TreeId) -> BoxFuture<'static, Result<(), DiskError>> {
        let folder = self.folder(tree);
        self.blocking(move || match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        })
    }

    fn save_place(&self, tree: &TreeId, record: TreeRecord) -> BoxFuture<'static, Result<(), DiskError>> {
        let path = self.folder(tree).join("record");
        self.write_in_turn(path, Some(encoded(&record)))
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
mod record_tests;

//! What an agent writes down for the next one: places in trees, and instances. Each record has a hash before it,
//! because one that is read with another port, path or limit than was written would be followed.

use super::{Cache, failed, make_way, remove};
use crate::agent::named_index::named_index;
use faasnet_actors::{
    agent::world::{ColdImage, DiskError, InstanceRecord, Records, TreeRecord},
    block_store::disk_bytes,
    id::{BlockId, StartId},
    image::{BlockImage, Index},
};
use rustix::fs::OFlags;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

const MAGIC: &[u8; 8] = b"FAASNETR";
/// Far more than an order's frame may have (`transfer.frame_header_bytes_max`).
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// Records that are to be written, in the order in which they were given: two writes of one record must
/// neither meet nor overtake each other. The locks are never held across an await.
#[derive(Default)]
pub(super) struct RecordWrites {
    pub(super) queue: Mutex<VecDeque<(PathBuf, Option<Vec<u8>>)>>,
    turn: Mutex<()>,
}

impl RecordWrites {
    /// Writes the oldest; each caller has added one before.
    pub(super) fn write_next(&self) -> Result<(), DiskError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (path, bytes) = next.expect("as many calls as additions");
        match bytes {
            Some(bytes) => replace(&path, &bytes).map_err(failed),
            None => remove(&path).map_err(failed),
        }
    }
}

impl Cache {
    /// What a former agent was doing. Records that are damaged are left out: the manager orders again.
    pub fn records(&self) -> io::Result<Records> {
        let instances = self.instances()?;
        let is_used = |folder: &Path| {
            instances.iter().any(|(_, record)| self.folder(&record.order.place.tree) == folder)
        };
        let (mut trees, mut cold) = (Vec::new(), Vec::new());
        for folder in fs::read_dir(self.data.join("images"))? {
            let folder = folder?;
            // Mount points, which have the name of the image alone, are the holder's.
            if !folder.file_name().as_encoded_bytes().contains(&b'.') {
                continue;
            }
            let folder = folder.path();
            // A record that came from another folder says nothing of this one.
            let is_its = |record: &TreeRecord| {
                let tree = &record.place.tree;
                self.folder(tree) == folder && record.image.id == tree.image
            };
            if let Some(record) = read_record(&folder.join("record")).filter(is_its) {
                trees.push((record.place.tree.clone(), record));
            } else if let Some((left_at, image)) = cold_image(&folder, is_its) {
                cold.push((left_at, (image.record.place.tree.clone(), image)));
            } else if !is_used(&folder) {
                // Nobody would ever ask for it, or count it.
                tracing::warn!(folder = %folder.display(), "an image in the cache has no record; it is removed");
                remove(&folder)?;
            }
        }
        cold.sort_by_key(|(left_at, _)| *left_at);
        let cold = cold.into_iter().map(|(_, image)| image).collect();
        Ok(Records { trees, cold, instances })
    }

    fn instances(&self) -> io::Result<Vec<(StartId, InstanceRecord)>> {
        let mut instances = Vec::new();
        for file in fs::read_dir(self.data.join("orders"))? {
            let path = file?.path();
            if path.extension().is_some() {
                remove(&path)?; // the former agent was writing it when it died
            } else if let Some(record) = read_record::<InstanceRecord>(&path)
                && path.file_name().is_some_and(|name| name == record.order.start.as_str())
            {
                instances.push((record.order.start.clone(), record));
            }
        }
        Ok(instances)
    }
}

/// An image of a tree that was left, and when. What its blocks hold is looked at when it is used again.
fn cold_image(folder: &Path, is_its: impl Fn(&TreeRecord) -> bool) -> Option<(SystemTime, ColdImage)> {
    let path = folder.join("left");
    let record = read_record(&path).filter(is_its)?;
    let left_at = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok()?;
    let mut image = ColdImage { record, blocks_present: 0, blocks_total: 0, disk_bytes: 0 };
    if let Some(index) = read_index(folder, &image.record.image) {
        let marks = read_at_most(&folder.join("present"), u64::from(index.block_count())).unwrap_or_default();
        let marked = (0..index.block_count()).zip(marks).filter(|(_, mark)| *mark == 1);
        for (number, _) in marked {
            image.blocks_present += 1;
            image.disk_bytes += disk_bytes(&index, BlockId(number));
        }
        image.blocks_total = index.block_count();
    }
    Some((left_at, image))
}

/// The index, if it is the one that the manager has named.
pub(super) fn read_index(folder: &Path, image: &BlockImage) -> Option<Index> {
    let encoded = read_at_most(&folder.join("index"), image.index_bytes).ok()?;
    named_index(image, &encoded).ok()
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match read_at_most(path, RECORD_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        read => read.map_err(|error| error.to_string()),
    };
    let record = bytes.and_then(|bytes| decoded(&bytes));
    record.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a record is damaged")).ok()
}

/// What a regular file holds. Of a longer one: nothing.
fn read_at_most(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > bytes_max {
        return Err(io::Error::other("it is no file, or far too long"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    make_way(&temporary)?;
    make_way(path)?;
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

pub(super) fn encoded(record: &impl Serialize) -> Vec<u8> {
    let record = rmp_serde::to_vec_named(record).expect("records are plain data");
    [&MAGIC[..], blake3::hash(&record).as_bytes(), &record].concat()
}

/// Earlier releases wrote the record alone, which begins with another byte.
fn decoded<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let record = match bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk::<32>()) {
        Some((hash, record)) if blake3::hash(record) == *hash => record,
        Some(_) => return Err("its hash is another one".into()),
        None => bytes,
    };
    rmp_serde::from_slice(record).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;

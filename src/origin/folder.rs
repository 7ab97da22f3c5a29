//! Block images in an OCI layout folder: `blobs/sha256/<64 hexadecimal digits>`.
//!
//! The name of the object is made from a digest, and the file is opened below the folder without
//! following any link, so that no content of the folder can lead a reader elsewhere. Reads run on
//! blocking threads, a bounded number at once.

use super::counters::OriginCounters;
use crate::settings::OriginSettings;
use bytes::Bytes;
use faasnet_actors::{id::Digest, world::OriginError};
use futures::future::{BoxFuture, FutureExt};
use rustix::{
    fs::{self, FileType, Mode, OFlags, ResolveFlags},
    io::{Errno, pread},
};
use std::{
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;

/// Reads at once. Enough to keep a disk's queue filled, few beside tokio's 512 blocking threads.
const READS_MAX: usize = 16;

pub(super) struct FolderOrigin {
    slots: Arc<Semaphore>,
    deadline: Duration,
    counters: Arc<OriginCounters>,
}

impl FolderOrigin {
    pub(super) fn new(settings: &OriginSettings, counters: Arc<OriginCounters>) -> Self {
        let deadline = Duration::from_millis(settings.read_ms);
        Self { slots: Arc::new(Semaphore::new(READS_MAX)), deadline, counters }
    }

    pub(super) fn read(
        &self,
        folder: &Path,
        object: Digest,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Bytes, OriginError>> {
        let (slots, counters) = (Arc::clone(&self.slots), Arc::clone(&self.counters));
        let (folder, deadline) = (folder.to_owned(), self.deadline);
        let work = async move {
            let slot = slots.acquire_owned().await.map_err(|_| failed(&folder, "closed"))?;
            let read = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                read_range(&folder, object, range, &counters)
            });
            read.await.unwrap_or_else(|error| Err(OriginError::Failed(error.to_string())))
        };
        async move {
            let late = |_| OriginError::Failed(format!("no answer of the disk within {deadline:?}"));
            tokio::time::timeout(deadline, work).await.map_err(late)?
        }
        .boxed()
    }
}

fn read_range(
    folder: &Path,
    object: Digest,
    range: Range<u64>,
    counters: &OriginCounters,
) -> Result<Bytes, OriginError> {
    let file = open_object(folder, object)?;
    counters.request(false);
    let wanted = range.end - range.start;
    let mut bytes = vec![0; usize::try_from(wanted).map_err(|error| failed(folder, error))?];
    let mut filled = 0;
    while filled < bytes.len() {
        match pread(&file, &mut bytes[filled..], range.start + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(folder, error)),
        }
    }
    let got = filled as u64;
    counters.received(got);
    if got < wanted {
        counters.wasted(got);
        return Err(OriginError::Truncated { got, wanted });
    }
    Ok(bytes.into())
}

fn open_object(folder: &Path, object: Digest) -> Result<OwnedFd, OriginError> {
    if !folder.is_absolute() {
        return Err(failed(folder, "use an absolute path"));
    }
    let directory = fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| match error {
            Errno::NOENT => OriginError::NotFound(folder.display().to_string()),
            other => failed(folder, other),
        })?;
    let place: PathBuf = ["blobs", "sha256", &object.hex()].iter().collect();
    // NONBLOCK: a pipe in the place of the blob must not hold the thread.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file =
        fs::openat2(&directory, &place, flags, Mode::empty(), resolve).map_err(|error| match error {
            Errno::NOENT => OriginError::NotFound(folder.join(&place).display().to_string()),
            other => failed(&folder.join(&place), other),
        })?;
    let kind = fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind.map_err(|error| failed(folder, error))? {
        FileType::RegularFile => Ok(file),
        _ => Err(failed(&folder.join(&place), "not a regular file")),
    }
}

fn failed(path: &Path, reason: impl std::fmt::Display) -> OriginError {
    OriginError::Failed(format!("{}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use crate::{origin, settings::Settings};
    use faasnet_actors::{
        id::Digest,
        image::{BlockImage, ImageLocation, RuntimeConfig},
        world::{Origin, OriginError, Part},
    };
    use std::{fs, path::Path};

    fn image(folder: &Path, blob_bytes: u64) -> BlockImage {
        let digest = |byte| Digest::from_bytes([byte; 32]);
        BlockImage {
            id: digest(1),
            source: digest(2),
            index_digest: digest(3),
            index_bytes: 4,
            blob_digest: digest(4),
            blob_bytes,
            plain_bytes: blob_bytes,
            location: ImageLocation::Folder { path: folder.to_owned() },
            runtime: RuntimeConfig::default(),
        }
    }

    fn layout() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let blobs = folder.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("created");
        let blob = blobs.join(Digest::from_bytes([4; 32]).hex());
        (folder, blob)
    }

    fn reader() -> std::sync::Arc<origin::OriginReader> {
        origin::open(&Settings::load(None).expect("defaults").origin, 1).expect("opened")
    }

    #[tokio::test]
    async fn a_range_of_the_right_object_is_read_and_counted() {
        let (folder, blob) = layout();
        fs::write(&blob, b"0123456789").expect("written");
        let index = blob.with_file_name(Digest::from_bytes([3; 32]).hex());
        fs::write(index, b"abcd").expect("written");
        let (reader, image) = (reader(), image(folder.path(), 10));
        assert_eq!(reader.read(&image, Part::Blob, 2..5).await.as_deref(), Ok(&b"234"[..]));
        assert_eq!(reader.read(&image, Part::Index, 0..4).await.as_deref(), Ok(&b"abcd"[..]));
        let counts = reader.counters().snapshot();
        assert_eq!((counts.requests, counts.retries, counts.bytes, counts.wasted_bytes), (2, 0, 7, 0));
    }

    #[tokio::test]
    async fn what_is_missing_or_short_is_said() {
        let (folder, blob) = layout();
        let (reader, image) = (reader(), image(folder.path(), 10));
        let missing = reader.read(&image, Part::Blob, 0..10).await;
        assert!(matches!(missing, Err(OriginError::NotFound(_))), "{missing:?}");
        fs::write(&blob, b"0123456").expect("written");
        let short = reader.read(&image, Part::Blob, 4..10).await;
        assert_eq!(short, Err(OriginError::Truncated { got: 3, wanted: 6 }));
        let outside = reader.read(&image, Part::Blob, 4..11).await;
        assert!(matches!(outside, Err(OriginError::Failed(_))), "{outside:?}");
    }

    #[tokio::test]
    async fn nothing_leads_out_of_the_folder() {
        let (folder, blob) = layout();
        let secret = tempfile::NamedTempFile::new().expect("temporary file");
        fs::write(secret.path(), b"0123456789").expect("written");
        let (reader, image) = (reader(), image(folder.path(), 10));
        std::os::unix::fs::symlink(secret.path(), &blob).expect("linked");
        let linked = reader.read(&image, Part::Blob, 0..10).await;
        assert!(matches!(linked, Err(OriginError::Failed(_))), "{linked:?}");
        fs::remove_file(&blob).expect("removed");
        let pipe = std::process::Command::new("mkfifo").arg(&blob).status().expect("mkfifo runs");
        assert!(pipe.success());
        let piped = reader.read(&image, Part::Blob, 0..10).await;
        assert!(matches!(piped, Err(OriginError::Failed(_))), "{piped:?}");
    }
}

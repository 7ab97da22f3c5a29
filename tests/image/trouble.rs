//! What goes wrong around a conversion: full disks, sources that break off, people who change their minds.

use crate::{
    archive::{Archive, noise},
    mounted::Mounted,
    oci::{Converted, Image, Layer, settings},
};
use faasnet::{
    image::{
        convert::{ConvertError, ConvertOptions, convert},
        progress::{Phase, Progress},
        publish::{PublishError, folder::FolderDestination},
        resolve::Platform,
        source::{BlobRef, Document, Source, SourceError, layout::LayoutSource},
    },
    settings::ImageSettings,
};
use faasnet_actors::{id::Digest, image::BlockImage};
use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
    },
};
use std::{
    fs,
    io::{self, Read},
    path::Path,
};
use tempfile::TempDir;

/// A layout folder read as if it were far away: layers are spooled, and blobs may break off.
struct Remote {
    layout: LayoutSource,
    /// Blobs longer than this end there.
    breaks_at: u64,
}

impl Source for Remote {
    fn root(&self) -> Result<Document, SourceError> {
        self.layout.root()
    }

    fn manifest(&self, digest: Digest) -> Result<Document, SourceError> {
        self.layout.manifest(digest)
    }

    fn blob(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError> {
        Ok(Box::new(self.layout.blob(blob)?.take(self.breaks_at)))
    }
}

fn remote(image: &Image, breaks_at: u64) -> Remote {
    let layout = LayoutSource::new(&image.folder.path().display().to_string(), 1 << 20).unwrap();
    Remote { layout, breaks_at }
}

fn run(
    source: &dyn Source,
    spool: &Path,
    destination: &Path,
    settings: ImageSettings,
    progress: &Progress,
) -> Result<BlockImage, ConvertError> {
    let options = ConvertOptions { platform: Platform::of_this_machine(), settings, spool: spool.to_owned() };
    convert(source, &FolderDestination::new(destination), &options, progress)
}

fn noisy_image() -> Image {
    let tar = Archive::default().file("noise", &noise(3_000_000, 3)).file("more", b"more").finish();
    Image::new(&[Layer::gzip(&tar), Layer::zstd(&Archive::default().file("x", b"y").finish())])
}

/// A file system of a megabyte.
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "size", "1m").unwrap();
        fsconfig_create(&context).unwrap();
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        move_mount(&mount, "", CWD, folder.path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_source_far_away_gives_the_same_bytes_as_one_close_by() {
    let image = noisy_image();
    let (spool, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let progress = Progress::default();
    let source = remote(&image, u64::MAX);
    let converted = run(&source, spool.path(), folder.path(), settings(), &progress).unwrap();
    assert_eq!(converted.id, image.convert().unwrap().image.id);
    assert_eq!(progress.snapshot().phase, Phase::Done);
    assert_eq!(progress.snapshot().entries, 3);
    drop(Mounted::new(&Converted { folder, image: converted }));
}

#[test]
fn a_source_that_breaks_off_and_one_that_is_too_large_are_errors_of_the_source() {
    let image = noisy_image();
    let (spool, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let convert = |source: &Remote, settings| {
        run(source, spool.path(), folder.path(), settings, &Progress::default()).expect_err("must fail")
    };
    let error = convert(&remote(&image, 1_000_000), settings());
    assert!(matches!(&error, ConvertError::Source(SourceError::Truncated { got: 1_000_000, .. })), "{error}");
    let mut small = settings();
    small.spool_bytes_max = 1_000_000;
    let error = convert(&remote(&image, u64::MAX), small);
    assert!(error.to_string().contains("image.spool_bytes_max"), "{error}");
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_named_and_left_as_it_was() {
    let image = noisy_image();
    let (disk, folder) = (SmallDisk::new(), TempDir::new().unwrap());
    let layout = remote(&image, u64::MAX).layout;
    for source in [&layout as &dyn Source, &remote(&image, u64::MAX)] {
        let error = run(source, disk.path(), folder.path(), settings(), &Progress::default());
        assert!(matches!(error, Err(ConvertError::SpoolFull { .. })), "{error:?}");
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    }
    let error = run(&layout, folder.path(), disk.path(), settings(), &Progress::default());
    assert!(matches!(error, Err(ConvertError::Publish(PublishError::Full { .. }))), "{error:?}");
    let blobs = fs::read_dir(disk.path().join("blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), 0, "no half of a blob stays");
}

/// Cancels when the first blob is read, which is past the manifest.
struct ChangesItsMind<'a> {
    source: Remote,
    progress: &'a Progress,
    blobs_before: std::sync::atomic::AtomicU32,
}

impl Source for ChangesItsMind<'_> {
    fn root(&self) -> Result<Document, SourceError> {
        self.source.root()
    }

    fn manifest(&self, digest: Digest) -> Result<Document, SourceError> {
        self.source.manifest(digest)
    }

    fn blob(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError> {
        let left = self.blobs_before.load(std::sync::atomic::Ordering::Relaxed);
        if left == 0 {
            self.progress.cancel();
        }
        self.blobs_before.store(left.saturating_sub(1), std::sync::atomic::Ordering::Relaxed);
        self.source.blob(blob)
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[test]
fn a_cancelled_conversion_ends_soon_and_leaves_nothing() {
    let image = noisy_image();
    // The configuration, then both layers in the first pass, then those that have files in the second.
    for blobs_before in [1, 2, 3] {
        let (spool, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let progress = Progress::default();
        let source = ChangesItsMind {
            source: remote(&image, u64::MAX),
            progress: &progress,
            blobs_before: blobs_before.into(),
        };
        let result = run(&source, spool.path(), folder.path(), settings(), &progress);
        assert!(matches!(result, Err(ConvertError::Cancelled(_))), "{result:?}");
        assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// A layer whose file is replaced between the two passes.
struct Changes {
    first: LayoutSource,
    second: Vec<u8>,
    layer: Digest,
    reads: std::sync::atomic::AtomicU32,
}

impl Source for Changes {
    fn root(&self) -> Result<Document, SourceError> {
        self.first.root()
    }

    fn manifest(&self, digest: Digest) -> Result<Document, SourceError> {
        self.first.manifest(digest)
    }

    fn blob(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError> {
        if blob.digest == self.layer && self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0 {
            return Ok(Box::new(io::Cursor::new(self.second.clone())));
        }
        self.first.blob(blob)
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[test]
fn a_layer_that_changes_between_the_passes_is_refused() {
    let tar = |byte: u8| Archive::default().file("file", &vec![byte; 100_000]).finish();
    let layer = Layer::plain(tar(1));
    let digest = layer.diff_id;
    let image = Image::new(&[layer]);
    let source =
        Changes { first: remote(&image, u64::MAX).layout, second: tar(2), layer: digest, reads: 0.into() };
    let (spool, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let result = run(&source, spool.path(), folder.path(), settings(), &Progress::default());
    assert!(matches!(&result, Err(ConvertError::Source(SourceError::WrongDigest { .. }))), "{result:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

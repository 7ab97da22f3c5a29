//! Block images in an OCI layout folder, `folder:DIR`. Several processes may write at once: blobs appear
//! by renaming, and the index is read, changed and replaced under a lock.

use super::{ARTIFACT_TYPE, Artifact, Destination, MANIFEST_MEDIA_TYPE, PublishError};
use crate::image::{
    manifest::{Descriptor, Index},
    progress::{Phase, Progress},
    source::{
        BlobRef, SourceError,
        layout::{blob_path, empty_index, read_bounded},
    },
};
use faasnet_actors::{id::Digest, image::ImageLocation};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Longest `index.json` that is read: some 100,000 images.
pub(crate) const INDEX_BYTES_MAX: u64 = 32 << 20;

/// An OCI layout folder that block images are put into.
#[derive(Debug, Clone)]
pub struct FolderDestination {
    folder: PathBuf,
}

impl FolderDestination {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Makes the folder if it is missing. Its path becomes absolute, since others will read it from
    /// elsewhere.
    fn prepare(&self) -> Result<PathBuf, PublishError> {
        fs::create_dir_all(self.folder.join("blobs/sha256")).map_err(PublishError::io(&self.folder))?;
        let folder = fs::canonicalize(&self.folder).map_err(PublishError::io(&self.folder))?;
        let mark = folder.join("oci-layout");
        if !mark.exists() {
            put_bytes(&mark, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(folder)
    }

    fn add_to_index(&self, folder: &Path, artifact: &Artifact) -> Result<(), PublishError> {
        let lock_path = folder.join(".faasnet-lock");
        let lock = File::create(&lock_path).map_err(PublishError::io(&lock_path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| PublishError::io(&lock_path)(error.into()))?;
        let mut index = read_index(folder)?;
        if index.manifests.iter().any(|entry| entry.digest == artifact.manifest_digest) {
            return Ok(());
        }
        let manifest = BlobRef {
            media_type: MANIFEST_MEDIA_TYPE.to_owned(),
            digest: artifact.manifest_digest,
            size: artifact.manifest.len() as u64,
        };
        let artifact_type = Some(ARTIFACT_TYPE.to_owned());
        let annotations = artifact.annotations.clone();
        index.manifests.push(Descriptor { artifact_type, annotations, ..Descriptor::from(&manifest) });
        let bytes = serde_json::to_vec(&index).expect("plain structures always encode");
        put_bytes(&folder.join("index.json"), &bytes)
    }
}

impl Destination for FolderDestination {
    fn has(&self, manifest: Digest) -> Result<bool, PublishError> {
        let index = read_index(&self.folder)?;
        Ok(index.manifests.iter().any(|entry| entry.digest == manifest))
    }

    fn publish(&self, artifact: &Artifact, progress: &Progress) -> Result<ImageLocation, PublishError> {
        progress.begin(Phase::Publishing, artifact.blob_ref.size);
        let folder = self.prepare()?;
        put_file(&blob_path(&folder, artifact.blob_ref.digest), &artifact.blob_path, progress)?;
        put_bytes(&blob_path(&folder, artifact.index_ref.digest), &artifact.index)?;
        put_bytes(&blob_path(&folder, artifact.config_ref.digest), &artifact.config)?;
        put_bytes(&blob_path(&folder, artifact.manifest_digest), &artifact.manifest)?;
        self.add_to_index(&folder, artifact)?;
        Ok(ImageLocation::Folder { path: folder })
    }
}

/// The folder's index; one without entries if there is none yet.
fn read_index(folder: &Path) -> Result<Index, PublishError> {
    let path = folder.join("index.json");
    let bytes = match read_bounded(&path, INDEX_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(SourceError::NotFound { .. }) => return Ok(empty_index()),
        Err(SourceError::Io { path, error }) => return Err(PublishError::Io { path, error }),
        Err(error) => {
            return Err(PublishError::Invalid {
                what: path.display().to_string(),
                reason: error.to_string(),
            });
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| PublishError::Invalid {
        what: path.display().to_string(),
        reason: error.to_string(),
    })
}

fn put_bytes(path: &Path, bytes: &[u8]) -> Result<(), PublishError> {
    put(path, |file| file.write_all(bytes).map_err(PublishError::io(path)))
}

/// Copies rather than links: the two folders may lie on different disks, and the converter's file is
/// gone in a moment.
fn put_file(path: &Path, from: &Path, progress: &Progress) -> Result<(), PublishError> {
    put(path, |file| {
        let mut source = File::open(from).map_err(PublishError::io(from))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let got = match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(PublishError::io(from)(error)),
            };
            file.write_all(&buffer[..got]).map_err(PublishError::io(path))?;
            progress.advance(got as u64)?;
        }
    })
}

/// Writes a file that appears under its name only when it is whole and on disk.
fn put(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), PublishError>) -> Result<(), PublishError> {
    let folder = path.parent().expect("all paths here lie in a folder");
    let mut file = NamedTempFile::with_prefix_in(".new-", folder).map_err(PublishError::io(folder))?;
    fill(file.as_file_mut())?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(permissions).map_err(PublishError::io(path))?;
    file.as_file().sync_all().map_err(PublishError::io(path))?;
    file.persist(path).map_err(|error| PublishError::io(path)(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(PublishError::io(folder))
}

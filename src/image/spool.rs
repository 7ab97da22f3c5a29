//! Layers between the two passes: those of a registry are kept in a bounded folder, those of a local
//! folder are read where they lie.

use crate::image::{
    layer::{Checked, Layer},
    progress::Progress,
    source::{BlobRef, Source, SourceError, layout::open_file},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Gives the blobs of layers, as often as they are asked for.
pub struct Spool<'a> {
    source: &'a dyn Source,
    /// Files of kept blobs; none if the source is local.
    files: BTreeMap<faasnet_actors::id::Digest, PathBuf>,
}

impl<'a> Spool<'a> {
    /// Fetches all layers into `folder`, unless the source is local.
    pub fn fill(
        source: &'a dyn Source,
        layers: &[Layer],
        folder: &Path,
        spool_bytes_max: u64,
        progress: &Progress,
    ) -> Result<Self, SourceError> {
        let mut files = BTreeMap::new();
        if source.is_local() {
            return Ok(Self { source, files });
        }
        let blobs: BTreeMap<_, _> = layers.iter().map(|layer| (layer.blob.digest, &layer.blob)).collect();
        let needed = blobs.values().try_fold(0_u64, |sum, blob| sum.checked_add(blob.size));
        if needed.is_none_or(|needed| needed > spool_bytes_max) {
            let what = "the sum of all compressed layers".to_owned();
            return Err(SourceError::TooLarge {
                what,
                limit: spool_bytes_max,
                setting: "image.spool_bytes_max",
            });
        }
        for blob in blobs.into_values() {
            let path = folder.join(blob.digest.hex());
            fetch(source, blob, &path, progress)?;
            files.insert(blob.digest, path);
        }
        Ok(Self { source, files })
    }

    /// The blob's bytes from the start.
    pub fn open(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError> {
        match self.files.get(&blob.digest) {
            Some(path) => Ok(Box::new(open_file(path)?)),
            None => self.source.blob(blob),
        }
    }

    /// Whether the blob itself is not what the manifest says: the better reason when its content makes
    /// no sense.
    pub fn check(&self, blob: &BlobRef) -> Result<(), SourceError> {
        let mut checked = Checked::blob(self.open(blob)?, blob);
        io::copy(&mut checked, &mut io::sink()).map(drop).map_err(|error| blob_error(blob, error))
    }
}

fn fetch(source: &dyn Source, blob: &BlobRef, path: &Path, progress: &Progress) -> Result<(), SourceError> {
    let at_path = |error| SourceError::Io { path: path.to_owned(), error };
    let mut file = File::create(path).map_err(at_path)?;
    let mut checked = Checked::blob(source.blob(blob)?, blob);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let got = match checked.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(blob_error(blob, error)),
        };
        io::Write::write_all(&mut file, &buffer[..got]).map_err(at_path)?;
        progress.advance(got as u64)?;
    }
}

fn blob_error(blob: &BlobRef, error: io::Error) -> SourceError {
    error.downcast::<SourceError>().unwrap_or_else(|error| SourceError::Unavailable {
        what: format!("blob {}", blob.digest),
        reason: error.to_string(),
    })
}

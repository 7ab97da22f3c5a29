//! Converts a source image into a block image and publishes it.
//!
//! ```text
//! resolve -> spool -> headers of all layers -> layout -> file data -> blocks -> artifact -> publish
//! ```
//!
//! The data of files stands in the order of the layers, so that both passes read each layer as a stream.

use crate::{
    image::{
        artifact,
        erofs::{Layout, LayoutError},
        merge::Refusal,
        passes::{Layers, PackJob, plain_bytes_max},
        progress::{Cancelled, Phase, Progress},
        publish::{Destination, PublishError},
        resolve::{self, Limits, Platform, ResolveError},
        runtime::{RuntimeError, runtime_config},
        source::{Source, SourceError},
        spool::Spool,
        tree::{DataPlace, InodeId, Kind, Tree},
    },
    settings::{ImageSettings, Settings},
};
use faasnet_actors::{
    id::Digest,
    image::{BlockImage, Index, IndexError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What a conversion is told beside its source and destination.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    pub platform: Platform,
    /// Limits, threads and compression.
    pub settings: ImageSettings,
    /// An existing or new folder for layers and blocks while the conversion runs; it is left as it was.
    pub spool: PathBuf,
}

impl ConvertOptions {
    /// As the settings say; without `image.spool`, the spool lies in the manager's data folder.
    pub fn new(settings: &Settings, platform: Platform) -> Self {
        let spool = &settings.image.spool;
        let is_given = !spool.as_os_str().is_empty();
        let spool = if is_given { spool.clone() } else { settings.manager.data.join("spool") };
        Self { platform, settings: settings.image.clone(), spool }
    }
}

/// Why an image was not converted. Nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("layer {number} ({digest}), {place}: {refusal}")]
    Layer { number: usize, digest: Digest, place: String, refusal: Refusal },
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("no space left in {}: free some space or choose another image.spool", path.display())]
    SpoolFull { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Spool { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl ConvertError {
    /// An I/O error in the spool folder; a full disk has a variant of its own.
    pub(crate) fn spool(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::SpoolFull { path: path.to_owned() }
            }
            _ => Self::Spool { path: path.to_owned(), error },
        }
    }
}

/// Converts the image, publishes it, and returns what the metadata store records of it.
///
/// Blocks for minutes; `progress` may be watched and cancelled from elsewhere.
pub fn convert(
    source: &dyn Source,
    destination: &dyn Destination,
    options: &ConvertOptions,
    progress: &Progress,
) -> Result<BlockImage, ConvertError> {
    progress.begin(Phase::Resolving, 0);
    let settings = &options.settings;
    let limits = Limits { manifest_bytes_max: settings.manifest_bytes_max, layers_max: settings.layers_max };
    let image = resolve::resolve(source, &options.platform, limits)?;
    let work = work_folder(&options.spool)?;
    let stored_bytes = image.layers.iter().map(|layer| layer.blob.size).fold(0, u64::saturating_add);
    let passes = if source.is_local() { 1 } else { 2 };
    progress.begin(Phase::Reading, stored_bytes.saturating_mul(passes));
    let spool = Spool::fill(source, &image.layers, work.path(), settings.spool_bytes_max, progress);
    let layers = Layers { spool: spool.map_err(spool_error)?, layers: &image.layers, settings, progress };
    let tree = layers.read_headers()?;

    let files = files_in_layer_order(&tree);
    let order: Vec<InodeId> = files.iter().map(|(_, id)| *id).collect();
    let layout = Layout::new(&tree, &order, plain_bytes_max(settings))?;
    progress.begin(Phase::Packing, layout.plain_bytes());
    let blob_path = work.path().join("blob");
    let job = PackJob { tree: &tree, layout: &layout, files: &files, uuid: uuid_of(image.manifest.digest) };
    let (blob, accounts) = layers.pack(&job, &blob_path)?;

    let runtime = runtime_config(&image.config.config, &accounts)?;
    let index = Index::new(layout.plain_bytes(), layout.metadata_blocks(), blob.entries)?;
    let artifact = artifact::build(image.manifest, runtime, &index, blob.digest, blob_path);
    let location = destination.publish(&artifact, progress)?;
    progress.begin(Phase::Done, 0);
    let read = artifact::read_artifact(&artifact.manifest, &artifact.config, location);
    Ok(read.expect("what was built a moment ago is a block image"))
}

fn work_folder(spool: &Path) -> Result<tempfile::TempDir, ConvertError> {
    let error = |error| ConvertError::Spool { path: spool.to_owned(), error };
    fs::create_dir_all(spool).map_err(error)?;
    tempfile::Builder::new().prefix("convert-").tempdir_in(spool).map_err(error)
}

/// The file system's UUID, so that overlayfs can tell images apart.
fn uuid_of(source: Digest) -> [u8; 16] {
    std::array::from_fn(|place| source.as_bytes()[place])
}

fn files_in_layer_order(tree: &Tree) -> Vec<(DataPlace, InodeId)> {
    let place = |kind: &Kind| match kind {
        Kind::File { data, .. } => Some(*data),
        _ => None,
    };
    let mut files: Vec<_> = tree.iter().filter_map(|(id, inode)| Some((place(&inode.kind)?, id))).collect();
    files.sort_unstable();
    files
}

fn spool_error(error: SourceError) -> ConvertError {
    match error {
        SourceError::Io { path, error } => ConvertError::spool(&path, error),
        SourceError::Cancelled(cancelled) => cancelled.into(),
        other => other.into(),
    }
}

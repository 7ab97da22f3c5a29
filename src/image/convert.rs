//! Converts a source image into a block image and publishes it.
//!
//! ```text
//! resolve -> spool -> headers of all layers -> plan, layout -> hot set -> file data -> blocks -> artifact -> publish
//! ```
//!
//! The data of files stands in the order of the layers, so that each pass reads a layer as a stream. What
//! starts read comes before it, in the order of first use: a pass of its own puts it into a file.

use crate::{
    image::{
        artifact,
        erofs::{Layout, LayoutError},
        merge::Refusal,
        packing::{HotSet, Plan},
        passes::{Layers, PackJob, plain_bytes_max},
        progress::{Cancelled, Phase, Progress},
        publish::{Destination, PublishError},
        resolve::{self, Limits, Platform, ResolveError},
        runtime::{RuntimeError, runtime_config},
        source::{Pinned, Source, SourceError},
        spool::Spool,
        zip::ZipError,
    },
    settings::{ImageSettings, Settings},
};
use faasnet_actors::{
    id::Digest,
    image::{BlockImage, Index, IndexError},
    profile::Profile,
    world::Packing,
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
    #[error("the package of code: {0}")]
    Package(ZipError),
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
    run(source, destination, options, None, progress)
}

/// As [`convert`], with what starts read packed behind the metadata.
pub fn convert_packed(
    source: &dyn Source,
    destination: &dyn Destination,
    options: &ConvertOptions,
    profile: &Profile,
    progress: &Progress,
) -> Result<BlockImage, ConvertError> {
    run(source, destination, options, Some(profile), progress)
}

/// As [`convert_packed`], of the source image with that manifest, whatever the name leads to by now.
pub fn convert_again(
    source: &dyn Source,
    destination: &dyn Destination,
    options: &ConvertOptions,
    packing: &Packing,
    progress: &Progress,
) -> Result<BlockImage, ConvertError> {
    let pinned = Pinned { inner: source, manifest: packing.source };
    run(&pinned, destination, options, Some(&packing.profile), progress)
}

fn run(
    source: &dyn Source,
    destination: &dyn Destination,
    options: &ConvertOptions,
    profile: Option<&Profile>,
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

    let hot_set = profile.map(|profile| HotSet { profile, chunk_bytes: settings.hot_chunk_bytes });
    let plan = Plan::new(&tree, hot_set);
    if plan.ignored_parts() > 0 {
        tracing::info!(parts = plan.ignored_parts(), "the profile has parts that the image does not have");
    }
    let layout = Layout::new(&tree, &plan, plain_bytes_max(settings))?;
    let job =
        PackJob { tree: &tree, plan: &plan, layout: &layout, uuid: uuid_of(image.manifest.digest, profile) };
    progress.begin(Phase::Packing, layout.plain_bytes() + job.hot_file_bytes());
    let hot = if plan.hot().is_empty() {
        None
    } else {
        // Without a name: it is gone when it is closed.
        let hot =
            tempfile::tempfile_in(work.path()).map_err(|error| ConvertError::spool(work.path(), error))?;
        layers.collect_hot(&job, &hot, work.path())?;
        Some(hot)
    };
    let blob_path = work.path().join("blob");
    let (blob, accounts) = layers.pack(&job, hot.as_ref(), &blob_path)?;

    let runtime = runtime_config(&image.config.config, &accounts)?;
    let index = Index::new(layout.plain_bytes(), layout.metadata_blocks(), blob.entries)?;
    let index = index.packed(layout.hot_blocks())?;
    let fingerprint = profile.map(Profile::fingerprint);
    let artifact = artifact::build(image.manifest, runtime, fingerprint, &index, blob.digest, blob_path);
    let location = destination.publish(&artifact, progress)?;
    progress.begin(Phase::Done, 0);
    let read = artifact::read_artifact(&artifact.manifest, &artifact.config, location);
    Ok(read.expect("what was built a moment ago is a block image"))
}

pub(crate) fn work_folder(spool: &Path) -> Result<tempfile::TempDir, ConvertError> {
    let error = |error| ConvertError::Spool { path: spool.to_owned(), error };
    fs::create_dir_all(spool).map_err(error)?;
    tempfile::Builder::new().prefix("convert-").tempdir_in(spool).map_err(error)
}

/// The file system's UUID, so that overlayfs can tell images apart: also those of one source with other
/// profiles, whose inodes have other numbers.
fn uuid_of(source: Digest, profile: Option<&Profile>) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(source.as_bytes());
    if let Some(profile) = profile {
        hasher.update(profile.fingerprint().as_bytes());
    }
    let hash = hasher.finalize();
    std::array::from_fn(|place| hash.as_bytes()[place])
}

fn spool_error(error: SourceError) -> ConvertError {
    match error {
        SourceError::Io { path, error } => ConvertError::spool(&path, error),
        SourceError::Cancelled(cancelled) => cancelled.into(),
        other => other.into(),
    }
}

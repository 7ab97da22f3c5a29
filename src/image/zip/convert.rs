//! Converts a package of code into a block image: the same format, from another source.

use super::{Package, ZipError, ZipLimits};
use crate::image::{
    artifact,
    blocks::BlockWriter,
    convert::{ConvertError, ConvertOptions, work_folder},
    erofs::{Layout, Writer},
    packing::Plan,
    passes::{Metered, plain_bytes_max},
    progress::{Phase, Progress},
    publish::Destination,
    source::{BlobRef, SourceError},
};
use faasnet_actors::{
    id::Digest,
    image::{BlockImage, Index, RuntimeConfig},
};
use rawzip::FileReader;
use std::{fs::File, io, path::Path};

/// The media type of the source that the artifact names as its subject.
const ZIP_MEDIA_TYPE: &str = "application/zip";

/// Converts the zip at `path`, which has that digest, publishes it, and returns what the metadata store records
/// of it. Blocks; `progress` may be watched and cancelled from elsewhere.
pub fn convert_package(
    path: &Path,
    digest: Digest,
    limits: &ZipLimits,
    destination: &dyn Destination,
    options: &ConvertOptions,
    progress: &Progress,
) -> Result<BlockImage, ConvertError> {
    let opened = |error| ConvertError::spool(path, error);
    let zip = File::open(path).map_err(opened)?;
    let bytes = zip.metadata().map_err(opened)?.len();
    progress.begin(Phase::Reading, bytes);
    let refused = |error| package_error(path, error);
    let package = Package::read(FileReader::from(zip), bytes, limits).map_err(refused)?;
    let work = work_folder(&options.spool)?;
    let blob_path = work.path().join("blob");
    let spool_error = |error| ConvertError::spool(&blob_path, error);
    let settings = &options.settings;

    let plan = Plan::new(package.tree(), None);
    let layout = Layout::new(package.tree(), &plan, plain_bytes_max(settings))?;
    progress.begin(Phase::Packing, layout.plain_bytes());
    let blob = File::create(&blob_path).map_err(spool_error)?;
    let blocks = BlockWriter::new(blob, settings.threads, settings.zstd_level).map_err(spool_error)?;
    let out = Metered { inner: blocks, progress };
    let uuid = std::array::from_fn(|place| digest.as_bytes()[place]);
    let written = |error: io::Error| write_error(&blob_path, error);
    let mut writer = Writer::begin(package.tree(), &plan, &layout, uuid, out).map_err(written)?;
    for &(place, id) in plan.files() {
        let copied = writer.write_file(id, |out| package.copy_file(place, out));
        copied.map_err(|error| package_error(&blob_path, error))?;
    }
    // The plan leaves them out, and what is in the zip must be nothing all the same.
    package.check_empty_files().map_err(|error| package_error(&blob_path, error))?;
    let out = writer.finish().map_err(written)?;
    let blob = out.inner.finish().map_err(spool_error)?;

    let subject = BlobRef { media_type: ZIP_MEDIA_TYPE.to_owned(), digest, size: bytes };
    let index = Index::new(layout.plain_bytes(), layout.metadata_blocks(), blob.entries)?;
    let artifact =
        artifact::build(subject, RuntimeConfig::default(), None, &index, blob.digest, blob_path.clone());
    let location = destination.publish(&artifact, progress)?;
    progress.begin(Phase::Done, 0);
    let read = artifact::read_artifact(&artifact.manifest, &artifact.config, location);
    Ok(read.expect("what was built a moment ago is a block image"))
}

/// What the package itself says is told as it is; the rest lies with the disk or with whoever cancelled.
fn package_error(path: &Path, error: ZipError) -> ConvertError {
    match error {
        ZipError::Io(error) => write_error(path, error),
        refused => ConvertError::Package(refused),
    }
}

fn write_error(path: &Path, error: io::Error) -> ConvertError {
    match error.downcast::<SourceError>() {
        Ok(SourceError::Cancelled(cancelled)) => cancelled.into(),
        Ok(error) => error.into(),
        Err(error) => ConvertError::spool(path, error),
    }
}

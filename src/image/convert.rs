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
        blocks::{Blob, BlockWriter, PackError},
        erofs::{Layout, LayoutError, Writer},
        layer::{Layer, LayerReader},
        merge::{Merger, Refusal},
        progress::{Cancelled, Phase, Progress},
        publish::{Destination, PublishError},
        resolve::{self, Limits, Platform, ResolveError},
        runtime::{AccountFiles, RuntimeError, runtime_config},
        source::{Source, SourceError},
        spool::Spool,
        tar::{self, TarError},
        tree::{DataPlace, InodeId, Kind, ROOT, Tree},
    },
    settings::ImageSettings,
};
use faasnet_actors::{
    id::Digest,
    image::{BLOCK_BYTES, BLOCKS_MAX, BlockImage, Index, IndexError},
};
use std::{
    fs::{self, File},
    io::{self, Write},
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

/// Most bytes of `/etc/passwd` and `/etc/group` that are looked at.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
/// Symbolic links followed for one path: `MAXSYMLINKS` of Linux.
const SYMLINKS_MAX: usize = 40;

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

fn plain_bytes_max(settings: &ImageSettings) -> u64 {
    settings.plain_bytes_max.min(u64::from(BLOCKS_MAX) * u64::from(BLOCK_BYTES))
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

/// What the second pass writes.
struct PackJob<'a> {
    tree: &'a Tree,
    layout: &'a Layout,
    files: &'a [(DataPlace, InodeId)],
    uuid: [u8; 16],
}

/// The layers of an image, to be read twice.
struct Layers<'a> {
    spool: Spool<'a>,
    layers: &'a [Layer],
    settings: &'a ImageSettings,
    progress: &'a Progress,
}

impl Layers<'_> {
    fn read_headers(&self) -> Result<Tree, ConvertError> {
        let mut merger = Merger::default();
        let (mut plain_left, mut entries_left) = (plain_bytes_max(self.settings), self.settings.entries_max);
        for number in 0..self.layers.len() {
            let mut place = Place::start(number);
            let mut read = || -> Result<u64, Refusal> {
                let mut archive = tar::Reader::new(self.open(number, plain_left, Some(self.progress))?);
                merger.begin_layer(number as u16);
                while let Some(entry) = archive.next_entry()? {
                    place.entry = Some(String::from_utf8_lossy(&entry.path).into_owned());
                    let limit = self.settings.entries_max;
                    entries_left = entries_left.checked_sub(1).ok_or(Refusal::TooManyEntries(limit))?;
                    merger.apply(entry)?;
                    self.progress.count_entry();
                }
                archive.into_inner().finish().map_err(|error| Refusal::Tar(error.into()))
            };
            let plain_bytes = read().map_err(|refusal| self.layer_error(&place, refusal))?;
            plain_left -= plain_bytes;
            self.progress.count_layer(plain_bytes);
        }
        Ok(merger.finish())
    }

    /// Writes the file system into blocks, and takes along the files that name users and groups.
    fn pack(&self, job: &PackJob<'_>, blob_path: &Path) -> Result<(Blob, AccountFiles), ConvertError> {
        let spool_error = |error| blob_error(blob_path, error);
        let file = File::create(blob_path).map_err(spool_error)?;
        let blocks =
            BlockWriter::new(file, self.settings.threads, self.settings.zstd_level).map_err(spool_error)?;
        let out = Metered { inner: blocks, progress: self.progress };
        let mut writer = Writer::begin(job.tree, job.layout, job.uuid, out)
            .map_err(|error| self.write_error(blob_path, error))?;
        let mut accounts = Accounts::find(job.tree);
        for files in job.files.chunk_by(|(one, _), (other, _)| one.layer == other.layer) {
            let mut place = Place::start(usize::from(files[0].0.layer));
            let packed = self.pack_layer(files, &mut writer, &mut accounts, &mut place);
            packed.map_err(|refusal| match self.layer_error(&place, refusal) {
                ConvertError::Layer { refusal: Refusal::Tar(TarError::Io(error)), .. } => {
                    self.write_error(blob_path, error)
                }
                other => other,
            })?;
        }
        let out = writer.finish().map_err(|error| self.write_error(blob_path, error))?;
        let blob = out.inner.finish().map_err(spool_error)?;
        Ok((blob, accounts.files))
    }

    fn pack_layer<W: Write>(
        &self,
        files: &[(DataPlace, InodeId)],
        writer: &mut Writer<'_, W>,
        accounts: &mut Accounts,
        place: &mut Place,
    ) -> Result<(), Refusal> {
        let reader = self.open(place.layer, plain_bytes_max(self.settings), None)?;
        let mut archive = tar::Reader::new(reader);
        let mut wanted = files.iter().peekable();
        for number in 0.. {
            let Some(entry) = archive.next_entry()? else {
                break;
            };
            let Some((_, id)) = wanted.next_if(|(data, _)| data.entry == number) else {
                continue;
            };
            place.entry = Some(String::from_utf8_lossy(&entry.path).into_owned());
            writer.write_file(*id, |out| match accounts.copy_of(*id) {
                Some(copy) => archive.copy_data(&mut Tee { out, copy }),
                None => archive.copy_data(out),
            })?;
        }
        // The same bytes as in the first pass, or the digest is wrong.
        archive.into_inner().finish().map(drop).map_err(|error| Refusal::Tar(error.into()))
    }

    fn open<'a>(
        &'a self,
        number: usize,
        plain_bytes_max: u64,
        progress: Option<&'a Progress>,
    ) -> Result<LayerReader<'a>, TarError> {
        let layer = &self.layers[number];
        let blob = self.spool.open(&layer.blob).map_err(io::Error::other)?;
        Ok(LayerReader::new(layer, blob, plain_bytes_max, progress)?)
    }

    /// Names the layer and the entry, unless the reason lies with the source.
    fn layer_error(&self, place: &Place, refusal: Refusal) -> ConvertError {
        let layer = &self.layers[place.layer];
        let refusal = match refusal {
            Refusal::Tar(TarError::Io(error)) => match error.downcast::<SourceError>() {
                Ok(SourceError::Cancelled(cancelled)) => return cancelled.into(),
                // Decompressors choke on a damaged blob before its digest is known.
                Ok(error) => return self.spool.check(&layer.blob).err().unwrap_or(error).into(),
                Err(error) => Refusal::Tar(TarError::Io(error)),
            },
            other => other,
        };
        let is_ours = matches!(&refusal, Refusal::Tar(TarError::Io(error)) if error.get_ref().is_some_and(|inner| inner.is::<PackError>()));
        if !is_ours && let Err(error) = self.spool.check(&layer.blob) {
            return error.into();
        }
        ConvertError::Layer {
            number: place.layer,
            digest: layer.blob.digest,
            place: place.to_string(),
            refusal,
        }
    }

    fn write_error(&self, blob_path: &Path, error: io::Error) -> ConvertError {
        match error.downcast::<SourceError>() {
            Ok(SourceError::Cancelled(cancelled)) => cancelled.into(),
            Ok(error) => error.into(),
            Err(error) => blob_error(blob_path, error),
        }
    }
}

fn blob_error(path: &Path, error: io::Error) -> ConvertError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ConvertError::SpoolFull { path: path.to_owned() }
        }
        _ => ConvertError::Spool { path: path.to_owned(), error },
    }
}

fn spool_error(error: SourceError) -> ConvertError {
    match error {
        SourceError::Io { path, error } => blob_error(&path, error),
        SourceError::Cancelled(cancelled) => cancelled.into(),
        other => other.into(),
    }
}

/// Where in the layers an error happened.
struct Place {
    layer: usize,
    entry: Option<String>,
}

impl Place {
    fn start(layer: usize) -> Self {
        Self { layer, entry: None }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.entry {
            Some(path) => write!(out, "at {path:?}"),
            None => out.write_str("at its beginning"),
        }
    }
}

/// The files that name users and groups, copied while they pass.
struct Accounts {
    passwd: Option<InodeId>,
    group: Option<InodeId>,
    files: AccountFiles,
}

impl Accounts {
    fn find(tree: &Tree) -> Self {
        let is_small = |id: &InodeId| match tree.inode(*id).kind {
            Kind::File { size, .. } => size <= ACCOUNTS_BYTES_MAX,
            _ => false,
        };
        let find = |path: &[u8]| lookup(tree, path).filter(is_small);
        Self { passwd: find(b"etc/passwd"), group: find(b"etc/group"), files: AccountFiles::default() }
    }

    fn copy_of(&mut self, id: InodeId) -> Option<&mut Vec<u8>> {
        match id {
            _ if self.passwd == Some(id) => Some(&mut self.files.passwd),
            _ if self.group == Some(id) => Some(&mut self.files.group),
            _ => None,
        }
    }
}

/// The inode of a path, symbolic links followed within the image.
fn lookup(tree: &Tree, path: &[u8]) -> Option<InodeId> {
    let names = |path: &[u8]| path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut left = names(path);
    let mut parents = vec![ROOT];
    let mut symlinks = 0;
    while let Some(name) = left.pop() {
        let directory = *parents.last()?;
        match &name[..] {
            b"" | b"." => continue,
            b".." if parents.len() > 1 => drop(parents.pop()),
            b".." => {}
            _ => {
                let id = tree.child(directory, &name)?.inode;
                let Kind::Symlink(target) = &tree.inode(id).kind else {
                    parents.push(id);
                    continue;
                };
                symlinks += 1;
                if symlinks > SYMLINKS_MAX {
                    return None;
                }
                if target.starts_with(b"/") {
                    parents.truncate(1);
                }
                left.extend(names(target));
            }
        }
    }
    parents.pop()
}

/// Writes to two places.
struct Tee<'a> {
    out: &'a mut dyn Write,
    copy: &'a mut Vec<u8>,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.copy.extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Counts what is written into the progress, and ends with an error when the conversion is cancelled.
struct Metered<'a> {
    inner: BlockWriter,
    progress: &'a Progress,
}

impl Write for Metered<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.progress.advance(written as u64).map_err(|error| io::Error::other(SourceError::from(error)))?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

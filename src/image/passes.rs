//! Reads all layers twice: first the headers into a tree, then the data into blocks.

use crate::{
    image::{
        accounts::Accounts,
        blocks::{Blob, BlockWriter, PackError},
        convert::ConvertError,
        erofs::{Layout, Writer, copy_hot},
        layer::{Layer, LayerReader},
        merge::{Merger, Refusal},
        packing::Plan,
        progress::Progress,
        runtime::AccountFiles,
        source::SourceError,
        spool::Spool,
        tar::{self, TarError},
        tree::{ContentHash, DataPlace, InodeId, Kind, Tree},
    },
    settings::ImageSettings,
};
use faasnet_actors::image::{BLOCK_BYTES, BLOCKS_MAX};
use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{self, Write},
    path::Path,
};

/// What the second pass writes.
pub struct PackJob<'a> {
    pub tree: &'a Tree,
    pub plan: &'a Plan,
    pub layout: &'a Layout,
    pub uuid: [u8; 16],
}

impl PackJob<'_> {
    /// Bytes of all files that have something in the hot set.
    pub fn hot_file_bytes(&self) -> u64 {
        let files: BTreeSet<InodeId> = self.plan.hot().iter().map(|hot| hot.file).collect();
        files.into_iter().map(|id| self.layout.place(id).bytes).sum()
    }
}

/// The layers of an image, to be read twice.
pub struct Layers<'a> {
    pub spool: Spool<'a>,
    pub layers: &'a [Layer],
    pub settings: &'a ImageSettings,
    pub progress: &'a Progress,
}

impl Layers<'_> {
    /// Merges the headers of all layers.
    pub fn read_headers(&self) -> Result<Tree, ConvertError> {
        let mut merger = Merger::new(self.settings.entries_max);
        let mut plain_left = plain_bytes_max(self.settings);
        for number in 0..self.layers.len() {
            let mut place = Place::start(number);
            let mut read = || -> Result<u64, Refusal> {
                let mut archive = tar::Reader::new(self.open(number, plain_left, Some(self.progress))?);
                merger.begin_layer(number as u16);
                while let Some(entry) = archive.next_entry()? {
                    place.entry = Some(String::from_utf8_lossy(&entry.path).into_owned());
                    let content = content_of(&entry, &mut archive)?;
                    merger.apply(entry, content)?;
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

    /// Puts the hot set together in a file. A pass of its own over the layers that have something of it: in
    /// the image it comes before everything else, in an order of its own.
    pub fn collect_hot(&self, job: &PackJob<'_>, hot: &File, path: &Path) -> Result<(), ConvertError> {
        let layout = job.layout;
        hot.set_len(layout.hot_end() - layout.metadata_bytes())
            .map_err(|error| ConvertError::spool(path, error))?;
        let hot_files: BTreeSet<InodeId> = job.plan.hot().iter().map(|hot| hot.file).collect();
        let mut files = job.plan.files().to_vec();
        files.retain(|(_, id)| hot_files.contains(id));
        self.read_files(&files, path, |id, archive| {
            copy_hot(layout, id, hot, |out| {
                let mut counted = CountedCopy { out, progress: self.progress };
                archive.copy_data(&mut counted)
            })
        })
    }

    /// Writes the file system into blocks, and takes along the files that name users and groups.
    pub fn pack(
        &self,
        job: &PackJob<'_>,
        hot: Option<&File>,
        blob_path: &Path,
    ) -> Result<(Blob, AccountFiles), ConvertError> {
        let spool_error = |error| ConvertError::spool(blob_path, error);
        let file = File::create(blob_path).map_err(spool_error)?;
        let blocks =
            BlockWriter::new(file, self.settings.threads, self.settings.zstd_level).map_err(spool_error)?;
        let out = Metered { inner: blocks, progress: self.progress };
        let write_error = |error| self.write_error(blob_path, error);
        let mut writer = Writer::begin(job.tree, job.plan, job.layout, job.uuid, out).map_err(write_error)?;
        if let Some(hot) = hot {
            writer.write_hot(hot).map_err(write_error)?;
        }
        let mut accounts = Accounts::find(job.tree);
        let layout = job.layout;
        let is_left = |id: InodeId| layout.runs(id).iter().any(|run| run.place >= layout.hot_end());
        let mut files = job.plan.files().to_vec();
        files.retain(|(_, id)| is_left(*id));
        // They may be in the hot set, or stored under another name.
        files.extend(accounts.ids().filter_map(|id| Some((data_place(job.tree, id)?, id))));
        files.sort_unstable();
        files.dedup();
        self.read_files(&files, blob_path, |id, archive| {
            let is_stored = job.plan.stored(id) == id;
            let copy = accounts.copy_of(id);
            match copy {
                Some(copy) if is_stored => {
                    writer.write_file(id, |out| archive.copy_data(&mut Tee { out, copy }))
                }
                Some(copy) => archive.copy_data(copy).map(drop),
                None => writer.write_file(id, |out| archive.copy_data(out)),
            }
        })?;
        let out = writer.finish().map_err(write_error)?;
        let blob = out.inner.finish().map_err(spool_error)?;
        Ok((blob, accounts.files))
    }

    /// Reads the data of files, which stand in the order of the layers; `path` is where it goes.
    fn read_files(
        &self,
        files: &[(DataPlace, InodeId)],
        path: &Path,
        mut copy: impl FnMut(InodeId, &mut tar::Reader<LayerReader<'_>>) -> Result<(), TarError>,
    ) -> Result<(), ConvertError> {
        for files in files.chunk_by(|(one, _), (other, _)| one.layer == other.layer) {
            let mut place = Place::start(usize::from(files[0].0.layer));
            let copied = self.read_layer(files, &mut place, &mut copy);
            copied.map_err(|refusal| match self.layer_error(&place, refusal) {
                ConvertError::Layer { refusal: Refusal::Tar(TarError::Io(error)), .. } => {
                    self.write_error(path, error)
                }
                other => other,
            })?;
        }
        Ok(())
    }

    fn read_layer(
        &self,
        files: &[(DataPlace, InodeId)],
        place: &mut Place,
        copy: &mut impl FnMut(InodeId, &mut tar::Reader<LayerReader<'_>>) -> Result<(), TarError>,
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
            copy(*id, &mut archive)?;
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
            Err(error) => ConvertError::spool(blob_path, error),
        }
    }
}

/// The hash of a file's data, for which the first pass has to read it anyway. Holes could make it endless:
/// files with holes are not hashed.
fn content_of<R: io::Read>(
    entry: &tar::Entry,
    archive: &mut tar::Reader<R>,
) -> Result<Option<ContentHash>, TarError> {
    if !matches!(entry.kind, tar::EntryKind::File { size: 1.. }) || archive.is_sparse() {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    archive.copy_data(&mut hasher)?;
    let hash = hasher.finalize();
    Ok(Some(std::array::from_fn(|place| hash.as_bytes()[place])))
}

fn data_place(tree: &Tree, id: InodeId) -> Option<DataPlace> {
    match tree.inode(id).kind {
        Kind::File { size: 1.., data, .. } => Some(data),
        _ => None,
    }
}

/// The largest file system that settings and format allow.
pub fn plain_bytes_max(settings: &ImageSettings) -> u64 {
    settings.plain_bytes_max.min(u64::from(BLOCKS_MAX) * u64::from(BLOCK_BYTES))
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

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(path) => write!(out, "at {path:?}"),
            None => out.write_str("at its beginning"),
        }
    }
}

/// Counts what is copied into the progress, and ends with an error when the conversion is cancelled.
struct CountedCopy<'a> {
    out: &'a mut dyn Write,
    progress: &'a Progress,
}

impl Write for CountedCopy<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.progress.advance(written as u64).map_err(|error| io::Error::other(SourceError::from(error)))?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
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
pub struct Metered<'a> {
    pub inner: BlockWriter,
    pub progress: &'a Progress,
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

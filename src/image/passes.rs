//! Reads all layers twice: first the headers into a tree, then the data into blocks.

use crate::{
    image::{
        accounts::Accounts,
        blocks::{Blob, BlockWriter, PackError},
        convert::ConvertError,
        erofs::{Layout, Writer},
        layer::{Layer, LayerReader},
        merge::{Merger, Refusal},
        progress::Progress,
        runtime::AccountFiles,
        source::SourceError,
        spool::Spool,
        tar::{self, TarError},
        tree::{DataPlace, InodeId, Tree},
    },
    settings::ImageSettings,
};
use faasnet_actors::image::{BLOCK_BYTES, BLOCKS_MAX};
use std::{
    fmt,
    fs::File,
    io::{self, Write},
    path::Path,
};

/// What the second pass writes.
pub struct PackJob<'a> {
    pub tree: &'a Tree,
    pub layout: &'a Layout,
    /// Every regular file, in the order of the layout.
    pub files: &'a [(DataPlace, InodeId)],
    pub uuid: [u8; 16],
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
    pub fn pack(&self, job: &PackJob<'_>, blob_path: &Path) -> Result<(Blob, AccountFiles), ConvertError> {
        let spool_error = |error| ConvertError::spool(blob_path, error);
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
            Err(error) => ConvertError::spool(blob_path, error),
        }
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

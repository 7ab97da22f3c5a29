//! Writes a laid-out image as one stream: metadata, the hot set, then the rest of the files in the order of
//! the layout.

use super::{
    FS_BLOCK_BYTES, directory, inode,
    layout::{Form, Layout, Run},
    superblock,
};
use crate::image::{
    packing::Plan,
    tree::{InodeId, Kind, Tree},
    xattr,
};
use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

/// A stream that becomes an EROFS image.
pub struct Writer<'a, W> {
    tree: &'a Tree,
    plan: &'a Plan,
    layout: &'a Layout,
    out: W,
    place: u64,
    /// The first block, kept back until its checksum can be taken.
    first_block: Vec<u8>,
}

impl<'a, W: Write> Writer<'a, W> {
    /// Writes all metadata.
    pub fn begin(
        tree: &'a Tree,
        plan: &'a Plan,
        layout: &'a Layout,
        uuid: [u8; 16],
        out: W,
    ) -> io::Result<Self> {
        let mut writer = Self { tree, plan, layout, out, place: 0, first_block: Vec::new() };
        writer.write_all(&superblock::encode(layout, uuid))?;
        for (number, (id, parent)) in (1..).zip(layout.order()) {
            writer.write_inode(*id, *parent, number)?;
        }
        for (id, parent) in layout.order() {
            writer.write_blocks(*id, *parent)?;
        }
        writer.pad_to(layout.metadata_bytes())?;
        Ok(writer)
    }

    /// Writes the hot set, which [`copy_hot`] has put together.
    pub fn write_hot(&mut self, hot: impl io::Read) -> io::Result<()> {
        let bytes = self.layout.hot_end() - self.layout.metadata_bytes();
        let copied = io::copy(&mut hot.take(bytes), self)?;
        if copied == bytes { Ok(()) } else { Err(io::Error::other("the hot set is cut short")) }
    }

    /// Writes what of a stored file's data is not in the hot set; `copy` must hand over all of the data.
    /// Files come in the order of the layers.
    pub fn write_file<E: From<io::Error>>(
        &mut self,
        id: InodeId,
        copy: impl FnOnce(&mut dyn Write) -> Result<u64, E>,
    ) -> Result<(), E> {
        let hot_end = self.layout.hot_end();
        let mut runs = self.layout.runs(id);
        runs.retain(|run| run.place >= hot_end);
        let size = self.layout.place(id).bytes;
        split(runs, size, |place, bytes| self.put(place, bytes), copy)
    }

    /// Writes bytes at a place; between it and what was written before is no more than padding.
    fn put(&mut self, place: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(
            place.saturating_sub(self.place) < FS_BLOCK_BYTES,
            "files are written in the order of the layout"
        );
        self.pad_to(place)?;
        self.write_all(bytes)
    }

    /// Gives back the stream behind the image.
    pub fn finish(mut self) -> io::Result<W> {
        self.pad_to(self.place.next_multiple_of(FS_BLOCK_BYTES))?;
        if self.place != self.layout.plain_bytes() {
            return Err(io::Error::other("not all files were written"));
        }
        Ok(self.out)
    }

    fn write_inode(&mut self, id: InodeId, parent: InodeId, number: u32) -> io::Result<()> {
        let (place, inode) = (self.layout.place(id), self.tree.inode(id));
        self.pad_to(place.inode)?;
        self.write_all(&inode::encode(self.tree, inode, place, self.layout.chunk_format(), number))?;
        self.write_all(&xattr::encode(&inode.attributes.xattrs))?;
        match place.form {
            Form::Blocks => {}
            Form::InlineTail => {
                let body = self.body(id, parent);
                let tail = body.len() - body.len() % FS_BLOCK_BYTES as usize;
                self.write_all(&body[tail..])?;
            }
            Form::Chunked => {
                for block in self.layout.table(self.plan.stored(id)) {
                    self.write_all(&block.to_le_bytes())?;
                }
            }
        }
        Ok(())
    }

    fn write_blocks(&mut self, id: InodeId, parent: InodeId) -> io::Result<()> {
        let place = self.layout.place(id);
        if matches!(self.tree.inode(id).kind, Kind::File { .. }) || place.blocks() == 0 {
            return Ok(());
        }
        self.pad_to(u64::from(place.block) * FS_BLOCK_BYTES)?;
        let body = self.body(id, parent);
        let outside = (place.blocks() * FS_BLOCK_BYTES).min(body.len() as u64);
        self.write_all(&body[..outside as usize])
    }

    fn body(&self, id: InodeId, parent: InodeId) -> Vec<u8> {
        match &self.tree.inode(id).kind {
            Kind::Directory(children) => {
                directory::body(self.tree, children, id, parent, |inode| self.layout.place(inode).nid())
            }
            Kind::Symlink(target) => target.to_vec(),
            Kind::File { .. } | Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo => Vec::new(),
        }
    }

    fn pad_to(&mut self, place: u64) -> io::Result<()> {
        let gap = place.checked_sub(self.place).expect("places are taken in rising order");
        io::copy(&mut io::Read::take(io::repeat(0), gap), self).map(drop)
    }
}

impl<W: Write> Write for Writer<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let block = FS_BLOCK_BYTES as usize;
        let taken = if self.first_block.len() < block && self.place < FS_BLOCK_BYTES {
            let taken = bytes.len().min(block - self.first_block.len());
            self.first_block.extend_from_slice(&bytes[..taken]);
            if self.first_block.len() == block {
                superblock::seal(&mut self.first_block);
                self.out.write_all(&self.first_block)?;
            }
            taken
        } else {
            self.out.write(bytes)?
        };
        self.place += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Copies what of a stored file's data is in the hot set into `hot`, a file that begins where the hot set
/// does; `copy` must hand over all of the data.
pub fn copy_hot<E: From<io::Error>>(
    layout: &Layout,
    id: InodeId,
    hot: &File,
    copy: impl FnOnce(&mut dyn Write) -> Result<u64, E>,
) -> Result<(), E> {
    let mut runs = layout.runs(id);
    runs.retain(|run| run.place < layout.hot_end());
    let put = |place, bytes: &[u8]| hot.write_all_at(bytes, place - layout.metadata_bytes());
    split(runs, layout.place(id).bytes, put, copy)
}

/// Hands those bytes of a file that lie in the runs to `put`, each with its place in the image.
fn split<E: From<io::Error>>(
    runs: Vec<Run>,
    size: u64,
    put: impl FnMut(u64, &[u8]) -> io::Result<()>,
    copy: impl FnOnce(&mut dyn Write) -> Result<u64, E>,
) -> Result<(), E> {
    let mut splitter = Splitter { runs: runs.into_iter().peekable(), at: 0, put };
    copy(&mut splitter)?;
    if splitter.at != size {
        return Err(io::Error::other("a file has another length than its header says").into());
    }
    Ok(())
}

struct Splitter<P> {
    /// Those that are not complete yet.
    runs: std::iter::Peekable<std::vec::IntoIter<Run>>,
    /// Bytes of the file handed over so far.
    at: u64,
    put: P,
}

impl<P: FnMut(u64, &[u8]) -> io::Result<()>> Write for Splitter<P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.at + bytes.len() as u64;
        while let Some(run) = self.runs.peek() {
            let (from, to) = (run.file.start.max(self.at), run.file.end.min(end));
            if from < to {
                let piece = &bytes[(from - self.at) as usize..(to - self.at) as usize];
                (self.put)(run.place + (from - run.file.start), piece)?;
            }
            if run.file.end > end {
                break;
            }
            self.runs.next();
        }
        self.at = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Writes a laid-out image as one stream: metadata first, then the files in the order of the layout.

use super::{FS_BLOCK_BYTES, directory, inode, layout::Layout, superblock};
use crate::image::{
    tree::{InodeId, Kind, Tree},
    xattr,
};
use std::io::{self, Write};

/// A stream that becomes an EROFS image.
pub struct Writer<'a, W> {
    tree: &'a Tree,
    layout: &'a Layout,
    out: W,
    place: u64,
    /// The first block, kept back until its checksum can be taken.
    first_block: Vec<u8>,
}

impl<'a, W: Write> Writer<'a, W> {
    /// Writes all metadata.
    pub fn begin(tree: &'a Tree, layout: &'a Layout, uuid: [u8; 16], out: W) -> io::Result<Self> {
        let mut writer = Self { tree, layout, out, place: 0, first_block: Vec::new() };
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

    /// Writes one file's data, which `copy` must hand over completely. Files come in the order of the layout.
    pub fn write_file<E: From<io::Error>>(
        &mut self,
        id: InodeId,
        copy: impl FnOnce(&mut dyn Write) -> Result<u64, E>,
    ) -> Result<(), E> {
        let place = self.layout.place(id);
        if place.bytes == 0 {
            return Ok(());
        }
        let start = u64::from(place.block) * FS_BLOCK_BYTES;
        assert_eq!(self.place, start, "files are written in the order of the layout");
        copy(self)?;
        if self.place != start + place.bytes {
            return Err(io::Error::other("a file has another length than its header says").into());
        }
        self.pad_to(self.place.next_multiple_of(FS_BLOCK_BYTES))?;
        Ok(())
    }

    /// Gives back the stream behind the image.
    pub fn finish(self) -> io::Result<W> {
        if self.place != self.layout.plain_bytes() {
            return Err(io::Error::other("not all files were written"));
        }
        Ok(self.out)
    }

    fn write_inode(&mut self, id: InodeId, parent: InodeId, number: u32) -> io::Result<()> {
        let (place, inode) = (self.layout.place(id), self.tree.inode(id));
        self.pad_to(place.inode)?;
        self.write_all(&inode::encode(self.tree, inode, place, number))?;
        self.write_all(&xattr::encode(&inode.attributes.xattrs))?;
        if place.inline {
            let body = self.body(id, parent);
            let tail = body.len() - body.len() % FS_BLOCK_BYTES as usize;
            self.write_all(&body[tail..])?;
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

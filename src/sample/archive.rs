//! Layers as tar archives whose bytes depend on nothing but what goes in.

use anyhow::Context;
use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};
use tar::{Builder, EntryType, Header};

/// Seconds since 1970 of every entry: 2020-01-01, old enough for any clock.
const MODIFIED_S: u64 = 1_577_836_800;

/// Writes entries in the order they are given, all owned by root.
pub struct Archive<W: Write>(Builder<W>);

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self(Builder::new(out))
    }

    pub fn folder(&mut self, path: &str, mode: u32) -> anyhow::Result<()> {
        let mut header = header(EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, format!("{}/", relative(path)), std::io::empty())?;
        Ok(())
    }

    pub fn file(&mut self, path: &str, mode: u32, bytes: u64, content: impl Read) -> anyhow::Result<()> {
        let mut header = header(EntryType::Regular, mode, bytes);
        self.0
            .append_data(&mut header, relative(path), content.take(bytes))
            .with_context(|| format!("pack {path}"))
    }

    /// A file of this machine, at the same or another path.
    pub fn copy(&mut self, from: &Path, path: &str, mode: u32) -> anyhow::Result<()> {
        let file = File::open(from).with_context(|| format!("open {}", from.display()))?;
        let bytes = file.metadata()?.len();
        self.file(path, mode, bytes, file)
    }

    pub fn symbolic_link(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        Ok(self.0.append_link(&mut header, relative(path), target)?)
    }

    pub fn hard_link(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        let mut header = header(EntryType::Link, 0o644, 0);
        Ok(self.0.append_link(&mut header, relative(path), relative(target))?)
    }

    /// Ends the archive.
    pub fn finish(self) -> anyhow::Result<W> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MODIFIED_S);
    header.set_size(bytes);
    header
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

//! The ballast: files of BLAKE3 output, and which parts of them are read at the start.
//!
//! Any range can be computed from the seed alone, so the builder knows what every server must have read.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

const FILES: u64 = 8;

/// One read at the start. On an image of 256 MiB, 32 MiB in such reads touch about three times as many
/// bytes in blocks of 512 KiB, which is what a start of a real Python application does.
const CHUNK_BYTES: u64 = 160 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballast {
    pub seed: u64,
    pub bytes: u64,
    pub read_bytes: u64,
}

/// A part of one ballast file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    file: u64,
    offset: u64,
    bytes: u64,
}

impl Ballast {
    /// Names and lengths of the files.
    pub fn files(&self) -> Vec<(String, u64)> {
        let part = self.bytes / FILES;
        let length = |file| if file + 1 == FILES { self.bytes - part * (FILES - 1) } else { part };
        (0..FILES).map(|file| (name(file), length(file))).collect()
    }

    /// The content of one file, from its begin; endless, the caller takes its length.
    pub fn content(&self, file: u64) -> impl Read + Seek + use<> {
        let mut hasher = blake3::Hasher::new_derive_key("faasnet sample ballast");
        hasher.update(&self.seed.to_le_bytes()).update(&file.to_le_bytes());
        Output(hasher.finalize_xof())
    }

    /// The digest that [`read_at_start`] gives on this ballast, computed without any file.
    pub fn start_digest(&self) -> io::Result<blake3::Hash> {
        let lengths: Vec<u64> = self.files().into_iter().map(|(_, length)| length).collect();
        digest(&chunks(&lengths, self.read_bytes), |chunk, buffer| {
            let mut content = self.content(chunk.file);
            content.seek(SeekFrom::Start(chunk.offset))?;
            content.read_exact(buffer)
        })
    }
}

/// Reads scattered parts of the ballast below `folder`, `read_bytes` in all, and returns their BLAKE3.
pub fn read_at_start(folder: &Path, read_bytes: u64) -> io::Result<blake3::Hash> {
    let files = (0..FILES).map(|file| File::open(folder.join(name(file)))).collect::<io::Result<Vec<_>>>()?;
    let lengths = files.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<Vec<u64>>>()?;
    digest(&chunks(&lengths, read_bytes), |chunk, buffer| {
        files[chunk.file as usize].read_exact_at(buffer, chunk.offset)
    })
}

fn digest(
    chunks: &[Chunk],
    mut read: impl FnMut(&Chunk, &mut [u8]) -> io::Result<()>,
) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    for chunk in chunks {
        let part = &mut buffer[..chunk.bytes as usize];
        read(chunk, part)?;
        hasher.update(part);
    }
    Ok(hasher.finalize())
}

/// Pseudo-random places, the same for the same lengths. A file shorter than a chunk is read whole.
fn chunks(lengths: &[u64], read_bytes: u64) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut left = read_bytes.min(lengths.iter().sum());
    let mut state = 0;
    while left > 0 && lengths.iter().any(|length| *length > 0) {
        let file = (next(&mut state) % lengths.len() as u64) as usize;
        let bytes = CHUNK_BYTES.min(left).min(lengths[file]);
        if bytes == 0 {
            continue;
        }
        let offset = next(&mut state) % (lengths[file] - bytes + 1);
        chunks.push(Chunk { file: file as u64, offset, bytes });
        left -= bytes;
    }
    chunks
}

/// SplitMix64: short, and enough to scatter reads.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn name(file: u64) -> String {
    format!("part-{file}")
}

/// BLAKE3's own reader hides its traits behind a feature.
struct Output(blake3::OutputReader);

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill(buffer);
        Ok(buffer.len())
    }
}

impl Seek for Output {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(position) = position else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        self.0.set_position(position);
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_from_files_is_what_the_seed_says() {
        let folder = tempfile::tempdir().unwrap();
        let ballast = Ballast { seed: 3, bytes: 3_000_001, read_bytes: 1_000_000 };
        for (file, (name, length)) in ballast.files().into_iter().enumerate() {
            let mut out = File::create(folder.path().join(name)).unwrap();
            io::copy(&mut ballast.content(file as u64).take(length), &mut out).unwrap();
        }
        let expected = ballast.start_digest().unwrap();
        assert_eq!(read_at_start(folder.path(), ballast.read_bytes).unwrap(), expected);
        assert_ne!(Ballast { seed: 4, ..ballast }.start_digest().unwrap(), expected);
    }

    #[test]
    fn the_files_make_up_the_ballast() {
        for bytes in [0, 7, 8, 1 << 20] {
            let ballast = Ballast { seed: 1, bytes, read_bytes: 1 << 30 };
            assert_eq!(ballast.files().iter().map(|(_, length)| length).sum::<u64>(), bytes);
            ballast.start_digest().unwrap();
        }
    }

    #[test]
    fn a_start_touches_about_three_times_the_blocks_it_needs() {
        let lengths = vec![32 << 20; 8];
        let mut touched = std::collections::BTreeSet::new();
        for chunk in chunks(&lengths, 32 << 20) {
            let first = chunk.file * 64 + chunk.offset / 524_288;
            let last = chunk.file * 64 + (chunk.offset + chunk.bytes - 1) / 524_288;
            touched.extend(first..=last);
        }
        assert!((180..260).contains(&touched.len()), "{} of 512 blocks", touched.len());
    }
}

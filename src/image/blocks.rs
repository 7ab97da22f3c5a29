//! Cuts a file system into blocks, compresses and hashes each on its own, and undoes it.
//!
//! Block n goes to thread n modulo the number of threads, and the collector takes results from the
//! threads in the same turn: the order is kept without a queue that all share, and a block or two wait
//! at each thread, no more.

use faasnet_actors::{
    id::Digest,
    image::{BLOCK_BYTES, BlockEntry, Codec},
};
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

/// Why stored bytes are not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("the block is not a zstd frame")]
    Frame,
    #[error("the block decodes to {got} bytes instead of {expected}")]
    Length { got: usize, expected: u32 },
}

/// Decodes blocks one after the other into the same memory.
#[derive(Default)]
pub struct BlockDecoder {
    /// Made for the first block that needs it.
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    plain: Vec<u8>,
}

impl BlockDecoder {
    /// Decodes a block whose hash was checked. The output never grows beyond `plain_len` bytes.
    pub fn decode<'a>(
        &'a mut self,
        entry: &BlockEntry,
        plain_len: u32,
        stored: &'a [u8],
    ) -> Result<&'a [u8], BlockError> {
        let plain = match entry.codec {
            Codec::Plain => stored,
            Codec::Zstd => {
                self.plain.clear();
                self.plain.reserve_exact(plain_len as usize);
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Decompressor::new().map_err(|_| BlockError::Frame)?),
                };
                // It writes as far as the capacity goes, which an earlier, longer block may have left.
                self.plain.shrink_to(plain_len as usize);
                zstd.decompress_to_buffer(stored, &mut self.plain).map_err(|_| BlockError::Frame)?;
                &self.plain
            }
        };
        if plain.len() != plain_len as usize {
            return Err(BlockError::Length { got: plain.len(), expected: plain_len });
        }
        Ok(plain)
    }
}

/// Decodes one block whose hash was checked.
pub fn decode_block(entry: &BlockEntry, plain_len: u32, stored: &[u8]) -> Result<Vec<u8>, BlockError> {
    BlockDecoder::default().decode(entry, plain_len, stored).map(<[u8]>::to_vec)
}

/// Marks I/O errors of writing blocks, so that they are told from those of reading layers.
#[derive(Debug, thiserror::Error)]
#[error("blocks cannot be written: {0}")]
pub struct PackError(io::Error);

impl PackError {
    fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

/// The stored bytes of all blocks, in a file.
#[derive(Debug)]
pub struct Blob {
    pub entries: Vec<BlockEntry>,
    pub digest: Digest,
    pub bytes: u64,
}

struct Packed {
    stored: Vec<u8>,
    codec: Codec,
    hash: [u8; 32],
}

/// Takes the plain bytes of a file system in order.
pub struct BlockWriter {
    block: Vec<u8>,
    /// Full blocks handed out so far.
    count: usize,
    threads: Vec<SyncSender<Vec<u8>>>,
    collector: Option<JoinHandle<io::Result<Blob>>>,
}

/// Blocks that wait before and behind each thread.
const QUEUED_BLOCKS: usize = 2;

impl BlockWriter {
    /// Starts the threads; `threads` = 0 means one for each core.
    pub fn new(blob: File, threads: usize, zstd_level: i32) -> io::Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = if threads == 0 { cores() } else { threads };
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (input, blocks) = sync_channel(QUEUED_BLOCKS);
            let (packed, output) = sync_channel(QUEUED_BLOCKS);
            let mut compressor = zstd::bulk::Compressor::new(zstd_level)?;
            let pack_all = move || pack_until_closed(&mut compressor, &blocks, &packed);
            std::thread::Builder::new().name("block-pack".to_owned()).spawn(pack_all)?;
            inputs.push(input);
            outputs.push(output);
        }
        let collect = move || collect(blob, &outputs);
        let collector = std::thread::Builder::new().name("block-write".to_owned()).spawn(collect)?;
        Ok(Self { block: new_block(), count: 0, threads: inputs, collector: Some(collector) })
    }

    /// Packs the last block and waits until all are in the file.
    pub fn finish(mut self) -> io::Result<Blob> {
        if !self.block.is_empty() {
            self.hand_out()?;
        }
        let blob = self.join()?;
        if blob.entries.len() != self.count {
            return Err(io::Error::other("a thread that packs blocks ended early"));
        }
        Ok(blob)
    }

    fn hand_out(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, new_block());
        let thread = self.count % self.threads.len();
        self.count += 1;
        if self.threads[thread].send(block).is_ok() {
            return Ok(());
        }
        // The threads end early only when the collector did, and it knows why.
        let cause = self.join().err();
        let cause = cause.unwrap_or_else(|| io::Error::other("a thread that packs blocks ended early"));
        Err(PackError::wrap(cause))
    }

    fn join(&mut self) -> io::Result<Blob> {
        self.threads.clear();
        let collector = self.collector.take().ok_or_else(|| io::Error::other("writing has failed before"))?;
        collector.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes blocks panicked")))
    }
}

impl Write for BlockWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES as usize - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES as usize {
            self.hand_out()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn new_block() -> Vec<u8> {
    Vec::with_capacity(BLOCK_BYTES as usize)
}

fn pack_until_closed(
    compressor: &mut zstd::bulk::Compressor<'_>,
    blocks: &Receiver<Vec<u8>>,
    packed: &SyncSender<io::Result<Packed>>,
) {
    for block in blocks {
        if packed.send(pack(compressor, block)).is_err() {
            return;
        }
    }
}

fn pack(compressor: &mut zstd::bulk::Compressor<'_>, plain: Vec<u8>) -> io::Result<Packed> {
    let compressed = compressor.compress(&plain)?;
    let (stored, codec) =
        if compressed.len() < plain.len() { (compressed, Codec::Zstd) } else { (plain, Codec::Plain) };
    let hash = *blake3::hash(&stored).as_bytes();
    Ok(Packed { stored, codec, hash })
}

fn collect(blob: File, outputs: &[Receiver<io::Result<Packed>>]) -> io::Result<Blob> {
    let mut out = BufWriter::with_capacity(BLOCK_BYTES as usize, blob);
    let (mut entries, mut offset, mut sha256) = (Vec::new(), 0, Sha256::new());
    for output in outputs.iter().cycle() {
        let Ok(packed) = output.recv() else {
            break;
        };
        let Packed { stored, codec, hash } = packed?;
        out.write_all(&stored)?;
        sha256.update(&stored);
        let stored_bytes = stored.len() as u32;
        entries.push(BlockEntry { offset, stored_bytes, codec, hash });
        offset += u64::from(stored_bytes);
    }
    out.flush()?;
    let digest = Digest::from_bytes(sha256.finalize().into());
    Ok(Blob { entries, digest, bytes: offset })
}

#[cfg(test)]
mod tests;

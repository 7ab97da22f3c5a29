//! The images of the experiments.

use serde::Serialize;

/// An image, and what a start reads of it.
#[derive(Debug, Clone, Serialize)]
pub struct Image {
    pub name: &'static str,
    /// What a pull downloads.
    pub pulled_bytes: f64,
    pub layers: u32,
    /// Blocks that a start reads where they lie, and once they are packed.
    pub read_blocks: u32,
    pub packed_blocks: u32,
    /// Of each block on a link.
    pub block_bytes: u32,
}

const MEGABYTE: f64 = 1e6;
/// Plain bytes of a block.
const BLOCK: f64 = 524_288.0;
/// An interior VM gets 55.6 MB (figure 16) for 117.4 MB of blocks (figure 20).
const STORED_PER_PLAIN: f64 = 55.6 / 117.4;
const QUICK: u32 = 8;
/// The paper does not say how many layers its images have.
const LAYERS: u32 = 12;

impl Image {
    /// Megabytes: the image, blocks that a start reads in it, and what it reads in them.
    fn of(name: &'static str, whole: f64, blocks: f64, read: f64) -> Self {
        let count = |megabytes: f64| (megabytes * MEGABYTE / BLOCK).ceil() as u32;
        Self {
            name,
            pulled_bytes: whole * MEGABYTE,
            layers: LAYERS,
            read_blocks: count(blocks),
            packed_blocks: count(read),
            block_bytes: (BLOCK * STORED_PER_PLAIN) as u32,
        }
    }

    /// PyStan on Alibaba's base: image c of figure 20. Its size is 758 MB where pulls are timed.
    pub fn pystan() -> Self {
        Self::of("PyStan, 758 MB", 758.0, 117.4, 36.8)
    }

    /// Image b of figure 20.
    pub fn thousand_vms() -> Self {
        Self::of("428 MB", 428.0, 103.1, 32.8)
    }

    /// As large to pull, with less to read: quick to simulate.
    #[must_use]
    pub fn with_fewer_reads(mut self) -> Self {
        self.read_blocks = self.read_blocks.div_ceil(QUICK);
        self.packed_blocks = self.packed_blocks.div_ceil(QUICK);
        self
    }

    /// A code package of so many megabytes in blocks, of which that share is read.
    pub fn code(megabytes: f64, share: f64) -> Self {
        Self::of("code", megabytes, megabytes * share, megabytes * share / 3.0)
    }

    /// That of figure 18. What it reads is not in the paper: the shares of image b.
    pub fn placement() -> Self {
        Self::of("75.4 MB", 75.4, 75.4 * 0.241, 75.4 * 0.077)
    }
}

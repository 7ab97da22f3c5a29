//! How long reads wait.

use std::time::Duration;

/// Reads on this VM that had to wait for a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    pub count: u32,
    /// The waits of all reads that have ended.
    pub together: Duration,
    /// The longest wait of one read.
    pub longest: Duration,
}

impl Stalls {
    /// Of two images together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            together: self.together + other.together,
            longest: self.longest.max(other.longest),
        }
    }

    pub(in crate::block_transfer) fn ended(&mut self, wait: Duration) {
        self.together += wait;
        self.longest = self.longest.max(wait);
    }
}

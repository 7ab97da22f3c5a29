//! What an origin gave, in figures that can be compared with the other side's own.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of all reads since the start of the process. Written without order between the fields;
/// a snapshot taken while reads run may be off by the reads that run.
#[derive(Debug, Default)]
pub struct OriginCounters {
    requests: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
    wasted_bytes: AtomicU64,
}

/// A snapshot of the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct OriginCounts {
    /// Requests for a range, the repeated ones included; for a folder, reads.
    pub requests: u64,
    /// Requests that repeated one that had failed.
    pub retries: u64,
    /// Bytes of index and blob that were received, whether they were of use or not.
    pub bytes: u64,
    /// Those of `bytes` that belonged to an answer that was given up: cut short or too long.
    pub wasted_bytes: u64,
}

impl OriginCounters {
    pub(super) fn request(&self, is_retry: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn wasted(&self, bytes: u64) {
        self.wasted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> OriginCounts {
        OriginCounts {
            requests: self.requests.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            wasted_bytes: self.wasted_bytes.load(Ordering::Relaxed),
        }
    }
}

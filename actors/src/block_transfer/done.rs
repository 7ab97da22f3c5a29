//! What all transfers of a VM have done.

use super::core::Stalls;
use crate::wire::control::BytesBySource;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counts since the start of the process: a transfer that ends or is rebuilt takes nothing away from them. Written without
/// order between the fields.
#[derive(Debug, Default)]
pub struct DoneByAll {
    parent: AtomicU64,
    ancestor: AtomicU64,
    origin: AtomicU64,
    stalls: AtomicU64,
    stalled_us: AtomicU64,
}

/// A snapshot of the counts, or the part of one transfer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub bytes: BytesBySource,
    /// Reads that waited.
    pub stalls: u64,
    /// How long those of them waited that have ended.
    pub stalled_us: u64,
}

impl Done {
    pub(super) fn new(bytes: BytesBySource, stalls: Stalls) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self { bytes, stalls: stalls.count.into(), stalled_us: micros(stalls.together) }
    }
}

impl DoneByAll {
    /// Counts what a transfer has done since it was counted last.
    pub(super) fn went_on(&self, before: Done, now: Done) {
        for (all, before, now) in [
            (&self.parent, before.bytes.parent, now.bytes.parent),
            (&self.ancestor, before.bytes.ancestor, now.bytes.ancestor),
            (&self.origin, before.bytes.origin, now.bytes.origin),
            (&self.stalls, before.stalls, now.stalls),
            (&self.stalled_us, before.stalled_us, now.stalled_us),
        ] {
            all.fetch_add(now.saturating_sub(before), Ordering::Relaxed);
        }
    }

    pub fn snapshot(&self) -> Done {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let bytes = BytesBySource {
            parent: read(&self.parent),
            ancestor: read(&self.ancestor),
            origin: read(&self.origin),
        };
        Done { bytes, stalls: read(&self.stalls), stalled_us: read(&self.stalled_us) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_that_begins_anew_takes_nothing_away() {
        let done = |origin, stalls| Done {
            bytes: BytesBySource { parent: 0, ancestor: 1, origin },
            stalls,
            stalled_us: 10 * stalls,
        };
        let all = DoneByAll::default();
        all.went_on(Done::default(), done(5, 1));
        all.went_on(done(5, 1), done(7, 1));
        all.went_on(Done::default(), done(2, 0));
        let bytes = BytesBySource { parent: 0, ancestor: 2, origin: 9 };
        assert_eq!(all.snapshot(), Done { bytes, stalls: 1, stalled_us: 10 });
    }
}

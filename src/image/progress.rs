//! Counters of one conversion that others may watch while it runs, and the switch that ends it early.

use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// What a conversion is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading manifests and the image configuration.
    Resolving,
    /// First pass over the layers: headers. Counts stored bytes of layers.
    Reading,
    /// Second pass: file data into blocks. Counts plain bytes of the file system.
    Packing,
    /// Handing the artifact to its destination. Counts stored bytes.
    Publishing,
    Done,
}

const PHASES: [Phase; 5] = [Phase::Resolving, Phase::Reading, Phase::Packing, Phase::Publishing, Phase::Done];

/// The conversion was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the conversion was cancelled")]
pub struct Cancelled;

/// Shared counters of one conversion.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    layer_plain_bytes: AtomicU64,
    entries: AtomicU64,
    cancelled: AtomicBool,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ProgressSnapshot {
    pub phase: Phase,
    /// Bytes done of this phase.
    pub done_bytes: u64,
    /// Bytes of this phase in all; 0 while unknown.
    pub total_bytes: u64,
    /// Decompressed bytes of all layers read so far in the first pass.
    pub layer_plain_bytes: u64,
    /// Headers read so far in the first pass.
    pub entries: u64,
}

impl Progress {
    /// Begins a phase; its bytes done are 0 again.
    pub fn begin(&self, phase: Phase, total_bytes: u64) {
        let place = PHASES.iter().position(|other| *other == phase).expect("every phase is listed");
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
        self.phase.store(place as u8, Ordering::Relaxed);
    }

    /// Counts bytes of the present phase; says so when the conversion is to stop.
    pub fn advance(&self, bytes: u64) -> Result<(), Cancelled> {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }

    pub(crate) fn count_layer(&self, plain_bytes: u64) {
        self.layer_plain_bytes.fetch_add(plain_bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_entry(&self) {
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks the conversion to end at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> ProgressSnapshot {
        ProgressSnapshot {
            phase: PHASES[usize::from(self.phase.load(Ordering::Relaxed))],
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            layer_plain_bytes: self.layer_plain_bytes.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
        }
    }
}

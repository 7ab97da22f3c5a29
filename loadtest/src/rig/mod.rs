//! Real parts for end-to-end tests and measurements: a registry, images made from Debian packages, a
//! cluster of managers and agents in the namespaces of a bed, and a client of the API.

pub mod api;
pub mod cluster;
pub mod debian;
pub mod etcd;
pub mod image;
pub mod process;
pub mod registry;
mod service;

pub use api::{Answer, Api};
pub use cluster::{Cluster, ClusterSpec};
pub use etcd::Etcd;
pub use image::{Image, Variant};
pub use registry::Registry;

use anyhow::{Context, bail};
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// Pauses between two looks at something another process does without telling: a fiftieth of the wait so
/// far, so that long waits cost the machine little and are known to 2 %.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(10);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(200);
const LOOKS_PER_WAIT: u32 = 50;

/// Looks until there is something to see; fails at the deadline, naming what was waited for.
pub fn wait_until<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(seen) = look().with_context(|| format!("while waiting for {what}"))? {
            return Ok(seen);
        }
        if begin.elapsed() > within {
            bail!("{what}: not within {within:?}");
        }
        pause((begin.elapsed() / LOOKS_PER_WAIT).clamp(LOOK_AGAIN_MIN, LOOK_AGAIN_MAX));
    }
}

/// Does nothing for so long. Parking alone ends at once when a scoped thread of ours has ended before, as in
/// [`BedState::inside`](crate::bed::BedState::inside): it has unparked us.
pub fn pause(length: Duration) {
    let begin = Instant::now();
    while let Some(left) = length.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Runs a command to its end and gives its output; a failure carries what it complained about.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// SplitMix64: numbers that look random and are the same for the same seed.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_behind_a_thread_that_has_ended_is_as_long_as_any() {
        let (begin, length) = (Instant::now(), Duration::from_millis(30));
        std::thread::scope(|scope| scope.spawn(|| ()).join().expect("it does nothing"));
        pause(length);
        assert!(begin.elapsed() >= length);
    }
}

//! What was measured of one image, and the table of all.

use super::{App, Way};
use crate::warm::WarmStart;
use faasnet_actors::model::{HeldImageView, StartView, Timeline};
use serde::Serialize;
use std::fmt;

/// What a start moves is to be at most so many times what it reads, and take so many times a warm one.
const BYTES_GOAL: f64 = 0.5;
const TIME_GOAL: f64 = 1.5;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub app: App,
    /// Of the unpacked image.
    pub image_bytes: u64,
    pub rate_bits_per_s: Option<u64>,
    /// What a start reads, in pages.
    pub plain_bytes: u64,
    pub warm: Vec<WarmStart>,
    pub warm_ms: f64,
    pub cold: Vec<Cold>,
}

/// Starts whose blocks came in one way; numbers are medians.
#[derive(Debug, Clone, Serialize)]
pub struct Cold {
    pub way: Way,
    /// Blocks that the VM had when the start was ready: those that were read, read ahead or pushed.
    pub blocks: f64,
    /// Stored bytes that came over the network until then.
    pub stored_bytes: f64,
    pub ready_ms: f64,
    pub phases_ms: Vec<(&'static str, f64)>,
    pub stalls: f64,
    pub stalled_ms: f64,
    pub starts: Vec<StartView>,
}

impl Cold {
    pub(super) fn new(way: Way, starts: &[(StartView, HeldImageView)]) -> Self {
        let ms = |us: u64| us as f64 / 1000.0;
        let of = |value: &dyn Fn(&StartView) -> f64| median(starts.iter().map(|(start, _)| value(start)));
        let phase =
            |(name, us): (&'static str, Length)| (name, of(&|start| us(&start.timeline_us).map_or(0.0, ms)));
        Self {
            way,
            blocks: median(starts.iter().map(|(_, held)| f64::from(held.blocks_present))),
            stored_bytes: of(&|start| start.bytes.total() as f64),
            ready_ms: of(&|start| start.timeline_us.ready.map_or(0.0, ms)),
            phases_ms: PHASES.map(phase).to_vec(),
            stalls: of(&|start| f64::from(start.stalls)),
            stalled_ms: of(&|start| ms(start.stalled_us)),
            starts: starts.iter().map(|(start, _)| start.clone()).collect(),
        }
    }
}

type Length = fn(&Timeline) -> Option<u64>;

/// Of a start, in their order.
const PHASES: [(&str, Length); 8] = [
    ("waiting", |timeline| timeline.waiting),
    ("placing", |timeline| timeline.placing),
    ("connecting", |timeline| timeline.connecting),
    ("index", |timeline| timeline.index),
    ("metadata", |timeline| timeline.metadata),
    ("mount", |timeline| timeline.mount),
    ("run", |timeline| timeline.run),
    ("probe", |timeline| timeline.probe),
];

/// Of an even number the upper one; 0 of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: f64| bytes / 1e6;
        let (image, plain) = (megabytes(self.image_bytes as f64), megabytes(self.plain_bytes as f64));
        writeln!(out, "{:?}: {image:.0} MB unpacked; a start reads {plain:.1} MB of it", self.app)?;
        match self.rate_bits_per_s {
            Some(rate) => writeln!(out, "  links: {:.0} Mbit/s", rate as f64 / 1e6)?,
            None => writeln!(out, "  links: not shaped")?,
        }
        let warm = |part: fn(&WarmStart) -> std::time::Duration| {
            median(self.warm.iter().map(|start| part(start).as_secs_f64() * 1000.0))
        };
        let (mount, run) = (warm(|start| start.mount), warm(|start| start.run));
        let probe = warm(|start| start.probe);
        write!(out, "  {:<12} {:>8.1} ms:", "warm", self.warm_ms)?;
        writeln!(out, " mount {mount:.1}, run {run:.1}, probe {probe:.1}")?;
        for cold in &self.cold {
            write!(out, "  {:<12} {:>8.1} ms:", cold.way.name(), cold.ready_ms)?;
            for (name, ms) in &cold.phases_ms {
                write!(out, " {name} {ms:.1},")?;
            }
            let (stalls, stalled) = (cold.stalls, cold.stalled_ms);
            writeln!(out, " {stalls:.0} reads waited {stalled:.1} ms together")?;
        }
        Ok(())
    }
}

/// One line for each image and way.
pub struct Table<'a>(pub &'a [Report]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<8} {:<12} {:>8} {:>7} {:>8} {:>6} {:>9} {:>9} {:>6}",
            "image", "hot set", "reads MB", "blocks", "moved MB", "ratio", "cold ms", "warm ms", "ratio"
        )?;
        for report in self.0 {
            for cold in &report.cold {
                let (plain, moved) = (report.plain_bytes as f64, cold.stored_bytes);
                writeln!(
                    out,
                    "{:<8} {:<12} {:>8.1} {:>7.0} {:>8.1} {:>6.2} {:>9.0} {:>9.0} {:>6.2}",
                    format!("{:?}", report.app).to_lowercase(),
                    cold.way.name(),
                    plain / 1e6,
                    cold.blocks,
                    moved / 1e6,
                    moved / plain.max(1.0),
                    cold.ready_ms,
                    report.warm_ms,
                    cold.ready_ms / report.warm_ms.max(1.0)
                )?;
            }
        }
        writeln!(
            out,
            "goals: bytes moved at most {BYTES_GOAL} times what is read, cold at most {TIME_GOAL} times warm"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_a_value_that_was_measured() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 4.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}

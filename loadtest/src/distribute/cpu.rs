//! How much of the machine is used, by everything on it.

use anyhow::Context;
use serde::Serialize;
use std::{fs, ops::Sub};

/// Time of all cores, in the kernel's ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cpu {
    busy: u64,
    all: u64,
}

impl Cpu {
    /// Since the machine was started.
    pub fn now() -> anyhow::Result<Self> {
        Self::read(&fs::read_to_string("/proc/stat")?).context("read the first line of /proc/stat")
    }

    /// `cpu user nice system idle iowait irq softirq steal ...`; what follows is counted in user and nice.
    fn read(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).take(8).collect();
        let (all, idle) = (ticks.iter().sum::<u64>(), ticks.get(3)? + ticks.get(4)?);
        Some(Self { busy: all - idle, all })
    }

    pub fn since(self, before: Self) -> Self {
        Self { busy: self.busy.sub(before.busy), all: self.all.sub(before.all) }
    }

    pub fn percent(self) -> f64 {
        100.0 * self.busy as f64 / self.all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_disk_is_not_use() {
        let cpu = |text| Cpu::read(text).unwrap();
        let (before, after) = (cpu("cpu  10 0 5 100 5 0 0 0 0 0\n"), cpu("cpu  20 5 10 180 5 0 0 0 0 0\n"));
        assert_eq!(after.since(before), Cpu { busy: 20, all: 100 });
        assert_eq!(after.since(before).percent(), 20.0);
        assert_eq!(Cpu::read("intr 1"), None);
    }
}

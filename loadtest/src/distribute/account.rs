//! CPU of a bed by what uses it, as the kernel counts it for each process.
//!
//! What else runs on the machine is told apart, so that a busy machine changes these numbers little. A process that has
//! ended is counted with whoever waited for it: containers' helpers with the holders that ran them.

use crate::bed::BedState;
use anyhow::Context;
use serde::Serialize;
use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

/// The kernel's ticks in `/proc`: `sysconf(_SC_CLK_TCK)`, 100 on every Linux of today.
const TICK_MS: f64 = 10.0;
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What uses a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Manager,
    Registry,
    Agents,
    Holders,
    /// Helpers of holders: `runc`, mounts.
    Runc,
    Containers,
    /// Threads and interrupts of the kernel: network, disks, writing back.
    Kernel,
    /// This program.
    Client,
    /// Whatever else runs on this machine.
    Others,
}

impl Part {
    pub const ALL: [Self; 9] = [
        Self::Manager,
        Self::Registry,
        Self::Agents,
        Self::Holders,
        Self::Runc,
        Self::Containers,
        Self::Kernel,
        Self::Client,
        Self::Others,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Registry => "registry",
            Self::Agents => "agents",
            Self::Holders => "holders",
            Self::Runc => "runc and mounts",
            Self::Containers => "containers",
            Self::Kernel => "the kernel's threads",
            Self::Client => "this program",
            Self::Others => "others on the machine",
        }
    }
}

/// Milliseconds of cores since the machine was started, or between two looks.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Account(pub BTreeMap<Part, f64>);

/// Which network namespace is whose.
struct Namespaces {
    of_hosts: BTreeMap<u64, String>,
}

/// What `/proc/PID/stat` says, in ticks.
struct Stat {
    own: u64,
    /// Of children that ended and were waited for.
    waited: u64,
    is_kernel: bool,
}

impl Account {
    pub fn now(bed: &BedState, manager: &str, registry: &str) -> anyhow::Result<Self> {
        let namespaces = Namespaces::of(bed)?;
        let mut account = Self::default();
        for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end at any moment; then its parent has its time.
            let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some(stat) = Stat::read(&text) else { continue };
            let part = if stat.is_kernel {
                Part::Kernel
            } else if pid == std::process::id() {
                Part::Client
            } else {
                match namespaces.host_of(&entry.path()) {
                    Some(host) if host == manager => Part::Manager,
                    Some(host) if host == registry => Part::Registry,
                    Some(_) => part_of_vm(&entry.path()),
                    None => Part::Others,
                }
            };
            account.add(part, stat.own);
            account.add(if part == Part::Holders { Part::Runc } else { part }, stat.waited);
        }
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        account.add(Part::Kernel, interrupts(&text).context("read the first line of /proc/stat")?);
        Ok(account)
    }

    fn add(&mut self, part: Part, ticks: u64) {
        *self.0.entry(part).or_default() += ticks as f64 * TICK_MS;
    }

    pub fn since(&self, before: &Self) -> Self {
        let used = |(part, ms): (&Part, &f64)| (*part, (ms - before.of(*part)).max(0.0));
        Self(self.0.iter().map(used).collect())
    }

    pub fn of(&self, part: Part) -> f64 {
        self.0.get(&part).copied().unwrap_or_default()
    }
}

impl Namespaces {
    fn of(bed: &BedState) -> anyhow::Result<Self> {
        let mut of_hosts = BTreeMap::new();
        for host in &bed.spec.hosts {
            let file = bed.namespace_file(&host.name)?;
            let inode = fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?.ino();
            of_hosts.insert(inode, host.name.clone());
        }
        Ok(Self { of_hosts })
    }

    fn host_of(&self, process: &Path) -> Option<&str> {
        let inode = fs::metadata(process.join("ns/net")).ok()?.ino();
        self.of_hosts.get(&inode).map(String::as_str)
    }
}

fn part_of_vm(process: &Path) -> Part {
    let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    if groups.lines().any(|line| line.splitn(3, ':').nth(2).is_some_and(|path| path.starts_with("/faasnet-")))
    {
        return Part::Containers;
    }
    let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
    match arguments.split(|byte| *byte == 0).nth(1) {
        Some(b"agent") => Part::Agents,
        Some(b"holder") => Part::Holders,
        _ => Part::Runc,
    }
}

impl Stat {
    /// `pid (name) state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime ...`
    fn read(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let number = |place: usize| words.get(place)?.parse::<u64>().ok();
        Some(Self {
            own: number(11)? + number(12)?,
            waited: number(13)? + number(14)?,
            is_kernel: number(6)? & KERNEL_THREAD != 0,
        })
    }
}

/// `cpu user nice system idle iowait irq softirq ...`
fn interrupts(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.lines().next()?.split_whitespace().collect();
    Some(words.get(6)?.parse::<u64>().ok()? + words.get(7)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_counted_with_those_that_it_waited_for() {
        let stat =
            Stat::read("7 (a) b) S 1 7 7 0 -1 4194304 9 9 0 0 100 20 3 4 20 0 1 0 5 6 7").expect("a line");
        assert_eq!((stat.own, stat.waited, stat.is_kernel), (120, 7, false));
        let kernel = Stat::read("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 5 0 0 20").expect("a line");
        assert!(kernel.is_kernel);
        assert_eq!(interrupts("cpu  1 2 3 4 5 6 7 8 0 0\n"), Some(13));
    }
}

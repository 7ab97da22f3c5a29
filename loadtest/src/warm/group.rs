//! A control group that counts what a process and all that it starts have used.

use crate::bed::remove_group;
use anyhow::Context;
use rustix::process::getpid;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Of the processes of a group together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub cpu: Duration,
    /// For that long at least one of them wanted a core and had none.
    pub stalled: Duration,
}

impl Usage {
    pub fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu - before.cpu, stalled: self.stalled - before.stalled }
    }
}

/// This process is in a part of the group; a container comes into another one, because control groups of version 2
/// have processes at their leaves only. This process goes back to where it came from at the end.
pub struct Group {
    root: PathBuf,
    /// Below the root, as runc is told.
    path: PathBuf,
    before: PathBuf,
}

impl Group {
    const OWN: &str = "own";

    /// `path` begins at the root of all groups.
    pub fn enter(path: &Path) -> anyhow::Result<Self> {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let root = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") }.to_owned();
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let before = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = before.context("there are no control groups of version 2")?.into();
        let group = Self { root, path: path.to_owned(), before };
        let own = group.folder().join(Self::OWN);
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}; be root", own.display()))?;
        fs::write(own.join("cgroup.procs"), getpid().to_string())?;
        Ok(group)
    }

    /// For a container below it, as runc is told.
    pub fn of_container(path: &Path) -> PathBuf {
        path.join("container")
    }

    fn folder(&self) -> PathBuf {
        self.root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    pub fn usage(&self) -> anyhow::Result<Usage> {
        let read = |file: &str, name: &str| -> anyhow::Result<Duration> {
            let text =
                fs::read_to_string(self.folder().join(file)).with_context(|| format!("read {file}"))?;
            let word = text.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next());
            let micros = word.with_context(|| format!("{file} has no {name}"))?.parse()?;
            Ok(Duration::from_micros(micros))
        };
        Ok(Usage { cpu: read("cpu.stat", "usage_usec ")?, stalled: read("cpu.pressure", "total=")? })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nothing can be done about it at the end: an empty group costs nothing.
        let back = self.root.join(&self.before).join("cgroup.procs");
        fs::write(back, getpid().to_string()).ok();
        let path = self.path.strip_prefix("/").unwrap_or(&self.path);
        remove_group(&path.join(Self::OWN));
        remove_group(&Self::of_container(path));
    }
}

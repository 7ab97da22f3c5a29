//! The control groups of our containers: version 1, version 2, and both at once (hybrid).
//!
//! runc makes and fills them; here is only what runc does not tell: whether the kernel killed for
//! lack of memory, and removing what a dead holder left. All groups of one data folder have one
//! parent, named after the folder, so that several holders on one machine never meet.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long killed processes may take to vanish before their group is left behind, with a warning.
const KILLED_VANISH: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    path: PathBuf,
    /// Controllers of version 1; empty for version 2.
    controllers: Vec<String>,
    unified: bool,
}

/// The hierarchies of this machine, and our parent group in them.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    parent: String,
}

impl Cgroups {
    pub fn detect(data: &Path) -> io::Result<Self> {
        let hash = blake3::hash(data.as_os_str().as_encoded_bytes()).to_hex();
        let hierarchies = parse_mounts(&fs::read_to_string("/proc/self/mountinfo")?);
        Ok(Self { hierarchies, parent: format!("faasnet-{}", &hash[..12]) })
    }

    /// The path of a group as the OCI runtime wants it.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new("/").join(&self.parent).join(name)
    }

    /// Whether memory and swap can be limited together.
    pub fn limits_swap(&self) -> bool {
        match self.memory() {
            Some(memory) if !memory.unified => memory.path.join("memory.memsw.limit_in_bytes").exists(),
            Some(_) => Path::new("/proc/swaps").exists(),
            None => false,
        }
    }

    /// What version and controllers there are, for people.
    pub fn describe(&self) -> String {
        let version_1: Vec<&str> = self
            .hierarchies
            .iter()
            .flat_map(|hierarchy| &hierarchy.controllers)
            .map(String::as_str)
            .collect();
        let unified = self.hierarchies.iter().any(|hierarchy| hierarchy.unified);
        match (version_1.is_empty(), unified) {
            (true, true) => format!("version 2: {}", self.unified_controllers().join(" ")),
            (false, true) => format!("hybrid: {}", version_1.join(" ")),
            (false, false) => format!("version 1: {}", version_1.join(" ")),
            (true, false) => "none".to_owned(),
        }
    }

    /// Whether containers can be limited by this controller.
    pub fn has(&self, controller: &str) -> bool {
        let version_1 = self.hierarchies.iter().any(|h| h.controllers.iter().any(|name| name == controller));
        version_1 || self.unified_controllers().iter().any(|name| name == controller)
    }

    fn unified_controllers(&self) -> Vec<String> {
        let unified = self.hierarchies.iter().find(|hierarchy| hierarchy.unified);
        let text = unified.and_then(|found| fs::read_to_string(found.path.join("cgroup.controllers")).ok());
        text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    fn memory(&self) -> Option<&Hierarchy> {
        let version_1 = self.hierarchies.iter().find(|h| h.controllers.iter().any(|name| name == "memory"));
        version_1.or_else(|| self.hierarchies.iter().find(|hierarchy| hierarchy.unified))
    }

    /// How often the kernel killed in this group for lack of memory.
    pub fn oom_kills(&self, name: &str) -> u64 {
        let Some(memory) = self.memory() else { return 0 };
        let file = if memory.unified { "memory.events" } else { "memory.oom_control" };
        let text =
            fs::read_to_string(memory.path.join(&self.parent).join(name).join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or(0)
    }

    /// Kills what is left in a group and removes it everywhere.
    pub fn remove(&self, name: &str) {
        self.each(name, |folder| {
            kill_all(folder);
            remove_folders(folder);
        });
    }

    /// Removes all groups of this data folder.
    pub fn remove_all(&self) {
        for name in self.names() {
            self.remove(&name);
        }
        self.each("", remove_folders);
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.each("", |folder| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let folders = entries.filter(|entry| entry.path().is_dir());
            names.extend(folders.filter_map(|entry| entry.file_name().into_string().ok()));
        });
        names.sort();
        names.dedup();
        names
    }

    fn each(&self, name: &str, mut act: impl FnMut(&Path)) {
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.path.join(&self.parent).join(name);
            if folder.is_dir() {
                act(&folder);
            }
        }
    }
}

/// Kills the processes of a group and waits until they are gone.
fn kill_all(folder: &Path) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let pids = text.lines().filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw));
    // Opened before they are killed, so that a number used again is never hit.
    for process in pids.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        let _ = pidfd_send_signal(&process, Signal::KILL);
        super::wait::readable(&process, Some(KILLED_VANISH));
    }
}

fn remove_folders(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folders(&entry.path());
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "removing a control group");
        }
        _ => {}
    }
}

/// Reads the control group mounts out of `/proc/self/mountinfo`.
fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let (Some(path), mut after) = (mount.split(' ').nth(4), file_system.split(' ')) else { continue };
        let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
        let unified = kind == Some("cgroup2");
        if !unified && kind != Some("cgroup") || hierarchies.iter().any(|h| h.path == Path::new(path)) {
            continue;
        }
        let is_controller = |name: &&str| !matches!(*name, "rw" | "ro" | "relatime" | "xattr" | "none");
        let controllers = match unified {
            true => Vec::new(),
            false => options.split(',').filter(is_controller).map(str::to_owned).collect(),
        };
        hierarchies.push(Hierarchy { path: path.into(), controllers, unified });
    }
    hierarchies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_a_hybrid_machine_are_understood() {
        let text = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";
        let found = parse_mounts(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        let cgroups = Cgroups { hierarchies: found, parent: "p".to_owned() };
        assert_eq!(cgroups.memory().map(|h| h.path.clone()), Some("/sys/fs/cgroup/memory".into()));
        assert!(cgroups.describe().starts_with("hybrid: cpu cpuacct memory"));
        assert_eq!(cgroups.path("a"), Path::new("/p/a"));
    }

    #[test]
    fn on_version_2_memory_is_in_the_only_hierarchy() {
        let found = parse_mounts("30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let cgroups = Cgroups { hierarchies: found, parent: "p".to_owned() };
        assert!(cgroups.memory().is_some_and(|memory| memory.unified));
    }
}

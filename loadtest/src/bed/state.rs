//! Which beds stand on this machine, and how one is taken down, by whomever.
//!
//! A bed is claimed by creating its state file, whose name nobody else can then have; both the file and
//! the namespaces lie below /run and go together when the machine restarts.

use super::{BedSpec, tools::ip};
use anyhow::{Context, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

const FOLDER: &str = "/run/faasnet-bed";
const PREFIX: &str = "fbed-";
/// Rounds of killing what runs in a namespace: a process may fork while it is being killed.
const KILL_ROUNDS_MAX: usize = 20;

/// A bed as its state file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BedState {
    id: String,
    /// The process that made the bed.
    pub owner_pid: u32,
    pub spec: BedSpec,
    /// It stands until somebody takes it down; otherwise it ends with the process that made it.
    #[serde(default)]
    pub is_kept: bool,
    /// Data and logs of the processes that were started in it; goes with a bed that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

impl BedState {
    /// Takes the first free name that starts with this process's id.
    pub(super) fn claim(spec: BedSpec) -> anyhow::Result<Self> {
        fs::create_dir_all(FOLDER).with_context(|| format!("create {FOLDER} (as root?)"))?;
        let owner_pid = std::process::id();
        for number in 0..10_000 {
            let id = format!("{}{number}", prefix_of(owner_pid));
            if !namespaces(&id)?.is_empty() {
                continue;
            }
            let mut file = match OpenOptions::new().write(true).create_new(true).open(file_of(&id)) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error).context("create the state file of the test bed"),
            };
            let state = Self { id, owner_pid, spec, is_kept: false, folder: None };
            file.write_all(&serde_json::to_vec(&state)?).context("write the state file of the test bed")?;
            return Ok(state);
        }
        anyhow::bail!("this process has made too many test beds")
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Notes that the bed stands on its own, and the folder that goes with it.
    pub(super) fn note_kept(&mut self, folder: Option<PathBuf>) -> anyhow::Result<()> {
        (self.is_kept, self.folder) = (true, folder);
        fs::write(file_of(&self.id), serde_json::to_vec(self)?)
            .context("write the state file of the test bed")
    }

    /// Its maker is gone and did not mean it to stay.
    pub fn is_left_over(&self) -> bool {
        !self.is_kept && !Path::new("/proc").join(self.owner_pid.to_string()).exists()
    }

    /// The namespace of the bridge; the names of the hosts' namespaces begin with it.
    pub(super) fn switch(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }
}

/// The bed of that name.
pub fn load(id: &str) -> anyhow::Result<BedState> {
    ensure!(is_id(id), "{id:?} is no name of a test bed");
    let text = fs::read(file_of(id)).with_context(|| format!("there is no test bed {id}"))?;
    serde_json::from_slice(&text).with_context(|| format!("read the state file of test bed {id}"))
}

/// Names of all beds on this machine, also of those that lost their state file.
pub fn list() -> anyhow::Result<Vec<String>> {
    let mut ids = BTreeSet::new();
    for name in file_names(Path::new(FOLDER))? {
        ids.extend(name.strip_suffix(".json").map(str::to_owned));
    }
    for name in file_names(Path::new("/run/netns"))? {
        let id = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        ids.extend(id.map(str::to_owned));
    }
    Ok(ids.into_iter().filter(|id| is_id(id)).collect())
}

/// Names of the beds that a process has made.
pub fn made_by(pid: u32) -> anyhow::Result<Vec<String>> {
    let mut ids = list()?;
    ids.retain(|id| id.starts_with(&prefix_of(pid)));
    Ok(ids)
}

fn prefix_of(owner_pid: u32) -> String {
    format!("{owner_pid:x}x")
}

/// Names what is left of test beds whose makers are gone, with what to do about it.
pub fn hint_at_left_over_beds() {
    let left_over = |id: &String| load(id).map_or(true, |state| state.is_left_over());
    for id in list().unwrap_or_default().iter().filter(|id| left_over(id)) {
        eprintln!("an old test bed is lying about; `faasnet-loadtest bed down {id}` removes it");
    }
}

/// As [`remove`], and the folder of a bed that was kept.
pub fn take_down(id: &str) -> anyhow::Result<()> {
    let folder = load(id).ok().and_then(|state| state.folder);
    remove(id)?;
    match folder.map(fs::remove_dir_all) {
        Some(Err(error)) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("remove the bed's folder")
        }
        _ => Ok(()),
    }
}

/// Ends the processes in the bed's namespaces, and removes these and the state file. A bed that is half
/// made or half gone is no error.
pub fn remove(id: &str) -> anyhow::Result<()> {
    ensure!(is_id(id), "{id:?} is no name of a test bed");
    let namespaces = namespaces(id)?;
    for namespace in &namespaces {
        kill_inside(namespace)?;
    }
    let switch = format!("{PREFIX}{id}");
    if namespaces.contains(&switch) {
        // Whoever made it may have been ended before it was a namespace; its links go with it in any case.
        let _not_one_yet = remove_links(&switch);
    }
    for namespace in &namespaces {
        ip(&["netns", "del", namespace])?;
    }
    match fs::remove_file(file_of(id)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove the state file"),
        _ => Ok(()),
    }
}

/// A namespace goes in the background, some time after its name; its links are to be gone at once.
fn remove_links(switch: &str) -> anyhow::Result<()> {
    let links: serde_json::Value =
        serde_json::from_str(&ip(&["-n", switch, "-j", "link", "show", "type", "veth"])?)?;
    for link in links.as_array().into_iter().flatten() {
        if let Some(name) = link["ifname"].as_str() {
            ip(&["-n", switch, "link", "del", name])?;
        }
    }
    Ok(())
}

/// Ends what runs in the namespace, and removes the control groups of containers among it, which their
/// killed holders cannot.
pub(super) fn kill_inside(namespace: &str) -> anyhow::Result<()> {
    let mut groups: BTreeSet<PathBuf> = BTreeSet::new();
    for _ in 0..KILL_ROUNDS_MAX {
        let pids = processes(namespace)?;
        if pids.is_empty() {
            groups.iter().for_each(|group| remove_group(group));
            return Ok(());
        }
        for pid in pids {
            groups.extend(container_groups(pid));
            kill(pid);
        }
    }
    anyhow::bail!("processes in namespace {namespace} come back after being killed")
}

/// The control groups of a process that a holder made, as paths below their hierarchy.
fn container_groups(pid: Pid) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid())).unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)?.strip_prefix('/'));
    paths.filter(|path| path.starts_with("faasnet-")).map(PathBuf::from).collect()
}

/// From every hierarchy, the group and the one above it when that is empty.
pub(crate) fn remove_group(group: &Path) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = file_names(root).unwrap_or_default().into_iter().map(|name| root.join(name));
    for hierarchy in hierarchies.chain([root.to_path_buf()]) {
        let _not_in_this_one = fs::remove_dir(hierarchy.join(group));
        if let Some(above) = group.parent().filter(|above| !above.as_os_str().is_empty()) {
            let _has_others = fs::remove_dir(hierarchy.join(above));
        }
    }
}

/// Process ids in that namespace of this machine.
pub(super) fn processes(namespace: &str) -> anyhow::Result<Vec<Pid>> {
    let text = ip(&["netns", "pids", namespace])?;
    Ok(text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect())
}

/// Ends the process and waits until it has; one that is gone already is fine.
fn kill(pid: Pid) {
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let _gone_already = kill_process(pid, Signal::KILL);
    let deadline = Timespec { tv_sec: 10, tv_nsec: 0 };
    let _asked_again_by_the_caller = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&deadline));
}

fn namespaces(id: &str) -> anyhow::Result<Vec<String>> {
    let switch = format!("{PREFIX}{id}");
    let of_host = format!("{switch}-");
    let mut names = file_names(Path::new("/run/netns"))?;
    names.retain(|name| *name == switch || name.starts_with(&of_host));
    Ok(names)
}

fn file_names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 32 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn file_of(id: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{id}.json"))
}

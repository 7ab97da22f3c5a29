//! `faasnet doctor`: whether this machine can run functions, and how to mend what is missing.
//!
//! What can be tried is tried: a tiny EROFS is mounted from a file, with an overlay on it, in a mount
//! namespace that vanishes with the thread.

use crate::{
    holder::{self, cgroup::Cgroups, runc},
    settings::Settings,
};
use rustix::{
    fs::statvfs,
    process::{Resource, geteuid, getrlimit},
};
use serde::Serialize;
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

/// Free bytes below which a data folder is reported: a middling image would not fit.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Descriptors needed beside connections: blocks, sockets, FUSE, pipes of containers.
const OPEN_FILES_BESIDE: u64 = 1024;

/// One thing that is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    /// What is there.
    pub found: String,
    /// What to do; empty if it is well.
    pub mend: String,
}

impl Check {
    fn new(name: &'static str, ok: bool, found: impl Into<String>, mend: impl Into<String>) -> Self {
        let mend = if ok { String::new() } else { mend.into() };
        Self { name, ok, found: found.into(), mend }
    }
}

/// Looks at everything that the settings need.
pub fn check(settings: &Settings) -> Vec<Check> {
    let data = existing(&settings.agent.data);
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mut checks = vec![root(), fuse()];
    checks.extend(mounts(&data, &file_systems));
    checks.push(runtime(&settings.holder.runtime));
    checks.push(cgroups(&settings.agent.data));
    checks.push(disk("disk of the agent", &settings.agent.data));
    checks.push(disk("disk of the manager", &settings.manager.data));
    checks.push(open_files(settings));
    checks
}

/// Prints the checks; fails when something needed is missing.
pub fn run(settings: &Settings, json: bool) -> io::Result<ExitCode> {
    let checks = check(settings);
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&checks)?)?;
    } else {
        let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in &checks {
            let verdict = if check.ok { "ok     " } else { "MISSING" };
            writeln!(out, "{verdict}  {:width$}  {}", check.name, check.found)?;
            if !check.ok {
                writeln!(out, "         {:width$}  -> {}", "", check.mend)?;
            }
        }
    }
    Ok(if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn root() -> Check {
    let found = format!("user id {}", geteuid());
    Check::new("root", geteuid().is_root(), found, "run it as root: mounts and containers need that")
}

fn fuse() -> Check {
    let opened = fs::File::options().read(true).write(true).open("/dev/fuse");
    let found = opened.as_ref().map_or_else(ToString::to_string, |_| "/dev/fuse opens".to_owned());
    let mend =
        "load the kernel module (`modprobe fuse`); in a container pass the device in (--device /dev/fuse)";
    Check::new("FUSE", opened.is_ok(), found, mend)
}

/// EROFS and overlayfs: listed by the kernel, or tried, which loads their modules.
fn mounts(data: &Path, file_systems: &str) -> [Check; 2] {
    let tried = try_mounts(data);
    let listed = |name: &str| match file_systems.lines().any(|line| line.trim_end().ends_with(name)) {
        true => "in /proc/filesystems",
        false => "not in /proc/filesystems",
    };
    let describe = |name, result: &Result<(), String>, works: &str| match result {
        Ok(()) => format!("{}; {works}", listed(name)),
        Err(reason) => format!("{}; {reason}", listed(name)),
    };
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy().into_owned();
    let works = format!("a mount from a file works on Linux {kernel}");
    let mend =
        "use Linux 6.12 or later with CONFIG_EROFS_FS and CONFIG_EROFS_FS_BACKED_BY_FILE (`modprobe erofs`)";
    let erofs = Check::new("EROFS", tried.erofs.is_ok(), describe("erofs", &tried.erofs, &works), mend);
    let works = "the upper layer lies on a tmpfs of its own, in memory, and a mount on it works";
    let mend = "use a kernel with CONFIG_OVERLAY_FS (`modprobe overlay`)";
    let overlay =
        Check::new("overlayfs", tried.overlay.is_ok(), describe("overlay", &tried.overlay, works), mend);
    [erofs, overlay]
}

struct Tried {
    erofs: Result<(), String>,
    overlay: Result<(), String>,
}

fn try_mounts(data: &Path) -> Tried {
    let failed = |reason: String| Tried { erofs: Err(reason.clone()), overlay: Err(reason) };
    let folder = match tempfile::Builder::new().prefix("faasnet-doctor-").tempdir_in(data) {
        Ok(folder) => folder,
        Err(error) => return failed(format!("{} cannot be written: {error}", data.display())),
    };
    let path = folder.path().to_owned();
    // The mounts are in a namespace of that thread and are gone with it.
    let thread = thread::spawn(move || mount_both(&path));
    thread.join().unwrap_or_else(|_| failed("the attempt broke off".to_owned()))
}

fn mount_both(folder: &Path) -> Tried {
    let untried = || Err("not tried, because EROFS cannot be mounted".to_owned());
    let (image, lower) = (folder.join("image"), folder.join("lower"));
    let prepared = fs::write(&image, tiny_erofs()).and_then(|()| fs::create_dir(&lower));
    if let Err(error) = prepared.and_then(|()| holder::enter_mount_namespace()) {
        return Tried { erofs: Err(format!("a mount cannot be tried: {error}")), overlay: untried() };
    }
    let erofs = holder::mount::mount_erofs(&image, &lower, false).map_err(|error| error.to_string());
    if erofs.is_err() {
        return Tried { erofs, overlay: untried() };
    }
    let overlay = holder::overlay::mount(folder, &lower, 1 << 20).map_err(|error| error.to_string());
    for path in holder::overlay::mount_points(folder).iter().chain([&lower]) {
        holder::mount::unmount_now(path);
    }
    Tried { erofs, overlay }
}

/// A valid EROFS of one block with nothing but an empty root folder (Linux, `fs/erofs/erofs_fs.h`).
fn tiny_erofs() -> Vec<u8> {
    let mut image = vec![0_u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let (superblock, inode_number) = (1024, 36_u16);
    put(superblock, &0xE0F5_E1E2_u32.to_le_bytes());
    put(superblock + 12, &[12]); // log2 of the block size
    put(superblock + 14, &inode_number.to_le_bytes());
    put(superblock + 16, &1_u64.to_le_bytes()); // inodes
    put(superblock + 36, &1_u32.to_le_bytes()); // blocks
    let inode = usize::from(inode_number) * 32;
    put(inode, &4_u16.to_le_bytes()); // compact inode, data inline behind it
    put(inode + 4, &0o040_755_u16.to_le_bytes());
    put(inode + 6, &2_u16.to_le_bytes()); // links
    put(inode + 8, &27_u32.to_le_bytes()); // bytes of the folder below
    let entries = inode + 32;
    for (place, name_at) in [(0, 24_u16), (12, 25)] {
        put(entries + place, &u64::from(inode_number).to_le_bytes());
        put(entries + place + 8, &name_at.to_le_bytes());
        put(entries + place + 10, &[2]); // a folder
    }
    put(entries + 24, b"...");
    image
}

fn runtime(program: &Path) -> Check {
    match runc::version(program) {
        Ok(version) => Check::new("OCI runtime", true, version, ""),
        Err(error) => {
            let mend = "install runc (Debian: apt-get install runc), or name it in holder.runtime";
            Check::new("OCI runtime", false, error.to_string(), mend)
        }
    }
}

fn cgroups(data: &Path) -> Check {
    let mend = "mount control groups with the controllers memory and pids (version 2: /sys/fs/cgroup)";
    match Cgroups::detect(data) {
        Ok(found) => {
            let ok = found.has("memory") && found.has("pids");
            Check::new("control groups", ok, found.describe(), mend)
        }
        Err(error) => Check::new("control groups", false, error.to_string(), mend),
    }
}

fn disk(name: &'static str, folder: &Path) -> Check {
    let parent = existing(folder);
    let mend = format!("free some space, or choose another data folder than {}", folder.display());
    match statvfs(&parent) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{:.1} GiB free for {}", free as f64 / (1_u64 << 30) as f64, folder.display());
            Check::new(name, free >= FREE_BYTES_MIN, text, mend)
        }
        Err(error) => Check::new(name, false, format!("{}: {error}", parent.display()), mend),
    }
}

fn open_files(settings: &Settings) -> Check {
    let needed = settings.agent.connections_max.max(settings.http.connections_max) as u64 + OPEN_FILES_BESIDE;
    let found = getrlimit(Resource::Nofile).current;
    let text = found.map_or_else(|| "no limit".to_owned(), |limit| format!("limit {limit}, needed {needed}"));
    let mend = format!("raise it: `ulimit -n {needed}`, or LimitNOFILE= of the service");
    Check::new("open files", found.is_none_or(|limit| limit >= needed), text, mend)
}

/// The folder, or the nearest above it that exists.
fn existing(folder: &Path) -> PathBuf {
    folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(data: &Path) -> Settings {
        let mut settings = Settings::load(None).expect("defaults");
        settings.agent.data = data.join("agent");
        settings.manager.data = data.join("manager");
        settings
    }

    #[test]
    fn a_machine_that_runs_these_tests_is_well_and_nothing_is_left() {
        let data = tempfile::tempdir().expect("folder");
        let checks = check(&settings(data.path()));
        let missing: Vec<&Check> = checks.iter().filter(|check| !check.ok).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(fs::read_dir(data.path()).expect("lists").count(), 0);
    }

    #[test]
    fn what_is_missing_is_named_with_a_way_to_mend_it() {
        let data = tempfile::tempdir().expect("folder");
        let mut settings = settings(data.path());
        settings.holder.runtime = "/nonexistent/runc".into();
        settings.agent.connections_max = usize::MAX / 2;
        let checks = check(&settings);
        let missing: Vec<&str> = checks.iter().filter(|check| !check.ok).map(|check| check.name).collect();
        assert_eq!(missing, ["OCI runtime", "open files"]);
        assert!(checks.iter().all(|check| check.ok == check.mend.is_empty()));
    }
}

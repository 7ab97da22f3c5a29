//! The holder: the small process on a VM that owns mounts and containers, so that the agent may die.
//!
//! It talks to the agent over `<data>/holder.sock`. What lies in `data`:
//!
//! ```text
//! holder.sock, holder.log      the socket, and what the holder itself has to say
//! images/<digest>/             mount points of a block image (`mount`)
//! instances/<start>/           bundle and writable layer of a container (`instance`)
//! runc/                        the OCI runtime's state
//! logs/<start>.log[.old]       output of containers (`log`); all that stays after a shutdown
//! ```
//!
//! All mounts are in a mount namespace of its own and vanish with it. Threads: the desk (`desk`, with
//! the pure `core`), the socket (`agent`), per image FUSE threads and one that answers late reads
//! (`file`), one for each mount (`mount`), one for each container (`instance`). Nothing in this process
//! makes a call that may read one of its mounts: those are processes of their own (`step`, `runc`).

mod agent;
mod bundle;
pub(crate) mod cgroup;
mod core;
mod desk;
mod file;
mod instance;
mod log;
pub(crate) mod mount;
pub(crate) mod overlay;
mod reads;
mod recording;
pub(crate) mod runc;
mod seccomp;
mod spawn;
mod step;
mod wait;

pub(crate) use agent::socket_path;
pub use spawn::{SpawnError, connect, spawn, spawn_program, wait_ended};
pub use step::{VERB as STEP_VERB, run as run_step};

use self::core::Event;
use crate::settings::HolderSettings;
use anyhow::Context;
use cgroup::Cgroups;
use desk::{Desk, INPUTS_MAX, Input};
use faasnet_actors::{id::StartId, wire::holder::ToHolder};
use instance::Host;
use runc::Runc;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    mount::{MountPropagationFlags, mount_change},
    process::{getpid, set_child_subreaper, setsid},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// Time that containers get when the holder itself is told to end by a signal.
const SIGNAL_GRACE_MS: u64 = 3000;

pub struct HolderOptions {
    /// The VM's data folder.
    pub data: PathBuf,
    pub settings: HolderSettings,
}

/// Runs the holder in this process until it is shut down. Prints `ready` on standard output once it
/// listens. Must be called before any other thread is started.
pub fn run(options: HolderOptions) -> anyhow::Result<()> {
    let HolderOptions { data, settings } = options;
    DirBuilder::new().recursive(true).mode(0o700).create(&data).context("making the data folder")?;
    fs::set_permissions(&data, Permissions::from_mode(0o700)).context("closing the data folder to others")?;
    let data = data.canonicalize().context("finding the data folder")?;
    // Given up by the end of the process and not before, so that who waits for it finds nothing of us.
    std::mem::forget(lock(&data)?);
    // Fails for the leader of a process group, which a terminal's job is: then it stays with it.
    let _ = setsid();
    enter_mount_namespace().context("entering a mount namespace; the holder needs to be root")?;
    set_child_subreaper(Some(getpid())).context("becoming the reaper of containers")?;
    let runc = Runc {
        program: settings.runtime.clone(),
        root: data.join("runc"),
        deadline: Duration::from_millis(settings.call_deadline_ms),
    };
    let cgroups = Cgroups::detect(&data).context("finding the control groups")?;
    let host = Host { data: data.clone(), runc, cgroups };
    clear(&host);

    let (inputs, queue) = sync_channel(INPUTS_MAX);
    let listener = agent::listen(&data).context("listening on holder.sock")?;
    let accepted = inputs.clone();
    thread::Builder::new().name("accept".to_owned()).spawn(move || agent::accept(&listener, &accepted))?;
    shut_down_on_signals(inputs.clone())?;
    writeln!(io::stdout(), "{}", spawn::READY).context("saying that we are ready")?;
    tracing::info!(data = %data.display(), "the holder is ready");
    Desk::new(settings, host.clone(), inputs).run(&queue);
    clear(&host);
    let _ = fs::remove_file(data.join("holder.sock"));
    tracing::info!("the holder ends");
    Ok(())
}

/// The newest output of a start, at most `bytes`; empty if there is none.
pub fn read_log_tail(data: &Path, start: &StartId, bytes: u64) -> io::Result<Vec<u8>> {
    log::read_tail(&instance::log_path(data, start.as_str()), bytes)
}

/// One holder for a folder: locks the folder of logs, which outlives every holder.
fn lock(data: &Path) -> anyhow::Result<File> {
    let logs = data.join("logs");
    DirBuilder::new().recursive(true).mode(0o700).create(&logs).context("making the folder of logs")?;
    let lock = File::open(&logs)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => anyhow::bail!("another holder serves {}", data.display()),
        locked => locked.context("locking the folder of logs")?,
    }
    Ok(lock)
}

/// Gives this thread, and threads and processes it starts, mounts of their own.
#[allow(unsafe_code)]
pub(crate) fn enter_mount_namespace() -> io::Result<()> {
    // SAFETY: only `UnshareFlags::FILES` makes it unsound, by giving threads different descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Removes what a holder of this folder left: containers, control groups, folders. Its mounts went
/// with its namespace.
fn clear(host: &Host) {
    for id in host.runc.known() {
        if let Err(error) = host.runc.delete(&id) {
            tracing::warn!(start = id, %error, "deleting a container that was left");
        }
    }
    host.cgroups.remove_all();
    for folder in [host.instances(), host.runc.root.clone()].into_iter().chain(mount_points(&host.data)) {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %folder.display(), %error, "removing what was left");
            }
            _ => {}
        }
    }
    // It stays when the cache has something in it.
    let _cached = fs::remove_dir(host.data.join("images"));
}

/// Folders for mounts. Beside them is the agent's cache, in folders with a tenant's name, a dot and the image's.
fn mount_points(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("images")).into_iter().flatten().flatten();
    let is_cache =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'.'));
    entries.map(|entry| entry.path()).filter(|path| !is_cache(path)).collect()
}

/// SIGTERM and SIGINT end the holder as `Shutdown` does: nothing may be left behind.
fn shut_down_on_signals(desk: SyncSender<Input>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        loop {
            runtime.block_on(async {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            });
            let order = ToHolder::Shutdown { grace_ms: SIGNAL_GRACE_MS };
            if desk.send(Input::Event(Event::Order(order))).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

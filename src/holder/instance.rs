//! One container, from its order to its end, on a thread of its own.
//!
//! ```text
//! overlay -> runc run --detach -> Started -> { output, stop orders, end } -> runc delete -> Ended
//! ```
//!
//! The thread waits for two descriptors at once: stop orders, and the container's process. Whatever
//! could read the image, and keeping the output, is a process of its own (`step`). We are its subreaper, so the process becomes our child and its status is ours to collect.

use super::{
    bundle,
    cgroup::Cgroups,
    core::Event,
    desk::Input,
    overlay::mount_points,
    runc::Runc,
    step::{self, Output},
    wait,
};
use faasnet_actors::wire::holder::{CODE_PATH, Exit, Run};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, pidfd_send_signal, waitpid},
};
use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::DirBuilderExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::mpsc::SyncSender,
    time::{Duration, Instant},
};

/// What every instance of this holder shares.
#[derive(Debug, Clone)]
pub struct Host {
    pub data: PathBuf,
    pub runc: Runc,
    pub cgroups: Cgroups,
}

impl Host {
    pub fn instances(&self) -> PathBuf {
        self.data.join("instances")
    }

    pub fn log_path(&self, start: &str) -> PathBuf {
        log_path(&self.data, start)
    }
}

/// Where the output of a start is kept.
pub fn log_path(data: &Path, start: &str) -> PathBuf {
    data.join("logs").join(format!("{start}.log"))
}

/// The file systems of mounted images that a container is made of.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    pub root: &'a Path,
    pub code: Option<&'a Path>,
}

/// Runs the container to its end. `control` brings stop orders: the time of grace in ms as eight
/// little-endian bytes.
pub fn run(host: &Host, run: &Run, files: Files<'_>, control: UnixDatagram, desk: &SyncSender<Input>) {
    let folder = host.instances().join(run.start.as_str());
    let start = run.start.clone();
    let started = Instant::now();
    let ended = match Container::start(host, run, &folder, files) {
        Ok(mut container) => {
            let pid = container.pid.as_raw_nonzero().get() as u32;
            let elapsed_ms = started.elapsed().as_millis() as u64;
            tracing::info!(%start, pid, elapsed_ms, "started");
            // The desk is gone only when the process ends, and then nobody needs to be told.
            let _ = desk.send(Input::Event(Event::Started { start: start.clone(), pid }));
            let exit = container.watch(control, desk);
            Event::Ended { start, exit }
        }
        Err(reason) => Event::StartFailed { start, reason },
    };
    clean_up(host, &folder);
    let _ = desk.send(Input::Event(ended));
}

/// Unmounts and removes the folder; one that is still mounted is left alone, because looking into it
/// may hang. The next holder removes it.
fn clean_up(host: &Host, folder: &Path) {
    let [rootfs, writable] = mount_points(folder);
    if !step::unmount(&[&rootfs, &writable], host.runc.deadline) {
        return;
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(folder = %folder.display(), %error, "removing the folder of an instance");
    }
}

struct Container<'a> {
    host: &'a Host,
    run: &'a Run,
    folder: &'a Path,
    output: Option<Output>,
    pid: Pid,
    process: OwnedFd,
}

impl<'a> Container<'a> {
    /// Mounts and starts. On an error the mounts are the caller's to remove.
    fn start(host: &'a Host, run: &'a Run, folder: &'a Path, files: Files<'_>) -> Result<Self, String> {
        let text = |error: io::Error| format!("the instance's folder cannot be used: {error}");
        let id = run.start.as_str();
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(text)?;
        let spec = bundle::spec(run, folder, files.code, &host.cgroups).map_err(|error| error.to_string())?;
        spec.save(folder.join("config.json")).map_err(|error| error.to_string())?;
        write_network_files(folder, &hostname(id)).map_err(text)?;
        let code_path = files.code.map_or("", |_| CODE_PATH);
        step::mount_overlay(folder, files.root, run.writable_bytes, code_path, host.runc.deadline)?;
        let (pipe, into_pipe) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| text(error.into()))?;
        let output = Output::keep(pipe, &host.log_path(id), run.log_bytes_max).map_err(text)?;
        match Self::start_process(host, id, folder, File::from(into_pipe)) {
            Ok((pid, process)) => Ok(Self { host, run, folder, output: Some(output), pid, process }),
            Err(reason) => {
                let _ = host.runc.delete(id);
                host.cgroups.remove(id);
                output.finish();
                Err(reason)
            }
        }
    }

    fn start_process(host: &Host, id: &str, folder: &Path, output: File) -> Result<(Pid, OwnedFd), String> {
        let pid_file = folder.join("pid");
        host.runc.run(id, folder, &pid_file, output).map_err(|error| error.to_string())?;
        let pid =
            fs::read_to_string(&pid_file).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        let pid = pid.ok_or("the OCI runtime did not say which process it started")?;
        let process = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| format!("the container's process cannot be watched: {error}"))?;
        Ok((pid, process))
    }

    /// Waits for the end and obeys stop orders; then removes the container.
    fn watch(&mut self, control: UnixDatagram, desk: &SyncSender<Input>) -> Exit {
        let mut kill_at: Option<Instant> = None;
        let mut stopped = false;
        loop {
            let watched = [self.process.as_fd(), control.as_fd()];
            let left = kill_at.map(|at| at.saturating_duration_since(Instant::now()));
            let ready = wait::any_readable(&watched, left);
            if ready[0] {
                break;
            }
            if ready[1]
                && let Some(grace) = next_order(&control)
            {
                stopped = true;
                let at = Instant::now() + grace;
                kill_at = Some(kill_at.map_or(at, |earlier| earlier.min(at)));
                let signal = self.run.runtime.stop_signal;
                if let Err(error) = self.host.runc.kill(self.run.start.as_str(), signal, self.folder) {
                    tracing::warn!(start = %self.run.start, %error, "sending the stop signal");
                }
            }
            if kill_at.is_some_and(|at| at <= Instant::now()) {
                kill_at = None;
                // First of its PID namespace: with it, all of them end.
                let _ = pidfd_send_signal(&self.process, Signal::KILL);
                let start = self.run.start.clone();
                let _ = desk.send(Input::Event(Event::Killed { start }));
            }
        }
        self.end(stopped)
    }

    fn end(&mut self, stopped: bool) -> Exit {
        let id = self.run.start.as_str();
        let status = waitpid(Some(self.pid), WaitOptions::empty());
        let out_of_memory = self.host.cgroups.oom_kills(id) > 0;
        if let Err(error) = self.host.runc.delete(id) {
            tracing::warn!(start = id, %error, "deleting a container");
        }
        self.host.cgroups.remove(id);
        if let Some(output) = self.output.take() {
            output.finish();
        }
        let exit = match status {
            Ok(Some((_, status))) => exit_of(status),
            Ok(None) | Err(_) => {
                tracing::error!(start = id, ?status, "the status of a container is lost");
                Exit::Code(255)
            }
        };
        if out_of_memory && !stopped && exit != Exit::Code(0) { Exit::OutOfMemory } else { exit }
    }
}

fn hostname(id: &str) -> String {
    id.chars().take(12).collect()
}

fn next_order(control: &UnixDatagram) -> Option<Duration> {
    let mut grace_ms = [0; 8];
    let len = control.recv(&mut grace_ms).ok()?;
    (len == grace_ms.len()).then(|| Duration::from_millis(u64::from_le_bytes(grace_ms)))
}

fn exit_of(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(255),
    }
}

/// Name resolution as on the VM, whose network the container shares.
fn write_network_files(folder: &Path, hostname: &str) -> io::Result<()> {
    let hosts = format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n");
    fs::write(folder.join("hosts"), hosts)?;
    let resolv = fs::read("/etc/resolv.conf").unwrap_or_default();
    fs::write(folder.join("resolv.conf"), resolv)
}

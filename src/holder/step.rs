//! Calls that may hang on a read of our own mounts, each in a process of its own.
//!
//! A thread that hangs in such a call cannot be killed, and keeps every descriptor of its process
//! open. Were that the holder, `/dev/fuse` would be among them: killed at such a moment it would never
//! be gone, the kernel would wait for its answers, and the call would hang for ever. Reading a
//! container's output is such a call too: a container in `sendfile(2)` from the image holds the lock
//! of the pipe while it waits for a block.

use super::{
    log::BoundedLog,
    mount::{self, MountOptions},
    overlay, wait,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// The hidden verb by which this program runs a step.
pub const VERB: &str = "holder-step";
/// How a step ends whose program does not exist; the number is that of shells.
pub const EXIT_NOT_FOUND: i32 = 127;
/// The longest reason that is read from a step.
const REASON_BYTES_MAX: u64 = 1000;
/// How much output is taken in one turn.
const OUTPUT_BUFFER_BYTES: usize = 64 * 1024;
/// How long the last output of an ended container may take to be written.
const OUTPUT_END: Duration = Duration::from_secs(5);

/// Runs a step in this process: the other side of the functions below.
pub fn run(arguments: &[OsString]) -> anyhow::Result<()> {
    let texts: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    let number = |text: &OsStr| text.to_string_lossy().parse::<u64>();
    match texts.as_slice() {
        [name, file, target, direct_io, read_ahead_kib] if *name == "erofs" => {
            let (target, kib) = (Path::new(target), u32::try_from(number(read_ahead_kib)?)?);
            mount::mount_erofs(Path::new(file), target, *direct_io == "directio")?;
            if let Err(error) = mount::set_read_ahead(target, kib) {
                // The image serves all the same, read ahead as the kernel thinks best.
                eprintln!("the read-ahead of a mount was not set: {error}");
            }
        }
        [name, folder, lower, bytes, mount_point] if *name == "overlay" => {
            overlay::mount(Path::new(folder), Path::new(lower), number(bytes)?)?;
            if !mount_point.is_empty() {
                overlay::make_mount_point(Path::new(folder), Path::new(mount_point))?;
            }
        }
        [name, paths @ ..] if *name == "unmount" => {
            paths.iter().for_each(|path| mount::unmount_now(Path::new(path)));
        }
        [name, log, bytes_max] if *name == "output" => keep_output(Path::new(log), number(bytes_max)?)?,
        [name, program, arguments @ ..] if *name == "exec" => {
            // A runtime that outlived the holder could start a container that nobody knows.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            let error = Command::new(program).args(arguments).exec();
            if error.kind() == io::ErrorKind::NotFound {
                std::process::exit(EXIT_NOT_FOUND);
            }
            return Err(error.into());
        }
        _ => anyhow::bail!("not a step of the holder"),
    }
    Ok(())
}

/// Mounts EROFS from a file.
pub fn mount_erofs(file: &Path, target: &Path, options: &MountOptions) -> Result<(), String> {
    let option = if options.direct_io { "directio" } else { "buffered" };
    let kib = options.read_ahead_kib.to_string();
    let arguments = ["erofs".as_ref(), file.as_ref(), target.as_ref(), option.as_ref(), kib.as_ref()];
    call(&arguments, options.deadline)
}

/// Mounts the root file system of an instance below `folder`, with a folder at `mount_point` unless that is
/// empty.
pub fn mount_overlay(
    folder: &Path,
    lower: &Path,
    bytes: u64,
    mount_point: &str,
    deadline: Duration,
) -> Result<(), String> {
    let bytes = bytes.to_string();
    let (folder, lower): (&OsStr, &OsStr) = (folder.as_ref(), lower.as_ref());
    call(&["overlay".as_ref(), folder, lower, bytes.as_ref(), mount_point.as_ref()], deadline)
}

/// Unmounts in that order; whether it was done in time.
pub fn unmount(paths: &[&Path], deadline: Duration) -> bool {
    let mut arguments: Vec<&OsStr> = vec!["unmount".as_ref()];
    arguments.extend(paths.iter().map(|path| path.as_os_str()));
    let done = call(&arguments, deadline);
    if let Err(error) = &done {
        tracing::warn!(?paths, error, "unmounting");
    }
    done.is_ok()
}

/// The process that keeps a container's output.
pub struct Output(Child);

impl Output {
    /// Starts it; it ends when nobody writes to the pipe any more.
    pub fn keep(pipe: OwnedFd, log: &Path, bytes_max: u64) -> io::Result<Self> {
        let bytes_max = bytes_max.to_string();
        let mut command = command(&["output".as_ref(), log.as_ref(), bytes_max.as_ref()]);
        command.stdin(pipe).stderr(Stdio::null()).spawn().map(Self)
    }

    /// Waits until all output of an ended container is kept.
    pub fn finish(mut self) {
        let process = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty());
        if !process.is_ok_and(|process| wait::readable(&process, Some(OUTPUT_END))) {
            let _ = self.0.kill();
        }
        reap(self.0);
    }
}

fn keep_output(path: &Path, bytes_max: u64) -> io::Result<()> {
    let mut log = BoundedLog::create(path.to_owned(), bytes_max)?;
    let mut buffer = vec![0; OUTPUT_BUFFER_BYTES];
    let mut pipe = File::from(rustix::io::dup(io::stdin())?);
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            // A full disk loses output; it must not stop the container.
            Ok(len) => drop(log.write(&buffer[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A program that is killed when the calling thread ends, with a process group of its own.
pub fn program(program: &Path) -> Command {
    command(&["exec".as_ref(), program.as_ref()])
}

fn command(arguments: &[&OsStr]) -> Command {
    // Our own program, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg(VERB).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    command
}

fn call(arguments: &[&OsStr], deadline: Duration) -> Result<(), String> {
    let text = |error: io::Error| format!("a process for it cannot be started: {error}");
    let mut child = command(arguments).stderr(Stdio::piped()).spawn().map_err(text)?;
    let process =
        pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(|error| text(error.into()))?;
    if !wait::readable(&process, Some(deadline)) {
        let _ = child.kill();
        reap(child);
        return Err(format!("it took longer than {} ms", deadline.as_millis()));
    }
    let status = child.wait().map_err(text)?;
    let mut reason = String::new();
    if let Some(stderr) = child.stderr {
        let _ = stderr.take(REASON_BYTES_MAX).read_to_string(&mut reason);
    }
    let reason = reason.trim();
    if !status.success() {
        return Err(reason.to_owned());
    }
    if !reason.is_empty() {
        tracing::warn!(reason, "a step of the holder");
    }
    Ok(())
}

/// Collects the status of a process that may take a while to end.
pub fn reap(mut child: Child) {
    thread::spawn(move || child.wait());
}

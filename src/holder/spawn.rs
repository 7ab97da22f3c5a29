//! Starting a holder and reaching it, from the agent's side.

use super::agent::{SOCKET, socket_path};
use rustix::fs::{FileType, FlockOperation, flock, fstat, ftruncate};
use std::{
    fs::{DirBuilder, File},
    io::{self, BufRead, BufReader},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::Path,
    process::{Command, Stdio},
    thread,
};

/// The holder's own log is emptied above this; containers have logs of their own.
const OWN_LOG_BYTES_MAX: i64 = 1024 * 1024;

/// Why no holder serves this folder.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("the holder cannot be started: {0}")]
    Io(#[from] io::Error),
    #[error("the holder ended at once: {0}; see holder.log in the data folder")]
    Ended(String),
}

/// Makes sure that a holder serves `data`: a running one is used, else this program is started again
/// as `holder --data DIR [--config FILE]`, in a session of its own.
pub fn spawn(data: &Path, config: Option<&Path>) -> Result<(), SpawnError> {
    spawn_program(&std::env::current_exe()?, data, config)
}

/// Blocks until no holder serves `data`: it holds a lock for as long as its process lives.
pub fn wait_ended(data: &Path) -> io::Result<()> {
    let lock = File::open(data.join("logs"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(())
}

/// As [`spawn`], with another program that has the verb `holder`.
pub fn spawn_program(program: &Path, data: &Path, config: Option<&Path>) -> Result<(), SpawnError> {
    DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    let folder = File::open(data)?;
    if std::os::unix::net::UnixStream::connect(socket_path(&folder, SOCKET)).is_ok() {
        return Ok(());
    }
    let log_path = data.join("holder.log");
    let log = File::options().create(true).append(true).open(&log_path)?;
    log.set_len(0)?;
    let mut command = Command::new(program);
    command.arg("holder").arg("--data").arg(data);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
    let output = child.stdout.take().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
    // It says `ready` once it listens, or ends.
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.trim() != READY {
        child.wait()?;
        let text = std::fs::read_to_string(&log_path).unwrap_or_default();
        return Err(SpawnError::Ended(text.lines().last().unwrap_or_default().to_owned()));
    }
    // Collects its status when it ends before us.
    thread::spawn(move || child.wait());
    Ok(())
}

/// The line on standard output that says that the holder listens.
pub const READY: &str = "ready";

/// Connects to the holder of `data`.
pub async fn connect(data: &Path) -> io::Result<tokio::net::UnixStream> {
    let folder = File::open(data)?;
    tokio::net::UnixStream::connect(socket_path(&folder, SOCKET)).await
}

/// Empties our own log when it grew too long. It was opened for appending, so writing goes on at its start.
pub fn bound_own_log() {
    let stderr = io::stderr();
    let Ok(found) = fstat(stderr.as_fd()) else { return };
    if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_size > OWN_LOG_BYTES_MAX {
        let _ = ftruncate(stderr.as_fd(), 0);
    }
}

//! Calls of the OCI runtime, each with a deadline.

use super::{step, wait};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// How much of runc's own log is read for the reason of a failure.
const LOG_BYTES_MAX: u64 = 64 * 1024;
/// The longest reason that is passed on.
const REASON_CHARS_MAX: usize = 400;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum RuncError {
    #[error("{0} is not installed; install it (Debian: apt-get install runc) or set holder.runtime")]
    Missing(String),
    #[error("{verb} took longer than {deadline_ms} ms")]
    Late { verb: &'static str, deadline_ms: u128 },
    #[error("{0}")]
    Refused(String),
    #[error("the OCI runtime cannot be called: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone)]
pub struct Runc {
    pub program: PathBuf,
    /// Where it keeps its state.
    pub root: PathBuf,
    pub deadline: Duration,
}

impl Runc {
    /// Starts a container; its output goes to `output`. Returns when its process was started.
    pub fn run(&self, id: &str, bundle: &Path, pid_file: &Path, output: File) -> Result<(), RuncError> {
        let log = bundle.join("runc.log");
        let mut command = self.command(&log);
        command.args(["run", "--detach", "--bundle"]).arg(bundle).arg("--pid-file").arg(pid_file).arg(id);
        command.stdout(output.try_clone()?).stderr(output);
        self.call("starting the container", &mut command, &log)
    }

    pub fn kill(&self, id: &str, signal: i32, bundle: &Path) -> Result<(), RuncError> {
        let log = bundle.join("runc-kill.log");
        let mut command = self.command(&log);
        command.args(["kill", id, &signal.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        self.call("signalling the container", &mut command, &log)
    }

    /// Kills the container if it lives, and forgets it.
    pub fn delete(&self, id: &str) -> Result<(), RuncError> {
        let log = Path::new("/dev/null");
        let mut command = self.command(log);
        command.args(["delete", "--force", id]).stdout(Stdio::null()).stderr(Stdio::null());
        self.call("deleting the container", &mut command, log)
    }

    /// Containers that it knows: those of a dead holder, when asked at the start.
    pub fn known(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn command(&self, log: &Path) -> Command {
        // In a group of its own, so that a call that is too late is killed with its children.
        let mut command = step::program(&self.program);
        command.arg("--root").arg(&self.root).args(["--log-format", "json", "--log"]).arg(log);
        command
    }

    fn call(&self, verb: &'static str, command: &mut Command, log: &Path) -> Result<(), RuncError> {
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let ended = wait::readable(
            &pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?,
            Some(self.deadline),
        );
        if !ended {
            let _ = kill_process_group(pid, Signal::KILL);
            step::reap(child);
            return Err(RuncError::Late { verb, deadline_ms: self.deadline.as_millis() });
        }
        let status = child.wait()?;
        if status.success() {
            return Ok(());
        }
        if status.code() == Some(step::EXIT_NOT_FOUND) {
            return Err(RuncError::Missing(self.program.display().to_string()));
        }
        Err(RuncError::Refused(last_error(log).unwrap_or_else(|| format!("{verb} was refused"))))
    }
}

/// The message of the last error in runc's log, without the layers it wraps around it.
fn last_error(log: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(log).ok()?.take(LOG_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.lines().rev().find_map(error_of)
}

fn error_of(line: &str) -> Option<String> {
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    if !matches!(entry.get("level")?.as_str()?, "error" | "fatal") {
        return None;
    }
    let mut message = entry.get("msg")?.as_str()?;
    for layer in ["runc run failed: ", "container_linux.go:", "unable to start container process: "] {
        message = message.strip_prefix(layer).unwrap_or(message);
    }
    Some(message.chars().take(REASON_CHARS_MAX).collect())
}

/// First line of `runc --version`, for people.
pub fn version(program: &Path) -> Result<String, RuncError> {
    let output = Command::new(program).arg(OsStr::new("--version")).stdin(Stdio::null()).output();
    let output = output.map_err(|_| RuncError::Missing(program.display().to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn the_reason_is_the_error_itself() {
        let line = r#"{"level":"error","msg":"runc run failed: unable to start container process: exec: \"nope\": executable file not found in $PATH","time":"t"}"#;
        assert_eq!(error_of(line).as_deref(), Some("exec: \"nope\": executable file not found in $PATH"));
        assert_eq!(error_of(r#"{"level":"warning","msg":"x"}"#), None);
        assert_eq!(error_of("not json"), None);
    }

    #[test]
    fn a_call_that_hangs_is_killed_at_its_deadline() {
        let runc = Runc { program: "sleep".into(), root: "/".into(), deadline: Duration::from_millis(50) };
        let late =
            runc.call("sleeping", Command::new("sleep").arg("60").process_group(0), Path::new("/dev/null"));
        assert!(matches!(late, Err(RuncError::Late { deadline_ms: 50, .. })));
    }
}

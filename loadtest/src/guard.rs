//! A verb in a process of its own, and one beside it that takes its beds down, whatever ends it.

use crate::bed;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    process::{ExitCode, Stdio},
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

/// Nobody sends more signals than that at once, and a bed that stands after so many is told of.
const TRIES_MAX: usize = 5;

/// Runs this program again with these arguments. When that process ends, or this one is asked to end,
/// everything that it has started ends, and its beds and its temporary files go.
pub fn guard(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    bed::hint_at_left_over_beds();
    let scratch = tempfile::Builder::new().prefix("faasnet-loadtest-").tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    // A group of its own: Ctrl-C reaches this process only, and the group can be killed as a whole.
    command.args(arguments).env("TMPDIR", scratch.path()).stdin(Stdio::null()).process_group(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut child = command.spawn().context("start this program again")?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.context("the process has ended before it began")?;
        let ended = tokio::select! {
            status = child.wait() => Some(status?),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            _ = hangup.recv() => None,
        };
        if ended.is_none() {
            eprintln!("interrupted: taking the test bed down");
        }
        let _all_gone_already = kill_process_group(pid, Signal::KILL);
        let status = child.wait().await?;
        // One that resists does not save the others.
        let made = bed::made_by(pid.as_raw_pid().unsigned_abs())?;
        let removed: Vec<_> = made.iter().map(|id| take_down(id)).collect();
        removed.into_iter().collect::<anyhow::Result<()>>()?;
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        Ok(match ended {
            Some(_) => ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
            // As a shell counts a program that SIGINT has ended.
            None => ExitCode::from(130),
        })
    })
}

/// A second signal, to all processes of this group, ends the tools that take the bed down, too.
fn take_down(id: &str) -> anyhow::Result<()> {
    let mut result = bed::remove(id);
    for _ in 1..TRIES_MAX {
        if result.is_ok() {
            break;
        }
        result = bed::remove(id);
    }
    result
}

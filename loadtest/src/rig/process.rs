//! A process that runs beside the test, with its output in files.

use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Service {
    child: Child,
    /// What it wrote to its error output.
    pub log: PathBuf,
}

impl Service {
    /// Starts it with its output in `NAME.out` and `NAME.log` below `folder`, behind what is there.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> anyhow::Result<Self> {
        let open = |path: &Path| File::options().create(true).append(true).open(path);
        let log = folder.join(format!("{name}.log"));
        command.stdin(Stdio::null()).stdout(open(&folder.join(format!("{name}.out")))?).stderr(open(&log)?);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory.
    pub fn rss_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line.context("it has ended")?.trim().trim_end_matches(" kB").parse()?;
        Ok(kib << 10)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// kill -9.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops the process where it is; it keeps its connections and says nothing.
    pub fn pause(&self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::STOP).context("stop a process with SIGSTOP")
    }

    /// Ends [`Service::pause`].
    pub fn resume(&self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::CONT).context("go on with SIGCONT")
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::INT).context("interrupt a process")
    }

    /// SIGTERM, for a process that is paused too.
    pub fn ask_to_end(&self) {
        let _gone_already = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _was_not_paused = self.resume();
    }

    /// Asks it to end, and kills it if it does not.
    pub fn stop(mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.ask_to_end();
        if !ends_within(Pid::from_child(&self.child), within) {
            self.child.kill()?;
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

/// Waits for the end of a process, a child or not. One that is gone already has ended.
pub fn ends_within(pid: Pid, within: Duration) -> bool {
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let deadline = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
    poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&deadline)).is_ok_and(|ready| ready > 0)
}

//! The process that runs one warm container, in a mount namespace of its own: whatever ends it, its mounts
//! and its loop device are gone with it.
//!
//! It says `prepared`, begins when it reads a line, says what the start took, and stops the container when
//! its input ends.

use super::{WarmStart, group::Group};
use crate::rig::{pause, run};
use anyhow::{Context, ensure};
use clap::Args;
use rustix::mount::{MountFlags, mount};
use std::{
    ffi::CString,
    fs::{self, File},
    io::{BufRead, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// Between two probes: the agent's `agent.probe_interval_ms`.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// For one probe, and until one succeeds: the agent's and the manager's.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const READY: Duration = Duration::from_secs(120);
const SECTOR_BYTES: u64 = 512;

#[derive(Debug, Args)]
pub struct WarmWorker {
    /// The bundle: config.json, and room for mounts
    #[arg(long)]
    bundle: PathBuf,
    /// The unpacked image, or a file with an EROFS of it
    #[arg(long)]
    lower: PathBuf,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    id: String,
    /// Of control groups, for this process and the container
    #[arg(long)]
    group: PathBuf,
}

impl WarmWorker {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let lower = Lower::open(&self.lower, &self.bundle)?;
        let group = Group::enter(&self.group)?;
        say("prepared")?;
        let mut input = std::io::stdin().lock();
        input.read_line(&mut String::new())?;
        let took = self.start(&lower, &group);
        if let Ok(took) = &took {
            say(&serde_json::to_string(took)?)?;
            input.read_to_end(&mut Vec::new())?;
        }
        run(self.runc()?.args(["delete", "--force", &self.id]))?;
        took.map(|_| ExitCode::SUCCESS)
    }

    fn start(&self, lower: &Lower, group: &Group) -> anyhow::Result<WarmStart> {
        let read_before = lower.bytes_read()?;
        let begin = Instant::now();
        self.mount_overlay(&lower.folder).context("mount an overlay")?;
        let (mounted, used_before) = (begin.elapsed(), group.usage()?);
        let output = File::create(self.bundle.join("output"))?;
        let mut runc = self.runc()?;
        runc.args(["run", "--detach", "--bundle"]).arg(&self.bundle).arg(&self.id);
        let status = runc.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).status()?;
        ensure!(status.success(), "runc run: {status}: {}", self.output());
        let (ran, run_used) = (begin.elapsed(), group.usage()?);
        let answers = || Ok(answers(self.port).unwrap_or(false).then_some(()));
        probe_until(answers).with_context(|| self.output())?;
        let ready = begin.elapsed();
        Ok(WarmStart {
            mount: mounted,
            run: ran - mounted,
            probe: ready - ran,
            ready,
            run_used: run_used.since(used_before),
            probe_used: group.usage()?.since(run_used),
            bytes_read: lower.bytes_read()?.zip(read_before).map(|(after, before)| after - before),
        })
    }

    fn mount_overlay(&self, lower: &Path) -> anyhow::Result<()> {
        let [writable, rootfs] = ["writable", "rootfs"].map(|name| self.bundle.join(name));
        fs::create_dir_all(&writable)?;
        fs::create_dir_all(&rootfs)?;
        mount("warm", &writable, "tmpfs", MountFlags::NODEV, None)?;
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = CString::new(options)?;
        Ok(mount("warm", &rootfs, "overlay", MountFlags::NODEV, options.as_c_str())?)
    }

    fn runc(&self) -> anyhow::Result<Command> {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.bundle.join("runc"));
        Ok(runc)
    }

    fn output(&self) -> String {
        fs::read_to_string(self.bundle.join("output")).unwrap_or_default()
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// What the overlay lies on.
struct Lower {
    folder: PathBuf,
    /// Of a file system in a file: its loop device, which counts what is read.
    device: Option<String>,
}

impl Lower {
    /// A file system in a file is mounted without read-ahead, so that only pages are read that somebody
    /// asked for.
    fn open(path: &Path, bundle: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Ok(Self { folder: path.to_path_buf(), device: None });
        }
        let folder = bundle.join("lower");
        fs::create_dir_all(&folder)?;
        // util-linux makes the loop device, and one that goes with the mount.
        run(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(path).arg(&folder))?;
        let device = run(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&folder))?;
        let device = device.trim().strip_prefix("/dev/").context("no device is mounted")?.to_owned();
        fs::write(format!("/sys/block/{device}/queue/read_ahead_kb"), "0")?;
        Ok(Self { folder, device: Some(device) })
    }

    fn bytes_read(&self) -> anyhow::Result<Option<u64>> {
        let Some(device) = &self.device else { return Ok(None) };
        let text = fs::read_to_string(format!("/sys/block/{device}/stat"))?;
        let sectors = text.split_whitespace().nth(2).context("a statistic of block devices")?;
        Ok(Some(sectors.parse::<u64>()? * SECTOR_BYTES))
    }
}

fn probe_until(answers: impl Fn() -> anyhow::Result<Option<()>>) -> anyhow::Result<()> {
    let begin = Instant::now();
    while answers()?.is_none() {
        ensure!(begin.elapsed() < READY, "the container did not answer within {READY:?}");
        pause(PROBE_INTERVAL);
    }
    Ok(())
}

/// One probe, as the agent's.
fn answers(port: u16) -> anyhow::Result<bool> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    let request = format!("GET / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nuser-agent: warm-probe\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(matches!(&status, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'2' | b'3', ..]))
}

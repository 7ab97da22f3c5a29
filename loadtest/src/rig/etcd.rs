//! Debian's etcd on this machine's loopback, which can be stopped, killed, filled, and started again.

use super::process::Service;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

/// A single etcd. Dropping it kills it.
#[derive(Debug)]
pub struct Etcd {
    service: Option<Service>,
    client: SocketAddr,
    peer: SocketAddr,
    folder: PathBuf,
}

impl Etcd {
    /// Starts one with its data in the folder, and does not wait for it: its clients do.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(folder, &[])
    }

    /// The same with further arguments.
    pub fn start_with(folder: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        // The port is free again when etcd binds it. On an address of this process nobody else is faster.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let free = || TcpListener::bind((std::net::Ipv4Addr::new(127, a | 64, b, c), 0))?.local_addr();
        let mut etcd = Self { service: None, client: free()?, peer: free()?, folder: folder.to_owned() };
        etcd.start_again_with(arguments)?;
        Ok(etcd)
    }

    /// Starts it after [`Etcd::kill`], where it was.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.start_again_with(&[])
    }

    /// The same with further arguments.
    pub fn start_again_with(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.folder.join("etcd")).args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("default={peer}"),
        ]);
        let service = Service::start("etcd", command.args(arguments), &self.folder);
        self.service = Some(service.context("is the package etcd-server installed?")?);
        Ok(())
    }

    /// Where its clients reach it.
    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// kill -9.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.service.take().context("it does not run")?.kill()
    }

    /// It keeps its connections, and answers nothing.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let service = self.service.as_ref().context("it does not run")?;
        let pid = i32::try_from(service.pid()).ok().and_then(Pid::from_raw).context("its process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

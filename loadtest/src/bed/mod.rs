//! The test bed: hosts as network namespaces on one bridge, every link shaped in both directions.
//!
//! The bridge lies in a namespace of its own, so nothing of the machine's network is touched and beds
//! run side by side. A bed is taken down when it is dropped; one whose owner was killed is found by
//! the names of its namespaces and taken down by [`remove`].
//!
//! ```text
//! namespace fbed-ID (bridge br0)          namespace fbed-ID-HOST
//!   p0 tbf, towards the host  ----------  eth0 tbf, from the host   10.77.x.y/16
//! ```

pub mod cli;
mod rate;
mod state;
mod tools;

pub use rate::Rate;
pub(crate) use state::remove_group;
pub use state::{BedState, hint_at_left_over_beds, list, load, made_by, remove, take_down};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, process::Command};
use tools::{ip, ip_batch, tc};

/// Hosts of one bed: what one bridge holds without its forwarding table mattering.
pub const HOSTS_MAX: usize = 1000;

/// Silently swallows what is sent to it: the bridge's own address, which has no network above it.
const BRIDGE_ADDRESS: &str = "02:fb:00:00:00:01";

/// A host of the bed and the rate of its link; no rate leaves the link as fast as the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    pub name: String,
    pub rate: Option<Rate>,
}

impl HostSpec {
    pub fn new(name: impl Into<String>, rate: Option<Rate>) -> Self {
        Self { name: name.into(), rate }
    }
}

/// Which hosts a bed has, in the order of their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BedSpec {
    pub hosts: Vec<HostSpec>,
}

/// A change of one host's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkChange {
    /// As if the cable were pulled: the host loses the carrier.
    Down,
    Up,
    Rate(Rate),
}

/// What the host's interface counted, in bytes of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// A running bed. Dropping it ends every process inside and removes the namespaces.
#[derive(Debug)]
pub struct Bed {
    state: BedState,
    keep: bool,
}

impl Bed {
    /// Makes the namespaces, links and qdiscs. Needs root.
    pub fn up(spec: BedSpec) -> anyhow::Result<Self> {
        check(&spec)?;
        need_root()?;
        let bed = Self { state: BedState::claim(spec)?, keep: false };
        bed.build().context("make the namespaces of the test bed")?;
        Ok(bed)
    }

    /// Leaves the bed standing when this value goes; [`take_down`] removes it later, with that folder.
    pub fn keep(&mut self, folder: Option<PathBuf>) -> anyhow::Result<BedState> {
        self.state.note_kept(folder)?;
        self.keep = true;
        Ok(self.state.clone())
    }

    pub fn state(&self) -> &BedState {
        &self.state
    }

    fn build(&self) -> anyhow::Result<()> {
        let switch = self.state.switch();
        ip(&["netns", "add", &switch])?;
        let bridge = format!(
            "link set lo up\n\
             link add br0 address {BRIDGE_ADDRESS} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set br0 addrgenmode none\nlink set br0 up\n"
        );
        ip_batch(&switch, &bridge)?;
        for (place, host) in self.state.spec.hosts.iter().enumerate() {
            self.add_host(&switch, place, host)?;
        }
        Ok(())
    }

    fn add_host(&self, switch: &str, place: usize, host: &HostSpec) -> anyhow::Result<()> {
        let namespace = self.state.namespace(&host.name)?;
        ip(&["netns", "add", &namespace])?;
        let port = port(place);
        let link = format!(
            "link add {port} type veth peer name eth0 netns {namespace}\n\
             link set {port} addrgenmode none\nlink set {port} master br0 up\n"
        );
        ip_batch(switch, &link)?;
        let address = address(place);
        let inside = format!(
            "link set lo up\nlink set eth0 addrgenmode none\n\
             addr add {address}/16 dev eth0\nlink set eth0 up\n"
        );
        ip_batch(&namespace, &inside)?;
        if let Some(rate) = host.rate {
            self.state.shape(&host.name, rate)?;
        }
        Ok(())
    }
}

impl std::ops::Deref for Bed {
    type Target = BedState;

    fn deref(&self) -> &BedState {
        &self.state
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = remove(self.state.id()) {
            eprintln!("the test bed {} is not gone: {error:#}", self.state.id());
        }
    }
}

impl BedState {
    /// The host's address inside the bed.
    pub fn address(&self, host: &str) -> anyhow::Result<Ipv4Addr> {
        Ok(address(self.place(host)?))
    }

    /// A command that will run in the host's network namespace. Mounts and cgroups stay the machine's:
    /// `ip netns exec` would hide /sys/fs/cgroup, and runc needs it.
    pub fn command(&self, host: &str, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace_file(host)?.display())).args(["--", program]);
        Ok(command)
    }

    /// Runs `task` on a thread inside the host's network namespace: its sockets belong to the host.
    pub fn inside<T: Send>(&self, host: &str, task: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = self.namespace_file(host)?;
        let namespace = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let enter = rustix::thread::LinkNameSpaceType::Network;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(enter))
                    .context("enter the network namespace")?;
                Ok(task())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Bytes that passed the host's interface since the bed went up.
    pub fn counters(&self, host: &str) -> anyhow::Result<Counters> {
        let namespace = self.namespace(host)?;
        let text = ip(&["-n", &namespace, "-s", "-j", "link", "show", "eth0"])?;
        let links: serde_json::Value = serde_json::from_str(&text).context("read what ip printed")?;
        let bytes = |direction: &str| {
            let pointer = format!("/0/stats64/{direction}/bytes");
            links.pointer(&pointer).and_then(|value| value.as_u64()).context("ip printed no counters")
        };
        Ok(Counters { sent_bytes: bytes("tx")?, received_bytes: bytes("rx")? })
    }

    /// The same of all hosts in one look, as the bridge's ports count it.
    pub fn all_counters(&self) -> anyhow::Result<BTreeMap<String, Counters>> {
        let text = ip(&["-n", &self.switch(), "-s", "-j", "link", "show", "type", "veth"])?;
        let links: Vec<serde_json::Value> = serde_json::from_str(&text).context("read what ip printed")?;
        let bytes = |link: &serde_json::Value, direction: &str| {
            link.pointer(&format!("/stats64/{direction}/bytes")).and_then(|value| value.as_u64())
        };
        let of_host = |(place, host): (usize, &HostSpec)| {
            let link = links.iter().find(|link| link["ifname"] == port(place).as_str())?;
            // What the port receives the host has sent.
            let counters = Counters { sent_bytes: bytes(link, "rx")?, received_bytes: bytes(link, "tx")? };
            Some((host.name.clone(), counters))
        };
        Ok(self.spec.hosts.iter().enumerate().filter_map(of_host).collect())
    }

    /// Pulls, plugs or reshapes the host's link.
    pub fn set_link(&self, host: &str, change: LinkChange) -> anyhow::Result<()> {
        let (switch, port) = (self.switch(), port(self.place(host)?));
        match change {
            LinkChange::Down => ip(&["-n", &switch, "link", "set", &port, "down"]).map(drop),
            LinkChange::Up => ip(&["-n", &switch, "link", "set", &port, "up"]).map(drop),
            LinkChange::Rate(rate) => self.shape(host, rate),
        }
    }

    /// Two hosts no longer reach each other; packets vanish, as behind a broken switch, and nobody is
    /// told. Each host's packets for the other go to the bridge, which drops them.
    pub fn partition(&self, one: &str, other: &str) -> anyhow::Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let (namespace, address) = (self.namespace(from)?, self.address(to)?.to_string());
            let neighbour = ["neigh", "replace", &address, "lladdr", BRIDGE_ADDRESS, "dev", "eth0"];
            ip(&[&["-n", &namespace], &neighbour[..], &["nud", "permanent"]].concat())?;
        }
        Ok(())
    }

    /// Ends [`BedState::partition`].
    pub fn heal(&self, one: &str, other: &str) -> anyhow::Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let (namespace, address) = (self.namespace(from)?, self.address(to)?.to_string());
            ip(&["-n", &namespace, "neigh", "del", &address, "dev", "eth0"])?;
        }
        Ok(())
    }

    /// kill -9 of every process on the host.
    pub fn kill_processes(&self, host: &str) -> anyhow::Result<()> {
        state::kill_inside(&self.namespace(host)?)
    }

    /// Stops every process on the host where it is, or lets them go on: a VM that hangs.
    pub fn signal_processes(&self, host: &str, signal: Signal) -> anyhow::Result<usize> {
        let pids = state::processes(&self.namespace(host)?)?;
        let reached = pids.iter().filter(|pid| kill_process(**pid, signal).is_ok());
        Ok(reached.count())
    }

    /// kill -9 of the host's agent alone; its holder and containers go on.
    pub fn kill_agent(&self, host: &str) -> anyhow::Result<()> {
        let is_agent = |pid: &Pid| {
            let arguments = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
            arguments.split(|byte| *byte == 0).nth(1) == Some(b"agent")
        };
        let pids = state::processes(&self.namespace(host)?)?;
        let agent = pids.into_iter().find(is_agent).with_context(|| format!("no agent runs on {host}"))?;
        kill_process(agent, Signal::KILL).context("kill the agent")
    }

    /// The same rate on both ends: each end shapes what it sends.
    fn shape(&self, host: &str, rate: Rate) -> anyhow::Result<()> {
        let port = port(self.place(host)?);
        for (namespace, interface) in [(self.namespace(host)?, "eth0"), (self.switch(), port.as_str())] {
            let (bits, burst, limit) = (
                rate.bits_per_s().to_string(),
                rate.burst_bytes().to_string(),
                rate.queue_bytes().to_string(),
            );
            let target = ["-n", &namespace, "qdisc", "replace", "dev", interface, "root"];
            let bucket = ["tbf", "rate", &format!("{bits}bit"), "burst", &burst, "limit", &limit];
            tc(&[&target[..], &bucket[..]].concat())?;
        }
        Ok(())
    }

    fn place(&self, host: &str) -> anyhow::Result<usize> {
        let place = self.spec.hosts.iter().position(|spec| spec.name == host);
        place.with_context(|| format!("the bed has no host {host}"))
    }

    fn namespace(&self, host: &str) -> anyhow::Result<String> {
        self.place(host)?;
        Ok(format!("{}-{host}", self.switch()))
    }

    /// Where the host's network namespace is named.
    pub fn namespace_file(&self, host: &str) -> anyhow::Result<PathBuf> {
        Ok(PathBuf::from("/run/netns").join(self.namespace(host)?))
    }
}

/// Namespaces and qdiscs are root's.
pub fn need_root() -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "a test bed needs root: run this with sudo");
    Ok(())
}

fn check(spec: &BedSpec) -> anyhow::Result<()> {
    ensure!((1..=HOSTS_MAX).contains(&spec.hosts.len()), "a bed has 1 to {HOSTS_MAX} hosts");
    let mut names = std::collections::BTreeSet::new();
    for HostSpec { name, .. } in &spec.hosts {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(!name.is_empty() && name.len() <= 32 && name.bytes().all(plain), "{name:?} is no host name");
        ensure!(names.insert(name), "two hosts are named {name}");
    }
    Ok(())
}

fn port(place: usize) -> String {
    format!("p{place}")
}

/// 10.77.0.0/16, 250 addresses of each last byte: 10.77.0.1, 10.77.0.2, ...
fn address(place: usize) -> Ipv4Addr {
    let (third, last) = (place / 250, place % 250 + 1);
    Ipv4Addr::new(10, 77, u8::try_from(third).expect("HOSTS_MAX is far below 250 * 256"), last as u8)
}

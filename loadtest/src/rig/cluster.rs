//! A registry, a manager and agents as real processes, each on a host of its own of a bed.

use super::{Api, Registry, process::Service, run, wait_until};
use crate::bed::{Bed, BedSpec, BedState, HostSpec, LinkChange, Rate};
use anyhow::{Context, bail};
use faasnet_actors::model::{VmState, VmView};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// Hosts of every cluster, beside its VMs.
pub const REGISTRY: &str = "registry";
pub const MANAGER: &str = "manager";
/// Where block images are published.
pub const BLOCK_IMAGES: &str = "block-images";
/// Where a manager leaves it in its data folder.
const ADMIN_TOKEN: &str = "admin.token";
const API_PORT: u16 = 7070;
const CONTROL_PORT: u16 = 7071;
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Until a VM has left its trees: some leases.
const DRAINED: Duration = Duration::from_secs(120);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// The binary `faasnet`.
    pub program: PathBuf,
    /// Agents, named vm-1, vm-2, ...
    pub vms: usize,
    /// Rate of every link, that of the registry and of the manager included.
    pub rate: Option<Rate>,
    /// Settings beside those the cluster needs, as `SECTION__KEY` and value.
    pub settings: BTreeMap<String, String>,
}

impl ClusterSpec {
    pub fn new(program: impl Into<PathBuf>, vms: usize) -> Self {
        Self { program: program.into(), vms, rate: None, settings: BTreeMap::new() }
    }
}

/// A client of the API of a cluster that runs on a bed, with its administrator's token.
pub fn api_of(bed: &BedState) -> anyhow::Result<Api> {
    let folder =
        bed.folder.as_ref().context("no cluster runs on this bed: it was made with --network-only")?;
    let path = folder.join(MANAGER).join(ADMIN_TOKEN);
    let token = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let address = SocketAddr::from((bed.address(MANAGER)?, API_PORT));
    Ok(Api { address, token: token.trim().to_owned(), from: Some((bed.clone(), MANAGER.to_owned())) })
}

/// A running cluster. Dropping it stops everything; the folder with data and logs stays when a test
/// failed, and is named.
pub struct Cluster {
    // Dropped in this order: agents before the manager, everything before the bed.
    agents: BTreeMap<String, Service>,
    manager: Option<Service>,
    pub registry: Registry,
    pub bed: Bed,
    folder: Option<TempDir>,
    spec: ClusterSpec,
    pub api: Api,
    join_token: String,
}

impl Cluster {
    /// Starts the registry, the manager and the agents, and waits until all VMs have joined.
    pub fn up(spec: ClusterSpec) -> anyhow::Result<Self> {
        let names = (1..=spec.vms).map(|number| format!("vm-{number}"));
        let hosts = [REGISTRY.to_owned(), MANAGER.to_owned()].into_iter().chain(names);
        let hosts = hosts.map(|name| HostSpec::new(name, spec.rate)).collect();
        let bed = Bed::up(BedSpec { hosts })?;
        let folder = tempfile::Builder::new().prefix("faasnet-cluster-").tempdir()?;
        fs::create_dir(folder.path().join("logs"))?;
        let registry = Registry::on_bed(&bed, REGISTRY, &folder.path().join(REGISTRY))?;
        let address = SocketAddr::from((bed.address(MANAGER)?, API_PORT));
        let from = Some((bed.state().clone(), MANAGER.to_owned()));
        let api = Api { address, token: String::new(), from };
        let (agents, manager, folder, join_token) = (BTreeMap::new(), None, Some(folder), String::new());
        let mut cluster = Self { agents, manager, registry, bed, folder, spec, api, join_token };
        cluster.start_manager()?;
        cluster.join_token = cluster.cli(&["vm", "join-token"])?.trim().to_owned();
        for number in 1..=cluster.spec.vms {
            cluster.start_agent(&format!("vm-{number}"))?;
        }
        cluster.wait_for_vms(cluster.spec.vms)?;
        Ok(cluster)
    }

    /// Leaves everything running when this value goes; `bed down` ends it, and removes data and logs.
    pub fn keep(mut self) -> anyhow::Result<BedState> {
        let folder = self.folder().to_path_buf();
        let state = self.bed.keep(Some(folder))?;
        if let Some(folder) = self.folder.take() {
            let _noted_in_the_state = folder.keep();
        }
        // Nothing of it is dropped: its processes go on.
        std::mem::forget(self);
        Ok(state)
    }

    /// Starts the manager, again if it was stopped, and waits until it is ready.
    pub fn start_manager(&mut self) -> anyhow::Result<()> {
        let data = self.data(MANAGER);
        let mut command = self.command(MANAGER)?;
        let service = Service::start(MANAGER, command.arg("manager").arg("--data").arg(&data), &self.logs())?;
        let service = self.manager.insert(service);
        let (api, token_file) = (self.api.clone(), data.join(ADMIN_TOKEN));
        wait_until("the manager to be ready", START_DEADLINE, || {
            if let Some(status) = service.ended()? {
                bail!("it ended with {status}: {}", tail(&service.log));
            }
            let answer = api.call("GET", "/readyz", "");
            let is_ready = answer.is_ok_and(|answer| answer.status.is_success()) && token_file.exists();
            Ok(is_ready.then_some(()))
        })?;
        self.api.token = fs::read_to_string(&token_file)?.trim().to_owned();
        Ok(())
    }

    /// Starts an agent on the VM's host, again if it was stopped, with the data it had.
    pub fn start_agent(&mut self, vm: &str) -> anyhow::Result<()> {
        let mut command = self.agent_command(vm, vm, &self.join_token)?;
        command.arg("--data").arg(self.data(vm));
        let service = Service::start(vm, &mut command, &self.logs())?;
        self.agents.insert(vm.to_owned(), service);
        Ok(())
    }

    /// Puts a new process in the place of the VM's agent, and waits until the old one has ended by itself.
    pub fn replace_agent(&mut self, vm: &str) -> anyhow::Result<()> {
        let mut old = self.agents.remove(vm).with_context(|| format!("no agent runs on {vm}"))?;
        let mut command = self.agent_command(vm, vm, &self.join_token)?;
        command.arg("--replace").arg("--data").arg(self.data(vm));
        let mut new = Service::start(vm, &mut command, &self.logs())?;
        wait_until("the old agent to end", STOP_DEADLINE, || {
            if let Some(status) = new.ended()? {
                bail!("the new one ended with {status}: {}", tail(&new.log));
            }
            match old.ended()? {
                Some(status) if !status.success() => bail!("it ended with {status}: {}", tail(&old.log)),
                status => Ok(status.map(drop)),
            }
        })?;
        self.agents.insert(vm.to_owned(), new);
        Ok(())
    }

    /// An agent's command on a host, without its data folder.
    pub fn agent_command(&self, host: &str, name: &str, join_token: &str) -> anyhow::Result<Command> {
        let mut command = self.command(host)?;
        let manager = SocketAddr::from((self.bed.address(MANAGER)?, CONTROL_PORT));
        command.args(["agent", "--name", name, "--manager", &manager.to_string()]);
        // Not as an argument, which everyone on the machine can read.
        command.env("FAASNET_JOIN_TOKEN", join_token);
        Ok(command)
    }

    /// kill -9 of an agent; its holder and containers go on.
    pub fn kill_agent(&mut self, vm: &str) -> anyhow::Result<()> {
        self.agents.remove(vm).with_context(|| format!("no agent runs on {vm}"))?.kill()
    }

    /// SIGSTOP of an agent; its holder and containers go on.
    pub fn pause_agent(&self, vm: &str) -> anyhow::Result<()> {
        self.agents.get(vm).with_context(|| format!("no agent runs on {vm}"))?.pause()
    }

    /// SIGCONT of an agent.
    pub fn resume_agent(&self, vm: &str) -> anyhow::Result<()> {
        self.agents.get(vm).with_context(|| format!("no agent runs on {vm}"))?.resume()
    }

    /// Ends everything on a VM, as when its plug is pulled: nobody hears a farewell.
    pub fn cut_power(&mut self, vm: &str) -> anyhow::Result<()> {
        self.bed.set_link(vm, LinkChange::Down)?;
        self.stop_vm(vm)
    }

    /// Ends [`Cluster::cut_power`]: the VM starts with the disk it had.
    pub fn restore_power(&mut self, vm: &str) -> anyhow::Result<()> {
        self.bed.set_link(vm, LinkChange::Up)?;
        self.start_agent(vm)
    }

    /// Ends everything on a VM's host, the holder and the containers included.
    pub fn stop_vm(&mut self, vm: &str) -> anyhow::Result<()> {
        self.agents.remove(vm).with_context(|| format!("no agent runs on {vm}"))?.kill()?;
        self.bed.kill_processes(vm)
    }

    /// kill -9 of the manager.
    pub fn kill_manager(&mut self) -> anyhow::Result<()> {
        self.manager.take().context("no manager runs")?.kill()
    }

    /// Resident memory of the manager's process.
    pub fn manager_rss_bytes(&self) -> anyhow::Result<u64> {
        self.manager.as_ref().context("no manager runs")?.rss_bytes()
    }

    /// What `GET /v1/vms` says, by VM.
    pub fn vms(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let answer = self.api.get("/v1/vms")?;
        let vms = answer["vms"].as_array().context("the answer names no VMs")?;
        Ok(vms.iter().map(|vm| (vm["id"].as_str().unwrap_or_default().to_owned(), vm.clone())).collect())
    }

    /// What the manager knows of one VM.
    pub fn vm(&self, vm: &str) -> anyhow::Result<VmView> {
        let seen = self.vms()?.remove(vm).with_context(|| format!("the manager knows no {vm}"))?;
        Ok(serde_json::from_value(seen)?)
    }

    /// Ends what these VMs run, and waits until they have left their trees: they get no more starts.
    pub fn drain<'a>(&self, vms: impl IntoIterator<Item = &'a str> + Clone) -> anyhow::Result<()> {
        for vm in vms.clone() {
            self.cli(&["vm", "drain", vm, "--force"])?;
        }
        for vm in vms {
            wait_until(&format!("{vm} to be drained"), DRAINED, || {
                Ok((self.vm(vm)?.state == VmState::Drained).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Waits until so many VMs have a session; those that only joined once do not count.
    pub fn wait_for_vms(&self, count: usize) -> anyhow::Result<()> {
        let what = format!("{count} VMs to be up");
        let waited = wait_until(&what, START_DEADLINE, || {
            let vms = self.vms()?;
            let up = vms.values().filter(|vm| vm["state"] == "up").count();
            Ok((up >= count).then_some(()))
        });
        waited.with_context(|| format!("messages are in {}", self.logs().display()))
    }

    /// Runs a verb of the command line against this cluster; a failure is an error with its message.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.command(MANAGER)?.args(arguments))
    }

    /// The binary on a host of the bed, with the settings and the token of this cluster.
    pub fn command(&self, host: &str) -> anyhow::Result<Command> {
        let program = self.spec.program.to_str().context("the program's path is no text")?;
        let mut command = self.bed.command(host, program)?;
        let (own, manager) = (self.bed.address(host)?, self.bed.address(MANAGER)?);
        let registry = self.registry.name();
        for (key, value) in [
            ("HTTP__LISTEN", format!("{manager}:{API_PORT}")),
            ("MANAGER__LISTEN", format!("{manager}:{CONTROL_PORT}")),
            ("AGENT__LISTEN", format!("{own}:0")),
            ("IMAGE__DESTINATION", format!("registry:{registry}/{BLOCK_IMAGES}")),
            ("ORIGIN__PLAIN_HTTP_REGISTRIES", registry),
        ] {
            command.env(format!("FAASNET__{key}"), value);
        }
        for (key, value) in &self.spec.settings {
            command.env(format!("FAASNET__{key}"), value);
        }
        command.env("FAASNET_API", format!("http://{}", self.api.address));
        command.env("FAASNET_TOKEN", &self.api.token);
        Ok(command)
    }

    /// The data folder of a host.
    pub fn data(&self, host: &str) -> PathBuf {
        self.folder().join(host)
    }

    pub fn logs(&self) -> PathBuf {
        self.folder().join("logs")
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().expect("taken only by drop").path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once: each gives its containers time to end.
        self.agents.values().for_each(Service::ask_to_end);
        let agents = std::mem::take(&mut self.agents).into_values();
        for service in agents.chain(self.manager.take()) {
            if let Err(error) = service.stop(STOP_DEADLINE) {
                eprintln!("a process of the cluster does not stop: {error:#}");
            }
        }
        if let (true, Some(folder)) = (std::thread::panicking(), self.folder.take()) {
            eprintln!("data and logs of the cluster are kept in {}", folder.keep().display());
        }
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

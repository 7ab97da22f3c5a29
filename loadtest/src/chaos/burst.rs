//! A cluster with running containers and a burst of starts in its middle.

use super::ChaosSpec;
use crate::rig::{Api, Cluster, ClusterSpec, wait_until};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

/// What the burst is made of. A VM has room for one instance: starts go to VMs without the image.
const BURST: &str = "burst";
/// The same image in small instances, which find room where the others are.
const MORE: &str = "more";
/// Pages of as many blocks, 12 MiB, that a container reads before it answers: the length of the burst.
const READS_AT_START: usize = 24;
/// Between two reads of a running container. One new block for each is 2.6 MB/s, a fifth of a link of
/// 100 Mbit/s for each child.
const READER_PAUSE_MS: usize = 200;
const BURST_MIB: u64 = 384;
const MORE_MIB: u64 = 128;
const VM_MIB: u64 = BURST_MIB + 2 * MORE_MIB;
/// For one start without any fault, on a machine that does much else.
const READY: Duration = Duration::from_secs(120);

/// A VM's place in the tree.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub vm: String,
    pub parent: Option<String>,
    pub children: Vec<String>,
}

/// A container that runs, reached on its own port: requests over the gateway fail while an agent is away.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub vm: String,
    address: Api,
    /// What it says of itself; another process says another thing.
    hello: Value,
}

/// What a container's reader has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Reads {
    pub count: u64,
    pub failed: String,
    pub longest: Duration,
    /// How late its pauses ended.
    pub latest: Duration,
}

pub(super) struct Burst {
    pub cluster: Cluster,
    /// Starts that the API has answered with an id.
    pub acknowledged: BTreeSet<String>,
    /// Stored bytes of the block image.
    pub image_bytes: u64,
    vms: usize,
    sent_before: u64,
}

impl Burst {
    /// Half of the VMs have a running container.
    pub fn prepare(spec: &ChaosSpec) -> anyhow::Result<Self> {
        ensure!(spec.vms >= 4, "a tree with inner VMs needs at least 4");
        let cluster = Cluster::up(ClusterSpec {
            rate: Some(spec.rate),
            settings: [("AGENT__MEMORY_BYTES".to_owned(), (VM_MIB << 20).to_string())].into(),
            ..ClusterSpec::new(&spec.program, spec.vms)
        })?;
        let reference = cluster.registry.push(&spec.image, "library/ballast")?;
        let (reads, pause) =
            (format!("READS_AT_START={READS_AT_START}"), format!("READER_PAUSE_MS={READER_PAUSE_MS}"));
        for (function, memory_mib) in [(BURST, BURST_MIB), (MORE, MORE_MIB)] {
            let memory = memory_mib.to_string();
            let what = ["function", "deploy", function, "--image", &reference, "--memory", &memory];
            cluster.cli(&[&what[..], &["--env", &reads, "--env", &pause]].concat())?;
        }
        let function = cluster.api.get(&format!("/v1/functions/{BURST}"))?;
        let image_bytes = function
            .pointer("/image_state/stored_bytes")
            .and_then(Value::as_u64)
            .with_context(|| format!("no size of the block image in {function}"))?;
        let sent_before = sent_by_registry(&cluster)?;
        let mut burst =
            Self { cluster, acknowledged: BTreeSet::new(), image_bytes, vms: spec.vms, sent_before };
        burst.start(spec.vms / 2)?;
        for start in burst.acknowledged.clone() {
            burst.cluster.api.ready(&start, READY)?;
        }
        Ok(burst)
    }

    /// Starts an instance on every other VM and waits for the middle: half of the containers run and
    /// read what they need, and most do not answer yet.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        let count = self.vms - self.acknowledged.len();
        self.start(count)?;
        let (ready, running) = wait_until("the middle of the burst", READY, || {
            let starts = self.starts()?;
            let ready = starts.values().filter(|start| start["state"] == "ready").count();
            let runs = |start: &&Value| !start["timeline_us"]["run"].is_null();
            let running = starts.values().filter(runs).count();
            Ok((running >= self.vms - count / 2).then_some((ready, running)))
        })?;
        ensure!(
            ready < running,
            "the burst was over before its middle was seen; take a lower --rate for a longer one"
        );
        Ok(())
    }

    fn start(&mut self, count: usize) -> anyhow::Result<()> {
        let starts = self.cluster.api.start(BURST, count)?;
        ensure!(starts.len() == count, "asked for {count} starts, got {}", starts.len());
        self.acknowledged.extend(starts);
        Ok(())
    }

    /// Asks for another start while much else goes on.
    pub fn acknowledge(api: &Api) -> anyhow::Result<Vec<String>> {
        api.start(MORE, 1)
    }

    /// One more start, which must become ready.
    pub fn start_one_more(&mut self) -> anyhow::Result<()> {
        let start = self.cluster.api.start(MORE, 1)?.remove(0);
        self.cluster.api.ready(&start, READY)?;
        Ok(())
    }

    /// What the API says of all starts, by id.
    pub fn starts(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        for function in [BURST, MORE] {
            let answer = self.cluster.api.get(&format!("/v1/functions/{function}/starts"))?;
            let starts = answer["starts"].as_array().context("the answer names no starts")?;
            let id = |start: &Value| start["id"].as_str().map(|id| (id.to_owned(), start.clone()));
            all.extend(starts.iter().filter_map(id));
        }
        Ok(all)
    }

    pub fn vms(&self) -> Vec<String> {
        (1..=self.vms).map(|number| format!("vm-{number}")).collect()
    }

    /// VMs with a start in that state.
    pub fn vms_with(&self, state: &str) -> anyhow::Result<BTreeSet<String>> {
        let starts = self.starts()?.into_values().filter(|start| start["state"] == state);
        Ok(starts.filter_map(|start| start["vm"].as_str().map(str::to_owned)).collect())
    }

    pub fn members(&self) -> anyhow::Result<Vec<Member>> {
        let tree = self.cluster.api.get(&format!("/v1/functions/{BURST}/tree"))?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let member = |member: &Value| {
            let children = member["children"].as_array()?.iter().filter_map(text).collect();
            Some(Member { vm: text(&member["vm"])?, parent: text(&member["parent"]), children })
        };
        let members = tree["members"].as_array().context("the tree has no members")?;
        Ok(members.iter().filter_map(member).collect())
    }

    pub fn wait_for_vm(&self, vm: &str, state: &str, within: Duration) -> anyhow::Result<()> {
        wait_until(&format!("{vm} to be {state}"), within, || {
            let vms = self.cluster.vms()?;
            Ok(vms.get(vm).filter(|vm| vm["state"] == state).map(drop))
        })
    }

    /// The container of a ready start, asked through the gateway for its port.
    pub fn container(&self, start: &Value) -> anyhow::Result<Container> {
        let text = |key: &str| start[key].as_str().with_context(|| format!("no {key} in {start}"));
        let vm = text("vm")?;
        let answer = self.cluster.api.invoke(text("function")?, "/", text("id")?)?;
        ensure!(answer.status.is_success(), "{start}: {} {}", answer.status, answer.text());
        let hello = answer.json()?;
        let port = hello["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let port = port.with_context(|| format!("no port in {hello}"))?;
        let from = Some((self.cluster.bed.state().clone(), vm.to_owned()));
        let address =
            Api { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), token: String::new(), from };
        Ok(Container { vm: vm.to_owned(), address, hello })
    }

    /// Bytes of the block image that the registry gave, by its own account, and all that its interface
    /// sent since the deployment.
    pub fn origin_bytes(&self) -> anyhow::Result<(u64, u64)> {
        let mut given = 0;
        for (digest, blob) in self.cluster.registry.given_by_blob()? {
            let file = self.cluster.registry.blob_file(&digest);
            if std::fs::metadata(file).is_ok_and(|file| file.len() == self.image_bytes) {
                given += blob.bytes;
            }
        }
        Ok((given, sent_by_registry(&self.cluster)? - self.sent_before))
    }
}

fn sent_by_registry(cluster: &Cluster) -> anyhow::Result<u64> {
    Ok(cluster.bed.counters("registry")?.sent_bytes)
}

impl Container {
    /// Whether the same process still answers.
    pub fn check(&self) -> anyhow::Result<()> {
        let hello = self.address.get("/")?;
        ensure!(hello == self.hello, "another process answers: {hello}, before {}", self.hello);
        Ok(())
    }

    pub fn reads(&self) -> anyhow::Result<Reads> {
        self.ask("/reader")
    }

    /// The same; the longest read is counted anew.
    pub fn reads_until_now(&self) -> anyhow::Result<Reads> {
        self.ask("/reader?forget=1")
    }

    fn ask(&self, path: &str) -> anyhow::Result<Reads> {
        let seen = self.address.get(path)?;
        let number = |key: &str| seen[key].as_u64().with_context(|| format!("no {key} in {seen}"));
        Ok(Reads {
            count: number("reads")?,
            failed: seen["failed"].as_str().unwrap_or_default().to_owned(),
            longest: Duration::from_micros(number("longest_us")?),
            latest: Duration::from_micros(number("latest_us")?),
        })
    }
}

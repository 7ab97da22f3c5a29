//! What the system says of itself while the load goes on: starts, trees, VMs; and the links of a bed.

use super::plan::Plan;
use crate::{
    bed::{BedState, Counters},
    rig::{Api, pause},
};
use anyhow::{Context, ensure};
use faasnet_actors::{
    id::StartId,
    model::{StartState, StartView, TreeView, VmView},
    wire::control::BytesBySource,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Functions whose trees and starts are looked at while the load goes on: the most popular ones.
const WATCHED_MAX: usize = 8;
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looking takes at most this part of the time: the system is to be measured, not the looking.
const LOOKING_PART: u32 = 10;
/// Looks that are kept: two hours of them.
const LOOKS_MAX: usize = 30_000;

/// What one look saw.
#[derive(Debug, Clone, Serialize)]
pub struct Look {
    /// From the beginning of the load.
    pub at_s: f64,
    /// Edges on the longest way from a root, of the highest tree.
    pub tree_height: u32,
    /// VMs in the watched trees.
    pub members: usize,
    /// Bytes that each VM's agent has received of blocks.
    pub received: BTreeMap<String, BytesBySource>,
    /// What the interface of each host has counted; only on a test bed.
    pub links: BTreeMap<String, Counters>,
}

/// A start, and when it was first seen: at most one look after it was accepted.
#[derive(Debug, Clone, Serialize)]
pub struct SeenStart {
    /// None of one that was seen only after the load.
    pub seen_s: Option<f64>,
    #[serde(flatten)]
    pub view: StartView,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Watched {
    pub looks: Vec<Look>,
    pub starts: Vec<SeenStart>,
    /// Looks that the system did not answer.
    pub looks_failed: usize,
    /// Some function had more starts than the API lists; the oldest of them are missing.
    pub starts_truncated: bool,
}

pub struct Watcher<'a> {
    api: &'a Api,
    bed: Option<&'a BedState>,
    functions: Vec<Function>,
    /// Starts from before the load are none of it.
    before: BTreeSet<StartId>,
    /// When each was seen first.
    seen: BTreeMap<StartId, f64>,
    begin: Instant,
    watched: Watched,
}

#[derive(Clone)]
struct Function {
    /// With the tenant's token.
    api: Api,
    tenant: String,
    name: String,
}

#[derive(Deserialize)]
struct Starts {
    starts: Vec<StartView>,
}

#[derive(Deserialize)]
struct Vms {
    vms: Vec<VmView>,
}

impl<'a> Watcher<'a> {
    /// Notes what was there before.
    pub fn new(api: &'a Api, bed: Option<&'a BedState>, plan: &Plan) -> anyhow::Result<Self> {
        let functions: Vec<_> = plan
            .functions
            .iter()
            .flat_map(|name| plan.tenants.iter().map(move |tenant| (name, tenant)))
            .map(|(name, tenant)| Function {
                api: Api { token: tenant.token.clone(), ..api.clone() },
                tenant: tenant.name.clone(),
                name: name.clone(),
            })
            .collect();
        let mut watcher = Self {
            api,
            bed,
            functions,
            before: BTreeSet::new(),
            seen: BTreeMap::new(),
            begin: Instant::now(),
            watched: Watched::default(),
        };
        for function in watcher.functions.clone() {
            let (starts, _) = function.starts()?;
            watcher.before.extend(starts.into_iter().map(|start| start.id));
        }
        Ok(watcher)
    }

    /// The load begins.
    pub fn begin(&mut self) {
        self.begin = Instant::now();
    }

    /// Looks until it is over.
    pub fn watch(&mut self, mut is_over: impl FnMut() -> bool) {
        loop {
            let begin = Instant::now();
            match self.look() {
                Ok(look) if self.watched.looks.len() < LOOKS_MAX => self.watched.looks.push(look),
                Ok(_) => {}
                Err(_) => self.watched.looks_failed += 1,
            }
            if is_over() {
                return;
            }
            pause(LOOK_EVERY.max(begin.elapsed() * LOOKING_PART));
        }
    }

    fn look(&mut self) -> anyhow::Result<Look> {
        let (mut tree_height, mut members) = (0, BTreeSet::new());
        let links = self.bed.map(BedState::all_counters).transpose()?.unwrap_or_default();
        for function in self.functions.iter().take(WATCHED_MAX) {
            // A function without a tree is no failure.
            if let Ok(tree) = function.get::<TreeView>("/tree") {
                tree_height = tree_height.max(tree.height);
                // Functions of one image share its tree.
                members.extend(tree.members.into_iter().map(|member| member.vm));
            }
            let (starts, _) = function.starts()?;
            let now = self.begin.elapsed().as_secs_f64();
            for start in starts.into_iter().filter(|start| !self.before.contains(&start.id)) {
                self.seen.entry(start.id).or_insert(now);
            }
        }
        // A token of one tenant may not be allowed to see the VMs.
        let vms = self.api.get("/v1/vms").and_then(|answer| Ok(serde_json::from_value::<Vms>(answer)?.vms));
        let received = vms.unwrap_or_default().into_iter().map(|vm| {
            let bytes = vm.trees.iter().map(|tree| tree.bytes);
            (vm.id.to_string(), bytes.fold(BytesBySource::default(), BytesBySource::plus))
        });
        let received = received.collect();
        Ok(Look {
            at_s: self.begin.elapsed().as_secs_f64(),
            tree_height,
            members: members.len(),
            received,
            links,
        })
    }

    /// Waits until every start has settled, or until the deadline, and gives all that was seen.
    pub fn finish(mut self, within: Duration, mut is_over: impl FnMut() -> bool) -> anyhow::Result<Watched> {
        let begin = Instant::now();
        loop {
            let mut starts = Vec::new();
            for function in &self.functions {
                let (of_function, is_truncated) = function.starts()?;
                self.watched.starts_truncated |= is_truncated;
                starts.extend(of_function.into_iter().filter(|start| !self.before.contains(&start.id)));
            }
            let is_settled = |start: &StartView| matches!(start.state, StartState::Ready | StartState::Ended);
            if starts.iter().all(is_settled) || begin.elapsed() > within || is_over() {
                let seen_s = |start: &StartView| self.seen.get(&start.id).copied();
                let with_time = |view: StartView| SeenStart { seen_s: seen_s(&view), view };
                self.watched.starts = starts.into_iter().map(with_time).collect();
                return Ok(self.watched);
            }
            pause(LOOK_EVERY);
        }
    }
}

/// What the API lists of one function by default (`http.starts_listed_max`).
const STARTS_LISTED: usize = 1000;

impl Function {
    /// Newest first, and whether there may be more than are listed.
    fn starts(&self) -> anyhow::Result<(Vec<StartView>, bool)> {
        let Starts { starts } = self.get("/starts")?;
        let is_truncated = starts.len() >= STARTS_LISTED;
        Ok((starts, is_truncated))
    }

    fn get<T: serde::de::DeserializeOwned>(&self, what: &str) -> anyhow::Result<T> {
        let Self { api, tenant, name } = self;
        let path = format!("/v1/functions/{name}{what}");
        let answer = api.call_of(tenant, "GET", &path, "")?;
        ensure!(answer.status.is_success(), "GET {path} of {tenant}: {} {}", answer.status, answer.text());
        serde_json::from_slice(&answer.body).with_context(|| format!("read the answer to GET {path}"))
    }
}

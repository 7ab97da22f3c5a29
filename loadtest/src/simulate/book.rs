//! What clients were told, and what was seen on the way: the checks compare the world with it.

use super::{
    figure::{TRAFFIC, Traffic},
    manager::Rows,
    network::Node,
    queue::Nanos,
};
use faasnet_actors::{
    id::{Epoch, StartId, TreeId, VmId},
    scheduler::{Answer, ControlError, FunctionKey, Ticket},
    wire::control::{EndReason, ToManager},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Book {
    pending: BTreeMap<Ticket, (FunctionKey, Nanos)>,
    /// Starts that the API has acknowledged, and when.
    pub acknowledged: BTreeMap<StartId, (FunctionKey, Nanos)>,
    /// Those among them that were seen to have ended.
    pub ended: BTreeSet<StartId>,
    pub refused: u32,
    /// Starts that clients did not get, by what they were told.
    pub not_got: BTreeMap<String, u32>,
    /// Requests that were made once more because the manager said so.
    pub asked_again: u32,
    /// Starts that ended, by why; those without an answer to a probe before.
    pub over: BTreeMap<String, u32>,
    over_starts: BTreeSet<StartId>,
    seen: BTreeMap<StartId, Seen>,
    /// When the manager heard that a start is ready.
    pub ready: BTreeMap<StartId, Nanos>,
    /// Bytes of blocks asked of the origin, by the VMs that asked.
    pub origin_bytes: BTreeMap<TreeId, BTreeMap<Node, u64>>,
    /// VMs that got another parent.
    pub moves: Vec<Move>,
    departures: Vec<Departure>,
    /// The last epoch that each VM has accepted of each tree.
    pub epochs: BTreeMap<(Node, TreeId), Epoch>,
    /// Bytes of blocks that were sent.
    pub moved_bytes: u64,
    /// The VM that was told to make each start, and when it heard of that first.
    pub ordered: BTreeMap<StartId, (Node, Nanos)>,
    /// When a probe was answered first.
    pub answered: BTreeMap<StartId, Nanos>,
    /// Bytes into and out of each VM in intervals, from the first moment on.
    traffic: Traffic,
    traffic_from: Option<Nanos>,
    /// Images that were removed from caches.
    pub evictions: u32,
    pub reads_failed: u32,
    /// Reads that had to wait for a block.
    pub stalls: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub at: Nanos,
    /// All parents of before were there still.
    pub is_needless: bool,
}

/// The parent of each member.
pub(super) type Parents = BTreeMap<VmId, Option<VmId>>;

pub(super) struct Departure {
    pub tree: TreeId,
    /// All members before it.
    pub before: Parents,
    pub gone: VmId,
}

/// The news of one start from one life of a VM.
struct Seen {
    host: Node,
    life: u32,
    elapsed_us: u64,
    is_ready: bool,
    is_over: bool,
}

impl Book {
    pub fn asked(&mut self, ticket: Ticket, key: FunctionKey, now: Nanos) {
        self.pending.insert(ticket, (key, now));
    }

    /// A start whose end had not reached the metadata store is begun anew by the next manager.
    pub fn manager_died(&mut self) {
        self.pending.clear();
        self.seen.retain(|_, seen| !seen.is_over);
    }

    /// Invariant 9: what is acknowledged is in the metadata store.
    pub fn answered(
        &mut self,
        ticket: Ticket,
        answer: &Result<Answer, ControlError>,
        rows: &Rows,
        now: Nanos,
    ) -> Result<(), String> {
        let Some((key, _)) = self.pending.remove(&ticket) else { return Ok(()) };
        let Ok(Answer::Started(starts)) = answer else {
            self.refused += 1;
            return Ok(());
        };
        for start in starts {
            if !rows.has_start(start) {
                return Err(format!("the start {start} is acknowledged and not durable"));
            }
            self.acknowledged.insert(start.clone(), (key.clone(), now));
        }
        Ok(())
    }

    pub fn refuse(&mut self, starts: u32, reason: &str) {
        *self.not_got.entry(reason.to_owned()).or_default() += starts;
    }

    /// The manager tells everybody that a start has ended.
    pub fn is_over(&mut self, start: &StartId, reason: Option<&EndReason>) {
        if !self.answered.contains_key(start) && self.over_starts.insert(start.clone()) {
            let reason = reason.map_or("for no reason".to_owned(), ToString::to_string);
            *self.over.entry(reason).or_default() += 1;
        }
    }

    /// Each start that was acknowledged has answered a probe or ended.
    pub fn all_settled(&self) -> bool {
        let over = self.over_starts.iter().filter(|start| !self.answered.contains_key(start)).count();
        self.answered.len() + over >= self.acknowledged.len()
    }

    /// Invariant 10: the events of a start are in order.
    pub fn heard(&mut self, host: Node, life: u32, message: &ToManager, now: Nanos) -> Result<(), String> {
        let (start, elapsed_us) = match message {
            ToManager::Progress { start, elapsed_us, .. } => (start, Some(*elapsed_us)),
            ToManager::Ready { start, .. } | ToManager::Ended { start, .. } => (start, None),
            _ => return Ok(()),
        };
        let new = Seen { host, life, elapsed_us: 0, is_ready: false, is_over: false };
        let seen = self.seen.entry(start.clone()).or_insert(new);
        if (seen.host, seen.life) != (host, life) {
            *seen = Seen { host, life, elapsed_us: 0, is_ready: false, is_over: false };
        }
        let is_end = matches!(message, ToManager::Ended { .. });
        // On a new session the last word is said again.
        let is_again = seen.is_ready && !seen.is_over && matches!(message, ToManager::Ready { .. });
        if (seen.is_over || seen.is_ready) && !is_end && !is_again {
            return Err(format!("the start {start} is told of after it was ready or over: {message:?}"));
        }
        if elapsed_us.is_some_and(|elapsed| elapsed < seen.elapsed_us) {
            return Err(format!("the steps of {start} go back in time: {message:?}"));
        }
        seen.elapsed_us = elapsed_us.unwrap_or(seen.elapsed_us);
        if let ToManager::Ready { .. } = message {
            seen.is_ready = true;
            self.ready.entry(start.clone()).or_insert(now);
        }
        seen.is_over = is_end;
        Ok(())
    }

    pub fn read_origin(&mut self, tree: &TreeId, host: Node, bytes: u64) {
        *self.origin_bytes.entry(tree.clone()).or_default().entry(host).or_default() += bytes;
    }

    /// What a VM may ask the origin for again, because it could not keep so much of it.
    pub fn may_read_again(&mut self, tree: &TreeId, host: Node, bytes: u64) {
        let read = self.origin_bytes.get_mut(tree).and_then(|by_host| by_host.get_mut(&host));
        if let Some(read) = read {
            *read = read.saturating_sub(bytes);
        }
    }

    pub fn origin_bytes_of(&self, tree: &TreeId) -> u64 {
        self.origin_bytes.get(tree).map_or(0, |by_host| by_host.values().sum())
    }

    /// Begins to count what goes over links.
    pub fn traffic_from(&mut self, begin: Nanos, vms: usize) {
        (self.traffic_from, self.traffic) = (Some(begin), vec![Vec::new(); vms]);
    }

    pub fn take_traffic(&mut self) -> Traffic {
        self.traffic_from = None;
        std::mem::take(&mut self.traffic)
    }

    /// A frame has gone from one node to another.
    pub fn went(&mut self, from: Node, to: Node, bytes: u64, now: Nanos) {
        let Some(begin) = self.traffic_from else { return };
        let interval = (now.saturating_sub(begin) / TRAFFIC) as usize;
        for (node, add) in [(to, (bytes, 0)), (from, (0, bytes))] {
            let Some(intervals) = self.traffic.get_mut(node) else { continue };
            if intervals.len() <= interval {
                intervals.resize(interval + 1, (0, 0));
            }
            intervals[interval].0 += add.0;
            intervals[interval].1 += add.1;
        }
    }

    pub fn moved(&mut self, at: Nanos, is_needless: bool) {
        self.moves.push(Move { at, is_needless });
    }

    pub fn left(&mut self, tree: TreeId, before: Parents, gone: VmId) {
        self.departures.push(Departure { tree, before, gone });
    }

    pub fn take_departures(&mut self) -> Vec<Departure> {
        std::mem::take(&mut self.departures)
    }

    /// A VM has emptied its place in the cache: it may join anew.
    pub fn forget(&mut self, host: Node, tree: &TreeId) {
        self.epochs.remove(&(host, tree.clone()));
    }

    pub fn host_ended(&mut self, host: Node) {
        self.epochs.retain(|(of, _), _| *of != host);
    }
}

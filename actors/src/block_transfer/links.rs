//! The connections to upstreams: which are there, and which is asked for a block.

use crate::{
    id::{BlockId, VmId},
    wire::control::Upstream,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    /// Nobody has tried yet, or the pause after a failure is over.
    Idle,
    Connecting,
    Open,
    Down {
        until: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Link {
    pub state: LinkState,
    pub in_flight: BTreeSet<BlockId>,
    heard_at: Option<Instant>,
    failures: u32,
    is_index_asked: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            state: LinkState::Idle,
            in_flight: BTreeSet::new(),
            heard_at: None,
            failures: 0,
            is_index_asked: false,
        }
    }
}

fn has_passed(upstream: &Upstream, path: &BTreeSet<VmId>) -> bool {
    matches!(upstream, Upstream::Vm { vm, .. } if path.contains(vm))
}

/// The upstreams of all stripes, each with its connection.
#[derive(Debug, Default)]
pub(super) struct Links {
    stripes: Vec<Vec<Upstream>>,
    links: BTreeMap<Upstream, Link>,
}

impl Links {
    /// Takes over a new place. Returns the links that have no part in it.
    pub fn place(&mut self, stripes: Vec<Vec<Upstream>>) -> Vec<(Upstream, Link)> {
        let named: BTreeSet<&Upstream> = stripes.iter().flatten().collect();
        let gone: Vec<_> = self.links.keys().filter(|upstream| !named.contains(upstream)).cloned().collect();
        for upstream in named {
            self.links.entry(upstream.clone()).or_default();
        }
        self.stripes = stripes;
        gone.into_iter().filter_map(|upstream| self.links.remove_entry(&upstream)).collect()
    }

    /// Whether every upstream has refused a block, or would because the demand has passed it.
    pub fn is_exhausted(&self, refused: &BTreeSet<Upstream>, path: &BTreeSet<VmId>) -> bool {
        !self.links.is_empty()
            && self.links.keys().all(|upstream| refused.contains(upstream) || has_passed(upstream, path))
    }

    pub fn open_links(&self) -> impl Iterator<Item = (&Upstream, &Link)> {
        self.links.iter().filter(|(_, link)| link.state == LinkState::Open)
    }

    pub fn is_any_open(&self) -> bool {
        self.open_links().next().is_some()
    }

    pub fn is_parent(&self, upstream: &Upstream, block: BlockId) -> bool {
        self.stripe(block).and_then(|stripe| stripe.first()) == Some(upstream)
    }

    fn stripe(&self, block: BlockId) -> Option<&Vec<Upstream>> {
        self.stripes.get(block.0 as usize % self.stripes.len().max(1))
    }

    /// Upstreams to connect now: of each stripe the first that is not down, and any before it whose
    /// pause is over, so that a VM returns to its parent.
    pub fn due_connections(&mut self, now: Instant, is_needed: bool) -> Vec<Upstream> {
        for link in self.links.values_mut() {
            if matches!(link.state, LinkState::Down { until } if until <= now) {
                link.state = LinkState::Idle;
            }
        }
        let mut chosen = Vec::new();
        if !is_needed {
            return chosen;
        }
        for stripe in &self.stripes {
            for upstream in stripe {
                let link = self.links.get_mut(upstream).expect("every named upstream has a link");
                match link.state {
                    LinkState::Down { .. } => {}
                    LinkState::Connecting | LinkState::Open => break,
                    LinkState::Idle => {
                        link.state = LinkState::Connecting;
                        chosen.push(upstream.clone());
                        break;
                    }
                }
            }
        }
        chosen
    }

    /// The upstreams that may give a block and are not down: those of its stripe, then the VMs of the
    /// others. A root of another stripe asks the origin only if there is no VM to ask (invariant 6).
    fn candidates(
        &self,
        block: BlockId,
        refused: &BTreeSet<Upstream>,
        path: &BTreeSet<VmId>,
    ) -> Vec<&Upstream> {
        let may_give = |upstream: &&Upstream| {
            !refused.contains(*upstream)
                && !has_passed(upstream, path)
                && !matches!(self.links[*upstream].state, LinkState::Down { .. })
        };
        let own = self.stripe(block).into_iter().flatten();
        let others = || self.stripes.iter().flatten().filter(may_give);
        let vms = others().filter(|upstream| **upstream != Upstream::Origin);
        let candidates: Vec<_> = own.filter(may_give).chain(vms).collect();
        if candidates.is_empty() { others().collect() } else { candidates }
    }

    /// An upstream to connect now because every open one has refused a block: the first that nobody has
    /// tried. None while one that may give the block is open or on its way.
    pub fn connect_untried(
        &mut self,
        block: BlockId,
        refused: &BTreeSet<Upstream>,
        path: &BTreeSet<VmId>,
    ) -> Option<Upstream> {
        let candidates = self.candidates(block, refused, path);
        if candidates.iter().any(|upstream| self.links[*upstream].state != LinkState::Idle) {
            return None;
        }
        let first = (*candidates.first()?).clone();
        self.links.get_mut(&first)?.state = LinkState::Connecting;
        Some(first)
    }

    /// False when the upstream has no part in the present place.
    pub fn open(&mut self, upstream: &Upstream, now: Instant) -> bool {
        let Some(link) = self.links.get_mut(upstream) else {
            return false;
        };
        link.state = LinkState::Open;
        link.heard_at = Some(now);
        link.is_index_asked = false;
        true
    }

    /// Marks a connection as lost and gives back what it was asked for.
    pub fn down(
        &mut self,
        upstream: &Upstream,
        now: Instant,
        retry_min: Duration,
        retry_max: Duration,
    ) -> Option<Link> {
        let link = self.links.get_mut(upstream)?;
        if matches!(link.state, LinkState::Down { .. }) {
            return None;
        }
        let failures = link.failures + 1;
        let pause = retry_min.saturating_mul(2_u32.saturating_pow(link.failures)).min(retry_max);
        let down = Link { state: LinkState::Down { until: now + pause }, failures, ..Link::default() };
        Some(std::mem::replace(link, down))
    }

    pub fn heard(&mut self, upstream: &Upstream, now: Instant) {
        if let Some(link) = self.links.get_mut(upstream) {
            link.heard_at = Some(now);
        }
    }

    /// The upstream said something of the block.
    pub fn answered(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
        self.heard(upstream, now);
        if let Some(link) = self.links.get_mut(upstream) {
            link.failures = 0;
        }
        self.forget(upstream, block);
    }

    pub fn forget(&mut self, upstream: &Upstream, block: BlockId) {
        if let Some(link) = self.links.get_mut(upstream) {
            link.in_flight.remove(&block);
        }
    }

    /// The upstream to ask for the index, once for each connection. The index goes the way of the first
    /// stripe, so that of several roots only one reads it from the origin.
    pub fn take_index_asker(&mut self) -> Option<Upstream> {
        let upstream = self.choose(BlockId(0), &BTreeSet::new(), &BTreeSet::new(), usize::MAX)?;
        let link = self.links.get_mut(&upstream)?;
        (!std::mem::replace(&mut link.is_index_asked, true)).then_some(upstream)
    }

    /// The first open upstream that has room and has not refused: of the block's own stripe, else, when
    /// none of those is on its way, of any. One that the demand has passed is left out, it would refuse.
    pub fn choose(
        &self,
        block: BlockId,
        refused: &BTreeSet<Upstream>,
        path: &BTreeSet<VmId>,
        in_flight_max: usize,
    ) -> Option<Upstream> {
        let candidates = self.candidates(block, refused, path);
        let is_open = |upstream: &&&Upstream| self.links[**upstream].state == LinkState::Open;
        let own = self.stripe(block)?;
        let is_own = |upstream: &&&Upstream| own.contains(**upstream);
        let mut first = candidates.iter().filter(is_own).find(is_open);
        let is_coming = |upstream: &&Upstream| self.links[*upstream].state == LinkState::Connecting;
        if first.is_none() && !candidates.iter().filter(is_own).any(is_coming) {
            first = candidates.iter().find(is_open);
        }
        let first = *first?;
        (self.links[first].in_flight.len() < in_flight_max).then(|| first.clone())
    }

    /// The index is there: no connection owes it any more.
    pub fn index_answered(&mut self) {
        for link in self.links.values_mut() {
            link.is_index_asked = false;
        }
    }

    pub fn ask(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
        let link = self.links.get_mut(upstream).expect("chosen among the links");
        if link.in_flight.is_empty() {
            link.heard_at = Some(now); // silence counts from the first open question
        }
        link.in_flight.insert(block);
    }

    /// VMs that owe an answer and have been silent for too long. The origin's adapter has deadlines
    /// and retries of its own.
    pub fn stalled(&self, now: Instant, stall: Duration) -> Vec<Upstream> {
        let is_silent = |link: &Link| link.heard_at.is_some_and(|at| now.duration_since(at) >= stall);
        let owes = |link: &Link| !link.in_flight.is_empty() || link.is_index_asked;
        self.open_links()
            .filter(|(upstream, link)| **upstream != Upstream::Origin && owes(link) && is_silent(link))
            .map(|(upstream, _)| upstream.clone())
            .collect()
    }
}

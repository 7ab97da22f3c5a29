//! The connections to upstreams: which are there, and which is asked for a block.

use super::window::{Asked, Window};
use crate::{
    id::{BlockId, VmId},
    wire::{
        control::{Seat, Upstream},
        peer::Reach,
    },
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
    Connecting {
        since: Instant,
    },
    Open,
    Down {
        until: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Link {
    pub state: LinkState,
    pub in_flight: BTreeMap<BlockId, Asked>,
    pub window: Window,
    heard_at: Option<Instant>,
    /// When it last gave or refused what it was asked for, or was first asked after that.
    answered_at: Option<Instant>,
    doubt: Option<Doubt>,
    failures: u32,
    pub is_index_asked: bool,
}

/// An upstream that says over and over that it waits, and gives nothing. It may be right, when the origin is slow
/// everyone waits: so it is asked last and not complained about, unless another gives what it does not.
#[derive(Debug, Default)]
struct Doubt {
    /// What it was asked for in vain the last time.
    withheld: BTreeSet<BlockId>,
    /// When another gave a block of those.
    outdone_at: Option<Instant>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            state: LinkState::Idle,
            in_flight: BTreeMap::new(),
            window: Window::default(),
            heard_at: None,
            answered_at: None,
            doubt: None,
            failures: 0,
            is_index_asked: false,
        }
    }
}

impl Link {
    fn owes(&self) -> bool {
        !self.in_flight.is_empty() || self.is_index_asked
    }
}

fn has_passed(since: Option<Instant>, length: Duration, now: Instant) -> bool {
    since.is_some_and(|since| now.duration_since(since) >= length)
}

fn is_on_path(upstream: &Upstream, path: &BTreeSet<VmId>) -> bool {
    matches!(upstream, Upstream::Vm { vm, .. } if path.contains(vm))
}

/// A block that somebody is to be asked for.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    pub block: BlockId,
    /// Upstreams that said no.
    pub refused: &'a BTreeSet<Upstream>,
    /// VMs that the demand has passed: they would say no.
    pub path: &'a BTreeSet<VmId>,
    /// Also if this VM is no root.
    pub may_read_origin: bool,
    pub now: Instant,
    pub stall: Duration,
}

impl Query<'_> {
    fn suits(&self, upstream: &Upstream) -> bool {
        !self.refused.contains(upstream) && !is_on_path(upstream, self.path)
    }

    fn is_under_way(&self, state: LinkState) -> bool {
        is_under_way(state, self.now, self.stall)
    }
}

/// Whether a connection may be there soon. One that takes longer than the silence that makes a VM turn
/// away is not waited for, but used when it comes.
fn is_under_way(state: LinkState, now: Instant, stall: Duration) -> bool {
    matches!(state, LinkState::Connecting { since } if now.duration_since(since) < stall)
}

#[derive(Debug, PartialEq)]
pub(super) enum Choice {
    Ask(Upstream),
    Connect(Upstream),
    /// A window is full or a connection under way.
    Wait,
    /// All have refused or are down.
    Nobody,
}

/// The upstreams of all stripes and those beside, each with its connection.
#[derive(Debug, Default)]
pub(super) struct Links {
    stripes: Vec<Vec<Upstream>>,
    beside: Vec<Upstream>,
    depths: Vec<u32>,
    links: BTreeMap<Upstream, Link>,
}

impl Links {
    /// Takes over a new place. Returns the links that have no part in it.
    pub fn place(&mut self, stripes: Vec<Vec<Upstream>>, seat: &Seat) -> Vec<(Upstream, Link)> {
        let named: BTreeSet<&Upstream> = stripes.iter().flatten().chain(&seat.beside).collect();
        let gone: Vec<_> = self
            .links
            .keys()
            .filter(|upstream| !named.contains(upstream) && **upstream != Upstream::Origin)
            .cloned()
            .collect();
        // The origin may be needed by everyone.
        for upstream in named.into_iter().chain([&Upstream::Origin]) {
            self.links.entry(upstream.clone()).or_default();
        }
        self.stripes = stripes;
        self.beside.clone_from(&seat.beside);
        self.depths.clone_from(&seat.depths);
        gone.into_iter().filter_map(|upstream| self.links.remove_entry(&upstream)).collect()
    }

    pub fn open_links(&self) -> impl Iterator<Item = (&Upstream, &Link)> {
        self.links.iter().filter(|(_, link)| link.state == LinkState::Open)
    }

    /// Blocks asked of all upstreams and not there yet.
    pub fn in_flight(&self) -> usize {
        self.links.values().map(|link| link.in_flight.len()).sum()
    }

    pub fn stripe_count(&self) -> usize {
        self.stripes.len()
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
    pub fn due_connections(&mut self, now: Instant, stall: Duration, is_needed: bool) -> Vec<Upstream> {
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
                    LinkState::Open if link.doubt.is_none() => break,
                    under_way if is_under_way(under_way, now, stall) => break,
                    LinkState::Open | LinkState::Down { .. } | LinkState::Connecting { .. } => {}
                    LinkState::Idle => {
                        link.state = LinkState::Connecting { since: now };
                        chosen.push(upstream.clone());
                        break;
                    }
                }
            }
        }
        chosen
    }

    /// False when the upstream has no part in the present place.
    pub fn open(&mut self, upstream: &Upstream, now: Instant) -> bool {
        let Some(link) = self.links.get_mut(upstream) else {
            return false;
        };
        link.state = LinkState::Open;
        (link.heard_at, link.answered_at) = (Some(now), Some(now));
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

    /// The upstream has given the block.
    pub fn arrived(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
        self.works(upstream, now);
        if let Some((link, asked)) = self.take(upstream, block) {
            link.window.arrived(&asked, now);
        }
        for doubt in self.links.values_mut().filter_map(|link| link.doubt.as_mut()) {
            if doubt.withheld.contains(&block) {
                doubt.outdone_at.get_or_insert(now);
            }
        }
    }

    /// The upstream does not give the block.
    pub fn refused(&mut self, upstream: &Upstream, block: BlockId, now: Instant) {
        self.works(upstream, now);
        self.forget(upstream, block);
    }

    fn works(&mut self, upstream: &Upstream, now: Instant) {
        self.heard(upstream, now);
        if let Some(link) = self.links.get_mut(upstream) {
            (link.failures, link.answered_at, link.doubt) = (0, Some(now), None);
        }
    }

    pub fn forget(&mut self, upstream: &Upstream, block: BlockId) {
        if let Some((link, asked)) = self.take(upstream, block) {
            link.window.forget(&asked);
        }
    }

    fn take(&mut self, upstream: &Upstream, block: BlockId) -> Option<(&mut Link, Asked)> {
        let link = self.links.get_mut(upstream)?;
        let asked = link.in_flight.remove(&block)?;
        Some((link, asked))
    }

    /// The upstream to ask for the index, once for each connection. The index goes the way of the first
    /// stripe, so that of several roots only one reads it from the origin.
    pub fn choose_for_index(&mut self, now: Instant, stall: Duration) -> Choice {
        let nobody = (BTreeSet::new(), BTreeSet::new());
        let (refused, path) = (&nobody.0, &nobody.1);
        let query = Query { block: BlockId(0), refused, path, may_read_origin: false, now, stall };
        let choice = self.choose(query, |_| true);
        if let Choice::Ask(upstream) = &choice {
            let link = self.links.get_mut(upstream).expect("chosen among the links");
            if std::mem::replace(&mut link.is_index_asked, true) {
                return Choice::Wait;
            }
        }
        choice
    }

    /// Whom to ask for a block: an upstream that may ask on, else a VM beside this one, else, for a root,
    /// the origin. A connection that is to be made counts as under way from now on.
    /// `has_room` says whether a connection may be asked for one more.
    pub fn choose(&mut self, query: Query<'_>, has_room: impl Fn(&Link) -> bool) -> Choice {
        if self.stripes.is_empty() {
            return Choice::Wait; // there is no place yet
        }
        let suits = |upstream: &&Upstream| **upstream != Upstream::Origin && query.suits(upstream);
        let own = self.stripe(query.block).into_iter().flatten();
        let is_root = self.is_root_of(query.block);
        let own: Vec<&Upstream> = own.filter(suits).collect();
        let others = self.stripes.iter().flatten().filter(|upstream| !is_root && suits(upstream));
        let upward: Vec<&Upstream> = own.iter().copied().chain(others).collect();
        let ask = |upstream: &Upstream| match has_room(&self.links[upstream]) {
            true => Choice::Ask(upstream.clone()),
            false => Choice::Wait,
        };
        let state = |upstream: &Upstream| self.links[upstream].state;
        let is_open = |upstream: &Upstream| state(upstream) == LinkState::Open;
        let is_doubted = |upstream: &Upstream| self.links[upstream].doubt.is_some();
        // The block's own stripe first, even if its connection is on its way still.
        for tier in [&own, &upward] {
            if let Some(open) = tier.iter().find(|upstream| is_open(upstream) && !is_doubted(upstream)) {
                return ask(open);
            }
            if tier.iter().any(|upstream| query.is_under_way(state(upstream))) {
                return Choice::Wait;
            }
        }
        let may_read = is_root || query.may_read_origin;
        let origin = may_read.then_some(&Upstream::Origin).filter(|upstream| query.suits(upstream));
        let beside = self.beside.iter().filter(|upstream| query.suits(upstream));
        let idle = upward.iter().copied().filter(|upstream| state(upstream) == LinkState::Idle);
        let doubted = upward.iter().copied().filter(|upstream| is_open(upstream) && is_doubted(upstream));
        for upstream in idle.chain(beside).chain(origin).chain(doubted) {
            match state(upstream) {
                LinkState::Open => return ask(upstream),
                under_way if query.is_under_way(under_way) => return Choice::Wait,
                LinkState::Idle => {
                    let upstream = upstream.clone();
                    self.connecting(&upstream, query.now);
                    return Choice::Connect(upstream);
                }
                LinkState::Connecting { .. } | LinkState::Down { .. } => {}
            }
        }
        Choice::Nobody
    }

    pub fn is_root_of(&self, block: BlockId) -> bool {
        self.stripe(block).is_some_and(|upstreams| upstreams.contains(&Upstream::Origin))
    }

    pub fn is_below_a_root(&self) -> bool {
        self.depths.contains(&1)
    }

    fn connecting(&mut self, upstream: &Upstream, now: Instant) {
        let link = self.links.get_mut(upstream).expect("every named upstream has a link");
        link.state = LinkState::Connecting { since: now };
    }

    /// How far a question to that upstream goes: those beside this VM do not ask on.
    pub fn reach(&self, upstream: &Upstream, block: BlockId) -> Reach {
        let is_beside = !self.stripes.iter().flatten().any(|above| above == upstream);
        let (stripes, stripe) = (self.depths.len(), block.0 as usize % self.depths.len().max(1));
        match self.depths.get(stripe) {
            Some(&depth) if !is_beside => {
                Reach::Upward { stripes: u32::try_from(stripes).unwrap_or(u32::MAX), depth }
            }
            _ => Reach::Held,
        }
    }

    /// Whether this VM is nearer to the root than one that asks for a block and lets it ask on.
    pub fn is_above(&self, block: BlockId, reach: Reach) -> bool {
        let Reach::Upward { stripes, depth } = reach else { return false };
        let own = self.depths.get(block.0 as usize % self.depths.len().max(1));
        stripes as usize == self.depths.len() && own.is_some_and(|own| *own < depth)
    }

    /// Whether this VM is, with those depths, nearer to a root than those think whom it has asked.
    pub fn rises_to(&self, depths: &[u32]) -> bool {
        depths.len() != self.depths.len() || depths.iter().zip(&self.depths).any(|(new, old)| new < old)
    }

    /// The index is there: no connection owes it any more.
    pub fn index_answered(&mut self) {
        for link in self.links.values_mut() {
            link.is_index_asked = false;
            link.doubt = link.doubt.take().filter(|doubt| !doubt.withheld.is_empty());
        }
    }

    /// Counts a block of `bytes` stored bytes as asked for; `blocks_min` is the least window.
    pub fn ask(
        &mut self,
        upstream: &Upstream,
        (block, bytes): (BlockId, u64),
        blocks_min: usize,
        now: Instant,
    ) {
        let link = self.links.get_mut(upstream).expect("chosen among the links");
        if link.in_flight.is_empty() {
            // Silence counts from the first open question.
            (link.heard_at, link.answered_at) = (Some(now), Some(now));
        }
        let asked = link.window.ask(bytes, blocks_min, now);
        if let Some(before) = link.in_flight.insert(block, asked) {
            link.window.forget(&before);
        }
    }

    /// VMs that owe an answer and have been silent for `stall`, and those that have said for `patience` that they
    /// wait after another gave what they were asked for. The origin's adapter has deadlines and retries of its own.
    pub fn stalled(&self, now: Instant, stall: Duration, patience: Duration) -> Vec<Upstream> {
        let is_silent = |link: &Link| link.owes() && has_passed(link.heard_at, stall, now);
        let is_outdone = |link: &Link| {
            link.doubt.as_ref().is_some_and(|doubt| has_passed(doubt.outdone_at, patience, now))
        };
        self.open_links()
            .filter(|(upstream, link)| {
                **upstream != Upstream::Origin && (is_silent(link) || is_outdone(link))
            })
            .map(|(upstream, _)| upstream.clone())
            .collect()
    }

    /// Doubts the VMs that live and have given nothing of what they were asked for `patience`. Returns those with what
    /// they are asked for no more.
    pub fn doubt(&mut self, now: Instant, patience: Duration) -> Vec<(Upstream, BTreeSet<BlockId>)> {
        let mut doubted = Vec::new();
        for (upstream, link) in &mut self.links {
            let is_late = link.owes() && has_passed(link.answered_at, patience, now);
            if *upstream == Upstream::Origin || link.state != LinkState::Open || !is_late {
                continue;
            }
            link.answered_at = Some(now);
            let in_flight = std::mem::take(&mut link.in_flight);
            for asked in in_flight.values() {
                link.window.forget(asked);
            }
            let withheld: BTreeSet<BlockId> = in_flight.into_keys().collect();
            link.doubt.get_or_insert_default().withheld.clone_from(&withheld);
            doubted.push((upstream.clone(), withheld));
        }
        doubted
    }
}

//! Sums of what has happened, for whoever draws curves of them. Things are told again and again with their whole
//! state; here each counts once.

use super::messages::{Happening, News};
use crate::{
    explain::Phase,
    function_tree::{Cause, HoldingNews, SeatNews},
    id::{ImageId, StartId, TenantId, VmId},
    model::StartView,
    wire::control::{BytesBySource, EndReason},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

/// What has happened since the log began.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Totals {
    /// How long each phase of a start took, of starts that have become ready.
    pub phases: BTreeMap<Phase, Durations>,
    /// How long those starts took from their acceptance to the first answer.
    pub ready: Durations,
    /// Starts and instances that have ended.
    pub ended: BTreeMap<Ending, u64>,
    /// Waits of starts that have become ready for blocks that were not there.
    pub stalls: u64,
    pub stalled_us: u64,
    /// Stored bytes that VMs received.
    pub bytes: BytesBySource,
    pub joined: u64,
    pub moved: u64,
    pub left: u64,
    pub repairs: u64,
    /// Refusals by their code.
    pub refused: BTreeMap<Cow<'static, str>, u64>,
    /// Trees that have members, all their members, and the greatest depth of one.
    pub trees: u64,
    pub members: u64,
    pub height: u32,
    /// What was not counted because it never reached the log.
    pub dropped: u64,
    /// Starts and members that were forgotten to make room.
    pub forgotten: u64,
}

/// How a start ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ending {
    pub reason: &'static str,
    pub was_ready: bool,
}

/// A histogram.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Durations {
    /// Those up to each of [`Self::BOUNDS_US`] and above the one before; longer ones are only in `count`.
    pub up_to: [u64; Self::BOUNDS_US.len()],
    pub count: u64,
    pub sum_us: u64,
}

impl Durations {
    /// 1 ms to a minute, in steps that an eye can tell apart.
    pub const BOUNDS_US: [u64; 16] = [
        1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
        5_000_000, 10_000_000, 20_000_000, 30_000_000, 60_000_000,
    ];

    fn add(&mut self, us: u64) {
        if let Some(bucket) = Self::BOUNDS_US.iter().position(|bound| us <= *bound) {
            self.up_to[bucket] += 1;
        }
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }
}

/// Codes are words of this program, so there are few. Should one ever come from somewhere else, these bound it.
const CODES_MAX: usize = 100;
const OTHER_CODES: &str = "other";

type MemberKey = (TenantId, ImageId, VmId);

pub struct Tally {
    totals: Totals,
    starts: Memory<StartId, Progress>,
    members: Memory<MemberKey, Member>,
    depths: BTreeSet<(u32, MemberKey)>,
}

/// What has been counted of a start.
#[derive(Clone, Copy)]
struct Progress {
    ready: bool,
    ended: bool,
}

#[derive(Clone, Copy, Default)]
struct Member {
    depth: Option<u32>,
    bytes: BytesBySource,
}

impl Tally {
    /// It remembers `remembered_max` starts, and as many members of trees.
    pub fn new(remembered_max: usize) -> Self {
        Self {
            totals: Totals::default(),
            starts: Memory::new(remembered_max),
            members: Memory::new(remembered_max),
            depths: BTreeSet::new(),
        }
    }

    pub fn totals(&self) -> Totals {
        let mut totals = self.totals.clone();
        totals.members = self.depths.len() as u64;
        totals.height = self.depths.last().map_or(0, |(depth, _)| *depth);
        let mut before = None;
        for (tenant, image, _) in self.members.keys() {
            totals.trees += u64::from(before != Some((tenant, image)));
            before = Some((tenant, image));
        }
        totals.forgotten = self.starts.forgotten + self.members.forgotten;
        totals
    }

    pub fn dropped(&mut self, count: u64) {
        self.totals.dropped += count;
    }

    pub fn refused(&mut self, code: Cow<'static, str>) {
        let refused = &mut self.totals.refused;
        let is_new = !refused.contains_key(&code);
        let code = if is_new && refused.len() >= CODES_MAX { OTHER_CODES.into() } else { code };
        *refused.entry(code).or_default() += 1;
    }

    pub fn happened(&mut self, News { tenant, happening }: &News) {
        if let Happening::Start(view) = happening {
            return self.start(view);
        }
        let Some(tenant) = tenant else { return };
        let key = |image: &ImageId, vm: &VmId| (tenant.clone(), *image, vm.clone());
        match happening {
            Happening::Member { image, seat } => self.seated(key(image, &seat.vm), seat),
            Happening::Transfer { image, holding } => self.holds(key(image, &holding.vm), holding),
            Happening::MemberLeft { image, vm, .. } => {
                self.totals.left += 1;
                self.forget(&key(image, vm));
            }
            Happening::Repair { .. } => self.totals.repairs += 1,
            Happening::TreeDissolved { image } => {
                let of_tree = |key: &&MemberKey| (&key.0, key.1) == (tenant, *image);
                let all: Vec<MemberKey> = self.members.keys().filter(of_tree).cloned().collect();
                self.totals.left += all.len() as u64;
                all.iter().for_each(|key| self.forget(key));
            }
            // What these are is asked of who has them; refusals are counted one by one, before they are told as one.
            Happening::Start(_)
            | Happening::Function(_)
            | Happening::FunctionDeleted { .. }
            | Happening::Vm(_)
            | Happening::VmRemoved { .. }
            | Happening::Refused { .. }
            | Happening::Audit(_) => {}
        }
    }

    fn start(&mut self, view: &StartView) {
        let is_ready = view.timeline_us.ready.is_some();
        // One that is ready when it is heard of first became so before this log, or before this manager.
        let seen = self.starts.entry(view.id.clone(), Progress { ready: is_ready, ended: false });
        let became_ready = is_ready && !std::mem::replace(&mut seen.ready, true);
        let ended = view.reason.as_ref().filter(|_| !std::mem::replace(&mut seen.ended, true));
        if let Some(reason) = ended {
            let ending = Ending { reason: EndReason::name(reason), was_ready: is_ready };
            *self.totals.ended.entry(ending).or_default() += 1;
        }
        // A manager that took it over from another one does not know when it began.
        if became_ready && view.timeline_us.waiting.is_some() {
            for phase in Phase::ALL {
                if let Some(us) = phase.of(&view.timeline_us) {
                    self.totals.phases.entry(phase).or_default().add(us);
                }
            }
            view.timeline_us.ready.into_iter().for_each(|us| self.totals.ready.add(us));
            self.totals.stalls += u64::from(view.stalls);
            self.totals.stalled_us = self.totals.stalled_us.saturating_add(view.stalled_us);
        }
    }

    fn seated(&mut self, key: MemberKey, seat: &SeatNews) {
        match seat.cause {
            Cause::Joined => self.totals.joined += 1,
            Cause::Moved => self.totals.moved += 1,
            Cause::Ready => {}
        }
        let depth = seat.places.iter().map(|place| place.depth).max().unwrap_or(0);
        let (member, forgotten) = self.members.entry_or_forget(key.clone(), Member::default());
        if let Some(before) = member.depth.replace(depth) {
            self.depths.remove(&(before, key.clone()));
        }
        self.depths.insert((depth, key));
        self.not_a_member(forgotten);
    }

    fn holds(&mut self, key: MemberKey, holding: &HoldingNews) {
        // One that holds something before it has joined came back to a new manager: what it has received
        // was counted before.
        let first = Member { depth: None, bytes: holding.bytes };
        let (member, forgotten) = self.members.entry_or_forget(key, first);
        let before = std::mem::replace(&mut member.bytes, holding.bytes);
        self.not_a_member(forgotten);
        // Less than before is the count of an agent that was restarted.
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let BytesBySource { parent, ancestor, origin } = holding.bytes;
        self.totals.bytes = self.totals.bytes.plus(BytesBySource {
            parent: more(parent, before.parent),
            ancestor: more(ancestor, before.ancestor),
            origin: more(origin, before.origin),
        });
    }

    fn forget(&mut self, key: &MemberKey) {
        let member = self.members.remove(key);
        self.not_a_member(member.map(|member| (key.clone(), member)));
    }

    fn not_a_member(&mut self, forgotten: Option<(MemberKey, Member)>) {
        if let Some((key, Member { depth: Some(depth), .. })) = forgotten {
            self.depths.remove(&(depth, key));
        }
    }
}

/// The newest things that were heard of; above its limit the oldest is forgotten.
struct Memory<K, V> {
    known: BTreeMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    next: u64,
    max: usize,
    forgotten: u64,
}

impl<K: Ord + Clone, V> Memory<K, V> {
    fn new(max: usize) -> Self {
        Self { known: BTreeMap::new(), order: BTreeMap::new(), next: 0, max, forgotten: 0 }
    }

    fn keys(&self) -> impl Iterator<Item = &K> {
        self.known.keys()
    }

    fn entry(&mut self, key: K, first: V) -> &mut V {
        self.entry_or_forget(key, first).0
    }

    /// What is known of it, `first` if nothing was, and what was forgotten for it.
    fn entry_or_forget(&mut self, key: K, first: V) -> (&mut V, Option<(K, V)>) {
        let mut forgotten = None;
        if !self.known.contains_key(&key) {
            if self.known.len() >= self.max.max(1) {
                forgotten = self.order.pop_first().and_then(|(_, oldest)| {
                    self.forgotten += 1;
                    self.known.remove(&oldest).map(|(_, value)| (oldest, value))
                });
            }
            self.order.insert(self.next, key.clone());
            self.next += 1;
        }
        let newest = self.next - 1;
        (&mut self.known.entry(key).or_insert((newest, first)).1, forgotten)
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let (number, value) = self.known.remove(key)?;
        self.order.remove(&number);
        Some(value)
    }
}

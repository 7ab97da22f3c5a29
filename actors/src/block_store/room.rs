//! Who has how much of the disk cache, and whose image goes when there is no room.
//!
//! ```text
//!            a start            last instance ended            left the tree          room is needed
//!   (new) -----------> needed ----------------------> member ----------------> cold ----------------> (removed)
//!                        ^                              |                        |
//!                        +------------ a start ---------+------------------------+
//! ```
//!
//! What a running instance needs never goes. Of the others the manager says which, because it knows who else holds
//! them: what others hold before last copies, and of these what was not used for longest. A cold image is removed
//! here; one that the VM is still a member of is given up by its tree, children first, and is cold then. A manager
//! that does not answer is not waited for: then the cold images that were not used for longest go, and only where there is
//! none it is asked again, until the write has waited long enough.

use crate::{id::TreeId, support::Snapshot, wire::control::Candidate};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// What an image in the cache is to its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// The VM has left the tree.
    Cold,
    /// The VM is in the tree, and nothing on it uses the image.
    Member,
    /// An instance uses it, or a start will.
    Needed,
}

/// A write that waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

#[derive(Debug)]
pub enum RoomEvent {
    /// What an image was found to take.
    Found {
        tree: TreeId,
        bytes: u64,
    },
    Stands {
        tree: TreeId,
        standing: Standing,
    },
    /// Room is wanted for what is to be written.
    Wanted {
        ticket: Ticket,
        tree: TreeId,
        bytes: u64,
    },
    /// The disk had no room for what was granted.
    NoSpace {
        ticket: Ticket,
        tree: TreeId,
        bytes: u64,
    },
    /// What was granted is not on disk, or not any more.
    Refund {
        tree: TreeId,
        bytes: u64,
    },
    /// The manager's answer: these are to go, in that order.
    Advised {
        trees: Vec<TreeId>,
    },
    Removed {
        tree: TreeId,
    },
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomEffect {
    Grant(Ticket),
    Refuse(Ticket),
    /// The manager is asked which of these go, to give so much back. The first was not used for longest.
    Ask {
        bytes: u64,
        candidates: Vec<Candidate>,
    },
    /// A cold image goes; answered by `Removed`.
    Remove(TreeId),
}

#[derive(Debug, Clone, Copy)]
pub struct RoomLimits {
    pub bytes_max: u64,
    /// How long the manager's answer is waited for.
    pub patience: Duration,
    /// How long a write waits for room.
    pub wait_max: Duration,
}

/// Writes that wait for room hold their bytes in memory: 128 MiB, all that four images have on their way.
const WAITING_MAX: usize = 256;
/// Cold images: as many as the manager is told of.
pub const COLD_MAX: usize = 128;
/// How long a disk that was full once counts as full: others use it too, and may have given room back.
const FULL_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    /// Its files are being removed.
    Removed,
    /// Its tree is to give it up until then.
    GivenUp { until: Instant },
}

struct Place {
    bytes: u64,
    standing: Standing,
    used_at: u64,
    going: Option<Going>,
}

struct Waiting {
    ticket: Ticket,
    tree: TreeId,
    bytes: u64,
    until: Instant,
}

/// Invariant: no more than the limit is granted, and nothing goes that is needed.
pub struct RoomCore {
    limits: RoomLimits,
    /// The disk itself had no room beyond that, until then.
    full_at: Option<(u64, Instant)>,
    places: BTreeMap<TreeId, Place>,
    used: u64,
    waiting: VecDeque<Waiting>,
    /// The manager was asked, and is waited for until then.
    asked: Option<Instant>,
    /// Counts uses.
    clock: u64,
}

impl RoomCore {
    pub fn new(limits: RoomLimits) -> Self {
        let (places, waiting) = (BTreeMap::new(), VecDeque::new());
        Self { limits, full_at: None, places, used: 0, waiting, asked: None, clock: 0 }
    }

    /// Adds what is used of each limit.
    pub fn observe(&self, snapshot: Snapshot) -> Snapshot {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let cold = self.places.values().filter(|place| place.standing == Standing::Cold).count();
        snapshot
            .queue("disk bytes", bytes(self.used), bytes(self.limits.bytes_max))
            .queue("cold images", cold, COLD_MAX)
            .queue("writes without room", self.waiting.len(), WAITING_MAX)
    }

    pub fn apply(&mut self, event: RoomEvent, now: Instant, effects: &mut Vec<RoomEffect>) {
        match event {
            RoomEvent::Found { tree, bytes } => self.found(tree, bytes),
            RoomEvent::Stands { tree, standing } => self.stands(tree, standing, effects),
            RoomEvent::Wanted { ticket, tree, bytes } => {
                if self.waiting.len() >= WAITING_MAX {
                    return effects.push(RoomEffect::Refuse(ticket));
                }
                let until = now + self.limits.wait_max;
                self.waiting.push_back(Waiting { ticket, tree, bytes, until });
            }
            RoomEvent::NoSpace { ticket, tree, bytes } => {
                self.refund(&tree, bytes);
                self.full_at = Some((self.limit(now).min(self.used), now + FULL_FOR));
                self.waiting.push_front(Waiting { ticket, tree, bytes, until: now + self.limits.wait_max });
            }
            RoomEvent::Refund { tree, bytes } => self.refund(&tree, bytes),
            RoomEvent::Advised { trees } => self.advised(&trees, now, effects),
            RoomEvent::Removed { tree } => self.removed(&tree),
            RoomEvent::Tick => self.tick(now, effects),
        }
        self.make_room(now, effects);
        debug_assert_eq!(self.used, self.places.values().map(|place| place.bytes).sum::<u64>());
    }

    fn limit(&self, now: Instant) -> u64 {
        let full_at = self.full_at.filter(|(_, until)| now < *until).map(|(bytes, _)| bytes);
        full_at.map_or(self.limits.bytes_max, |bytes| bytes.min(self.limits.bytes_max))
    }

    fn place(&mut self, tree: &TreeId) -> &mut Place {
        self.clock += 1;
        let used_at = self.clock;
        let new = Place { bytes: 0, standing: Standing::Member, used_at, going: None };
        self.places.entry(tree.clone()).or_insert(new)
    }

    fn found(&mut self, tree: TreeId, bytes: u64) {
        let before = std::mem::replace(&mut self.place(&tree).bytes, bytes);
        self.used = self.used - before + bytes;
    }

    fn refund(&mut self, tree: &TreeId, bytes: u64) {
        let Some(place) = self.places.get_mut(tree) else { return };
        let bytes = bytes.min(place.bytes);
        place.bytes -= bytes;
        self.used -= bytes;
    }

    fn stands(&mut self, tree: TreeId, standing: Standing, effects: &mut Vec<RoomEffect>) {
        self.clock += 1;
        let clock = self.clock;
        let place = self.place(&tree);
        let before = std::mem::replace(&mut place.standing, standing);
        if standing == Standing::Needed || before == Standing::Needed {
            place.used_at = clock;
        }
        match (standing, place.going) {
            (Standing::Needed, _) | (Standing::Member, Some(Going::Removed)) => place.going = None,
            // Its tree has let it go. Without blocks it is of no use to anybody.
            (Standing::Cold, Some(Going::GivenUp { .. })) => self.remove(&tree, effects),
            (Standing::Cold, None) if place.bytes == 0 => self.remove(&tree, effects),
            (Standing::Cold | Standing::Member, _) => {}
        }
        if standing == Standing::Cold {
            // Nobody waits for its blocks any more.
            let (vain, waiting) = self.waiting.drain(..).partition(|waiting| waiting.tree == tree);
            self.waiting = waiting;
            let vain: VecDeque<Waiting> = vain;
            effects.extend(vain.into_iter().map(|waiting| RoomEffect::Refuse(waiting.ticket)));
            self.keep_few_cold(effects);
        }
    }

    fn keep_few_cold(&mut self, effects: &mut Vec<RoomEffect>) {
        let stays = |place: &&Place| place.standing == Standing::Cold && place.going.is_none();
        if self.places.values().filter(stays).count() > COLD_MAX
            && let Some(Candidate { tree, .. }) = self.candidates(Standing::Cold).into_iter().next()
        {
            self.remove(&tree, effects);
        }
    }

    fn remove(&mut self, tree: &TreeId, effects: &mut Vec<RoomEffect>) {
        let place = self.places.get_mut(tree).expect("callers looked");
        debug_assert_eq!(place.standing, Standing::Cold);
        place.going = Some(Going::Removed);
        effects.push(RoomEffect::Remove(tree.clone()));
    }

    fn removed(&mut self, tree: &TreeId) {
        let Some(place) = self.places.get_mut(tree) else { return };
        self.used -= std::mem::take(&mut place.bytes);
        if place.standing == Standing::Cold {
            self.places.remove(tree);
        }
    }

    /// What may go, up to that standing; the first was not used for longest.
    fn candidates(&self, most: Standing) -> Vec<Candidate> {
        let waits: BTreeSet<&TreeId> = self.waiting.iter().map(|waiting| &waiting.tree).collect();
        let may_go = |(tree, place): &(&TreeId, &Place)| {
            place.standing <= most.min(Standing::Member) && place.going.is_none() && !waits.contains(tree)
        };
        let mut all: Vec<_> = self.places.iter().filter(may_go).collect();
        all.sort_by_key(|(_, place)| place.used_at);
        all.into_iter().map(|(tree, place)| Candidate { tree: tree.clone(), bytes: place.bytes }).collect()
    }

    /// Bytes that are wanted and not there, less those that are coming.
    fn missing(&self, now: Instant) -> u64 {
        let wanted: u64 = self.waiting.iter().map(|waiting| waiting.bytes).sum();
        (self.used + wanted).saturating_sub(self.limit(now)).saturating_sub(self.coming())
    }

    fn coming(&self) -> u64 {
        self.places.values().filter(|place| place.going.is_some()).map(|place| place.bytes).sum()
    }

    fn make_room(&mut self, now: Instant, effects: &mut Vec<RoomEffect>) {
        let limit = self.limit(now);
        while let Some(first) = self.waiting.front()
            && self.used + first.bytes <= limit
            && let Some(first) = self.waiting.pop_front()
        {
            self.place(&first.tree).bytes += first.bytes;
            self.used += first.bytes;
            effects.push(RoomEffect::Grant(first.ticket));
        }
        let missing = self.missing(now);
        // What is on its way is seen first, so that few questions are asked.
        if missing == 0 || self.asked.is_some() || self.coming() > 0 {
            return;
        }
        let mut candidates = self.candidates(Standing::Member);
        candidates.retain(|candidate| candidate.bytes > 0);
        if candidates.is_empty() {
            return self.refuse_if_hopeless(effects);
        }
        candidates.truncate(COLD_MAX);
        self.asked = Some(now + self.limits.patience);
        effects.push(RoomEffect::Ask { bytes: missing, candidates });
    }

    fn advised(&mut self, trees: &[TreeId], now: Instant, effects: &mut Vec<RoomEffect>) {
        if self.asked.take().is_none() {
            return; // too late: it was decided without the manager
        }
        for tree in trees {
            let Some(place) = self.places.get_mut(tree).filter(|place| place.going.is_none()) else {
                continue;
            };
            match place.standing {
                Standing::Needed => {}
                Standing::Member => {
                    place.going = Some(Going::GivenUp { until: now + self.limits.wait_max });
                }
                Standing::Cold => self.remove(tree, effects),
            }
        }
        self.remove_cold(now, effects);
        if self.missing(now) > 0 {
            self.refuse_if_hopeless(effects);
        }
    }

    /// Removes cold images without asking anybody, as far as room is missing still.
    fn remove_cold(&mut self, now: Instant, effects: &mut Vec<RoomEffect>) {
        for Candidate { tree, bytes } in self.candidates(Standing::Cold) {
            if self.missing(now) == 0 {
                return;
            }
            if bytes > 0 {
                self.remove(&tree, effects);
            }
        }
    }

    /// Nothing goes any more: who waits would wait in vain.
    fn refuse_if_hopeless(&mut self, effects: &mut Vec<RoomEffect>) {
        if self.coming() == 0 {
            effects.extend(self.waiting.drain(..).map(|waiting| RoomEffect::Refuse(waiting.ticket)));
        }
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<RoomEffect>) {
        for place in self.places.values_mut() {
            if matches!(place.going, Some(Going::GivenUp { until }) if until <= now) {
                place.going = None;
            }
        }
        let late = self.waiting.iter().filter(|waiting| waiting.until <= now);
        effects.extend(late.map(|waiting| RoomEffect::Refuse(waiting.ticket)));
        self.waiting.retain(|waiting| waiting.until > now);
        if self.asked.is_some_and(|until| until <= now) {
            self.asked = None;
            self.remove_cold(now, effects);
        }
    }
}

/// Which of the candidates go to give so much back: those that others hold too before last copies, and of each
/// kind the first before the next.
pub fn choose(
    candidates: Vec<Candidate>,
    bytes: u64,
    is_held_elsewhere: impl Fn(&TreeId) -> bool,
) -> Vec<TreeId> {
    let (held, last): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| is_held_elsewhere(&candidate.tree));
    let mut missing = bytes;
    let mut chosen = Vec::new();
    for candidate in held.into_iter().chain(last) {
        if missing == 0 {
            break;
        }
        missing = missing.saturating_sub(candidate.bytes);
        chosen.push(candidate.tree);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Digest;
    use proptest::prelude::*;

    const LIMITS: RoomLimits = RoomLimits {
        bytes_max: 1000,
        patience: Duration::from_millis(400),
        wait_max: Duration::from_secs(5),
    };

    fn tree(number: u8) -> TreeId {
        TreeId { tenant: "acme".parse().expect("valid"), image: Digest::from_bytes([number; 32]) }
    }

    /// A full cache: images of 300, 300 and 400 bytes, the first was not used for longest.
    struct World {
        core: RoomCore,
        now: Instant,
    }

    impl World {
        fn full(standings: [Standing; 3]) -> Self {
            let mut world = Self { core: RoomCore::new(LIMITS), now: Instant::now() };
            for (number, (standing, bytes)) in (0..).zip(standings.into_iter().zip([300, 300, 400])) {
                world.apply(RoomEvent::Stands { tree: tree(number), standing: Standing::Needed });
                world.apply(RoomEvent::Found { tree: tree(number), bytes });
                world.apply(RoomEvent::Stands { tree: tree(number), standing });
            }
            world
        }

        fn apply(&mut self, event: RoomEvent) -> Vec<RoomEffect> {
            let mut effects = Vec::new();
            self.core.apply(event, self.now, &mut effects);
            effects
        }

        fn want(&mut self, ticket: u64, bytes: u64) -> Vec<RoomEffect> {
            self.apply(RoomEvent::Wanted { ticket: Ticket(ticket), tree: tree(9), bytes })
        }

        fn pass(&mut self, length: Duration) -> Vec<RoomEffect> {
            self.now += length;
            self.apply(RoomEvent::Tick)
        }
    }

    fn candidate(number: u8, bytes: u64) -> Candidate {
        Candidate { tree: tree(number), bytes }
    }

    #[test]
    fn the_manager_chooses_among_what_nobody_needs_and_who_waits_gets_the_room() {
        let mut world = World::full([Standing::Cold, Standing::Needed, Standing::Cold]);
        let candidates = vec![candidate(0, 300), candidate(2, 400)];
        assert_eq!(world.want(1, 100), [RoomEffect::Ask { bytes: 100, candidates }]);
        assert_eq!(world.want(2, 100), [], "asked once");
        let trees = vec![tree(2)];
        assert_eq!(world.apply(RoomEvent::Advised { trees }), [RoomEffect::Remove(tree(2))]);
        let granted = [1, 2].map(|ticket| RoomEffect::Grant(Ticket(ticket)));
        assert_eq!(world.apply(RoomEvent::Removed { tree: tree(2) }), granted);
        assert_eq!(world.core.used, 800);
    }

    #[test]
    fn without_the_manager_what_was_not_used_for_longest_goes_but_no_tree_is_left() {
        let mut world = World::full([Standing::Member, Standing::Cold, Standing::Cold]);
        world.want(1, 100);
        assert_eq!(world.pass(LIMITS.patience), [RoomEffect::Remove(tree(1))]);
        let mut world = World::full([Standing::Member, Standing::Needed, Standing::Needed]);
        world.want(1, 100);
        assert!(matches!(&world.pass(LIMITS.patience)[..], [RoomEffect::Ask { .. }]), "it may be back");
        assert_eq!(world.pass(LIMITS.wait_max), [RoomEffect::Refuse(Ticket(1))]);
    }

    #[test]
    fn what_the_tree_gives_up_is_removed_when_it_has_been_left() {
        let mut world = World::full([Standing::Member, Standing::Needed, Standing::Needed]);
        world.want(1, 100);
        assert_eq!(world.apply(RoomEvent::Advised { trees: vec![tree(0)] }), []);
        let left = RoomEvent::Stands { tree: tree(0), standing: Standing::Cold };
        assert_eq!(world.apply(left), [RoomEffect::Remove(tree(0))]);
        assert_eq!(world.apply(RoomEvent::Removed { tree: tree(0) }), [RoomEffect::Grant(Ticket(1))]);
        // A start that comes in between keeps it.
        let mut world = World::full([Standing::Member, Standing::Needed, Standing::Needed]);
        world.want(1, 100);
        world.apply(RoomEvent::Advised { trees: vec![tree(0)] });
        let started = RoomEvent::Stands { tree: tree(0), standing: Standing::Needed };
        assert_eq!(world.apply(started), [RoomEffect::Refuse(Ticket(1))]);
    }

    #[test]
    fn who_waits_too_long_is_refused() {
        let mut world = World::full([Standing::Member, Standing::Needed, Standing::Needed]);
        world.want(1, 100);
        world.apply(RoomEvent::Advised { trees: vec![tree(0)] });
        assert_eq!(world.pass(LIMITS.wait_max), [RoomEffect::Refuse(Ticket(1))]);
    }

    #[test]
    fn a_full_disk_makes_room_as_a_full_cache_does_and_the_write_is_tried_again() {
        let mut world = World { core: RoomCore::new(LIMITS), now: Instant::now() };
        world.apply(RoomEvent::Found { tree: tree(0), bytes: 300 });
        world.apply(RoomEvent::Stands { tree: tree(0), standing: Standing::Cold });
        assert_eq!(world.want(1, 100), [RoomEffect::Grant(Ticket(1))]);
        let full = || RoomEvent::NoSpace { ticket: Ticket(1), tree: tree(9), bytes: 100 };
        let ask = RoomEffect::Ask { bytes: 100, candidates: vec![candidate(0, 300)] };
        assert_eq!(world.apply(full()), [ask]);
        assert_eq!(world.apply(RoomEvent::Advised { trees: vec![tree(0)] }), [RoomEffect::Remove(tree(0))]);
        assert_eq!(world.apply(RoomEvent::Removed { tree: tree(0) }), [RoomEffect::Grant(Ticket(1))]);
        // When nothing is left to go, it ends.
        assert_eq!(world.apply(full()), [RoomEffect::Refuse(Ticket(1))]);
        // A minute later somebody else may have given room back.
        world.pass(FULL_FOR);
        assert_eq!(world.want(2, 500), [RoomEffect::Grant(Ticket(2))]);
    }

    #[test]
    fn a_limit_that_was_lowered_is_kept_as_soon_as_it_is_known() {
        let mut world = World { core: RoomCore::new(LIMITS), now: Instant::now() };
        world.apply(RoomEvent::Stands { tree: tree(0), standing: Standing::Member });
        world.apply(RoomEvent::Found { tree: tree(0), bytes: 700 });
        world.apply(RoomEvent::Stands { tree: tree(0), standing: Standing::Cold });
        world.apply(RoomEvent::Stands { tree: tree(1), standing: Standing::Needed });
        let found = world.apply(RoomEvent::Found { tree: tree(1), bytes: 700 });
        assert!(matches!(&found[..], [RoomEffect::Ask { bytes: 400, .. }]));
        assert_eq!(world.pass(LIMITS.patience), [RoomEffect::Remove(tree(0))]);
    }

    #[test]
    fn what_others_hold_goes_before_last_copies_and_what_was_not_used_for_longest_first() {
        let all = || (0..4).map(|number| candidate(number, 100)).collect::<Vec<_>>();
        let others = |held: &TreeId| [tree(1), tree(3)].contains(held);
        assert_eq!(choose(all(), 100, others), [tree(1)]);
        assert_eq!(choose(all(), 101, others), [tree(1), tree(3)]);
        assert_eq!(choose(all(), 201, others), [tree(1), tree(3), tree(0)]);
        assert_eq!(choose(all(), 1000, others).len(), 4);
    }

    #[derive(Debug, Clone)]
    enum Action {
        Stand(u8, Standing),
        Want(u8, u64),
        NoSpace,
        Advise(Vec<u8>),
        Removed,
        Pass(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        let standing = prop_oneof![Just(Standing::Cold), Just(Standing::Member), Just(Standing::Needed)];
        prop_oneof![
            3 => (0..6_u8, standing).prop_map(|(number, standing)| Action::Stand(number, standing)),
            4 => (0..6_u8, 1..400_u64).prop_map(|(number, bytes)| Action::Want(number, bytes)),
            1 => Just(Action::NoSpace),
            2 => proptest::collection::vec(0..6_u8, 0..3).prop_map(Action::Advise),
            2 => Just(Action::Removed),
            2 => (1..3000_u64).prop_map(Action::Pass),
        ]
    }

    proptest! {
        /// Never above the limit, nothing goes that is needed, and everybody who waits is answered once.
        #[test]
        fn whatever_happens_the_limit_is_kept_and_what_is_needed_stays(
            actions in proptest::collection::vec(action(), 0..120),
        ) {
            let mut world = World { core: RoomCore::new(LIMITS), now: Instant::now() };
            let mut standings = BTreeMap::new();
            let (mut open, mut granted) = (BTreeSet::new(), Vec::new());
            let mut removing: VecDeque<TreeId> = VecDeque::new();
            let mut tickets = 0;
            let actions = actions.into_iter().chain([Action::Pass(10_000), Action::Pass(10_000)]);
            for action in actions {
                let effects = match action {
                    Action::Stand(number, standing) => {
                        standings.insert(tree(number), standing);
                        world.apply(RoomEvent::Stands { tree: tree(number), standing })
                    }
                    Action::Want(number, bytes) => {
                        tickets += 1;
                        standings.insert(tree(number), Standing::Needed);
                        let mut effects =
                            world.apply(RoomEvent::Stands { tree: tree(number), standing: Standing::Needed });
                        open.insert(Ticket(tickets));
                        let (ticket, tree) = (Ticket(tickets), tree(number));
                        effects.extend(world.apply(RoomEvent::Wanted { ticket, tree: tree.clone(), bytes }));
                        granted.push((ticket, tree, bytes));
                        effects
                    }
                    Action::NoSpace => {
                        let last = granted.iter().rposition(|(ticket, ..)| !open.contains(ticket));
                        let Some((ticket, tree, bytes)) = last.map(|place| granted.remove(place)) else { continue };
                        open.insert(ticket);
                        granted.push((ticket, tree.clone(), bytes));
                        world.apply(RoomEvent::NoSpace { ticket, tree, bytes })
                    }
                    Action::Advise(trees) => {
                        world.apply(RoomEvent::Advised { trees: trees.into_iter().map(tree).collect() })
                    }
                    Action::Removed => {
                        let Some(tree) = removing.pop_front() else { continue };
                        world.apply(RoomEvent::Removed { tree })
                    }
                    Action::Pass(ms) => world.pass(Duration::from_millis(ms)),
                };
                for effect in effects {
                    match effect {
                        RoomEffect::Grant(ticket) => prop_assert!(open.remove(&ticket)),
                        RoomEffect::Refuse(ticket) => {
                            prop_assert!(open.remove(&ticket));
                            granted.retain(|(granted, ..)| *granted != ticket);
                        }
                        RoomEffect::Ask { candidates, .. } => {
                            for Candidate { tree, .. } in candidates {
                                prop_assert_ne!(standings[&tree], Standing::Needed);
                            }
                        }
                        RoomEffect::Remove(tree) => {
                            prop_assert_eq!(standings[&tree], Standing::Cold);
                            removing.push_back(tree);
                        }
                    }
                }
                prop_assert!(world.core.used <= LIMITS.bytes_max);
            }
            prop_assert!(open.is_empty(), "everybody was answered");
        }
    }
}

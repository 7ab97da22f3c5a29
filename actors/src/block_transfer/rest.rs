//! What a VM fetches although nothing on it reads it: the rest of an image, a few blocks at a time.

use crate::{
    id::BlockId,
    wire::{
        control::{Mode, Warmth},
        peer::Urgency,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// How much of an image a VM is to hold. The order is that of strictness: of several wishes the last one holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// What is read.
    #[default]
    Read,
    /// What starts read, whether one comes or not.
    Hot,
    /// All of it, behind everything else.
    Rest,
    /// All of it: somebody waits for that.
    Whole,
}

impl Wish {
    /// What a start of a function of that mode wants now.
    pub fn of(mode: Mode, is_ready: bool) -> Self {
        match mode {
            Mode::Whole => Self::Whole,
            Mode::LazyThenWhole if is_ready => Self::Rest,
            Mode::LazyThenWhole | Mode::Lazy => Self::Read,
        }
    }

    /// What an order to preheat wants.
    pub fn to_preheat(what: Warmth) -> Self {
        match what {
            Warmth::Hot => Self::Hot,
            Warmth::Whole => Self::Whole,
        }
    }

    /// How urgent blocks are that nothing reads; none when they are not wanted.
    pub(super) fn urgency(self) -> Option<Urgency> {
        match self {
            Self::Read => None,
            Self::Rest => Some(Urgency::Background),
            Self::Hot | Self::Whole => Some(Urgency::Prefetch),
        }
    }
}

/// Goes through the image in its order, each stripe by itself: one whose upstream is slow holds up no other.
/// What could not be had is tried again when all others are there.
#[derive(Default)]
pub(super) struct Rest {
    wish: Wish,
    /// The next block of each stripe.
    next: Vec<u32>,
    /// Wanted, or on their way to the disk.
    open: BTreeSet<BlockId>,
    /// When those that were missed are looked for.
    again_at: Option<Instant>,
}

impl Rest {
    pub fn wish(&self) -> Wish {
        self.wish
    }

    pub fn set(&mut self, wish: Wish) {
        if self.wish != wish {
            *self = Self { wish, open: std::mem::take(&mut self.open), ..Self::default() };
        }
    }

    pub fn wants(&self, block: BlockId) -> bool {
        self.wish != Wish::Read && self.open.contains(&block)
    }

    /// A block that was there is not there any more.
    pub fn missed(&mut self) {
        self.next.clear();
        self.again_at = None;
    }

    /// The next blocks to want of an image of `count`, so that no more than `open_max` are open. `is_coming` says
    /// of a block that it is wanted or being written, `is_here` that it is there.
    pub fn take(
        &mut self,
        (count, stripes): (u32, u32),
        open_max: usize,
        (is_coming, is_here): (impl Fn(BlockId) -> bool, impl Fn(BlockId) -> bool),
        (now, pause): (Instant, Duration),
    ) -> Vec<BlockId> {
        self.open.retain(|block| is_coming(*block));
        if self.wish == Wish::Read || self.again_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        let stripes = stripes.max(1);
        if self.next.len() != stripes as usize {
            self.next = (0..stripes).collect();
            self.again_at = None;
        }
        let each_max = (open_max / stripes as usize).max(1);
        let mut open_of: BTreeMap<u32, usize> = BTreeMap::new();
        for block in &self.open {
            *open_of.entry(block.0 % stripes).or_default() += 1;
        }
        let mut taken = Vec::new();
        for (stripe, next) in (0..).zip(&mut self.next) {
            let mut room = each_max.saturating_sub(open_of.get(&stripe).copied().unwrap_or_default());
            while room > 0 && *next < count {
                let block = BlockId(*next);
                *next = next.saturating_add(stripes);
                if !is_here(block) && self.open.insert(block) {
                    taken.push(block);
                    room -= 1;
                }
            }
        }
        if self.open.is_empty() {
            // Once round; what could not be had is looked for after a pause.
            self.next.clear();
            self.again_at = Some(now + pause);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAUSE: Duration = Duration::from_millis(500);

    proptest! {
        /// Whatever is lost on the way, all blocks come in the end, never too many of them are open, and each
        /// stripe goes on while another one stands still.
        #[test]
        fn all_blocks_come_and_few_are_open(
            count in 1_u32..200, stripes in 1_u32..5, open_max in 1_usize..40, losses in proptest::collection::vec(any::<bool>(), 0..300),
        ) {
            let (mut rest, mut now) = (Rest::default(), Instant::now());
            let (mut here, mut coming) = (BTreeSet::new(), BTreeSet::new());
            let mut losses = losses.into_iter();
            rest.set(Wish::Rest);
            while here.len() < count as usize {
                let is = |set: &BTreeSet<BlockId>, block: BlockId| set.contains(&block);
                let taken = rest.take(
                    (count, stripes), open_max, (|block| is(&coming, block), |block| is(&here, block)), (now, PAUSE),
                );
                for block in taken {
                    prop_assert!(coming.insert(block) && !here.contains(&block));
                }
                prop_assert!(coming.len() <= open_max.max(stripes as usize));
                if let Some(block) = coming.pop_last() {
                    if !losses.next().unwrap_or(false) {
                        here.insert(block);
                    }
                } else {
                    now += PAUSE;
                }
            }
        }
    }

    #[test]
    fn a_stripe_whose_upstream_stands_still_does_not_hold_up_the_others() {
        let (mut rest, now) = (Rest::default(), Instant::now());
        rest.set(Wish::Whole);
        let stuck = |block: BlockId| block.0 % 2 == 1;
        let mut all = BTreeSet::new();
        for _ in 0..10 {
            all.extend(rest.take((20, 2), 4, (stuck, |block| all.contains(&block)), (now, PAUSE)));
        }
        let even = (0..20).step_by(2).map(BlockId).collect::<BTreeSet<_>>();
        assert_eq!(all.iter().copied().filter(|block| !stuck(*block)).collect::<BTreeSet<_>>(), even);
        assert_eq!(all.len() - even.len(), 2, "of the one that stands still only its share is open");
    }
}

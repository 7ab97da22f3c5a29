//! The reads of one block image: which wait for which blocks, and what the agent was asked.
//!
//! Pure. A read names the blocks it covers; it is answered when all are present, and fails when one
//! of them cannot be had, when its deadline passes, or when too many wait already.

use faasnet_actors::id::BlockId;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// One read of the kernel, numbered by the shell, which keeps the place to send the answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// What is to be done about reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadEffect {
    /// All blocks of the read are present.
    Answer(ReadId),
    /// The read ends with an I/O error.
    Fail(ReadId),
    /// The agent is asked for these blocks.
    Miss(Vec<BlockId>),
}

/// The kernel repeats a failed read-ahead at once, page by page. Within this time such a read fails
/// too, or a reader would wait for twice the deadline.
const GIVEN_UP: Duration = Duration::from_secs(1);

struct Waiting {
    blocks: RangeInclusive<u32>,
    deadline: Instant,
}

/// Invariant 7, as far as reads go: no block is both present and asked for, no read waits for blocks
/// that are all present, and every waiting read has a deadline.
pub struct Reads {
    present: Vec<u8>,
    block_count: u32,
    waiting: BTreeMap<ReadId, Waiting>,
    waiting_max: usize,
    asked: BTreeSet<u32>,
    /// Blocks that reads gave up waiting for, and until when further reads of them fail at once.
    given_up: BTreeMap<u32, Instant>,
    closed: bool,
}

impl Reads {
    /// `present` has bit `n % 8` of byte `n / 8` set when block `n` is there; `None` if it is not one
    /// bit for each block.
    pub fn new(present: Vec<u8>, block_count: u32, waiting_max: usize) -> Option<Self> {
        if present.len() != block_count.div_ceil(8) as usize {
            return None;
        }
        Some(Self {
            present,
            block_count,
            waiting: BTreeMap::new(),
            waiting_max,
            asked: BTreeSet::new(),
            given_up: BTreeMap::new(),
            closed: false,
        })
    }

    pub fn is_present(&self, block: u32) -> bool {
        block < self.block_count && self.present[block as usize / 8] & (1 << (block % 8)) != 0
    }

    /// A read that found blocks missing. They may have arrived since.
    pub fn wait(
        &mut self,
        read: ReadId,
        blocks: RangeInclusive<u32>,
        now: Instant,
        deadline: Instant,
        effects: &mut Vec<ReadEffect>,
    ) {
        if self.closed || *blocks.end() >= self.block_count {
            return effects.push(ReadEffect::Fail(read));
        }
        let missing: Vec<u32> = blocks.clone().filter(|block| !self.is_present(*block)).collect();
        if missing.is_empty() {
            return effects.push(ReadEffect::Answer(read));
        }
        self.given_up.retain(|_, until| *until > now);
        let given_up = missing.iter().any(|block| self.given_up.contains_key(block));
        if given_up || self.waiting.len() >= self.waiting_max {
            return effects.push(ReadEffect::Fail(read));
        }
        let ask: Vec<BlockId> =
            missing.into_iter().filter(|block| self.asked.insert(*block)).map(BlockId).collect();
        if !ask.is_empty() {
            effects.push(ReadEffect::Miss(ask));
        }
        self.waiting.insert(read, Waiting { blocks, deadline });
        self.check();
    }

    /// These blocks are in the cache file. Numbers that the image does not have are ignored.
    pub fn present(&mut self, blocks: &[BlockId], effects: &mut Vec<ReadEffect>) {
        for &BlockId(block) in blocks {
            if block < self.block_count {
                self.present[block as usize / 8] |= 1 << (block % 8);
                self.asked.remove(&block);
                self.given_up.remove(&block);
            }
        }
        let is_whole = |read: &Waiting| read.blocks.clone().all(|block| self.is_present(block));
        let whole: Vec<ReadId> =
            self.waiting.iter().filter(|(_, read)| is_whole(read)).map(|(id, _)| *id).collect();
        for read in whole {
            self.waiting.remove(&read);
            effects.push(ReadEffect::Answer(read));
        }
        self.check();
    }

    /// Blocks that a bitmap of the agent has beyond ours.
    pub fn merge(&mut self, present: &[u8], effects: &mut Vec<ReadEffect>) {
        let has =
            |block: u32| present.get(block as usize / 8).is_some_and(|byte| byte & (1 << (block % 8)) != 0);
        let new: Vec<BlockId> = (0..self.block_count)
            .filter(|block| has(*block) && !self.is_present(*block))
            .map(BlockId)
            .collect();
        self.present(&new, effects);
    }

    /// The blocks of another cache file count now, and no others.
    pub fn replace(&mut self, present: Vec<u8>, effects: &mut Vec<ReadEffect>) {
        self.present.fill(0);
        self.merge(&present, effects);
    }

    /// These blocks cannot be had now. A later read asks for them again.
    pub fn unavailable(&mut self, blocks: &[BlockId], effects: &mut Vec<ReadEffect>) {
        let lost: BTreeSet<u32> =
            blocks.iter().map(|block| block.0).filter(|block| !self.is_present(*block)).collect();
        self.asked.retain(|block| !lost.contains(block));
        self.fail(|read| lost.range(read.blocks.clone()).next().is_some(), effects);
    }

    /// A new agent knows of no question and may have what the one before had not:
    /// asks again for all that reads still need.
    pub fn ask_again(&mut self, effects: &mut Vec<ReadEffect>) {
        self.given_up.clear();
        let needed = self.waiting.values().flat_map(|read| read.blocks.clone());
        self.asked = needed.filter(|block| !self.is_present(*block)).collect();
        // Far fewer than fit into one frame: waiting reads are limited, and each covers a few blocks.
        if !self.asked.is_empty() {
            effects.push(ReadEffect::Miss(self.asked.iter().copied().map(BlockId).collect()));
        }
        self.check();
    }

    /// Fails the reads whose deadline has passed.
    pub fn expire(&mut self, now: Instant, effects: &mut Vec<ReadEffect>) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.give_up(now, |read| read.deadline <= now, effects);
        }
    }

    /// Fails the reads that wait now.
    pub fn fail_all(&mut self, now: Instant, effects: &mut Vec<ReadEffect>) {
        self.give_up(now, |_| true, effects);
    }

    fn give_up(&mut self, now: Instant, is_lost: impl Fn(&Waiting) -> bool, effects: &mut Vec<ReadEffect>) {
        let lost = self.waiting.values().filter(|read| is_lost(read)).flat_map(|read| read.blocks.clone());
        let missing: Vec<u32> = lost.filter(|block| !self.is_present(*block)).collect();
        self.given_up.extend(missing.into_iter().map(|block| (block, now + GIVEN_UP)));
        self.fail(is_lost, effects);
    }

    /// Fails all reads, now and later: the mount is given up.
    pub fn close(&mut self, effects: &mut Vec<ReadEffect>) {
        self.closed = true;
        self.fail(|_| true, effects);
    }

    /// When `expire` has something to do next. Reads are numbered as they come and all wait equally
    /// long, so the first is the first to expire.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, read)| read.deadline)
    }

    fn fail(&mut self, is_lost: impl Fn(&Waiting) -> bool, effects: &mut Vec<ReadEffect>) {
        self.waiting.retain(|id, read| {
            let lost = is_lost(read);
            if lost {
                effects.push(ReadEffect::Fail(*id));
            }
            !lost
        });
        self.check();
    }

    fn check(&self) {
        debug_assert!(self.asked.iter().all(|block| !self.is_present(*block)), "invariant 7");
        debug_assert!(
            self.waiting.values().all(|read| read.blocks.clone().any(|block| !self.is_present(block))),
            "invariant 7"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ReadEffect::{Answer, Fail, Miss};

    struct Desk {
        reads: Reads,
        start: Instant,
    }

    impl Desk {
        fn new() -> Self {
            Self { reads: Reads::new(vec![0b1], 4, 3).expect("one byte"), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn wait(&mut self, read: u64, blocks: RangeInclusive<u32>) -> Vec<ReadEffect> {
            let (now, deadline) = (self.at(read), self.at(10 + read));
            self.run(|reads, effects| reads.wait(ReadId(read), blocks, now, deadline, effects))
        }

        fn run(&mut self, call: impl FnOnce(&mut Reads, &mut Vec<ReadEffect>)) -> Vec<ReadEffect> {
            let mut effects = Vec::new();
            call(&mut self.reads, &mut effects);
            effects
        }
    }

    fn blocks(numbers: &[u32]) -> Vec<BlockId> {
        numbers.iter().copied().map(BlockId).collect()
    }

    #[test]
    fn a_block_is_asked_for_once_and_all_its_reads_are_answered() {
        let mut desk = Desk::new();
        assert_eq!(desk.wait(1, 0..=1), [Miss(blocks(&[1]))]);
        assert_eq!(desk.wait(2, 1..=2), [Miss(blocks(&[2]))]);
        assert_eq!(desk.run(|r, e| r.present(&blocks(&[1]), e)), [Answer(ReadId(1))]);
        assert_eq!(desk.run(|r, e| r.present(&blocks(&[2, 99]), e)), [Answer(ReadId(2))]);
        assert_eq!(desk.wait(3, 0..=2), [Answer(ReadId(3))]);
    }

    #[test]
    fn a_block_that_cannot_be_had_fails_its_reads_and_may_be_asked_for_again() {
        let mut desk = Desk::new();
        desk.wait(1, 1..=1);
        desk.wait(2, 2..=2);
        assert_eq!(desk.run(|r, e| r.unavailable(&blocks(&[1, 0]), e)), [Fail(ReadId(1))]);
        assert_eq!(desk.wait(3, 1..=1), [Miss(blocks(&[1]))]);
    }

    #[test]
    fn a_new_agent_is_asked_for_all_that_reads_need() {
        let mut desk = Desk::new();
        desk.wait(1, 1..=2);
        desk.wait(2, 3..=3);
        desk.run(|r, e| r.present(&blocks(&[2]), e));
        assert_eq!(desk.run(Reads::ask_again), [Miss(blocks(&[1, 3]))]);
        assert_eq!(desk.run(|r, e| r.merge(&[0b1010], e)), [Answer(ReadId(1)), Answer(ReadId(2))]);
        assert_eq!(desk.run(Reads::ask_again), []);
    }

    #[test]
    fn with_another_cache_file_only_its_blocks_count() {
        let mut desk = Desk::new();
        desk.run(|r, e| r.present(&blocks(&[1, 2]), e));
        desk.wait(1, 2..=3);
        assert_eq!(desk.run(|r, e| r.replace(vec![0b1010], e)), []);
        assert_eq!(desk.run(Reads::ask_again), [Miss(blocks(&[2]))]);
        assert_eq!(desk.wait(2, 0..=1), [Miss(blocks(&[0]))]);
        assert_eq!(desk.run(|r, e| r.replace(vec![0b1111], e)), [Answer(ReadId(1)), Answer(ReadId(2))]);
    }

    #[test]
    fn reads_end_at_their_deadline_at_the_limit_and_when_closed() {
        let mut desk = Desk::new();
        for read in 1..=3 {
            desk.wait(read, 1..=1);
        }
        assert_eq!(desk.wait(4, 1..=1), [Fail(ReadId(4))]);
        assert_eq!(desk.wait(5, 4..=4), [Fail(ReadId(5))]);
        assert_eq!(desk.reads.next_deadline(), Some(desk.at(11)));
        let now = desk.at(12);
        assert_eq!(desk.run(|r, e| r.expire(now, e)), [Fail(ReadId(1)), Fail(ReadId(2))]);
        assert_eq!(desk.wait(12, 0..=1), [Fail(ReadId(12))], "given up a moment ago");
        assert_eq!(desk.wait(14, 1..=1), [], "waits again, and is asked for already");
        assert_eq!(desk.run(Reads::close), [Fail(ReadId(3)), Fail(ReadId(14))]);
        assert_eq!(desk.wait(6, 0..=0), [Fail(ReadId(6))]);
        assert!(Reads::new(vec![0, 0], 8, 1).is_none());
    }
}

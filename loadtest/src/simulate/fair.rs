//! Links that flows share max-min fairly: no flow gets more at the cost of one that has less.
//!
//! Each node has an uplink and a downlink; a flow takes from one of each. A link offers its flows one share; a flow
//! gets the smaller of the offers of its two links, and what it leaves is shared by the others of the other link.
//! When a flow comes or goes only the links are looked at whose offers change by that, one after the other, until
//! all offers fit to each other. Changes below a thousandth are not passed on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Offers that are computed because of one change; where many flows meet many links the last digits may be missing.
const STEPS_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Up(usize),
    Down(usize),
}

#[derive(Debug, Clone, Default)]
struct Shared {
    capacity: u64,
    flows: BTreeSet<u64>,
    offer: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Fair {
    up: Vec<Shared>,
    down: Vec<Shared>,
    flows: BTreeMap<u64, (usize, usize)>,
}

impl Fair {
    /// Capacities out of and into each node.
    pub fn new(capacities: impl Iterator<Item = (u64, u64)>) -> Self {
        let shared = |capacity| Shared { capacity, flows: BTreeSet::new(), offer: capacity };
        let (up, down) = capacities.map(|(up, down)| (shared(up), shared(down))).unzip();
        Self { up, down, flows: BTreeMap::new() }
    }

    pub fn nodes(&self) -> usize {
        self.up.len()
    }

    /// Adds a flow. Returns all flows whose rates may have changed.
    pub fn add(&mut self, flow: u64, from: usize, to: usize) -> BTreeSet<u64> {
        self.flows.insert(flow, (from, to));
        self.up[from].flows.insert(flow);
        self.down[to].flows.insert(flow);
        let mut changed = self.settle([Link::Up(from), Link::Down(to)]);
        changed.insert(flow);
        changed
    }

    /// Removes a flow. Returns all flows whose rates may have changed.
    pub fn remove(&mut self, flow: u64) -> BTreeSet<u64> {
        let Some((from, to)) = self.flows.remove(&flow) else { return BTreeSet::new() };
        self.up[from].flows.remove(&flow);
        self.down[to].flows.remove(&flow);
        self.settle([Link::Up(from), Link::Down(to)])
    }

    /// What a flow gets, 0 when there is no such flow.
    pub fn rate(&self, flow: u64) -> u64 {
        self.flows.get(&flow).map_or(0, |(from, to)| self.up[*from].offer.min(self.down[*to].offer).max(1))
    }

    fn link(&self, link: Link) -> &Shared {
        match link {
            Link::Up(node) => &self.up[node],
            Link::Down(node) => &self.down[node],
        }
    }

    fn other_end(&self, link: Link, flow: u64) -> Link {
        let (from, to) = self.flows[&flow];
        match link {
            Link::Up(_) => Link::Down(to),
            Link::Down(_) => Link::Up(from),
        }
    }

    fn settle(&mut self, links: [Link; 2]) -> BTreeSet<u64> {
        let mut waiting: VecDeque<Link> = links.into();
        let mut changed = BTreeSet::new();
        for _ in 0..STEPS_MAX {
            let Some(link) = waiting.pop_front() else { break };
            let (before, offer) = (self.link(link).offer, self.offer(link));
            if offer.abs_diff(before) * 1000 <= before {
                continue;
            }
            match link {
                Link::Up(node) => self.up[node].offer = offer,
                Link::Down(node) => self.down[node].offer = offer,
            }
            changed.extend(&self.link(link).flows);
            for flow in &self.link(link).flows {
                let other = self.other_end(link, *flow);
                // Whoever has a single flow offers all it has.
                if self.link(other).flows.len() > 1 && !waiting.contains(&other) {
                    waiting.push_back(other);
                }
            }
        }
        changed
    }

    /// What a link offers each of its flows, when those that get less elsewhere leave the rest to the others.
    fn offer(&self, link: Link) -> u64 {
        let Shared { capacity, flows, .. } = self.link(link);
        if flows.len() <= 1 {
            return *capacity;
        }
        let mut wanted: Vec<u64> =
            flows.iter().map(|flow| self.link(self.other_end(link, *flow)).offer).collect();
        wanted.sort_unstable();
        let mut left = *capacity;
        for (number, wanted) in wanted.iter().enumerate() {
            let share = left / (flows.len() - number) as u64;
            if share <= *wanted {
                return share;
            }
            left -= wanted;
        }
        left + wanted.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_slow_receiver_leaves_goes_to_the_others() {
        let mut fair = Fair::new([(90, 90), (90, 10), (90, 90), (90, 90)].into_iter());
        fair.add(1, 0, 1);
        fair.add(2, 0, 2);
        let changed = fair.add(3, 0, 3);
        assert_eq!([fair.rate(1), fair.rate(2), fair.rate(3)], [10, 40, 40]);
        assert!(changed.contains(&2));
        fair.remove(2);
        assert_eq!([fair.rate(1), fair.rate(3)], [10, 80]);
    }

    #[test]
    fn rates_follow_a_chain_of_links() {
        // 0 sends to 1 and 2, 3 sends to 2, and 2 has a narrow downlink.
        let mut fair = Fair::new([(100, 100), (100, 100), (100, 60), (100, 100)].into_iter());
        fair.add(1, 0, 1);
        fair.add(2, 0, 2);
        fair.add(3, 3, 2);
        assert_eq!([fair.rate(1), fair.rate(2), fair.rate(3)], [70, 30, 30]);
    }

    #[test]
    fn no_link_gives_more_than_it_has_and_every_flow_is_held_back_by_a_full_one() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(1);
        let capacities: Vec<(u64, u64)> =
            (0..12).map(|_| (rng.random_range(10_000..90_000), rng.random_range(10_000..90_000))).collect();
        let mut fair = Fair::new(capacities.iter().copied());
        for step in 0..300_u64 {
            if step % 3 == 2 {
                fair.remove(rng.random_range(0..step));
            } else {
                fair.add(step, rng.random_range(0..12), rng.random_range(0..12));
            }
            let used = |shared: &Shared| shared.flows.iter().map(|flow| fair.rate(*flow)).sum::<u64>();
            let about = |used: u64, capacity: u64| used as f64 / capacity as f64;
            for shared in fair.up.iter().chain(&fair.down) {
                assert!(about(used(shared), shared.capacity) < 1.03, "step {step}: {shared:?}");
            }
            for (flow, (from, to)) in &fair.flows {
                let is_full = |shared: &Shared| {
                    let most = shared.flows.iter().map(|other| fair.rate(*other)).max().unwrap_or_default();
                    about(used(shared), shared.capacity) > 0.97 && fair.rate(*flow) * 103 >= most * 100
                };
                assert!(is_full(&fair.up[*from]) || is_full(&fair.down[*to]), "step {step}: flow {flow}");
            }
        }
    }
}

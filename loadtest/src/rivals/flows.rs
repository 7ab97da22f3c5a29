//! Work that shares resources max-min fairly: links of VMs, streams of a registry, cores, disks.
//!
//! A flow takes the same rate from each of its resources: a transfer from the uplink of its sender and the
//! downlink of its receiver, unpacking from the unpacker of its VM. Rates are those of progressive filling: all
//! grow together, and those that use a full resource stay where they are.

use crate::simulate::Nanos;
use slab::Slab;
use std::{cmp::Reverse, collections::BinaryHeap};

const NANOS_PER_SECOND: f64 = 1e9;

/// Something of which so much is there in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource(usize);

struct Pool {
    capacity: f64,
    used: f64,
    users: Vec<usize>,
    /// While rates are computed: what is left of it, and for how many.
    left: f64,
    open: usize,
    round: u64,
}

struct Flow<T> {
    tag: T,
    uses: Vec<Resource>,
    ceiling: f64,
    left: f64,
    rate: f64,
    since: Nanos,
    /// Its number in the order of beginning.
    number: u64,
    ends_at: Nanos,
    /// While rates are computed: None until it is decided.
    next_rate: Option<f64>,
    round: u64,
}

pub struct Flows<T> {
    pools: Vec<Pool>,
    flows: Slab<Flow<T>>,
    begun: u64,
    /// Those whose users have changed, and flows that use none.
    changed: Vec<Resource>,
    alone: Vec<usize>,
    /// Ends as they were computed; those that have changed since are passed over.
    ends: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    /// Of computing rates; what carries its number is part of what is computed.
    round: u64,
}

impl<T> Default for Flows<T> {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            flows: Slab::new(),
            begun: 0,
            changed: Vec::new(),
            alone: Vec::new(),
            ends: BinaryHeap::new(),
            round: 0,
        }
    }
}

impl<T> Flows<T> {
    /// A new resource with that much in a second.
    pub fn resource(&mut self, capacity: f64) -> Resource {
        assert!(capacity > 0.0, "a resource without capacity never ends anything");
        let users = Vec::new();
        self.pools.push(Pool { capacity, used: 0.0, users, left: 0.0, open: 0, round: 0 });
        Resource(self.pools.len() - 1)
    }

    /// Begins to take `amount`, at most at `ceiling` in a second, from all those resources at once.
    pub fn begin(&mut self, now: Nanos, uses: Vec<Resource>, ceiling: f64, amount: f64, tag: T) {
        debug_assert!(!uses.is_empty() || ceiling.is_finite());
        let slot = self.flows.vacant_key();
        for resource in &uses {
            self.pools[resource.0].users.push(slot);
            self.changed.push(*resource);
        }
        if uses.is_empty() {
            self.alone.push(slot);
        }
        self.flows.insert(Flow {
            tag,
            uses,
            ceiling,
            left: amount.max(0.0),
            rate: 0.0,
            since: now,
            number: self.begun,
            ends_at: Nanos::MAX,
            next_rate: None,
            round: 0,
        });
        self.begun += 1;
    }

    /// When the next flow ends, if nothing begins before.
    pub fn next_end(&mut self, now: Nanos) -> Option<Nanos> {
        self.settle(now);
        while let Some(Reverse((at, number, slot))) = self.ends.peek() {
            let is_right = |flow: &Flow<T>| flow.number == *number && flow.ends_at == *at;
            if self.flows.get(*slot).is_some_and(is_right) {
                return Some(*at);
            }
            self.ends.pop();
        }
        None
    }

    /// What has ended at that moment: at the same one in the order of beginning.
    pub fn take_ended(&mut self, now: Nanos) -> Vec<T> {
        let mut ended = Vec::new();
        while self.next_end(now).is_some_and(|at| at <= now) {
            // All that end now, before any rate is computed anew.
            while let Some(Reverse((at, number, slot))) =
                self.ends.peek().copied().filter(|end| end.0.0 <= now)
            {
                self.ends.pop();
                let is_right = |flow: &Flow<T>| flow.number == number && flow.ends_at == at;
                if !self.flows.get(slot).is_some_and(is_right) {
                    continue;
                }
                let flow = self.flows.remove(slot);
                for resource in &flow.uses {
                    let pool = &mut self.pools[resource.0];
                    if let Some(place) = pool.users.iter().position(|user| *user == slot) {
                        pool.users.swap_remove(place);
                    }
                    pool.used += flow.left;
                    self.changed.push(*resource);
                }
                ended.push(flow.tag);
            }
        }
        ended
    }

    /// What was taken of a resource by flows that have ended or changed their rate.
    pub fn used(&self, resource: Resource) -> f64 {
        self.pools[resource.0].used
    }

    /// Computes the rates anew of all flows that a change can have touched.
    fn settle(&mut self, now: Nanos) {
        if self.changed.is_empty() && self.alone.is_empty() {
            return;
        }
        let (resources, flows) = self.touched();
        self.fill(&resources, &flows);
        for slot in flows {
            let flow = &mut self.flows[slot];
            let rate = flow.next_rate.take().unwrap_or(f64::MIN_POSITIVE);
            if flow.rate == rate {
                continue;
            }
            let seconds = now.saturating_sub(flow.since) as f64 / NANOS_PER_SECOND;
            let done = (flow.rate * seconds).min(flow.left);
            flow.left -= done;
            (flow.rate, flow.since) = (rate, now);
            let nanos = if flow.left > 0.0 { (flow.left / rate * NANOS_PER_SECOND).ceil() } else { 0.0 };
            flow.ends_at = now.saturating_add(nanos as Nanos);
            self.ends.push(Reverse((flow.ends_at, flow.number, slot)));
            flow.uses.iter().for_each(|resource| self.pools[resource.0].used += done);
        }
    }

    /// What shares anything with what has changed, directly or through others.
    fn touched(&mut self) -> (Vec<Resource>, Vec<usize>) {
        self.round += 1;
        let round = self.round;
        let mut flows = std::mem::take(&mut self.alone);
        flows.retain(|slot| self.flows.contains(*slot));
        let mut resources = Vec::new();
        let mut open = std::mem::take(&mut self.changed);
        while let Some(resource) = open.pop() {
            let pool = &mut self.pools[resource.0];
            if std::mem::replace(&mut pool.round, round) == round {
                continue;
            }
            (pool.left, pool.open) = (pool.capacity, pool.users.len());
            resources.push(resource);
            for slot in &pool.users {
                let flow = &mut self.flows[*slot];
                if std::mem::replace(&mut flow.round, round) != round {
                    flows.push(*slot);
                    open.extend(&flow.uses);
                }
            }
        }
        (resources, flows)
    }

    /// Progressive filling: in each round the resource that is full first decides, or a flow's own ceiling.
    fn fill(&mut self, resources: &[Resource], flows: &[usize]) {
        let capped = flows.iter().map(|slot| (self.flows[*slot].ceiling, self.flows[*slot].number, *slot));
        let mut ceilings: Vec<(f64, u64, usize)> =
            capped.filter(|(ceiling, ..)| ceiling.is_finite()).collect();
        ceilings.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        let used = resources.iter().filter(|resource| self.pools[resource.0].open > 0);
        let mut heap: BinaryHeap<Share> = used.map(|resource| self.share(*resource)).collect();
        loop {
            // A share only grows while others are decided: one that is out of date is put back.
            while heap.peek().is_some_and(|top| top.users != self.pools[top.resource.0].open) {
                let Some(stale) = heap.pop() else { break };
                if self.pools[stale.resource.0].open > 0 {
                    heap.push(self.share(stale.resource));
                }
            }
            while ceilings.last().is_some_and(|(_, _, slot)| self.flows[*slot].next_rate.is_some()) {
                ceilings.pop();
            }
            let full = heap.peek().map(|top| top.rate);
            match ceilings.last() {
                Some(&(ceiling, _, slot)) if full.is_none_or(|rate| ceiling < rate) => {
                    self.decide(slot, ceiling);
                }
                _ => {
                    let Some(top) = heap.pop() else { return };
                    let users = std::mem::take(&mut self.pools[top.resource.0].users);
                    users.iter().for_each(|slot| self.decide(*slot, top.rate));
                    self.pools[top.resource.0].users = users;
                }
            }
        }
    }

    fn share(&self, resource: Resource) -> Share {
        let Pool { left, open, .. } = self.pools[resource.0];
        Share { rate: (left / open as f64).max(f64::MIN_POSITIVE), resource, users: open }
    }

    fn decide(&mut self, slot: usize, rate: f64) {
        let flow = &mut self.flows[slot];
        if flow.next_rate.is_some() {
            return;
        }
        flow.next_rate = Some(rate);
        for resource in &flow.uses {
            let pool = &mut self.pools[resource.0];
            pool.left = (pool.left - rate).max(0.0);
            pool.open -= 1;
        }
    }
}

/// What each user of a resource gets when all that is left of it is shared.
struct Share {
    rate: f64,
    resource: Resource,
    /// Those that were undecided when this was computed.
    users: usize,
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Share {}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Share {
    /// The least share first, from a heap that gives its greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.rate.total_cmp(&self.rate).then(other.resource.cmp(&self.resource))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::SECOND;

    fn ends(flows: &mut Flows<&'static str>) -> Vec<(&'static str, f64)> {
        let (mut ends, mut now) = (Vec::new(), 0);
        while let Some(at) = flows.next_end(now) {
            now = at;
            ends.extend(flows.take_ended(at).into_iter().map(|tag| (tag, at as f64 / SECOND as f64)));
        }
        ends
    }

    #[test]
    fn flows_of_one_resource_get_equal_shares_and_the_longest_gets_all_at_the_end() {
        let mut flows = Flows::default();
        let link = flows.resource(10.0);
        flows.begin(0, vec![link], f64::INFINITY, 10.0, "short");
        flows.begin(0, vec![link], f64::INFINITY, 20.0, "long");
        assert_eq!(ends(&mut flows), [("short", 2.0), ("long", 3.0)]);
        assert_eq!(flows.used(link), 30.0);
    }

    #[test]
    fn what_one_flow_cannot_use_the_others_get() {
        let mut flows = Flows::default();
        let (shared, narrow) = (flows.resource(10.0), flows.resource(2.0));
        flows.begin(0, vec![shared, narrow], f64::INFINITY, 4.0, "narrow");
        flows.begin(0, vec![shared], 3.0, 6.0, "capped");
        flows.begin(0, vec![shared], f64::INFINITY, 10.0, "greedy");
        assert_eq!(ends(&mut flows), [("narrow", 2.0), ("capped", 2.0), ("greedy", 2.0)]);
    }

    #[test]
    fn a_flow_that_begins_later_slows_the_first_down_from_then_on() {
        let mut flows = Flows::default();
        let link = flows.resource(10.0);
        flows.begin(0, vec![link], f64::INFINITY, 20.0, "first");
        assert_eq!(flows.next_end(0), Some(2 * SECOND));
        flows.begin(SECOND, vec![link], f64::INFINITY, 5.0, "second");
        assert_eq!(flows.next_end(SECOND), Some(2 * SECOND));
        assert_eq!(ends(&mut flows), [("second", 2.0), ("first", 2.5)]);
    }

    #[test]
    fn nothing_to_do_ends_at_once() {
        let mut flows = Flows::default();
        let link = flows.resource(1.0);
        flows.begin(7, vec![link], f64::INFINITY, 0.0, "nothing");
        assert_eq!(flows.next_end(7), Some(7));
        assert_eq!(flows.take_ended(7), ["nothing"]);
        assert_eq!(flows.next_end(7), None);
    }
}

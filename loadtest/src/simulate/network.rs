//! Links between VMs, and from the origin: what is sent shares the rates of both ends.
//!
//! A connection sends one frame after the other, demand before read-ahead. Those that send at the moment share
//! uplinks and downlinks max-min fairly (`fair`).

use super::{fair::Fair, queue::Nanos};
use bytes::Bytes;
use faasnet_actors::{
    id::TreeId,
    wire::{
        control::Upstream,
        peer::{FromParent, Urgency},
    },
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A VM by its number, or one of those behind them.
pub type Node = usize;

/// Bytes of a frame beside its body.
const HEADER_BYTES: u64 = 64;

#[derive(Debug)]
pub(super) struct Frame {
    pub message: FromParent,
    pub body: Bytes,
    pub bytes: u64,
    pub urgency: Urgency,
}

impl Frame {
    /// `body_bytes` is what the body stands for.
    pub fn new(urgency: Urgency, message: FromParent, body: Bytes, body_bytes: u64) -> Self {
        Self { message, body, bytes: HEADER_BYTES + body_bytes, urgency }
    }
}

struct Sending {
    frame: Frame,
    left: u64,
    rate: u64,
    since: Nanos,
}

pub(super) struct Conn {
    pub tree: TreeId,
    pub child: Node,
    pub parent: Node,
    /// How the child calls the parent.
    pub upstream: Upstream,
    /// The parent knows of the child.
    pub has_arrived: bool,
    /// The parent has let the child in.
    pub is_open: bool,
    /// The child has waited for the connection, and waits for the parent's answer now.
    pub is_late: bool,
    demand: VecDeque<Frame>,
    prefetch: VecDeque<Frame>,
    background: VecDeque<Frame>,
    sending: Option<Sending>,
    /// Of the last computed end of what is being sent.
    version: u32,
}

impl Conn {
    pub fn new(tree: TreeId, child: Node, parent: Node, upstream: Upstream) -> Self {
        let (demand, prefetch, background) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self {
            tree,
            child,
            parent,
            upstream,
            has_arrived: false,
            is_open: false,
            is_late: false,
            demand,
            prefetch,
            background,
            sending: None,
            version: 0,
        }
    }
}

/// The moment at which what a connection sends will have been sent, unless the version is an old one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub at: Nanos,
    pub conn: u64,
    pub version: u32,
}

pub(super) struct Network {
    fair: Fair,
    frozen: Vec<bool>,
    pub conns: BTreeMap<u64, Conn>,
    of_node: Vec<BTreeSet<u64>>,
    /// Pairs of nodes that do not reach each other, the smaller first, and until when.
    cuts: BTreeMap<(Node, Node), Nanos>,
    sent: Vec<Sent>,
}

impl Network {
    /// Rates out of and into each node, in bytes a second.
    pub fn new(rates: impl Iterator<Item = (u64, u64)>) -> Self {
        let fair = Fair::new(rates);
        let nodes = fair.nodes();
        let (frozen, of_node) = (vec![false; nodes], vec![BTreeSet::new(); nodes]);
        let (conns, cuts) = (BTreeMap::new(), BTreeMap::new());
        Self { fair, frozen, conns, of_node, cuts, sent: Vec::new() }
    }

    /// Moments to come back for, told since the last call.
    pub fn take_sent(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.sent)
    }

    pub fn open(&mut self, id: u64, conn: Conn) {
        self.of_node[conn.child].insert(id);
        self.of_node[conn.parent].insert(id);
        self.conns.insert(id, conn);
    }

    pub fn close(&mut self, id: u64, now: Nanos) -> Option<Conn> {
        let conn = self.conns.remove(&id)?;
        self.of_node[conn.child].remove(&id);
        self.of_node[conn.parent].remove(&id);
        if conn.sending.is_some() {
            self.active(id, false, now);
        }
        Some(conn)
    }

    pub fn conns_of(&self, node: Node) -> Vec<u64> {
        self.of_node[node].iter().copied().collect()
    }

    /// Frames that wait on a connection.
    pub fn queued(&self, id: u64) -> usize {
        self.conns.get(&id).map_or(0, |conn| conn.demand.len() + conn.prefetch.len() + conn.background.len())
    }

    pub fn send(&mut self, id: u64, frame: Frame, now: Nanos) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match frame.urgency {
            Urgency::Demand => conn.demand.push_back(frame),
            Urgency::Prefetch => conn.prefetch.push_back(frame),
            Urgency::Background => conn.background.push_back(frame),
        }
        if conn.sending.is_none() {
            self.next(id, now);
            self.active(id, true, now);
        }
    }

    /// What was sent completely, if that moment is still the right one.
    pub fn sent(&mut self, Sent { conn: id, version, .. }: Sent, now: Nanos) -> Option<Frame> {
        let conn = self.conns.get_mut(&id).filter(|conn| conn.version == version)?;
        let Sending { frame, .. } = conn.sending.take()?;
        if self.next(id, now) {
            self.schedule(id, now);
        } else {
            self.active(id, false, now);
        }
        Some(frame)
    }

    /// Begins with the next frame, at no rate yet.
    fn next(&mut self, id: u64, now: Nanos) -> bool {
        let Some(conn) = self.conns.get_mut(&id) else { return false };
        let queues = [&mut conn.demand, &mut conn.prefetch, &mut conn.background];
        let Some(frame) = queues.into_iter().find_map(VecDeque::pop_front) else { return false };
        conn.sending = Some(Sending { left: frame.bytes, frame, rate: 0, since: now });
        true
    }

    /// The connection begins or stops to take part: its neighbours' shares change.
    fn active(&mut self, id: u64, is_active: bool, now: Nanos) {
        let changed = match self.conns.get(&id).filter(|_| is_active) {
            Some(conn) if self.is_held(conn) => self.fair.remove(id),
            Some(conn) => self.fair.add(id, conn.parent, conn.child),
            None => self.fair.remove(id),
        };
        for changed in changed {
            self.schedule(changed, now);
        }
    }

    /// Whether nothing moves on it.
    fn is_held(&self, conn: &Conn) -> bool {
        let is_frozen = self.frozen[conn.parent] || self.frozen[conn.child];
        is_frozen || self.cuts.contains_key(&pair(conn.parent, conn.child))
    }

    /// What a node sends and takes goes on, or not.
    fn refresh(&mut self, node: Node, now: Nanos) {
        for id in self.conns_of(node) {
            if self.conns[&id].sending.as_ref().is_some_and(|sending| sending.left > 0) {
                self.active(id, true, now);
                self.schedule(id, now);
            }
        }
    }

    fn schedule(&mut self, id: u64, now: Nanos) {
        let rate = self.fair.rate(id);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(sending) = conn.sending.as_mut().filter(|sending| sending.left > 0) else { return };
        if sending.rate == rate && rate > 0 {
            return;
        }
        let done = u128::from(sending.rate) * u128::from(now - sending.since) / NANOS_PER_SECOND;
        sending.left = sending.left.saturating_sub(done as u64);
        (sending.rate, sending.since) = (rate, now);
        conn.version += 1;
        if rate > 0 {
            let length = (u128::from(sending.left) * NANOS_PER_SECOND).div_ceil(u128::from(rate)) as Nanos;
            self.sent.push(Sent { at: now + length, conn: id, version: conn.version });
        }
    }

    /// A node that is frozen sends and takes nothing.
    pub fn freeze(&mut self, node: Node, is_frozen: bool, now: Nanos) {
        self.frozen[node] = is_frozen;
        self.refresh(node, now);
    }

    pub fn cut(&mut self, a: Node, b: Node, until: Nanos, now: Nanos) {
        let end = self.cuts.entry(pair(a, b)).or_default();
        *end = until.max(*end);
        self.refresh(a, now);
    }

    /// Until when two nodes do not reach each other.
    pub fn cut_until(&self, a: Node, b: Node) -> Option<Nanos> {
        self.cuts.get(&pair(a, b)).copied()
    }

    /// Heals what was cut until now.
    pub fn heal(&mut self, a: Node, b: Node, now: Nanos) {
        if self.cut_until(a, b).is_some_and(|until| until <= now) {
            self.cuts.remove(&pair(a, b));
            self.refresh(a, now);
        }
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

fn pair(a: Node, b: Node) -> (Node, Node) {
    (a.min(b), a.max(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::id::Digest;

    const MEBIBYTE: u64 = 1 << 20;

    /// A parent (node 0) with two children, all of them at one MiB a second.
    fn network() -> Network {
        let mut network = Network::new((0..3).map(|_| (MEBIBYTE, MEBIBYTE)));
        for child in [1, 2] {
            let tree = TreeId { tenant: "acme".parse().unwrap(), image: Digest::from_bytes([1; 32]) };
            network.open(child as u64, Conn::new(tree, child, 0, Upstream::Origin));
        }
        network
    }

    fn frame(urgency: Urgency, bytes: u64) -> Frame {
        Frame { message: FromParent::Opened, body: Bytes::new(), bytes, urgency }
    }

    /// When each connection has sent its frame, in milliseconds.
    fn run(network: &mut Network) -> Vec<(u64, u64)> {
        let mut waiting: Vec<Sent> = Vec::new();
        let mut done = Vec::new();
        loop {
            waiting.extend(network.take_sent());
            waiting.sort_by_key(|sent| std::cmp::Reverse(sent.at));
            let Some(next) = waiting.pop() else { return done };
            if network.sent(next, next.at).is_some() {
                done.push((next.conn, next.at / 1_000_000));
            }
        }
    }

    #[test]
    fn two_children_share_their_parents_uplink_and_the_longer_one_gets_it_all_at_the_end() {
        let mut network = network();
        network.send(1, frame(Urgency::Demand, MEBIBYTE), 0);
        network.send(2, frame(Urgency::Demand, 2 * MEBIBYTE), 0);
        assert_eq!(run(&mut network), [(1, 2000), (2, 3000)]);
    }

    #[test]
    fn a_frozen_end_stops_a_transfer_where_it_is() {
        let mut network = network();
        network.send(1, frame(Urgency::Demand, MEBIBYTE), 0);
        network.freeze(1, true, 500_000_000);
        network.freeze(1, false, 1_500_000_000);
        assert_eq!(run(&mut network), [(1, 2000)]);
    }

    #[test]
    fn the_more_urgent_overtakes_what_waits() {
        let mut network = network();
        let (background, prefetch, demand) = (Urgency::Background, Urgency::Prefetch, Urgency::Demand);
        for (urgency, bytes) in [(background, 1), (background, 2), (prefetch, 3), (demand, 4)] {
            network.send(1, frame(urgency, bytes), 0);
        }
        let mut order = Vec::new();
        while let Some(sent) = network.take_sent().pop() {
            order.extend(network.sent(sent, sent.at).map(|frame| frame.bytes));
        }
        assert_eq!(order, [1, 4, 3, 2]);
    }
}

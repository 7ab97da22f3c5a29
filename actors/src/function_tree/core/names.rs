//! Whom a member is sent to, and who must be told when that changes.

use super::{
    TreeCore,
    events::{Effect, Placing},
};
use crate::{
    tree::{Node, ancestors},
    wire::control::{Seat, Upstream},
};
use tokio::time::Instant;

/// Whom a member is sent to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::function_tree) struct Names {
    pub(super) place: u64,
    /// For each stripe.
    pub(in crate::function_tree) stripes: Vec<Named>,
    /// Asked only for what they hold.
    pub(in crate::function_tree) beside: Vec<Node>,
}

/// Whom a member is sent to for one stripe: nobody if it is the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::function_tree) struct Named {
    /// Edges to the root. All who are named are nearer to it (invariant 11).
    pub(in crate::function_tree) depth: u32,
    /// Its nearest ancestors, the parent first.
    pub(in crate::function_tree) above: Vec<Node>,
    /// A ready member near the root that is no ancestor.
    pub(super) helper: Option<Node>,
}

impl Named {
    pub(in crate::function_tree) fn all(&self) -> impl Iterator<Item = Node> {
        self.above.iter().copied().chain(self.helper)
    }
}

impl Names {
    /// Whether a place reads the same with either: a helper may have become an ancestor where it stands.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        let stripe = |(a, b): (&Named, &Named)| a.depth == b.depth && a.all().eq(b.all());
        (self.place, self.stripes.len(), &self.beside) == (other.place, other.stripes.len(), &other.beside)
            && self.stripes.iter().zip(&other.stripes).all(stripe)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Node> {
        self.stripes.iter().flat_map(Named::all).chain(self.beside.iter().copied())
    }
}

impl TreeCore {
    /// Those whose upstreams may differ now that `moved` have other parents.
    pub(super) fn affected(&mut self, moved: Vec<Node>) -> Vec<Node> {
        let stripes = 0..self.topology.stripes();
        // Whoever is near a root has its parent there too.
        let near = |node: Node| self.members.get(node.0 as usize).is_some_and(|member| member.near);
        self.helpers.outdated |= moved.iter().any(|&node| {
            near(node) || stripes.clone().any(|stripe| self.topology.parent(node, stripe).is_none_or(near))
        });
        let mut affected = self.with_those_below(moved.clone(), self.chain_max() - 1);
        let displaced = self.displaced(moved);
        // Whoever is not nearer to the root any more is no helper.
        let named_to = displaced.iter().flat_map(|helper| self.named_to(*helper)).collect::<Vec<_>>();
        affected.extend(named_to);
        affected.extend(displaced);
        affected.sort_unstable();
        affected.dedup();
        affected
    }

    /// The nodes and those below them whose depth differs from what they were told.
    pub(super) fn displaced(&self, nodes: Vec<Node>) -> Vec<Node> {
        let mut all = nodes.clone();
        for stripe in 0..self.topology.stripes() {
            let told = |node: Node| self.member(node).names.stripes.get(stripe).map(|named| named.depth);
            let mut level = nodes.clone();
            while !level.is_empty() {
                level = level.into_iter().flat_map(|node| self.topology.children(node, stripe)).collect();
                level.retain(|node| told(*node) != Some(self.topology.depth(*node, stripe)));
                all.extend(&level);
            }
        }
        all
    }

    /// The ancestors that are named to a member, if it reaches them.
    pub(super) fn chain(&self, node: Node, stripe: usize) -> impl Iterator<Item = Node> {
        ancestors(self.topology.as_ref(), node, stripe).take(self.chain_max())
    }

    /// The nodes and everyone so many levels below them.
    pub(super) fn with_those_below(&self, nodes: Vec<Node>, levels: usize) -> Vec<Node> {
        let mut all = nodes.clone();
        for stripe in 0..self.topology.stripes() {
            let mut level = nodes.clone();
            for _ in 0..levels {
                level = level.into_iter().flat_map(|node| self.topology.children(node, stripe)).collect();
                all.extend(&level);
            }
        }
        all
    }

    /// Ancestors in a place: all but one of its upstreams, the last is a helper.
    pub(super) fn chain_max(&self) -> usize {
        (self.limits.ancestors_max - 1).max(1)
    }

    /// Sends places to those among `affected` whose upstreams have changed.
    pub(super) fn place_changed(&mut self, affected: Vec<Node>, now: Instant, effects: &mut Vec<Effect>) {
        for node in affected {
            let names = self.names(node);
            let member = self.member(node);
            if member.stale || !member.names.reads_as(&names) {
                self.push_place(node, names, now, effects);
            } else if member.names != names {
                self.note_names(node, &names);
                self.name(node, names);
            }
        }
    }

    pub(in crate::function_tree) fn push_place(
        &mut self,
        node: Node,
        names: Names,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.place(node, names, now);
        let member = self.member(node);
        let (vm, key_hash) = (member.vm.clone(), member.contact.key_hash.clone());
        effects.push(Effect::Place { vm, key_hash, placing: self.placing(node) });
    }

    /// Gives a member the upstreams of its present place, with a fresh capability.
    pub(super) fn place(&mut self, node: Node, names: Names, now: Instant) {
        if self.member(node).names != names {
            self.note_names(node, &names);
            self.name(node, names);
        }
        let epoch = self.epoch;
        let member = self.member_mut(node);
        member.epoch = epoch;
        member.stale = false;
        let issued_at = std::mem::replace(&mut member.placed_at, now);
        if issued_at != now {
            self.issued.remove(&(issued_at, node));
            self.issued.insert((now, node));
        }
    }

    /// Replaces the names in a member's place, here and where they are looked up by the one who is named.
    pub(super) fn name(&mut self, node: Node, names: Names) {
        let before = std::mem::replace(&mut self.member_mut(node).names, names);
        for helper in before.stripes.iter().filter_map(|named| named.helper) {
            self.helpers.named_to.remove(&(helper, node));
        }
        let now = &self.members[node.0 as usize].names.stripes;
        self.helpers
            .named_to
            .extend(now.iter().filter_map(|named| named.helper).map(|helper| (helper, node)));
        let room = self.limits.ancestors_max;
        let lacks = |named: &Named| !named.above.is_empty() && named.all().count() < room;
        if now.iter().any(lacks) {
            self.helpers.lacking.insert(node);
        } else {
            self.helpers.lacking.remove(&node);
        }
    }

    pub(super) fn placing(&self, node: Node) -> Placing {
        let upstream = |node: Node| {
            let member = self.member(node);
            Upstream::Vm { vm: member.vm.clone(), address: member.contact.address }
        };
        let member = self.member(node);
        // By depth and not by who is named: one that reaches no ancestor has only a helper (invariant 6).
        let stripe = |named: &Named| match named.depth {
            0 => vec![Upstream::Origin],
            _ => named.all().map(upstream).collect(),
        };
        let names = &member.names;
        let seat = Seat {
            place: names.place,
            depths: names.stripes.iter().map(|named| named.depth).collect(),
            beside: names.beside.iter().map(|node| upstream(*node)).collect(),
        };
        Placing { epoch: member.epoch, stripes: names.stripes.iter().map(stripe).collect(), seat }
    }

    /// Whom a member is to ask: for each stripe its nearest ancestors and a helper, nobody for a root.
    pub(in crate::function_tree) fn names(&mut self, node: Node) -> Names {
        self.find_helpers();
        let stripes: Vec<_> = (0..self.topology.stripes()).map(|stripe| self.named(node, stripe)).collect();
        let beside = self.beside(node, &stripes);
        // Without places the order is that of the levels.
        let depth = stripes.first().map_or(0, |named| u64::from(named.depth));
        let place = self.topology.place(node).unwrap_or(depth);
        Names { place, stripes, beside }
    }

    pub(super) fn named(&self, node: Node, stripe: usize) -> Named {
        let depth = self.topology.depth(node, stripe);
        let reached = |up: &Node| !self.complaints.holds(node, *up);
        let mut above: Vec<Node> = self.chain(node, stripe).filter(reached).collect();
        let has_room = depth > 0 && above.len() < self.limits.ancestors_max;
        let helper = if has_room { self.helper(node, (stripe, depth), &above) } else { None };
        if above.is_empty() && helper.is_none() {
            above.extend(self.chain(node, stripe)); // better than nobody
        }
        Named { depth, above, helper }
    }
}

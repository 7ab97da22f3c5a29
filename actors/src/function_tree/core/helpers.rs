//! Ready members near the root, named besides ancestors.

use super::TreeCore;
use crate::tree::{Node, breadth_first};
use std::collections::BTreeSet;

/// Ready members near the root that a VM is sent to besides its ancestors are chosen from this many,
/// so that a broken tree does not fall upon one VM.
const HELPERS: usize = 8;
/// Places looked at for them: the first six levels of a binary tree.
const HELPER_PLACES: usize = 64;

/// Who may be named as helper, who is, and who lacks one.
///
/// Those who lose a helper, or could have one now, are told with the ticks and not with the change: their
/// ancestors are there.
#[derive(Default)]
pub(in crate::function_tree) struct Helpers {
    /// The ready ones of the members near the root of each stripe, in the order of their places.
    pub(super) ready: Vec<Vec<Node>>,
    pub(in crate::function_tree) near: Vec<Node>,
    /// Whether the above must be found anew.
    pub(super) outdated: bool,
    /// Each helper with each member that it is named to.
    pub(super) named_to: BTreeSet<(Node, Node)>,
    pub(super) lacking: BTreeSet<Node>,
    /// From here on, those that lack a helper may find one.
    pub(super) look_from: Option<Node>,
}

impl TreeCore {
    pub(in crate::function_tree) fn helpers_are_outdated(&mut self) {
        self.helpers.outdated = true;
    }

    pub(super) fn named_to(&self, helper: Node) -> impl Iterator<Item = Node> {
        let named_to = self.helpers.named_to.range((helper, Node(0))..=(helper, Node(u32::MAX)));
        named_to.map(|(_, node)| *node)
    }

    /// Names a VM to nobody as helper any more. They are told with the next ticks; those whom nobody else is named
    /// to are returned.
    pub(super) fn drop_helper(&mut self, helper: Node) -> Vec<Node> {
        let mut alone = Vec::new();
        for node in self.named_to(helper).collect::<Vec<_>>() {
            let mut names = self.member(node).names.clone();
            for named in names.stripes.iter_mut().filter(|named| named.helper == Some(helper)) {
                named.helper = None;
                if named.above.is_empty() {
                    alone.push(node);
                }
            }
            self.name(node, names);
            self.member_mut(node).stale = true;
            self.helpers.lacking.insert(node);
            self.helpers.look_from = Some(Node(0));
        }
        alone
    }

    /// A ready member near the root; the one that was named before, while it is still right.
    pub(super) fn helper(&self, node: Node, (stripe, depth): (usize, u32), above: &[Node]) -> Option<Node> {
        let suits = |helper: &Node| {
            self.member(*helper).ready
                && !above.contains(helper)
                && !self.complaints.holds(node, *helper)
                && self.topology.depth(*helper, stripe) < depth
        };
        let before = self.member(node).names.stripes.get(stripe).and_then(|named| named.helper);
        if let Some(helper) = before.filter(suits) {
            return Some(helper);
        }
        let ready = self.helpers.ready.get(stripe)?.iter().copied();
        self.pick(node, ready.filter(suits))
    }

    /// One of the first few: another for each member, so that a broken tree does not fall upon one.
    pub(in crate::function_tree) fn pick(
        &self,
        node: Node,
        suitable: impl Iterator<Item = Node>,
    ) -> Option<Node> {
        let few: Vec<Node> = suitable.take(HELPERS).collect();
        let pick = xxhash_rust::xxh3::xxh3_64(self.member(node).vm.as_str().as_bytes()) as usize;
        few.get(pick.checked_rem(few.len())?).copied()
    }

    /// Finds out anew who can be helper, if that may have changed.
    pub(super) fn find_helpers(&mut self) {
        if !std::mem::take(&mut self.helpers.outdated) {
            return;
        }
        for node in std::mem::take(&mut self.helpers.near) {
            if let Some(member) = self.members.get_mut(node.0 as usize) {
                member.near = false;
            }
        }
        let mut ready = Vec::new();
        for stripe in 0..self.topology.stripes() {
            let near: Vec<Node> = breadth_first(self.topology.as_ref(), stripe).take(HELPER_PLACES).collect();
            ready.push(near.iter().copied().filter(|node| self.member(*node).ready).collect());
            self.helpers.near.extend(near);
        }
        for &node in &self.helpers.near {
            self.members[node.0 as usize].near = true;
        }
        if ready != self.helpers.ready {
            self.helpers.ready = ready;
            self.helpers.look_from = Some(Node(0));
        }
    }
}

//! What is shown of a tree, and what must hold in it.

use super::{Member, TreeCore};
use crate::{
    id::ImageId,
    model::{MemberView, PlaceView, TreeView},
    tree::{Node, ancestors, breadth_first},
    wire::control::Upstream,
};
use std::collections::BTreeSet;

impl TreeCore {
    pub fn view(&self, image: ImageId) -> TreeView {
        let tree = self.topology.as_ref();
        let members = self.places(0).map(|(node, PlaceView { vm, place, parent, children })| {
            let Member { ready, blocks_present, blocks_total, .. } = *self.member(node);
            MemberView { vm, place, parent, children, ready, blocks_present, blocks_total }
        });
        let further = 1..tree.stripes();
        TreeView {
            image,
            epoch: self.epoch,
            height: tree.height(),
            members: members.collect(),
            further_stripes: further
                .map(|stripe| self.places(stripe).map(|(_, place)| place).collect())
                .collect(),
            code: None,
        }
    }

    /// Who feeds whom in a stripe, the root first.
    pub(super) fn places(&self, stripe: usize) -> impl Iterator<Item = (Node, PlaceView)> {
        let tree = self.topology.as_ref();
        let name = |node: Node| self.member(node).vm.clone();
        (0..).zip(breadth_first(tree, stripe)).map(move |(place, node)| {
            let parent = tree.parent(node, stripe).map(name);
            let children = tree.children(node, stripe).into_iter().map(name).collect();
            (node, PlaceView { vm: name(node), place, parent, children })
        })
    }

    /// Checks the invariants over all members; for tests and the simulator, because it looks at everyone.
    pub fn check(&self) {
        let tree = self.topology.as_ref();
        for (vm, &node) in &self.nodes {
            let member = self.member(node);
            assert_eq!(member.vm, *vm);
            assert_eq!(member.names.stripes.len(), tree.stripes());
            for (stripe, named) in member.names.stripes.iter().enumerate() {
                let above: Vec<Node> = ancestors(tree, node, stripe).take(self.members.len() + 1).collect();
                assert!(above.len() < self.members.len(), "invariant 1: {vm} is in a cycle");
                assert_eq!(named.depth as usize, above.len(), "{vm} does not know how deep it is");
                assert_eq!(named.all().count() == 0, above.is_empty(), "invariant 6: only a root reads it");
                let sent_to_origin = self.placing(node).stripes[stripe].contains(&Upstream::Origin);
                assert_eq!(sent_to_origin, above.is_empty(), "invariant 6: nobody else is sent there");
                let reached: Vec<Node> = above.iter().copied().take(self.chain_max()).collect();
                let cut_off = reached.iter().any(|up| self.complaints.holds(node, *up));
                assert!(cut_off || named.above == reached, "the parent is asked first, then its parent");
                assert!(named.all().count() <= self.limits.ancestors_max);
                assert_eq!(named.all().collect::<BTreeSet<_>>().len(), named.all().count(), "no repeats");
                for name in named.all() {
                    assert!(self.topology.depth(name, stripe) < named.depth, "invariant 11: {vm} asks down");
                }
                if let Some(helper) = named.helper {
                    assert!(self.members.contains(helper.0 as usize), "{vm} is sent to a stranger");
                    assert!(self.helpers.named_to.contains(&(helper, node)));
                }
            }
            for beside in &member.names.beside {
                assert!(*beside != node && self.members.contains(beside.0 as usize));
                assert!(self.beside_which(*beside).contains(&node));
            }
            assert!(member.epoch <= self.epoch);
            assert!(self.issued.contains(&(member.placed_at, node)));
        }
        let helped: BTreeSet<(Node, Node)> = self
            .members
            .iter()
            .flat_map(|(number, member)| member.names.stripes.iter().map(move |named| (number, named.helper)))
            .filter_map(|(number, helper)| Some((helper?, Node(number as u32))))
            .collect();
        assert_eq!(helped, self.helpers.named_to);
        assert!(self.helpers.lacking.iter().all(|node| self.members.contains(node.0 as usize)));
        assert!(self.leaving.iter().all(|vm| !self.nodes.contains_key(vm)), "a member is not told to leave");
        assert_eq!(self.issued.len(), self.members.len());
        assert_eq!(self.nodes.len(), self.members.len());
        assert_eq!(self.members.len(), tree.len(), "invariant 1");
    }
}

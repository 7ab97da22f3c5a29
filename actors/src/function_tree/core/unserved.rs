//! Members that their upstreams do not serve.

use super::{
    TreeCore,
    events::Effect,
    news::{Cause, TreeNews},
};
use crate::{
    id::{Epoch, VmId},
    tree::{Node, breadth_first},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// How long a VM that is served by no ancestor is left where it is: when its upstream is silent, the other
/// children say so within a stall limit, and not the VM is moved but the upstream.
const ALONE: Duration = Duration::from_secs(1);
/// Members with which such a VM tries to change places: one with another parent is among the last few.
const EXCHANGES: usize = 4;

impl TreeCore {
    /// A VM that is not served is sent elsewhere; an upstream that serves nobody loses its children: it
    /// goes to the end, where it has none.
    pub(super) fn upstream_lost(
        &mut self,
        by: &VmId,
        epoch: Epoch,
        vm: &VmId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (Some(&by), Some(&node)) = (self.nodes.get(by), self.nodes.get(vm)) else { return };
        let member = self.member(by);
        // Told about a place that it has no more, or once again.
        let is_named = member.names.all().any(|up| up == node);
        if epoch < member.epoch || !is_named || self.complaints.holds(by, node) {
            return;
        }
        self.complaints.add(by, node, now);
        let (complainer, lost) = (self.member(by).vm.clone(), self.member(node).vm.clone());
        self.news.tell(TreeNews::Repair { vm: complainer, lost, epoch: self.epoch });
        let stripes = 0..self.topology.stripes();
        let children: BTreeSet<Node> =
            stripes.clone().flat_map(|stripe| self.topology.children(node, stripe)).collect();
        let is_root = stripes.clone().any(|stripe| self.topology.parent(node, stripe).is_none());
        self.epoch.counter += 1;
        if self.complaints.is_at_fault(node, &children, is_root) {
            self.complaints.forget_about(node);
            // Nobody is sent to it by choice, until it says again that it can serve, or a complaint's life is
            // over: where images are read lazily it says so once only.
            if std::mem::replace(&mut self.member_mut(node).ready, false) {
                self.complaints.doubt(node, now);
            }
            self.news.seat(node, Cause::Ready);
            self.helpers.outdated = true;
            return self.move_to_the_end(node, now, effects);
        }
        if self.is_cut_off(by) {
            self.complaints.wait_alone(by, now);
        }
        self.place_changed(vec![by], now, effects);
    }

    /// Those who were ready before they were found at fault are so again when that is long ago.
    pub(super) fn trust_again(&mut self, now: Instant) {
        for node in self.complaints.doubted_for(now, self.limits.complaint_life) {
            self.ready(&self.member(node).vm.clone());
        }
    }

    pub(super) fn move_to_the_end(&mut self, node: Node, now: Instant, effects: &mut Vec<Effect>) {
        let mut moved = self.topology.leave(node);
        moved.extend(self.topology.join(node));
        let affected = self.affected(moved);
        self.place_changed(affected, now, effects);
    }

    /// Whether a member is served by none of its ancestors in some stripe.
    pub(super) fn is_cut_off(&self, node: Node) -> bool {
        (0..self.topology.stripes()).any(|stripe| {
            let mut above = self.chain(node, stripe).peekable();
            above.peek().is_some() && above.all(|up| self.complaints.holds(node, up))
        })
    }

    /// Gives another parent to those who are cut off, once it is clear that it is not their upstream's fault.
    pub(super) fn move_cut_off(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for node in self.complaints.alone_for(now, ALONE) {
            if !self.is_member(node) || !self.is_cut_off(node) {
                continue;
            }
            self.epoch.counter += 1;
            let mut moved = BTreeSet::from([node]);
            let last: Vec<Node> =
                breadth_first(self.topology.as_ref(), 0).filter(|other| *other != node).collect();
            for other in last.into_iter().rev().take(EXCHANGES) {
                moved.extend(self.topology.leave(node));
                moved.extend(self.topology.leave(other));
                moved.extend(self.topology.join(other));
                moved.extend(self.topology.join(node));
                if !self.is_cut_off(node) {
                    break;
                }
            }
            let affected = self.affected(moved.into_iter().collect());
            self.place_changed(affected, now, effects);
        }
    }
}

//! What a tree tells whoever watches it.

use super::{Member, TreeCore, names::Names};
use crate::{
    id::{Epoch, VmId},
    tree::Node,
    wire::control::{BytesBySource, HeldTree},
};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq)]
pub enum TreeNews {
    /// A member, its place and how it is.
    Seat(SeatNews),
    Left {
        vm: VmId,
        epoch: Epoch,
    },
    /// What a member holds.
    Holding(HoldingNews),
    /// `vm` says that `lost` does not serve it.
    Repair {
        vm: VmId,
        lost: VmId,
        epoch: Epoch,
    },
    /// All have left.
    Dissolved,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SeatNews {
    pub vm: VmId,
    /// Of the tree, when that was so.
    pub epoch: Epoch,
    pub ready: bool,
    /// For each stripe.
    pub places: Vec<SeatPlace>,
    pub cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SeatPlace {
    /// Edges to the root.
    pub depth: u32,
    /// Who feeds it; none for a root, and for one whose ancestors do not serve it.
    pub parent: Option<VmId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct HoldingNews {
    pub vm: VmId,
    pub blocks_present: u32,
    pub blocks_total: u32,
    pub bytes: BytesBySource,
}

/// Why a member is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MemberCause)]
pub enum Cause {
    /// It has got its first place.
    Joined,
    /// It has another parent.
    Moved,
    /// It is ready, or is not any more.
    Ready,
}

/// What is to be told when an event is over: each member once, as it is then.
#[derive(Default)]
pub(super) struct News {
    seats: BTreeMap<Node, Cause>,
    others: Vec<TreeNews>,
}

impl News {
    pub fn seat(&mut self, node: Node, cause: Cause) {
        let before = self.seats.entry(node).or_insert(cause);
        // The first cause names the others: who has joined has a new parent too.
        *before = cause.min(*before);
    }

    pub fn tell(&mut self, news: TreeNews) {
        self.others.push(news);
    }

    pub fn gone(&mut self, node: Node) {
        self.seats.remove(&node);
    }
}

impl TreeCore {
    /// Notes that the member may have another parent with those names.
    pub(super) fn note_names(&mut self, node: Node, names: &Names) {
        let parents = |names: &Names| {
            names.stripes.iter().map(|named| (named.depth, named.above.first().copied())).collect::<Vec<_>>()
        };
        let before = &self.member(node).names;
        if before.stripes.is_empty() {
            self.news.seat(node, Cause::Joined);
        } else if parents(before) != parents(names) {
            self.news.seat(node, Cause::Moved);
        }
    }

    pub(super) fn note_holding(&mut self, held: &HeldTree, vm: &VmId) {
        self.news.tell(TreeNews::Holding(HoldingNews {
            vm: vm.clone(),
            blocks_present: held.blocks_present,
            blocks_total: held.blocks_total,
            bytes: held.bytes,
        }));
    }

    /// What has happened since it was asked last.
    pub(super) fn take_news(&mut self) -> impl Iterator<Item = TreeNews> + use<> {
        let News { seats, others } = std::mem::take(&mut self.news);
        let seats: Vec<TreeNews> =
            seats.into_iter().map(|(node, cause)| self.seat_news(node, cause)).collect();
        others.into_iter().chain(seats)
    }

    /// As all members would be told now.
    #[cfg(test)]
    pub fn seats(&self) -> Vec<SeatNews> {
        let seats = self.nodes.values().map(|node| self.seat_news(*node, Cause::Moved));
        seats
            .map(|news| if let TreeNews::Seat(seat) = news { seat } else { unreachable!("a seat") })
            .collect()
    }

    fn seat_news(&self, node: Node, cause: Cause) -> TreeNews {
        let Member { vm, ready, names, .. } = self.member(node);
        let place = |named: &super::Named| SeatPlace {
            depth: named.depth,
            parent: named.above.first().map(|parent| self.member(*parent).vm.clone()),
        };
        let places = names.stripes.iter().map(place).collect();
        TreeNews::Seat(SeatNews { vm: vm.clone(), epoch: self.epoch, ready: *ready, places, cause })
    }
}

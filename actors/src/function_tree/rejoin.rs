//! How a tree is put together again from what its members report, after its manager or its actor has died.
//!
//! The reports are the truth. Nobody is placed before all who may be members have reported, or their time is
//! over; then each has the place that it had, and only the places of those who are missing are filled.

use super::{
    ToForest,
    core::{Contact, Effect, TreeCore},
    messages::{PreheatDraft, StartDraft},
};
use crate::{
    id::{TreeId, VmId},
    support::Link,
    wire::control::HeldTree,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// What came while members were still reporting.
#[derive(Default)]
pub(super) struct Rejoin {
    reported: BTreeMap<VmId, (Contact, HeldTree)>,
    ready: BTreeSet<VmId>,
    /// In the order in which they came. Bounded by the starts that the scheduler lets in.
    joins: Vec<(VmId, Contact, Box<StartDraft>)>,
    /// The last of each VM.
    preheats: BTreeMap<VmId, (Contact, Box<PreheatDraft>)>,
}

impl Rejoin {
    pub fn join(&mut self, vm: VmId, contact: Contact, start: Box<StartDraft>) {
        self.joins.push((vm, contact, start));
    }

    pub fn preheat(&mut self, vm: VmId, contact: Contact, draft: Box<PreheatDraft>) {
        self.preheats.insert(vm, (contact, draft));
    }

    pub fn reported(&mut self, vm: VmId, contact: Contact, held: HeldTree) {
        self.reported.insert(vm, (contact, held));
    }

    pub fn held(&mut self, vm: &VmId, held: HeldTree) {
        if let Some((_, known)) = self.reported.get_mut(vm) {
            *known = held;
        }
    }

    pub fn ready(&mut self, vm: VmId) {
        self.ready.insert(vm);
    }

    /// True if the VM had reported.
    pub fn gone(&mut self, vm: &VmId) -> bool {
        self.joins.retain(|(joining, ..)| joining != vm);
        self.preheats.remove(vm);
        self.reported.remove(vm).is_some()
    }

    pub fn into_vms(self) -> impl Iterator<Item = VmId> {
        self.reported.into_keys()
    }
}

impl TreeCore {
    /// All have reported, or their time is over.
    pub(super) fn gathered(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some(Rejoin { reported, ready, joins, preheats }) = self.rejoin.take() else { return };
        self.raise_epoch();
        let mut places = Vec::new();
        for (vm, (contact, held)) in &reported {
            places.push((held.place, self.enroll(vm, contact.clone(), now)));
        }
        self.topology.restore(places.clone());
        self.helpers_are_outdated();
        for (vm, (_, held)) in &reported {
            self.held(vm, held);
        }
        for vm in &ready {
            self.ready(vm);
        }
        // Everyone hears of the new epoch; whose upstreams are the same keeps their connections.
        for (_, node) in places {
            let names = self.names(node);
            self.push_place(node, names, now, effects);
        }
        for (vm, contact, start) in joins {
            self.join(vm, contact, start, now, effects);
        }
        for (vm, (contact, draft)) in preheats {
            self.preheat(vm, contact, draft, now, effects);
        }
    }
}

/// Held by everyone who is still to report; the last one to let go of it ends the gathering.
pub struct Gathering {
    forest: Link<ToForest>,
    tree: Option<TreeId>,
}

impl Gathering {
    /// Of that tree, or of all.
    pub fn new(forest: Link<ToForest>, tree: Option<TreeId>) -> Self {
        Self { forest, tree }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.forest.send(ToForest::Gathered { tree: self.tree.take() });
    }
}

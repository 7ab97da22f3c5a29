//! Function trees: one actor for each tree, and the `Forest` that owns them all.
//!
//! A start comes from the scheduler as `Join`; the tree gives the VM a place, raises the epoch, has
//! the capability signed and sends one order to the VM through the fleet. What agents report about
//! the tree comes back the same way. Trees are soft: a rebuilt tree asks the VMs what they hold.

mod beside;
mod complaints;
mod core;
mod forest;
mod leaving;
mod messages;
mod order;
mod origin;
mod rejoin;
#[cfg(test)]
mod tests;

pub use self::core::{
    Cause, Contact, Effect, Event, HoldingNews, Placing, SeatNews, SeatPlace, TreeCore, TreeLimits, TreeNews,
};
pub use forest::{Forest, ForestSettings};
pub use messages::{PreheatDraft, Role, StartDraft, ToForest, ToTree};
pub use origin::OriginLimits;
pub use rejoin::Gathering;

use crate::{
    event_log::{Happening, News, Teller},
    id::{Epoch, TreeId, VmId},
    support::{Life, Link, Observe, Snapshot, Stop},
    vm_node::{ToFleet, ToVm, VmMessage},
    wire::control::Capability,
    world::{CapabilityIssuer, KeyHash},
};
use actix::{WeakRecipient, prelude::*};
use messages::{EpochRaised, GetView, Happened};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A VM that gets several orders within this time is given the same capability, which lives for an hour:
/// signing is an eighth of what a start costs the manager.
const SIGNED_AGAIN: Duration = Duration::from_secs(1);

struct Issued {
    key_hash: KeyHash,
    capability: Capability,
    at: Instant,
}

/// The shell of one tree.
struct FunctionTree {
    tree: TreeId,
    core: TreeCore,
    capabilities: Arc<dyn CapabilityIssuer>,
    /// Those signed just now.
    issued: BTreeMap<VmId, Issued>,
    vms: Link<ToVm>,
    fleet: Link<ToFleet>,
    teller: Teller,
    parent: WeakRecipient<EpochRaised>,
    tick: Duration,
    life: Life<TreeId>,
}

impl Actor for FunctionTree {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if self.life.is_rebuilt() {
            self.fleet.send(ToFleet::Rejoin { tree: Some(self.tree.clone()) });
        }
        ctx.run_interval(self.tick, |tree, ctx| {
            if !tree.life.parent_is_up() {
                return ctx.stop();
            }
            let now = Instant::now();
            tree.issued.retain(|_, issued| now - issued.at < SIGNED_AGAIN);
            tree.happened(Event::Tick);
        });
    }
}

impl FunctionTree {
    fn happened(&mut self, event: Event) {
        let (before, mut effects) = (self.core.epoch(), Vec::new());
        self.core.apply(event, Instant::now(), &mut effects);
        let epoch = self.core.epoch();
        if epoch > before
            && let Some(parent) = self.parent.upgrade()
        {
            parent.do_send(EpochRaised { tree: self.tree.clone(), counter: epoch.counter });
        }
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        let tree = self.tree.clone();
        if let Effect::Tell(news) = effect {
            return self.teller.tell(News::of(&tree.tenant, Happening::of_tree(tree.image, news)));
        }
        let order = effect.into_order(&tree, |vm, key_hash| self.capability(vm, key_hash));
        if let Some((vm, order)) = order {
            self.vms.send(ToVm { vm, message: VmMessage::Order(order) });
        }
    }

    fn capability(&mut self, vm: &VmId, key_hash: &KeyHash) -> Capability {
        let at = Instant::now();
        let fresh = |issued: &&Issued| issued.key_hash == *key_hash && at - issued.at < SIGNED_AGAIN;
        if let Some(issued) = self.issued.get(vm).filter(fresh) {
            return issued.capability.clone();
        }
        let capability = self.capabilities.issue(&self.tree, vm, key_hash);
        let issued = Issued { key_hash: key_hash.clone(), capability: capability.clone(), at };
        self.issued.insert(vm.clone(), issued);
        capability
    }
}

impl Handler<Happened> for FunctionTree {
    type Result = ();

    fn handle(&mut self, Happened { event, slot }: Happened, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        let dissolves = matches!(event, Event::Dissolve);
        self.happened(event);
        drop(slot);
        if dissolves {
            ctx.stop();
        }
    }
}

impl Handler<GetView> for FunctionTree {
    type Result = ();

    fn handle(&mut self, GetView(reply): GetView, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        // Whoever asked may be gone; then nobody wants the view.
        let _gone = reply.send(Ok(self.core.view(self.tree.image)));
    }
}

impl Handler<Observe> for FunctionTree {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        let (members, ready) = self.core.sizes();
        let Epoch { term, counter } = self.core.epoch();
        Snapshot::new(format!("{members} VMs, {ready} ready, epoch {term}.{counter}"))
    }
}

impl Handler<Stop> for FunctionTree {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

//! What a tree decides as what a VM is told: the same for the actor and for whoever drives the core alone.

use super::{Effect, Placing, PreheatDraft, Role, StartDraft};
use crate::{
    id::{TreeId, VmId},
    vm_node::{Order, StartPart},
    wire::control::{Capability, CodeOrder, Place, PreheatOrder, StartOrder},
    world::KeyHash,
};
use std::sync::Arc;

impl Effect {
    /// The order, and the VM it is for; none for what is only told. `sign` gives the capability that a place
    /// carries.
    pub fn into_order(
        self,
        tree: &TreeId,
        sign: impl FnOnce(&VmId, &KeyHash) -> Capability,
    ) -> Option<(VmId, Order)> {
        Some(match self {
            Self::Start { vm, key_hash, placing, start } => {
                let place = place(tree, placing, sign(&vm, &key_hash));
                (vm, start_order(*start, place))
            }
            Self::Preheat { vm, key_hash, placing, draft } => {
                let place = place(tree, placing, sign(&vm, &key_hash));
                let PreheatDraft { number, image, what, hot } = *draft;
                let (image, hot) = (image.as_ref().clone(), hot.to_vec());
                (vm, Order::Preheat(Box::new(PreheatOrder { number, image, place, what, hot })))
            }
            Self::Place { vm, key_hash, placing } => {
                let place = place(tree, placing, sign(&vm, &key_hash));
                (vm, Order::Place(place))
            }
            Self::Leave { vm, epoch } => (vm, Order::Leave { tree: tree.clone(), epoch }),
            Self::Origin { vm, answer } => (vm, Order::Origin { tree: tree.clone(), answer }),
            Self::Tell(_) => return None,
        })
    }
}

fn place(tree: &TreeId, Placing { epoch, stripes, seat }: Placing, capability: Capability) -> Place {
    Place { tree: tree.clone(), epoch, stripes, seat, capability }
}

fn start_order(start: StartDraft, place: Place) -> Order {
    match start.role {
        Role::Whole => Order::Start(Box::new(order(start, place))),
        Role::Runtime => Order::Part(Box::new(StartPart::Runtime(order(start, place)))),
        Role::Code => {
            let code = CodeOrder { image: Arc::unwrap_or_clone(start.image), place };
            Order::Part(Box::new(StartPart::Code { start: start.start, code }))
        }
    }
}

fn order(start: StartDraft, place: Place) -> StartOrder {
    StartOrder {
        start: start.start,
        request: start.request,
        function: start.function,
        image: start.image.as_ref().clone(),
        place,
        code: None,
        env: start.env,
        command: start.command,
        memory_bytes: start.needs.memory_bytes,
        cpu_millis: start.needs.cpu_millis,
        probe_path: start.probe_path,
        mode: start.mode,
        ready_deadline_ms: start.ready_deadline_ms,
        record: start.record,
        hot: start.hot.to_vec(),
    }
}

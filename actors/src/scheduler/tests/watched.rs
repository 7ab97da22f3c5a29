//! Whoever watches the scheduler and applies what it is told knows what it would be shown.

use super::{LIMITS, SchedulerCore, World, api, facts, limited, vm};
use crate::{
    event_log::{Happening, News},
    id::{FunctionName, StartId, TenantId, VmId},
    model::{FunctionView, StartView, VmView},
    scheduler::core::Event,
    vm_node::VmEvent,
};
use std::{collections::BTreeMap, time::Duration};

/// What is known from what was told.
#[derive(Default)]
pub(super) struct Watched {
    functions: BTreeMap<(TenantId, FunctionName), FunctionView>,
    starts: BTreeMap<StartId, StartView>,
    vms: BTreeMap<VmId, VmView>,
    /// Events by kind.
    pub count: BTreeMap<String, usize>,
}

impl Watched {
    pub fn hears(&mut self, News { tenant, happening }: News) {
        *self.count.entry(format!("{:?}", happening.kind())).or_default() += 1;
        match happening {
            Happening::Function(view) => {
                let key = (tenant.expect("a function has one"), view.name.clone());
                self.functions.insert(key, *view);
            }
            Happening::FunctionDeleted { name } => {
                self.functions.remove(&(tenant.expect("a function has one"), name));
            }
            Happening::Start(view) => drop(self.starts.insert(view.id.clone(), *view)),
            Happening::Vm(view) => drop(self.vms.insert(view.id.clone(), *view)),
            Happening::VmRemoved { id } => drop(self.vms.remove(&id)),
            other => panic!("the scheduler does not tell of {other:?}"),
        }
    }

    /// Functions and VMs that are still to be told are `core`'s own business.
    pub fn check(&self, core: &SchedulerCore) {
        core.check_told(&self.functions, &self.starts, &self.vms);
    }
}

#[test]
fn each_phase_of_a_start_is_told_and_its_function_from_time_to_time() {
    let mut world = World::with_vms(1);
    world.watched.count.clear();
    let starts = world.start(api(), 3);
    assert_eq!(world.watched.count["Start"], 3, "what one event changes twice is told once");
    for start in &starts {
        world.news(vm(0), VmEvent::Ordered { start: start.clone() });
    }
    assert_eq!(world.watched.count["Start"], 6);
    assert!(!world.watched.count.contains_key("Vm"), "within the pause");
    world.now += LIMITS.coalesce;
    world.apply(Event::Tick);
    assert_eq!((world.watched.count["Function"], world.watched.count["Vm"]), (1, 1));
    assert_eq!(world.watched.vms[&vm(0)].instances.len(), 3);
    assert_eq!(world.watched.functions[&api()].starting, 3);
}

#[test]
fn what_is_gone_is_told() {
    let mut world = World::with_vms(1);
    world.deploy(super::key("acme", "other"), "app:2");
    world.put(super::key("acme", "other"), limited(0, 3, Duration::from_secs(60)));
    world.up(1, facts(1, super::GIB));
    world.now += LIMITS.coalesce;
    world.apply(Event::Tick);
    assert_eq!((world.watched.functions.len(), world.watched.vms.len()), (2, 2));
    world.ask(|ticket| Event::Delete { ticket, key: super::key("acme", "other") });
    world.news(vm(1), VmEvent::Down);
    world.ask(|ticket| Event::RemoveVm { ticket, vm: vm(1) });
    world.now += LIMITS.coalesce;
    world.apply(Event::Tick);
    assert_eq!((world.watched.functions.len(), world.watched.vms.len()), (1, 1));
}

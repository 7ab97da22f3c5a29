//! What the API shows of the actors.

use crate::http::Observer;
use faasnet_actors::{
    id::VmId,
    manager::ManagerHandle,
    model::VmState,
    support::{ActorView, Observe},
};
use futures::future::{BoxFuture, join_all};
use std::time::Duration;

pub struct ActorObserver {
    pub manager: ManagerHandle,
    /// Time for the answer.
    pub within: Duration,
    pub children_max: usize,
}

impl Observer for ActorObserver {
    fn manager(&self) -> BoxFuture<'static, Option<ActorView>> {
        let (manager, ask) = (self.manager.clone(), Observe::new(self.within, self.children_max));
        Box::pin(async move { manager.observe(ask).await })
    }

    fn agent(&self, vm: VmId) -> BoxFuture<'static, Option<ActorView>> {
        let (manager, within, children_max) = (self.manager.clone(), self.within, self.children_max);
        Box::pin(async move {
            let view = manager.observe_agent(vm.clone(), within, children_max).await?;
            // The name that its certificate has, whatever it says.
            Some(ActorView { name: vm.to_string(), ..view })
        })
    }

    fn agents(&self) -> BoxFuture<'static, Vec<ActorView>> {
        let (manager, within, children_max) = (self.manager.clone(), self.within, self.children_max);
        let observer = Self { manager: manager.clone(), within, children_max };
        Box::pin(async move {
            let vms = manager.scheduler.vms().await.unwrap_or_default();
            let up = vms.into_iter().filter(|vm| vm.state != VmState::Lost).take(children_max);
            let views = join_all(up.map(|vm| observer.agent(vm.id))).await;
            views.into_iter().flatten().collect()
        })
    }
}

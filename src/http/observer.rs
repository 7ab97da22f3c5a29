//! The way from the API to the actors, as a trait: the process brings the manager, tests bring views.

use faasnet_actors::{id::VmId, support::ActorView};
use futures::future::BoxFuture;

/// Asks actors how they are; always answers in bounded time.
pub trait Observer: Send + Sync {
    /// The manager's actors. None when they are gone.
    fn manager(&self) -> BoxFuture<'static, Option<ActorView>>;

    /// The actors of that VM's agent. None when it has no session or does not answer.
    fn agent(&self, vm: VmId) -> BoxFuture<'static, Option<ActorView>>;

    /// The actors of all agents, of a bounded number of them.
    fn agents(&self) -> BoxFuture<'static, Vec<ActorView>>;
}

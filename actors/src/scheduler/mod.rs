//! The scheduler: admission, placement, waiting requests, decisions to scale.

mod handle;
mod messages;

pub use handle::{Acquired, SchedulerHandle};
pub use messages::{Ask, ControlError, Located, Release, Reply, Request};

//! The scheduler: admission, placement, waiting requests, decisions to scale.

mod handle;
mod messages;

pub use handle::SchedulerHandle;
pub use messages::{Acquired, Ask, ControlError, Located, Release, Reply, Request};

//! The scheduler: admission, placement, waiting requests, decisions to scale.
//!
//! The way of a start begins here: a request is accepted, its id made durable by the journal, a VM
//! chosen, and the VM's function tree told to take it in. What the VM reports comes back as news.

mod core;
mod handle;
mod messages;
mod records;
mod shell;
#[cfg(test)]
mod tests;

pub use self::core::{Answer, Effect, Event, Limits, SchedulerCore, Ticket, WriteId};
pub use handle::SchedulerHandle;
pub use messages::{Acquired, Ask, CallId, ControlError, Located, Permit, Release, Reply, Request};
pub use records::{FunctionKey, Loaded, StartRow};
pub(crate) use records::{damaged, decode, encode, put_image, read_images};
pub use shell::{Scheduler, SchedulerSettings};

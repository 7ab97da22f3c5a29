//! What every actor needs and no domain word belongs to: supervision, fairness, shares of limits, names of
//! services, units, and the means to watch them.

pub mod flow;
mod life;
mod link;
mod observe;
mod shares;
mod supervision;
mod threads;
mod units;

pub use flow::{Flow, Hop};
pub use life::Life;
#[cfg(test)]
pub use life::crash;
pub use link::{Link, LinkSource};
pub use observe::{ActorView, Observe, QueueView, Snapshot};
pub use shares::{Full, SharedPermit, SharedPermits, Shares};
pub use supervision::{AfterExit, ChildExited, Children, ExitCause, Stop, supervise};
pub use threads::Threads;
pub use units::{micros, millis};

use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A place in the queue of whoever caused a message; free again when the last message made from it
/// has been handled.
pub type Slot = Option<Arc<OwnedSemaphorePermit>>;

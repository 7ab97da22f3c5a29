//! What every actor needs and no domain word belongs to: fairness, shares of limits, names of services, supervision.

mod budget;
mod link;
mod shares;
mod supervision;

pub use budget::Budget;
pub use link::{Link, LinkSource};
pub use shares::{Full, SharedPermit, SharedPermits, Shares};
pub use supervision::{AfterExit, ChildExited, Children, ExitCause, ExitNotice, Slot, Stop};

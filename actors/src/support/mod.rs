//! What every actor needs and no domain word belongs to: fairness, names of services, supervision.

mod budget;
mod link;
mod supervision;

pub use budget::Budget;
pub use link::{Link, LinkSource};
pub use supervision::{AfterExit, ChildExited, Children, ExitCause, ExitNotice, Slot, Stop};

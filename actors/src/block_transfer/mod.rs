mod core;
mod links;
mod read_ahead;
#[cfg(test)]
mod tests;
pub use self::core::{ChildId, Effect, Event, TransferCore, TransferLimits};

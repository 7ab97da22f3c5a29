//! The simulator: the real cores of manager and agents on virtual time.
//!
//! Nothing here decides what a core decides. An event heap in virtual nanoseconds delivers events to
//! `SchedulerCore`, `ProfilesCore`, `TreeCore`, `VmCore`, `SessionCore`, `TransferCore`, `InstanceCore` and
//! `MemoryCore`, and makes of their effects what the world would. All randomness comes from the seed and all maps are ordered:
//! a seed is a history, on every machine.
//!
//! The model:
//!
//! - **Control messages** take a latency, in order. The manager handles each at once; sending an order may
//!   cost it time. The queue of a session never fills up.
//! - **Blocks** flow on connections that send one frame after the other, demand first. A connection gets the
//!   smaller of an equal share of its sender's uplink and of its receiver's downlink (`network`).
//! - **The origin** is a sender without a limit of connections, with a rate and a time to the first byte.
//!   While the registry is away, blocks are refused and an index ends the connection.
//! - **The disk** of a VM and the metadata store take a fixed time for each block and each group commit.
//! - **Mount and run** take a random time. A container reads the blocks that its image names, one after the
//!   other, each as soon as the one before is there; then its probe answers. A failed read ends it.
//! - **What starts read** is recorded by the holder of a VM, taken in, and packed, as `ProfilesCore` says; the
//!   surveyor and the converter take a fixed time. A model may say that it was learned before (`Hot`).
//! - **A VM** may crash (its connections end), vanish (nobody is told; connections end after
//!   `WorldLimits::vanished`), pause (nothing moves, nothing is lost), be cut off from another VM or the manager
//!   (what is sent arrives when that is over, as with TCP), lose a connection, or damage blocks that it sends.
//!   What its disk holds outlives a crash; its containers do not.
//! - **The manager** may die, with all but the rows of its metadata store.
//!
//! - **The cache** of a VM never fills, and an image goes with its tree.
//!
//! Not in the model: TLS and capabilities, CPU of agents, the mailboxes of actors (each core sees its messages
//! in the order of sending), and restarts of single actors.

mod agent;
mod book;
pub mod cli;
mod history;
mod host;
mod invariants;
mod manager;
mod model;
mod network;
mod queue;
mod scenario;
pub mod shapes;
#[cfg(test)]
mod tests;
mod world;

pub use history::{Action, Failure, History, Outcome};
pub use invariants::Violation;
pub use model::{FunctionModel, Hot, ImageModel, Model, Reads, WorldLimits};
pub use scenario::{Report, Scenario};

//! The simulator: the real cores of manager and agents on virtual time.
//!
//! Nothing here decides what a core decides. An event heap in virtual nanoseconds delivers events to
//! `SchedulerCore`, `ProfilesCore`, `TreeCore`, `VmCore`, `SessionCore`, `TransferCore`, `InstanceCore` and
//! `MemoryCore` and `RoomCore`, and makes of their effects what the world would. All randomness comes from the seed and all maps are ordered:
//! a seed is a history, on every machine.
//!
//! The model:
//!
//! - **Control messages** take a latency, in order. The manager handles one after the other; messages and orders
//!   may cost it time (`costs`), which it shares evenly between both (`world/desk.rs`). The queue of a session never fills up.
//! - **Blocks** flow on connections that send one frame after the other, demand first. Connections share the
//!   uplinks and downlinks of their ends max-min fairly (`fair`, `network`).
//! - **CPU** (`costs`, `cpu`): the jobs of a VM share its cores evenly: handshakes, orders, decrypting and checking a
//!   block, decoding and writing it, sending it, mounting, running, what the application does, and probes. All
//!   VMs may share the cores of one host. Costs are drawn from measured quantiles; a model without them takes
//!   fixed times.
//! - **The origin** is a sender without a limit of connections, with a rate, a time to the first byte, and requests
//!   in a second.
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
//! - **The cache** of a VM has a limit; which images go is decided by `RoomCore`, with the manager's advice.
//! - **Figures** (`figure`, `cases`): blocks of large images are stand-ins that share their bytes; lengths are right.
//!
//! Not in the model: capabilities, the page cache and memory of VMs, losses of packets, the mailboxes of actors (each core sees its messages
//! in the order of sending), and restarts of single actors.

mod agent;
mod book;
mod calibrate;
mod cases;
pub mod cli;
mod cluster;
mod costs;
mod cpu;
pub mod fair;
pub mod figure;
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
mod validate;
mod world;

pub use cases::{Case, ScenarioFile};
pub use cluster::Cluster;
pub use costs::{AgentCosts, ContainerCosts, Costs, ManagerCosts, Quantiles};
pub use history::{Action, Failure, History, Outcome};
pub use invariants::Violation;
pub use model::{
    Cores, FunctionModel, GIGABIT, Hot, ImageModel, MILLISECOND, Model, Reads, SECOND, Spread, WorldLimits,
};
pub use queue::{Nanos, Queue};
pub use scenario::{Report, Scenario};

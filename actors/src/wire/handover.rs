//! An agent and the process that takes its place, over a unix socket in the VM's data folder.
//!
//! The new process says `HandOver`; the old one stops serving, writes down what it knows, gives up the
//! folder's lock and answers `Yours`, on which its listening socket travels. When the new one has the
//! lock it says `Taken`. A connection that ends before that leaves the old one where it is.

use serde::{Deserialize, Serialize};

/// From the new process to the agent that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPredecessor {
    /// With the version of the protocol that the new process speaks with the holder, which stays.
    HandOver {
        version: u32,
    },
    Taken,
}

/// The answer to `HandOver`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromPredecessor {
    Yours,
    /// The holder could not speak with the new process.
    Refused {
        version: u32,
    },
}

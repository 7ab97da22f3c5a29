//! Agent and holder, over a unix socket in the VM's data folder.
//!
//! The holder outlives the agent. On each new connection the agent says `Hello`, the holder answers
//! with `State`, and then asks again (`Miss`) for all that its pending reads still need.

use crate::{
    id::{BlockId, ImageId, StartId},
    image::RuntimeConfig,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};
use utoipa::ToSchema;

/// From the agent to the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToHolder {
    /// First on each connection.
    Hello { version: u32 },
    /// Serves a block image's file system and mounts it. Answered by `Mounted` or `MountFailed`.
    /// Again for an image already mounted: answered at once, and `Miss` is said again for pending reads.
    Mount(Mount),
    /// The plain bytes of these blocks are in the cache file; reads that wait for them go on.
    Present { image: ImageId, blocks: Vec<BlockId> },
    /// These blocks cannot be had: reads that wait for them fail with an I/O error.
    Unavailable { image: ImageId, blocks: Vec<BlockId> },
    /// What was read of the image so far is what was wanted. Answered by `Recorded`.
    EndRecording { image: ImageId },
    /// Runs a container on a mounted image. Answered by `Running` or `RunFailed`, later `Exited`.
    Run(Box<Run>),
    /// Ends a container: its stop signal, after `grace_ms` SIGKILL. Answered by `Exited`.
    Stop { start: StartId, grace_ms: u64 },
    /// Gives up an image's mount. Refused with `MountFailed` while an instance uses it.
    Unmount { image: ImageId },
    /// Stops every container, unmounts everything, answers `Bye` and ends the process.
    Shutdown { grace_ms: u64 },
}

/// A block image to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub image: ImageId,
    /// The cache file: sparse, plain bytes at their place in the file system.
    pub plain_path: PathBuf,
    pub plain_bytes: u64,
    /// Bit `n % 8` of byte `n / 8` is set when block `n` is in the cache file.
    #[serde(with = "serde_bytes")]
    pub present: Vec<u8>,
    /// Whether what is read of the image is to be recorded, until `EndRecording`.
    #[serde(default)]
    pub record: bool,
    /// Whether what a start reads lies together in the image, so that reading further ahead touches blocks
    /// that no start needs.
    #[serde(default)]
    pub packed: bool,
}

/// Bytes of a block image's file system: place and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlainRange(pub u64, pub u64);

impl PlainRange {
    /// `None` when the range is empty or ends beyond what numbers can say.
    pub fn end(self) -> Option<u64> {
        self.0.checked_add(self.1).filter(|end| *end > self.0)
    }
}

/// Where a container finds its package of code: where those who bring one from AWS Lambda expect it.
pub const CODE_PATH: &str = "/var/task";

/// A container to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub start: StartId,
    pub image: ImageId,
    /// A second image, mounted already, that the container finds read-only at [`CODE_PATH`].
    #[serde(default)]
    pub code: Option<ImageId>,
    pub runtime: RuntimeConfig,
    /// What to run in place of the image's entrypoint and command.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Settings of the function; they win over those of the image.
    pub env: BTreeMap<String, String>,
    /// A free port on the VM's loopback, chosen by the agent; the container finds it as `$PORT`.
    pub port: u16,
    pub memory_bytes: u64,
    /// Thousandths of a core: the container's weight while others want the CPU too.
    pub cpu_millis: u32,
    pub pids_max: u32,
    /// Bound of what the container may write to its root file system.
    pub writable_bytes: u64,
    /// Bound of the kept output; the oldest is dropped.
    pub log_bytes_max: u64,
}

/// From the holder to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromHolder {
    /// The answer to `Hello`: all that the holder has.
    State {
        version: u32,
        mounts: Vec<ImageId>,
        instances: Vec<HeldInstance>,
    },
    /// Reads wait for these blocks. Sent once for each block until it is answered or the agent reconnects.
    Miss {
        image: ImageId,
        blocks: Vec<BlockId>,
    },
    Mounted {
        image: ImageId,
    },
    MountFailed {
        image: ImageId,
        reason: String,
    },
    Running {
        start: StartId,
        pid: u32,
    },
    RunFailed {
        start: StartId,
        reason: String,
    },
    Exited {
        start: StartId,
        exit: Exit,
    },
    /// The answer to `EndRecording`: what was read of the image since it was mounted, in the order of first use,
    /// each byte once. Empty when nothing was recorded.
    Recorded {
        image: ImageId,
        ranges: Vec<PlainRange>,
    },
    Bye,
}

/// A container that the holder has, running or ended lately. An end may be told twice, because the
/// agent that was told may have died with the message unread; it is forgotten when an order follows
/// the `State` that told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldInstance {
    pub start: StartId,
    pub image: ImageId,
    /// What the agent must know again after it was replaced.
    pub port: u16,
    pub exit: Option<Exit>,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
    OutOfMemory,
}

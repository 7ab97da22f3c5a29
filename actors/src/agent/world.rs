//! What the agent's actors need of their VM and of other processes. Adapters live in the process.

use crate::{
    id::{BlockId, StartId, TreeId},
    image::{BlockImage, Index},
    wire::{
        control::{Capability, Hello, StartOrder, ToAgent, ToManager, Upstream},
        holder::{FromHolder, ToHolder},
        peer::{FromParent, NotServed, ToParent, Urgency},
    },
};
use actix::{Message, Recipient};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{sync::mpsc, task::AbortHandle};

/// The index of an image, set once it has arrived; connections verify blocks against it.
pub type IndexCell = Arc<OnceLock<Arc<Index>>>;

/// A task at the other end of a bounded queue. Dropping it ends the task.
pub struct TaskLink<C> {
    pub commands: mpsc::Sender<C>,
    pub task: AbortHandle,
}

impl<C> TaskLink<C> {
    /// False when the queue is full or the task is gone.
    pub fn send(&self, command: C) -> bool {
        self.commands.try_send(command).is_ok()
    }
}

impl<C> Drop for TaskLink<C> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens connections to upstreams: other VMs, and the origin, which understands the same commands.
pub trait Upstreams: Send + Sync {
    /// Never fails at once: what goes wrong comes as `UpstreamEvent::Closed`.
    fn open(&self, target: UpstreamTarget, events: Recipient<FromUpstream>) -> TaskLink<ToParent>;
}

#[derive(Clone)]
pub struct UpstreamTarget {
    pub upstream: Upstream,
    /// Comes back with every event, so that those of an earlier connection are told apart.
    pub link: u64,
    pub tree: TreeId,
    pub image: Arc<BlockImage>,
    pub capability: Capability,
    pub index: IndexCell,
}

/// Something came from an upstream. Bounded by what it was asked for.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FromUpstream {
    pub upstream: Upstream,
    pub link: u64,
    pub event: UpstreamEvent,
}

pub enum UpstreamEvent {
    Opened,
    /// Its digest was checked.
    Index {
        index: Arc<Index>,
        encoded: Bytes,
    },
    /// Each was checked against the index (invariant 5).
    Blocks(Vec<(BlockId, Bytes)>),
    Corrupt(BlockId),
    NotServed {
        block: BlockId,
        reason: NotServed,
    },
    Waits,
    Closed {
        reason: String,
    },
}

/// What waits to be sent to a child, the more urgent first. All queues are bounded; a child that
/// lets one fill up has broken its window and is cut off.
#[derive(Clone)]
pub struct ChildLink {
    pub demand: mpsc::Sender<(FromParent, Bytes)>,
    pub prefetch: mpsc::Sender<(FromParent, Bytes)>,
    pub background: mpsc::Sender<(FromParent, Bytes)>,
}

impl ChildLink {
    pub fn send(&self, urgency: Urgency, header: FromParent, body: Bytes) -> bool {
        let queue = match urgency {
            Urgency::Demand => &self.demand,
            Urgency::Prefetch => &self.prefetch,
            Urgency::Background => &self.background,
        };
        queue.try_send((header, body)).is_ok()
    }
}

/// The cache of block images on this VM's disk.
pub trait Disk: Send + Sync {
    /// Opens an image's place in the cache, or makes one. Does not take longer for a large image.
    fn open(&self, tree: &TreeId, image: &BlockImage) -> BoxFuture<'static, Result<OpenedImage, DiskError>>;
    fn save_index(&self, tree: &TreeId, encoded: Bytes) -> BoxFuture<'static, Result<(), DiskError>>;
    /// Decodes verified stored bytes and writes both forms.
    fn keep(
        &self,
        tree: &TreeId,
        index: Arc<Index>,
        block: BlockId,
        stored: Bytes,
    ) -> BoxFuture<'static, Result<(), DiskError>>;
    /// Stored bytes of a block that was kept, verified again: disks forget.
    fn load(
        &self,
        tree: &TreeId,
        index: Arc<Index>,
        block: BlockId,
    ) -> BoxFuture<'static, Result<Bytes, DiskError>>;
    /// Verifies a block that was found when the image was opened. A damaged one is found no more.
    fn check(
        &self,
        tree: &TreeId,
        index: Arc<Index>,
        block: BlockId,
    ) -> BoxFuture<'static, Result<bool, DiskError>>;
    /// Removes an image's place in the cache. Files that the holder has open live on until it closes them.
    fn remove(&self, tree: &TreeId) -> BoxFuture<'static, Result<(), DiskError>>;
    /// Keeps what an agent must know after it was killed.
    fn save_place(&self, tree: &TreeId, record: TreeRecord) -> BoxFuture<'static, Result<(), DiskError>>;
    /// Keeps that the VM has left the tree: its image is cold. A later `save_place` ends that.
    fn save_left(&self, tree: &TreeId, record: TreeRecord) -> BoxFuture<'static, Result<(), DiskError>>;
    /// `None` forgets it.
    fn save_instance(
        &self,
        start: &StartId,
        record: Option<InstanceRecord>,
    ) -> BoxFuture<'static, Result<(), DiskError>>;
}

pub struct OpenedImage {
    pub index: Option<Arc<Index>>,
    /// Blocks that were kept, each to be verified before it is used.
    pub unverified: BTreeSet<BlockId>,
    /// The cache file that the holder reads.
    pub plain_path: PathBuf,
}

/// A tree that the VM was a member of, as kept on disk.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct TreeRecord {
    pub image: BlockImage,
    pub place: crate::wire::control::Place,
}

/// An image of a tree that the VM has left, as found on disk.
#[derive(Debug, Clone)]
pub struct ColdImage {
    pub record: TreeRecord,
    pub blocks_present: u32,
    pub blocks_total: u32,
    pub disk_bytes: u64,
}

/// What an agent leaves for the next one on the same folder.
#[derive(Default)]
pub struct Records {
    pub trees: Vec<(TreeId, TreeRecord)>,
    /// What was left first is first.
    pub cold: Vec<(TreeId, ColdImage)>,
    pub instances: Vec<(StartId, InstanceRecord)>,
}

/// An instance that was ordered, as kept on disk.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct InstanceRecord {
    pub order: StartOrder,
    pub port: u16,
    /// Absent in records of earlier releases.
    #[serde(default)]
    pub is_ready: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error(
        "the disk or the cache's limit is full and nothing in the cache could go; free space, raise \
         transfer.disk_cache_bytes, or run fewer functions on this VM"
    )]
    Full,
    #[error("the disk of the cache is read-only; mount it writable and restart the agent")]
    ReadOnly,
    #[error("the cache cannot be read or written: {0}")]
    Io(String),
    #[error("block {0:?} on disk does not have its hash or its plain length")]
    Corrupt(BlockId),
}

/// The holder's end of the unix socket.
pub trait Holder: Send + Sync {
    /// Queues a message. False when the holder is not connected or its queue is full.
    fn send(&self, message: ToHolder) -> bool;
}

/// The holder said something, came or went.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum HolderEvent {
    Says(FromHolder),
    Lost,
}

/// Opens the session with the manager.
pub trait ManagerDialer: Send + Sync {
    fn open(&self, hello: Hello, link: u64, events: Recipient<FromManager>) -> TaskLink<ToManager>;
}

#[derive(Message)]
#[rtype(result = "()")]
pub struct FromManager {
    pub link: u64,
    pub event: ManagerEvent,
}

pub enum ManagerEvent {
    Says(ToAgent),
    Closed { reason: String },
}

/// Asks an instance whether it is ready.
pub trait Prober: Send + Sync {
    /// A GET on the VM's loopback; true when the answer's status is below 400.
    fn probe(&self, port: u16, path: String, timeout: Duration) -> BoxFuture<'static, bool>;
    /// A port of the loopback that nobody listens on.
    fn free_port(&self) -> Option<u16>;
}

//! What passes between an agent and its world.

use super::*;

#[derive(Debug, Clone)]
pub(in crate::simulate) enum FromPeer {
    Opened,
    Index,
    Block(BlockId, Bytes),
    Corrupt(BlockId, Bytes),
    NotServed(BlockId, NotServed),
    Waits,
    Closed(String),
}

#[derive(Debug, Clone)]
pub(in crate::simulate) enum Event {
    /// What the manager says on that session.
    Manager {
        link: u64,
        message: ToAgent,
    },
    ManagerClosed {
        link: u64,
    },
    /// The place of an image in the cache is open.
    CacheOpened {
        tree: TreeId,
    },
    CacheRemoved {
        tree: TreeId,
    },
    Upstream {
        tree: TreeId,
        upstream: Upstream,
        conn: u64,
        said: FromPeer,
    },
    /// A child with a valid capability.
    ChildCame {
        conn: u64,
        tree: TreeId,
        vm: VmId,
    },
    /// A child that came early has waited long enough.
    ChildWaited {
        conn: u64,
    },
    /// The connection has sent a block.
    ChildSent {
        conn: u64,
        tree: TreeId,
        urgency: Urgency,
    },
    Child {
        conn: u64,
        tree: TreeId,
        said: ToParent,
    },
    ChildGone {
        conn: u64,
        tree: TreeId,
    },
    Kept {
        tree: TreeId,
        block: BlockId,
    },
    /// A block that a former agent kept was verified.
    Checked {
        tree: TreeId,
        block: BlockId,
    },
    Loaded {
        tree: TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
    },
    Mounted {
        tree: TreeId,
    },
    /// The holder has recorded what a start read.
    Recorded {
        tree: TreeId,
        ranges: Vec<PlainRange>,
    },
    /// Reads of a container wait.
    Missed {
        tree: TreeId,
        blocks: Vec<BlockId>,
    },
    Running {
        start: StartId,
    },
    Exited {
        start: StartId,
        exit: Exit,
    },
    Probed {
        start: StartId,
        is_ready: bool,
    },
    InstanceTick {
        start: StartId,
    },
    Tick,
}

#[derive(Debug)]
pub(in crate::simulate) enum Effect {
    DialManager {
        link: u64,
        hello: Hello,
    },
    Say {
        link: u64,
        message: ToManager,
    },
    CloseManager {
        link: u64,
    },
    Dial {
        conn: u64,
        tree: TreeId,
        upstream: Upstream,
    },
    HangUp {
        conn: u64,
    },
    Ask {
        conn: u64,
        message: ToParent,
    },
    /// To a child.
    Tell {
        conn: u64,
        urgency: Urgency,
        message: FromParent,
        body: Bytes,
    },
    /// A child is let in, or not.
    Admit {
        conn: u64,
    },
    Refuse {
        conn: u64,
        reason: Refusal,
    },
    /// A child's connection is ended.
    DropChild {
        conn: u64,
    },
    WaitForTree {
        conn: u64,
    },
    OpenCache {
        tree: TreeId,
    },
    RemoveCache {
        tree: TreeId,
    },
    Keep {
        tree: TreeId,
        block: BlockId,
        stored: Bytes,
    },
    Check {
        tree: TreeId,
        block: BlockId,
    },
    Load {
        tree: TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
    },
    Mount {
        tree: TreeId,
        /// Whether what is read is recorded.
        record: bool,
    },
    EndRecording {
        tree: TreeId,
    },
    Unmount {
        tree: TreeId,
    },
    Present {
        tree: TreeId,
        blocks: Vec<BlockId>,
    },
    Unavailable {
        tree: TreeId,
        blocks: Vec<BlockId>,
    },
    Run {
        start: StartId,
    },
    Stop {
        start: StartId,
    },
    Probe {
        start: StartId,
    },
    ProbeAgain {
        start: StartId,
    },
    /// What is kept for the next life of the agent.
    SavePlace {
        tree: TreeId,
        record: Box<TreeRecord>,
    },
    /// A block had no room on the disk, and may be asked for again.
    NotKept {
        tree: TreeId,
        bytes: u64,
    },
    /// The tree was left: its image is cold. A later `SavePlace` ends that.
    SaveLeft {
        tree: TreeId,
    },
    SaveInstance {
        start: StartId,
        record: Option<Box<InstanceRecord>>,
    },
}

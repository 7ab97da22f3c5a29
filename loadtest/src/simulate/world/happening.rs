//! All that can happen.

use super::*;

pub(in crate::simulate) enum Happening {
    ToHost {
        host: Node,
        life: u32,
        from: Node,
        event: Box<agent::Event>,
    },
    ToManager {
        life: u32,
        from: Node,
        input: Box<Input>,
    },
    /// A child's connection reaches its parent.
    Arrives {
        conn: u64,
    },
    /// A child has waited long enough for its connection.
    DialOver {
        conn: u64,
    },
    OriginAnswers {
        conn: u64,
        message: ToParent,
        is_up: bool,
    },
    /// A step of opening a connection with TLS: see `World::handshake`.
    Handshake {
        conn: u64,
        step: u8,
    },
    /// A frame is encrypted and goes to its connection.
    Send {
        conn: u64,
        frame: Box<Frame>,
    },
    /// The first that waits there is decrypted and checked.
    Read {
        inbox: Inbox,
        life: u32,
    },
    /// A job of these cores may be done.
    Worked {
        cpu: usize,
        version: u32,
    },
    /// Time passes after work that was done.
    Waits {
        length: Nanos,
        then: Box<Happening>,
    },
    ManagerFree {
        life: u32,
    },
    /// A client that was refused tries again.
    Asks(Wish),
    Sent(Sent),
    AgentTick {
        host: Node,
        life: u32,
    },
    SessionOver {
        host: Node,
        life: u32,
        link: u64,
    },
    MountEnds {
        host: Node,
        life: u32,
        tree: TreeId,
    },
    RunEnds {
        host: Node,
        life: u32,
        start: StartId,
    },
    Reads {
        host: Node,
        life: u32,
        start: StartId,
    },
    ReadOver {
        host: Node,
        life: u32,
        start: StartId,
        block: BlockId,
    },
    StopEnds {
        host: Node,
        life: u32,
        start: StartId,
    },
    SchedulerTick {
        life: u32,
    },
    ManagerTick {
        life: u32,
    },
    ManagerStarts,
    Resumes {
        host: Node,
    },
    Heals {
        a: Node,
        b: Node,
    },
    /// Silence between two nodes has lasted so long that connections end.
    Vanished {
        a: Node,
        b: Node,
    },
    VmVanished {
        host: Node,
        life: u32,
    },
    OriginBack,
}

/// What one connection brings to a VM, one thing after the other: the VM, whether it is from the manager, and which
/// connection it is.
pub(in crate::simulate) type Inbox = (Node, bool, u64);

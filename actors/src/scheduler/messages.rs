//! All that can be asked of the scheduler, with the type of each answer.

use crate::{
    id::{Digest, FunctionName, RequestId, StartId, TenantId, VmId},
    model::{
        Counts, FunctionSpec, FunctionView, PreheatSpec, PreheatView, ProfileView, StartView, TreeView,
        VmView,
    },
    resources::Resources,
    support::{Flow, Hop, SharedPermit},
    world::MetadataError,
};
use actix::prelude::*;
use std::{collections::BTreeSet, fmt::Display, net::SocketAddr, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// Where an answer goes. A receiver that was dropped means that nobody waits any more.
pub type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// A place in the mailbox, counted to a tenant or to those who ask about all of them.
pub type Permit = SharedPermit<Option<TenantId>>;

/// Names one call of `Acquire`, so that its caller can take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A question or command for the scheduler. The permit bounds what waits in the mailbox, and is given
/// back when the message is taken out of it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Request {
    pub ask: Ask,
    /// None for `Abandon`: there is at most one for each call that was let in.
    pub permit: Option<Permit>,
    /// What the caller's request is called.
    pub request: Option<RequestId>,
}

impl Flow for Request {
    fn hop(&self) -> Option<Hop<'_>> {
        let (message, about): (_, &dyn Display) = match &self.ask {
            Ask::PutFunction { name, .. } => ("PutFunction", name),
            Ask::DeleteFunction { name, .. } => ("DeleteFunction", name),
            Ask::Start { name, .. } => ("Start", name),
            Ask::Stop { start, .. } => ("Stop", start),
            Ask::Acquire { name, .. } => ("Acquire", name),
            Ask::Preheat { name, .. } => ("Preheat", name),
            Ask::RemoveVm { vm, .. } => ("RemoveVm", vm),
            Ask::DrainVm { vm, .. } => ("DrainVm", vm),
            Ask::UndrainVm { vm, .. } => ("UndrainVm", vm),
            Ask::Optimize { name, .. } => ("Optimize", name),
            // Questions that change nothing.
            Ask::GetFunction { .. }
            | Ask::ListFunctions { .. }
            | Ask::GetStart { .. }
            | Ask::ListStarts { .. }
            | Ask::Locate { .. }
            | Ask::ListVms { .. }
            | Ask::Count { .. }
            | Ask::ListCode { .. }
            | Ask::GetTree { .. }
            | Ask::GetProfile { .. }
            | Ask::GetPreheat { .. }
            | Ask::Abandon { .. } => return None,
        };
        Some(Hop { message, about, permit: "mailbox permit" })
    }
}

pub enum Ask {
    /// Creates or replaces a function. Answered when it is durable; the image is converted after it.
    PutFunction {
        tenant: TenantId,
        name: FunctionName,
        spec: FunctionSpec,
        reply: Reply<FunctionView>,
    },
    GetFunction {
        tenant: TenantId,
        name: FunctionName,
        reply: Reply<FunctionView>,
    },
    ListFunctions {
        tenant: TenantId,
        reply: Reply<Vec<FunctionView>>,
    },
    /// Removes a function and stops its instances. Answered when it is durable.
    DeleteFunction {
        tenant: TenantId,
        name: FunctionName,
        reply: Reply<()>,
    },
    /// Accepts `count` starts. Answered when their ids are durable, before they are placed.
    Start {
        tenant: TenantId,
        name: FunctionName,
        count: u32,
        reply: Reply<Vec<StartId>>,
    },
    GetStart {
        tenant: TenantId,
        start: StartId,
        reply: Reply<StartView>,
    },
    /// Starts of one function, the newest first, at most `limit`.
    ListStarts {
        tenant: TenantId,
        name: FunctionName,
        limit: usize,
        reply: Reply<Vec<StartView>>,
    },
    /// Ends an instance.
    Stop {
        tenant: TenantId,
        start: StartId,
        reply: Reply<()>,
    },
    /// Where the VM of an instance is reached.
    Locate {
        tenant: TenantId,
        start: StartId,
        reply: Reply<Located>,
    },
    /// A place at an instance for one request; starts an instance when none is there.
    Acquire {
        call: CallId,
        tenant: TenantId,
        name: FunctionName,
        on: Option<StartId>,
        deadline: Instant,
        reply: Reply<Acquired>,
    },
    /// Nobody waits for that place any more.
    Abandon {
        call: CallId,
    },
    /// Brings a function's image to VMs. Answered when they are chosen.
    Preheat {
        tenant: TenantId,
        name: FunctionName,
        spec: PreheatSpec,
        reply: Reply<PreheatView>,
    },
    /// What VMs hold of a function's image.
    GetPreheat {
        tenant: TenantId,
        name: FunctionName,
        reply: Reply<PreheatView>,
    },
    ListVms {
        reply: Reply<Vec<VmView>>,
    },
    /// How much there is of everything.
    Count {
        reply: Reply<Counts>,
    },
    /// The packages of code that functions name, or are about to.
    ListCode {
        reply: Reply<BTreeSet<(TenantId, Digest)>>,
    },
    /// Forgets a VM that is lost, so that its name is free again.
    RemoveVm {
        vm: VmId,
        reply: Reply<()>,
    },
    /// Moves all that a VM runs and places nothing on it. Answered when that is durable, before it is done.
    DrainVm {
        vm: VmId,
        /// Also when no other VM takes starts.
        force: bool,
        reply: Reply<VmView>,
    },
    /// Lets a VM take starts again. Answered when it is durable.
    UndrainVm {
        vm: VmId,
        reply: Reply<VmView>,
    },
    GetTree {
        tenant: TenantId,
        name: FunctionName,
        /// That of its code, not that of its image.
        of_code: bool,
        reply: Reply<TreeView>,
    },
    /// What starts of a function read of their image.
    GetProfile {
        tenant: TenantId,
        name: FunctionName,
        reply: Reply<ProfileView>,
    },
    /// Packs a function's image by that. Answered when it is durable that it will be done.
    Optimize {
        tenant: TenantId,
        name: FunctionName,
        reply: Reply<ProfileView>,
    },
}

/// A request at an instance is over. Bounded by the requests that `Acquire` let in.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Release {
    pub start: StartId,
}

/// An instance and the agent that forwards requests to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub start: StartId,
    pub vm: VmId,
    pub address: SocketAddr,
}

/// A place for one request at one instance; dropped, it is free again, wherever that happens.
pub struct Acquired {
    located: Located,
    releases: Recipient<Release>,
}

impl Acquired {
    pub fn new(located: Located, releases: Recipient<Release>) -> Self {
        Self { located, releases }
    }

    pub fn located(&self) -> &Located {
        &self.located
    }
}

impl Drop for Acquired {
    fn drop(&mut self) {
        self.releases.do_send(Release { start: self.located.start.clone() });
    }
}

/// Why the control plane does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("there is no {0}")]
    NotFound(&'static str),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Conflict(String),
    /// A limit of one function or tenant is reached.
    #[error("too many {what} wait already")]
    TooMany { what: &'static str, retry_after: Duration },
    /// A limit of the whole manager is reached.
    #[error("the manager has no capacity for it now")]
    Overloaded { retry_after: Duration },
    #[error("the function's image or code is being converted")]
    ImageNotReady { retry_after: Duration },
    #[error("the function's image or code could not be converted: {0}")]
    ImageFailed(String),
    /// No VM that is there could ever run it.
    #[error(
        "an instance needs {} MiB and {} thousandths of a core, and VMs have at most {} MiB and {}; give the \
         function less, or join a larger VM",
        needs.memory_bytes >> 20, needs.cpu_millis, most.memory_bytes >> 20, most.cpu_millis
    )]
    TooLarge { needs: Resources, most: Resources },
    /// The start that a request waited for did not become ready.
    #[error("no instance became ready: {0}")]
    StartFailed(String),
    #[error("it took longer than its deadline")]
    DeadlineExceeded,
    #[error("what was asked could not be made durable: {0}")]
    Metadata(MetadataError),
    /// The scheduler crashed while it had the question, or was being rebuilt.
    #[error("the scheduler was interrupted; whether it was done is not known")]
    Interrupted { retry_after: Duration },
    #[error("the manager is shutting down")]
    Closed,
}

impl ControlError {
    /// When to ask again, if that may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { retry_after, .. }
            | Self::Overloaded { retry_after }
            | Self::ImageNotReady { retry_after }
            | Self::Interrupted { retry_after } => Some(*retry_after),
            Self::NotFound(_)
            | Self::Invalid(_)
            | Self::Conflict(_)
            | Self::ImageFailed(_)
            | Self::TooLarge { .. }
            | Self::StartFailed(_)
            | Self::DeadlineExceeded
            | Self::Metadata(_)
            | Self::Closed => None,
        }
    }
}

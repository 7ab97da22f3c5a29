//! Manager and agent: joining, the session, orders and reports.

use super::holder::{Exit, PlainRange};
use crate::{
    id::{BlockId, Epoch, FunctionName, ImageId, RequestId, StartId, TenantId, TreeId, VmId},
    image::BlockImage,
    support::ActorView,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, iter, net::SocketAddr};
use utoipa::ToSchema;

/// Asks for a certificate, on a connection on which only the manager has shown one.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    pub version: u32,
    pub vm: VmId,
    /// The secret part of the join token.
    pub secret: String,
    /// A PKCS#10 certificate signing request in PEM; the key stays on the VM.
    pub signing_request: String,
}

/// The answer to a `JoinRequest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinAnswer {
    /// The VM's certificate in PEM.
    Joined {
        certificate: String,
    },
    Refused {
        reason: JoinRefusal,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum JoinRefusal {
    #[error("agent and manager speak different versions of the protocol; run the same release on both")]
    Version,
    #[error("the join token is wrong or was revoked; ask the manager for one with `faasnet vm join-token`")]
    Token,
    #[error(
        "another VM has this name; choose another with --name, or remove the old one with `faasnet vm remove`"
    )]
    NameTaken,
    #[error("the certificate request is not acceptable")]
    Request,
}

/// From the agent to the manager, on its one control connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToManager {
    /// First on each connection: all that the VM is and has. The manager rebuilds its picture from it.
    Hello(Hello),
    /// Sent every `heartbeat_ms`.
    Heartbeat { held: Vec<HeldTree> },
    /// A step of a start is done.
    Progress { start: StartId, step: Step, elapsed_us: u64 },
    /// The probe answered.
    Ready { start: StartId, report: StartReport },
    /// What a start that was to be recorded has read of its image before it was ready, in the order of first use.
    Recorded { start: StartId, image: ImageId, ranges: Vec<PlainRange> },
    /// The start did not become ready, or its instance has ended.
    Ended { start: StartId, reason: EndReason, report: StartReport },
    /// Asks for a new certificate before the present one expires, for the same key.
    Renew { signing_request: String },
    /// An upstream of this VM does not serve; the manager decides the new place.
    UpstreamLost { tree: TreeId, epoch: Epoch, vm: VmId },
    /// The answer to `Observe`: the VM's actors, in a bounded number.
    Observed { number: u64, agent: ActorView },
    /// Nobody serves this VM, which waits for so many blocks: may it read the origin? Answered by `Origin`.
    OriginWanted { tree: TreeId, blocks: u32 },
    /// Another process of this VM is about to say `Hello`: orders are kept back for it. Answered by `Yielded`,
    /// the last order on this session.
    Yield,
    /// All images that the VM has kept of trees that it has left; said when that has changed. The capabilities,
    /// expired ones too, prove that it was in these trees.
    Cold { trees: Vec<ColdTree>, proofs: Vec<Capability> },
    /// The cache is full: which of these images, that nothing here uses, go to give so much back? The first was
    /// not used for longest. Answered by `GiveUp`.
    RoomWanted { bytes: u64, candidates: Vec<Candidate> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Where other VMs and the manager reach this agent.
    pub address: SocketAddr,
    pub held: Vec<HeldTree>,
    /// The capabilities that the VM was given: its word about a tree without one counts nothing, or a VM
    /// could get at the images and requests of other tenants by naming them.
    pub proofs: Vec<Capability>,
    pub instances: Vec<RunningInstance>,
}

/// A tree that the VM is a member of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTree {
    pub tree: TreeId,
    pub epoch: Epoch,
    /// As the manager last said it: `Seat::place`.
    pub place: u64,
    pub blocks_present: u32,
    pub blocks_total: u32,
    pub bytes: BytesBySource,
    /// The longest wait of one read so far, one that still waits included.
    pub longest_stall_us: u64,
    /// What became of the last order to preheat it. None while the VM knows no index, or has no such order.
    #[serde(default)]
    pub preheated: Option<Preheated>,
}

/// How far an order to preheat is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preheated {
    /// `PreheatOrder::number`.
    pub order: u64,
    /// Blocks that it asks for and that are not there.
    pub missing: u32,
}

/// An image in the cache of a VM that has left its tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColdTree {
    pub tree: TreeId,
    pub blocks_present: u32,
    pub blocks_total: u32,
}

/// An image in a cache that may go, with what that gives back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub tree: TreeId,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningInstance {
    pub start: StartId,
    pub tenant: TenantId,
    pub function: FunctionName,
    pub image: ImageId,
    /// Of its package of code.
    #[serde(default)]
    pub code: Option<ImageId>,
    pub memory_bytes: u64,
    pub cpu_millis: u32,
    pub ready: bool,
}

impl RunningInstance {
    /// The trees whose blocks it needs.
    pub fn trees(&self) -> impl Iterator<Item = TreeId> {
        let of = |image: ImageId| TreeId { tenant: self.tenant.clone(), image };
        iter::once(self.image).chain(self.code).map(of)
    }
}

/// Steps of a start on its VM, in their order (design: "the way of a start").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A connection to an upstream is open.
    Connecting,
    /// The index is there and verified.
    Index,
    /// The blocks that the mount reads are there.
    Metadata,
    /// All blocks are there.
    Whole,
    /// The file system is mounted.
    Mount,
    /// The container's process runs.
    Run,
    /// The probe path answered.
    Probe,
}

impl Step {
    pub const ALL: [Self; 7] =
        [Self::Connecting, Self::Index, Self::Metadata, Self::Whole, Self::Mount, Self::Run, Self::Probe];
}

/// What the VM knows of one start. Times count from the arrival of the order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartReport {
    /// When each step was done, in microseconds.
    pub steps_us: BTreeMap<Step, u64>,
    /// Stored bytes that arrived for this image from the order to this report.
    pub bytes: BytesBySource,
    /// Reads that had to wait for a block, and for how long together.
    pub stalls: u32,
    pub stalled_us: u64,
    /// The longest wait of one read of the image on this VM so far.
    pub longest_stall_us: u64,
    /// What the VM waited for, from the order to this report.
    #[serde(default)]
    pub waits: Waits,
    /// The longest of the stalls, if it was longer than any before the order.
    #[serde(default)]
    pub worst_stall: Option<WorstStall>,
}

/// How long blocks that a VM wanted for itself took to come, by whom they came from, and then to its disk. The
/// waits of many blocks overlap: only their means, and they against each other, say something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waits {
    pub parent: Wait,
    pub ancestor: Wait,
    pub origin: Wait,
    /// From the arrival of a block until it can be read from the cache.
    pub disk: Wait,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Wait {
    pub blocks: u32,
    /// Of all of them together, in microseconds.
    pub us: u64,
}

/// One wait of a read for a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorstStall {
    pub block: BlockId,
    pub us: u64,
    /// The part of it in which the block had arrived, and was written to the cache.
    pub disk_us: u64,
    /// The VM that the block came from; none for the origin.
    pub from: Option<VmId>,
}

impl Waits {
    /// Each wait with the other.
    fn each(self, other: Self, with: impl Fn(Wait, Wait) -> Wait) -> Self {
        Self {
            parent: with(self.parent, other.parent),
            ancestor: with(self.ancestor, other.ancestor),
            origin: with(self.origin, other.origin),
            disk: with(self.disk, other.disk),
        }
    }

    /// Of two images together.
    pub fn plus(self, other: Self) -> Self {
        self.each(other, |a, b| Wait {
            blocks: a.blocks.saturating_add(b.blocks),
            us: a.us.saturating_add(b.us),
        })
    }

    /// What came since `before`.
    pub fn since(self, before: Self) -> Self {
        self.each(before, |a, b| Wait {
            blocks: a.blocks.saturating_sub(b.blocks),
            us: a.us.saturating_sub(b.us),
        })
    }
}

/// Stored bytes of blocks by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BytesBySource {
    /// The first upstream of the order.
    pub parent: u64,
    /// Another VM of the tree.
    pub ancestor: u64,
    pub origin: u64,
}

impl BytesBySource {
    pub fn plus(self, other: Self) -> Self {
        Self {
            parent: self.parent.saturating_add(other.parent),
            ancestor: self.ancestor.saturating_add(other.ancestor),
            origin: self.origin.saturating_add(other.origin),
        }
    }

    /// From everyone.
    pub fn total(self) -> u64 {
        self.parent.saturating_add(self.ancestor).saturating_add(self.origin)
    }
}

/// Why a start or its instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum EndReason {
    /// Stopped because it was asked for.
    Stopped,
    /// Stopped because it had no request for its keep-alive.
    Idle,
    /// The index or the first blocks could not be had.
    ImageUnavailable(String),
    MountFailed(String),
    RunFailed(String),
    Exited(Exit),
    /// The probe did not answer in time.
    NotReady,
    /// The VM refuses the order.
    Refused(String),
    /// The VM is gone.
    VmLost,
    /// No VM had room in time.
    NoRoom,
}

impl EndReason {
    /// All names.
    pub const NAMES: [&str; 10] = [
        "stopped",
        "idle",
        "image_unavailable",
        "mount_failed",
        "run_failed",
        "exited",
        "not_ready",
        "refused",
        "vm_lost",
        "no_room",
    ];

    /// One word, without the detail.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Idle => "idle",
            Self::ImageUnavailable(_) => "image_unavailable",
            Self::MountFailed(_) => "mount_failed",
            Self::RunFailed(_) => "run_failed",
            Self::Exited(_) => "exited",
            Self::NotReady => "not_ready",
            Self::Refused(_) => "refused",
            Self::VmLost => "vm_lost",
            Self::NoRoom => "no_room",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => out.write_str("stopped on request"),
            Self::Idle => out.write_str("it had no request for its keep-alive"),
            Self::ImageUnavailable(detail) => write!(out, "the image could not be read: {detail}"),
            Self::MountFailed(detail) => write!(out, "the image could not be mounted: {detail}"),
            Self::RunFailed(detail) => write!(out, "the container could not be run: {detail}"),
            Self::Exited(Exit::Code(code)) => write!(out, "the container exited with code {code}"),
            Self::Exited(Exit::Signal(signal)) => write!(out, "the container was ended by signal {signal}"),
            Self::Exited(Exit::OutOfMemory) => out.write_str("the container ran out of memory"),
            Self::NotReady => out.write_str("the readiness probe did not answer in time"),
            Self::Refused(detail) => write!(out, "the VM refused the order: {detail}"),
            Self::VmLost => out.write_str("the VM was lost"),
            Self::NoRoom => out.write_str("no VM had room in time"),
        }
    }
}

/// From the manager to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// The answer to `Hello`.
    Welcome {
        version: u32,
        heartbeat_ms: u64,
        /** Ed25519. */
        #[serde(with = "serde_bytes")]
        capability_key: Vec<u8>,
    },
    /// The connection is closed behind it.
    Refused { reason: JoinRefusal },
    /// The answer to `Renew`: the VM's certificate in PEM.
    Renewed { certificate: String },
    /// Make an instance.
    Start(Box<StartOrder>),
    /// Bring blocks of an image here before an instance is ordered.
    Preheat(Box<PreheatOrder>),
    /// End an instance.
    Stop { start: StartId },
    /// A new place in a tree, or fresh hints for the present one.
    Place(Place),
    /// Leave a tree: serve nobody any more. Blocks may stay in the cache.
    Leave { tree: TreeId, epoch: Epoch },
    /// The answer to `RoomWanted`: these images go from the cache. Those of trees that the VM is in go when it is
    /// told to leave, which it will be.
    GiveUp { trees: Vec<TreeId> },
    /// Show your actors, of each at most so many children. Answered with the same number.
    Observe { number: u64, children_max: u32 },
    /// The answer to `OriginWanted`.
    Origin { tree: TreeId, answer: OriginAnswer },
    /// The answer to `Yield`: no order follows.
    Yielded,
}

/// Whether a VM that is no root may read the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginAnswer {
    /// So many blocks, for so long.
    Granted { blocks: u32, ttl_ms: u64 },
    /// The tree's budget is used up; to be asked again after that.
    Refused { retry_after_ms: u64 },
}

/// How much of an image a function's instances want on their VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// What is read.
    #[default]
    Lazy,
    /// What is read; the rest in the background once the instance is ready.
    LazyThenWhole,
    /// All of it before the container is run.
    Whole,
}

/// All that is needed to make one instance; no second round trip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartOrder {
    pub start: StartId,
    /// What the request is called that it is for. Absent in records of earlier releases.
    #[serde(default)]
    pub request: Option<RequestId>,
    pub function: FunctionName,
    pub image: BlockImage,
    pub place: Place,
    /// The function's package of code. Absent in records of earlier releases.
    #[serde(default)]
    pub code: Option<Box<CodeOrder>>,
    pub env: BTreeMap<String, String>,
    /// What to run in place of the image's entrypoint and command.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    pub memory_bytes: u64,
    /// Absent in what an agent of an earlier release kept of its instances.
    #[serde(default)]
    pub cpu_millis: u32,
    pub probe_path: String,
    /// Absent in what an agent of an earlier release kept.
    #[serde(default)]
    pub mode: Mode,
    /// From the arrival of the order to ready.
    pub ready_deadline_ms: u64,
    /// Whether the VM is to record what this start reads, if it mounts the image for it. Answered by `Recorded`.
    #[serde(default)]
    pub record: bool,
    /// Blocks that it will read, in that order, to be fetched before it does. None: it is not known, or the
    /// image's index says it.
    #[serde(default)]
    pub hot: Vec<BlockId>,
}

/// A package of code: a second block image, with a place in the tree of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodeOrder {
    pub image: BlockImage,
    pub place: Place,
}

impl StartOrder {
    /// Each image with the place in its tree.
    pub fn images(&self) -> impl Iterator<Item = (&BlockImage, &Place)> {
        let code = self.code.iter().map(|code| (&code.image, &code.place));
        iter::once((&self.image, &self.place)).chain(code)
    }

    /// The trees in which the VM has a place because of it.
    pub fn trees(&self) -> impl Iterator<Item = &TreeId> {
        self.images().map(|(_, place)| &place.tree)
    }

    /// Whether it needs the blocks of that tree.
    pub fn is_of(&self, tree: &TreeId) -> bool {
        self.trees().any(|own| own == tree)
    }
}

/// How much of an image is brought to a VM before any start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Warmth {
    /// What starts read, as far as that is known.
    Hot,
    #[default]
    Whole,
}

/// A place in a tree, and what to fetch along it. It holds until the VM leaves the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreheatOrder {
    /// Said again with what has become of it.
    pub number: u64,
    pub image: BlockImage,
    pub place: Place,
    pub what: Warmth,
    /// As in a `StartOrder`.
    pub hot: Vec<BlockId>,
}

/// A VM's place in a tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub tree: TreeId,
    pub epoch: Epoch,
    /// One list for each stripe, in the order in which they are to be tried. Block `b` belongs to
    /// stripe `b mod stripes`.
    pub stripes: Vec<Vec<Upstream>>,
    /// Absent in records of earlier releases.
    #[serde(default)]
    pub seat: Seat,
    pub capability: Capability,
}

/// Where a VM stands in the shape of its tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seat {
    /// Where the VM is put again when the tree is rebuilt from reports.
    pub place: u64,
    /// Edges to the root of each stripe.
    pub depths: Vec<u32>,
    /// VMs that are asked only for what they hold, after the upstreams and before the origin.
    pub beside: Vec<Upstream>,
}

/// Where blocks may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    Vm { vm: VmId, address: SocketAddr },
    Origin,
}

/// The manager's word that the holder of a key may read one tree: MessagePack of
/// `CapabilityClaims` and an Ed25519 signature over those bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    #[serde(with = "serde_bytes")]
    pub claims: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilityClaims {
    pub tree: TreeId,
    pub vm: VmId,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) in the child's certificate.
    #[serde(with = "serde_bytes")]
    pub key_hash: Vec<u8>,
    /// Seconds since the Unix epoch.
    pub expires_at: u64,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("JoinRequest").field("vm", &self.vm).finish_non_exhaustive()
    }
}

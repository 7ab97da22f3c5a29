//! What actors need of the world, as traits. The process brings adapters, tests bring small ones.

use crate::{
    id::{BlockId, Digest, TenantId, TreeId, VmId},
    image::BlockImage,
    profile::Profile,
    wire::{control::Capability, holder::PlainRange},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Which part of a block image is read from the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Index,
    Blob,
}

/// The registry, folder or store that holds block images.
pub trait Origin: Send + Sync {
    /// Reads exactly that range of bytes. Nothing is verified here; the caller does.
    fn read(
        &self,
        image: &BlockImage,
        part: Part,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Bytes, OriginError>>;
}

/// Why the origin did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("the origin has no such object: {0}")]
    NotFound(String),
    #[error("the origin refuses the credentials: {0}")]
    Unauthorized(String),
    #[error("the origin asks to come back later")]
    Busy { retry_after: Option<Duration> },
    #[error("the origin gave {got} bytes instead of {wanted}")]
    Truncated { got: u64, wanted: u64 },
    #[error("the origin cannot be used: {0}")]
    Failed(String),
}

impl OriginError {
    /// Whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotFound(_) | Self::Unauthorized(_) => false,
            Self::Busy { .. } | Self::Truncated { .. } | Self::Failed(_) => true,
        }
    }
}

/// A row of the metadata store: a table, a key, and bytes that only the writer understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub table: Table,
    pub key: String,
    pub value: Vec<u8>,
}

/// What the manager keeps for good (invariant 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `tenant/name` to the function's description and block image.
    Functions,
    /// Block images that our converter made, by their digest.
    Images,
    /// API tokens by the hash of their text.
    Tokens,
    /// Join tokens by the hash of their secret.
    JoinTokens,
    /// VMs by name, with the hash of their key.
    Vms,
    /// Accepted starts that have not ended.
    Starts,
    /// Names of VMs that are drained.
    Drains,
    /// What starts read, by tenant and source image.
    Profiles,
    /// Single values: the term, for instance.
    Values,
}

impl Table {
    pub const ALL: [Self; 9] = [
        Self::Functions,
        Self::Images,
        Self::Tokens,
        Self::JoinTokens,
        Self::Vms,
        Self::Starts,
        Self::Drains,
        Self::Profiles,
        Self::Values,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Functions => "functions",
            Self::Images => "images",
            Self::Tokens => "tokens",
            Self::JoinTokens => "join_tokens",
            Self::Vms => "vms",
            Self::Starts => "starts",
            Self::Drains => "drains",
            Self::Profiles => "profiles",
            Self::Values => "values",
        }
    }
}

/// One change of the metadata store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put(Row),
    Delete { table: Table, key: String },
}

impl Write {
    /// The row that is changed.
    pub fn place(&self) -> (Table, &str) {
        match self {
            Self::Put(row) => (row.table, &row.key),
            Self::Delete { table, key } => (*table, key),
        }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put(row) => row.key.len() + row.value.len(),
            Self::Delete { key, .. } => key.len(),
        }
    }
}

/// What must be true of a row for a batch to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub table: Table,
    pub key: String,
    /// None: there is no such row.
    pub value: Option<Vec<u8>>,
}

/// Changes that are made together, and only if all conditions hold before them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub conditions: Vec<Condition>,
    /// A later write to the same row wins.
    pub writes: Vec<Write>,
}

impl Batch {
    /// Conditions and writes together, as stores count them.
    pub fn operations(&self) -> usize {
        self.conditions.len() + self.writes.len()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        let condition =
            |condition: &Condition| condition.key.len() + condition.value.as_ref().map_or(0, Vec::len);
        self.conditions.iter().map(condition).sum::<usize>()
            + self.writes.iter().map(Write::bytes).sum::<usize>()
    }
}

impl MetadataError {
    /// Whether the batch may have been applied all the same.
    pub fn is_uncertain(&self) -> bool {
        match self {
            Self::Unwritable(_) | Self::Full(_) | Self::Unavailable(_) | Self::Unknown => true,
            Self::Busy | Self::TooLarge(_) | Self::Conflict { .. } | Self::Superseded | Self::Damaged(_) => {
                false
            }
        }
    }
}

impl From<Vec<Write>> for Batch {
    fn from(writes: Vec<Write>) -> Self {
        Self { conditions: Vec::new(), writes }
    }
}

/// What a metadata store takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    pub operations_max: usize,
    pub bytes_max: usize,
}

impl BatchLimits {
    pub fn allow(&self, batch: &Batch) -> bool {
        batch.operations() <= self.operations_max && batch.bytes() <= self.bytes_max
    }
}

/// The metadata store.
pub trait Metadata: Send + Sync {
    /// The largest batch that it takes.
    fn limits(&self) -> BatchLimits;
    /// All rows of a table, in the order of their keys.
    fn scan(&self, table: Table) -> BoxFuture<'static, Result<Vec<Row>, MetadataError>>;
    /// Applies all writes if all conditions hold, or nothing; done when they survive a crash. Commits take
    /// effect in the order of the calls. After `Unwritable`, `Full` and `Unavailable` it is not known
    /// whether a batch was applied; it will not be applied after any later one.
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), MetadataError>>;
    /// Returns when all commits before it are done and the store is released. Later calls fail.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// Why the metadata store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("the metadata store cannot be written: {0}")]
    Unwritable(String),
    #[error("the metadata store is full: {0}")]
    Full(String),
    #[error("the metadata store does not answer: {0}")]
    Unavailable(String),
    #[error("too many writes wait for the metadata store already")]
    Busy,
    #[error("it is more at once than the metadata store takes: {0} bytes")]
    TooLarge(usize),
    /// A condition did not hold.
    #[error("another writer has changed the row {key:?} of table {} meanwhile", table.name())]
    Conflict { table: Table, key: String },
    #[error("another manager has taken over this metadata store; only the newest one may write")]
    Superseded,
    #[error("the metadata store is damaged or of another version: {0}")]
    Damaged(String),
    /// An actor on the way crashed.
    #[error("whether it was done is not known; look, or ask again")]
    Unknown,
}

/// SHA-256 of the public key in a VM's certificate: the VM's identity beside its name.
pub type KeyHash = Arc<[u8]>;

/// Signs what a VM shows to its parent.
pub trait CapabilityIssuer: Send + Sync {
    /// The word of the manager that the holder of that key may read the tree, valid from now on.
    fn issue(&self, tree: &TreeId, vm: &VmId, key_hash: &[u8]) -> Capability;
}

/// What a block image is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A source image, as its function names it.
    Image(String),
    /// A tenant's package of code, by the SHA-256 of its zip.
    Code(TenantId, Digest),
}

/// Makes block images.
pub trait Converter: Send + Sync {
    /// Done when the block image is published. May be called for the same source again. With `packing`, what
    /// starts read lies together behind the metadata.
    fn convert(
        &self,
        source: &Source,
        packing: Option<Packing>,
        progress: Arc<ConversionProgress>,
    ) -> BoxFuture<'static, Result<BlockImage, ConvertFailure>>;
}

/// What makes a block image one that is packed for starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// The manifest of the source image, which the name alone may not lead to any more.
    pub source: Digest,
    pub profile: Arc<Profile>,
}

/// Finds out what lies where in a block image, from the metadata of its file system. Both calls read that from
/// the origin and take seconds of work; both give words for people when they fail.
pub trait Surveyor: Send + Sync {
    /// Takes what a start has read into a profile, and looks where the result lies in that image.
    fn take_in(
        &self,
        image: Arc<BlockImage>,
        before: Arc<Profile>,
        ranges: Arc<[PlainRange]>,
    ) -> BoxFuture<'static, Result<TakenIn, String>>;

    /// Looks where a profile lies in an image.
    fn place(
        &self,
        image: Arc<BlockImage>,
        profile: Arc<Profile>,
    ) -> BoxFuture<'static, Result<HotSet, String>>;
}

/// A profile with one more recording.
#[derive(Debug, Clone, PartialEq)]
pub struct TakenIn {
    pub profile: Profile,
    /// Where it lies in the image that was recorded.
    pub hot: HotSet,
}

/// What starts read of one block image, beside its metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HotSet {
    /// In the order of first use.
    pub blocks: Vec<BlockId>,
    /// Stored bytes of these blocks.
    pub stored_bytes: u64,
}

/// Why there is no block image, in words for the function's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConvertFailure(pub String);

/// How far a conversion is; written by the converter, read by whoever shows it.
#[derive(Debug, Default)]
pub struct ConversionProgress {
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
}

/// What a conversion is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversionPhase {
    /// Other conversions are before it.
    Waiting,
    /// Reads the source image.
    Reading,
    /// Writes the file system and its blocks.
    Writing,
    /// Brings the block image to its origin.
    Publishing,
}

impl ConversionPhase {
    const ALL: [Self; 4] = [Self::Waiting, Self::Reading, Self::Writing, Self::Publishing];

    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Reading => "reading",
            Self::Writing => "writing",
            Self::Publishing => "publishing",
        }
    }
}

impl ConversionProgress {
    /// Begins a phase of `total` bytes; 0 when that is not known.
    pub fn begin(&self, phase: ConversionPhase, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets both counts, for a converter that keeps its own.
    pub fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub fn phase(&self) -> ConversionPhase {
        ConversionPhase::ALL[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

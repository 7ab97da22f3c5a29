//! What users see: functions, starts, VMs and trees, as the API gives them and the actors keep them.

use crate::{
    id::{Digest, Epoch, FunctionName, ImageId, RequestId, StartId, TenantId, VmId},
    profile::Profile,
    resources::Resources,
    wire::control::{BytesBySource, EndReason, Mode, Step, Waits, Warmth, WorstStall},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};
use utoipa::ToSchema;

/// What a user says of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    /// The source image: a registry reference, or `oci:DIR[:TAG]` below a permitted folder.
    pub image: String,
    /// Memory of one instance, in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// CPU of one instance, in thousandths of a core: what placement counts, and its weight against others on
    /// its VM. No ceiling: what others leave idle it may use.
    #[serde(default = "default_cpu_millis")]
    pub cpu_millis: u32,
    /// Requests that one instance serves at once.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// Instances that are kept running, requests or not.
    #[serde(default)]
    pub min_instances: u32,
    /// Instances that there are at most; without it as many as the manager allows one function.
    #[serde(default)]
    pub max_instances: Option<u32>,
    /// How long an instance is kept without a request, in ms; without it the manager's default.
    #[serde(default)]
    pub keep_alive_ms: Option<u64>,
    /// An instance is ready when a GET of this path answers with a status below 400.
    #[serde(default = "default_probe_path")]
    pub probe_path: String,
    /// How much of the image is brought to the VM of an instance.
    #[serde(default)]
    pub mode: Mode,
    /// Environment, on top of the image's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The package of code that instances find at `/var/task`, by the SHA-256 of its zip, which was uploaded
    /// before. `image` is then what it runs in.
    #[serde(default)]
    pub code: Option<Digest>,
    /// What an instance runs, with its arguments, in place of the image's entrypoint and command.
    #[serde(default)]
    pub command: Option<Vec<String>>,
}

const fn default_memory_mib() -> u64 {
    256
}

/// Twenty such instances fill a VM of two cores, as twenty functions fill a VM of the paper (section 3.2).
const fn default_cpu_millis() -> u32 {
    100
}

/// Cloud Run's default of requests per instance.
const fn default_concurrency() -> u32 {
    80
}

fn default_probe_path() -> String {
    "/".into()
}

/// What is wrong with a description of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("image must name a source image, with at most 512 characters")]
    Image,
    #[error("memory_mib must be 16 to 1048576")]
    Memory,
    #[error("cpu_millis must be 10 to 1024000")]
    Cpu,
    #[error("concurrency must be 1 to 1000")]
    Concurrency,
    #[error("probe_path must begin with / and have at most 1024 visible ASCII characters")]
    ProbePath,
    #[error(
        "env may have 256 entries with names of letters, digits and _, and 64 KiB in all; PORT is set by the system"
    )]
    Env,
    #[error("command must have 1 to 256 words, the first of them not empty, and 64 KiB in all, without NUL")]
    Command,
}

impl FunctionSpec {
    /// What one instance takes of its VM.
    pub fn needs(&self) -> Resources {
        Resources { memory_bytes: self.memory_mib << 20, cpu_millis: self.cpu_millis }
    }

    /// Checks the limits that are the same everywhere.
    pub fn check(&self) -> Result<(), SpecError> {
        let visible = |byte: u8| (0x21..=0x7e).contains(&byte);
        if !(1..=512).contains(&self.image.len()) {
            return Err(SpecError::Image);
        }
        if !(16..=1 << 20).contains(&self.memory_mib) {
            return Err(SpecError::Memory);
        }
        if !(10..=1_024_000).contains(&self.cpu_millis) {
            return Err(SpecError::Cpu);
        }
        if !(1..=1000).contains(&self.concurrency) {
            return Err(SpecError::Concurrency);
        }
        let path = &self.probe_path;
        if !path.starts_with('/') || path.len() > 1024 || !path.bytes().all(visible) {
            return Err(SpecError::ProbePath);
        }
        let name_ok = |name: &str| {
            name != "PORT"
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
        };
        let bytes: usize = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        let env_ok = self.env.len() <= 256
            && bytes <= 64 * 1024
            && self.env.iter().all(|(name, value)| name_ok(name) && !value.contains('\0'));
        if !env_ok {
            return Err(SpecError::Env);
        }
        if self.command.as_deref().is_some_and(|command| !is_command(command)) {
            return Err(SpecError::Command);
        }
        Ok(())
    }
}

fn is_command(words: &[String]) -> bool {
    let bytes: usize = words.iter().map(String::len).sum();
    (1..=256).contains(&words.len())
        && !words[0].is_empty()
        && bytes <= 64 * 1024
        && words.iter().all(|word| !word.contains('\0'))
}

/// Where a function's block image stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ImageState {
    /// The converter reads the source image. Both counts are bytes; `total` is 0 until it is known.
    Converting {
        phase: String,
        done: u64,
        total: u64,
    },
    Ready {
        id: ImageId,
        source: Digest,
        plain_bytes: u64,
        stored_bytes: u64,
    },
    Failed {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionView {
    pub name: FunctionName,
    #[serde(flatten)]
    pub spec: FunctionSpec,
    pub image_state: ImageState,
    /// Where its package of code stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_state: Option<ImageState>,
    /// Instances that are ready.
    pub ready: u32,
    /// Starts under way.
    pub starting: u32,
    /// Requests that wait for an instance.
    pub waiting: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartState {
    /// No VM has been chosen.
    Waiting,
    /// A VM has the order.
    Starting,
    Ready,
    Ended,
}

/// One start: the answer to "why did it take that long?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartView {
    pub id: StartId,
    pub function: FunctionName,
    /// Unix time of its acceptance. None if a manager of an earlier release accepted it.
    #[serde(default)]
    pub accepted_at_ms: Option<u64>,
    /// What the request is called that it was accepted for; none if the function's scaling wanted it later.
    #[serde(default)]
    pub request_id: Option<RequestId>,
    pub vm: Option<VmId>,
    pub state: StartState,
    pub reason: Option<EndReason>,
    pub timeline_us: Timeline,
    pub bytes: BytesBySource,
    pub stalls: u32,
    pub stalled_us: u64,
    /// The longest wait of one read of the image on the VM; while the instance lives, as of the last
    /// heartbeat.
    pub longest_stall_us: u64,
    /// What its VM waited for.
    #[serde(default)]
    pub waits: Waits,
    #[serde(default)]
    pub worst_stall: Option<WorstStall>,
}

/// Duration of each phase of a start in microseconds, as far as it has come. `ready` is the whole,
/// from the acceptance of the start until the manager heard that the probe had answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    pub waiting: Option<u64>,
    pub placing: Option<u64>,
    pub connecting: Option<u64>,
    pub index: Option<u64>,
    pub metadata: Option<u64>,
    /// Only for a start that waited for the whole image.
    #[serde(default)]
    pub whole: Option<u64>,
    pub mount: Option<u64>,
    pub run: Option<u64>,
    pub probe: Option<u64>,
    pub ready: Option<u64>,
}

impl Timeline {
    /// Turns the points in time of a VM's report into the length of each phase. Steps overlap where
    /// the work did (a container runs while blocks arrive); a phase begins when the one before ended.
    pub fn set_steps(&mut self, steps_us: &BTreeMap<Step, u64>) {
        let mut before = 0;
        for step in Step::ALL {
            let length = steps_us.get(&step).map(|&at| {
                let length = at.saturating_sub(before);
                before = before.max(at);
                length
            });
            let phase = match step {
                Step::Connecting => &mut self.connecting,
                Step::Index => &mut self.index,
                Step::Metadata => &mut self.metadata,
                Step::Whole => &mut self.whole,
                Step::Mount => &mut self.mount,
                Step::Run => &mut self.run,
                Step::Probe => &mut self.probe,
            };
            *phase = length;
        }
    }
}

/// What starts of a function read of their image before they are ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProfileView {
    pub source: Digest,
    /// The block image that the function's starts use now; what is said of blocks is said of this one.
    pub image: ImageId,
    /// Starts that were recorded.
    pub recordings: u32,
    pub files: u64,
    /// Plain bytes that starts read of files.
    pub plain_bytes: u64,
    /// Blocks in which these lie, and their stored bytes; none until the image was looked at.
    pub blocks: Option<u64>,
    pub stored_bytes: Option<u64>,
    /// Whether what starts read lies together in the image.
    pub is_packed: bool,
    pub packing: PackingState,
    pub profile: Profile,
}

/// Whether an image is being packed by a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PackingState {
    /// Nobody has asked for it.
    None,
    /// Others are before it.
    Waiting,
    /// Both counts are bytes; `total` is 0 until it is known.
    Running { phase: String, done: u64, total: u64 },
    /// There is an image that is packed by this profile.
    Done,
    /// The last attempt failed; it is tried again after a pause, some times.
    Failed { reason: String, attempts: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Has a session and a lease.
    Up,
    /// Known, but silent.
    Lost,
    /// Gets no starts, and what it runs is moved; then it leaves its trees.
    Draining,
    /// Gets no starts, runs nothing and is in no tree.
    Drained,
}

/// How much there is of all tenants together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    pub functions: u64,
    /// Instances that are ready, and starts under way.
    pub ready: u64,
    pub starting: u64,
    /// Requests that wait for an instance.
    pub waiting: u64,
    pub vms: BTreeMap<VmState, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    pub id: VmId,
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    pub state: VmState,
    /// It gets no starts because it is drained, also while it is lost.
    #[serde(default)]
    pub draining: bool,
    /// Whose VM it is; none while it is free.
    pub tenant: Option<TenantId>,
    pub memory_bytes: u64,
    pub memory_used_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millis: u32,
    pub cpu_used_millis: u32,
    pub instances: Vec<StartId>,
    pub trees: Vec<HeldImageView>,
    /// What its cache has kept of trees that it has left.
    #[serde(default)]
    pub cold: Vec<ColdImageView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ColdImageView {
    pub image: ImageId,
    pub blocks_present: u32,
    pub blocks_total: u32,
}

/// What a VM holds of one block image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldImageView {
    pub image: ImageId,
    pub blocks_present: u32,
    pub blocks_total: u32,
    pub bytes: BytesBySource,
}

/// To which VMs a function's image is brought before any start: so many, or these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreheatSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<VmId>,
    #[serde(default)]
    pub what: Warmth,
}

/// What VMs hold of a function's present image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreheatView {
    pub image: ImageId,
    pub vms: Vec<PreheatedVm>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreheatedVm {
    pub vm: VmId,
    /// What it was told to hold, as far as this manager knows.
    pub what: Option<Warmth>,
    /// It holds that, or everything.
    pub is_done: bool,
    pub blocks_present: u32,
    pub blocks_total: u32,
    /// Stored bytes that it got, since its agent runs.
    pub bytes: BytesBySource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TreeView {
    pub image: ImageId,
    pub epoch: Epoch,
    /// Edges on the longest way from a root; 0 for a tree of one.
    pub height: u32,
    /// In the order of places: the root first. In a tree of several stripes, places and edges are those of
    /// the first one.
    pub members: Vec<MemberView>,
    /// The other stripes, each of the same members: who feeds whom there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_stripes: Vec<Vec<PlaceView>>,
    /// The tree of the function's code, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub code: Option<Box<TreeView>>,
}

/// A member's place in a further stripe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlaceView {
    pub vm: VmId,
    pub place: u32,
    pub parent: Option<VmId>,
    pub children: Vec<VmId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    pub vm: VmId,
    pub place: u32,
    pub parent: Option<VmId>,
    pub children: Vec<VmId>,
    pub ready: bool,
    pub blocks_present: u32,
    pub blocks_total: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_the_gaps_between_steps_and_add_up() {
        let steps =
            BTreeMap::from([(Step::Connecting, 10), (Step::Index, 30), (Step::Mount, 25), (Step::Run, 50)]);
        let mut timeline = Timeline::default();
        timeline.set_steps(&steps);
        assert_eq!((timeline.connecting, timeline.index), (Some(10), Some(20)));
        assert_eq!((timeline.metadata, timeline.mount, timeline.run), (None, Some(0), Some(20)));
    }

    #[test]
    fn what_a_function_may_not_be_is_said() {
        let spec = with_probe;
        assert_eq!(spec("/ok").check(), Ok(()));
        assert_eq!(spec("no-slash").check(), Err(SpecError::ProbePath));
        let mut reserved = spec("/");
        reserved.env.insert("PORT".into(), "1".into());
        assert_eq!(reserved.check(), Err(SpecError::Env));
        let running = |words: &[&str]| {
            let command = Some(words.iter().map(|word| (*word).to_owned()).collect());
            FunctionSpec { command, ..spec("/") }.check()
        };
        assert_eq!(running(&["python3", "", "-u"]), Ok(()));
        for bad in [&[][..], &[""], &["a", "b\0"], &["x"; 257], &["x".repeat(65_537).as_str()]] {
            assert_eq!(running(bad), Err(SpecError::Command));
        }
    }

    fn with_probe(probe_path: &str) -> FunctionSpec {
        FunctionSpec {
            image: "registry.example/app:1".into(),
            memory_mib: default_memory_mib(),
            cpu_millis: default_cpu_millis(),
            concurrency: default_concurrency(),
            min_instances: 0,
            max_instances: None,
            keep_alive_ms: None,
            probe_path: probe_path.into(),
            mode: Mode::default(),
            env: BTreeMap::new(),
            code: None,
            command: None,
        }
    }
}

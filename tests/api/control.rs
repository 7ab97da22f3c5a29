//! A control plane without VMs: answers what it is asked from what the test gave it.

use actix::prelude::*;
use faasnet_actors::{
    id::{Digest, Epoch, FunctionName, StartId, TenantId, VmId},
    model::*,
    profile::{FilePath, Profile},
    resources::Resources,
    scheduler::{Acquired, Ask, CallId, ControlError, Located, Release, Reply, Request},
    wire::control::{BytesBySource, Waits, Warmth},
    world::MetadataError,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::watch;

pub const START: &str = "0192f0c1-1111-7000-8000-000000000001";
pub const OTHER_START: &str = "0192f0c1-2222-7000-8000-000000000002";
pub const RETRY_AFTER: Duration = Duration::from_millis(2500);

pub struct Control {
    pub functions: BTreeMap<(TenantId, FunctionName), FunctionSpec>,
    /// Given out in turn; with none, callers wait.
    pub instances: Vec<Located>,
    pub acquired: usize,
    /// Places that are taken.
    pub places: watch::Sender<usize>,
    /// Those that wait for an instance.
    pub waiting: BTreeMap<CallId, Reply<Acquired>>,
    /// How many those are.
    pub callers: watch::Sender<usize>,
}

impl Actor for Control {
    type Context = Context<Self>;
}

impl Handler<Release> for Control {
    type Result = ();

    fn handle(&mut self, _: Release, _: &mut Context<Self>) {
        self.places.send_modify(|taken| *taken -= 1);
    }
}

impl Handler<Request> for Control {
    type Result = ();

    fn handle(&mut self, request: Request, context: &mut Context<Self>) {
        match request.ask {
            Ask::PutFunction { tenant, name, spec, reply } => {
                self.functions.insert((tenant, name.clone()), spec.clone());
                let _ = reply.send(Ok(function(name, spec)));
            }
            Ask::GetFunction { tenant, name, reply } => {
                let _ = reply.send(self.function(tenant, name));
            }
            Ask::ListFunctions { tenant, reply } => {
                let own = self.functions.iter().filter(|((owner, _), _)| *owner == tenant);
                let _ = reply
                    .send(Ok(own.map(|((_, name), spec)| function(name.clone(), spec.clone())).collect()));
            }
            Ask::DeleteFunction { tenant, name, reply } => {
                let removed = self.functions.remove(&(tenant, name));
                let _ = reply.send(removed.map(|_| ()).ok_or(ControlError::NotFound("function")));
            }
            Ask::Start { count, reply, .. } => {
                let id = |number| format!("0192f0c1-0000-7000-8000-{number:012}").parse().expect("valid");
                let _ = reply.send(Ok((0..count).map(id).collect()));
            }
            Ask::GetStart { start, reply, .. } => {
                let _ = reply.send(Ok(start_view(start)));
            }
            Ask::ListStarts { limit, reply, .. } => {
                let all = [START, OTHER_START].map(|id| start_view(id.parse().expect("valid")));
                let _ = reply.send(Ok(all.into_iter().take(limit).collect()));
            }
            Ask::Stop { reply, .. } => {
                let _ = reply.send(Ok(()));
            }
            Ask::Locate { start, reply, .. } => {
                let found = self.instances.iter().find(|instance| instance.start == start).cloned();
                let _ = reply.send(found.ok_or(ControlError::NotFound("instance")));
            }
            Ask::Acquire { call, reply, .. } if self.instances.is_empty() => {
                self.waiting.insert(call, reply);
                self.callers.send_replace(self.waiting.len());
            }
            Ask::Acquire { on, reply, .. } => self.acquire(on, reply, context),
            Ask::Abandon { call } => {
                self.waiting.remove(&call);
                self.callers.send_replace(self.waiting.len());
            }
            Ask::ListCode { .. } => {}
            Ask::ListVms { reply } => {
                let _ = reply.send(Ok(vec![vm()]));
            }
            Ask::Count { reply } => {
                let functions = self.functions.len() as u64;
                let vms = BTreeMap::from([(VmState::Up, 1), (VmState::Lost, 2)]);
                let _ = reply.send(Ok(Counts { functions, ready: 4, starting: 3, waiting: 2, vms }));
            }
            Ask::RemoveVm { reply, .. } => {
                let _ = reply.send(Err(ControlError::Conflict("the VM is up; stop its agent first".into())));
            }
            Ask::DrainVm { vm: name, force, reply } => {
                let _ = reply.send(drained(name, force));
            }
            Ask::UndrainVm { vm: name, reply } => {
                let known = name == vm().id;
                let _ = reply.send(if known { Ok(vm()) } else { Err(ControlError::NotFound("VM")) });
            }
            Ask::GetProfile { tenant, name, reply } | Ask::Optimize { tenant, name, reply } => {
                let spec = self.functions.get(&(tenant, name));
                let _ = reply.send(spec.ok_or(ControlError::NotFound("function")).and_then(profile));
            }
            Ask::Preheat { tenant, name, spec: PreheatSpec { what, .. }, reply } => {
                let spec = self.functions.get(&(tenant, name));
                let known = spec.ok_or(ControlError::NotFound("function"));
                let _ = reply.send(known.map(|_| preheated(what, what == Warmth::Whole)));
            }
            Ask::GetPreheat { tenant, name, reply } => {
                let known = self.functions.get(&(tenant, name)).ok_or(ControlError::NotFound("function"));
                let _ = reply.send(known.map(|spec| preheated(Warmth::Hot, !spec.image.contains("broken"))));
            }
            Ask::GetTree { tenant, name, of_code, reply } => {
                let shown = match (name.as_str(), of_code) {
                    ("with-code", _) => Ok(striped_tree(of_code)),
                    ("grown", false) => self.grown_tree(tenant, name),
                    (_, true) => Err(ControlError::NotFound("tree")),
                    (_, false) => Ok(tree()),
                };
                let _ = reply.send(shown);
            }
        }
    }
}

impl Control {
    /// A function whose name is that of an error is answered with it.
    fn function(&self, tenant: TenantId, name: FunctionName) -> Result<FunctionView, ControlError> {
        if let Some((_, error, ..)) = errors().into_iter().find(|(text, ..)| *text == name.as_str()) {
            return Err(error);
        }
        let spec = self.functions.get(&(tenant, name.clone())).cloned();
        spec.map(|spec| function(name, spec)).ok_or(ControlError::NotFound("function"))
    }

    /// A tree that is there once the function is deployed, of as many VMs as it has instances at least.
    fn grown_tree(&self, tenant: TenantId, name: FunctionName) -> Result<TreeView, ControlError> {
        let spec = self.functions.get(&(tenant, name)).ok_or(ControlError::NotFound("tree"))?;
        let mut grown = tree();
        grown.members.truncate(spec.min_instances as usize);
        Ok(grown)
    }

    fn acquire(&mut self, on: Option<StartId>, reply: Reply<Acquired>, context: &mut Context<Self>) {
        let candidates: Vec<_> = self
            .instances
            .iter()
            .filter(|instance| on.as_ref().is_none_or(|on| instance.start == *on))
            .collect();
        if candidates.is_empty() {
            let _ = reply.send(Err(ControlError::NotFound("instance")));
            return;
        }
        let located = candidates[self.acquired % candidates.len()].clone();
        self.acquired += 1;
        self.places.send_modify(|taken| *taken += 1);
        let _ = reply.send(Ok(Acquired::new(located, context.address().recipient())));
    }
}

/// Every error of the control plane with the name that asks for it, its status, code and pause.
pub fn errors() -> Vec<(&'static str, ControlError, u16, &'static str, Option<u64>)> {
    let text = || "reason".to_owned();
    vec![
        ("not-found", ControlError::NotFound("function"), 404, "not_found", None),
        ("invalid", ControlError::Invalid(text()), 400, "invalid", None),
        ("conflict", ControlError::Conflict(text()), 409, "conflict", None),
        (
            "too-many",
            ControlError::TooMany { what: "requests", retry_after: RETRY_AFTER },
            429,
            "too_many",
            Some(3),
        ),
        ("overloaded", ControlError::Overloaded { retry_after: RETRY_AFTER }, 503, "overloaded", Some(3)),
        (
            "converting",
            ControlError::ImageNotReady { retry_after: RETRY_AFTER },
            503,
            "image_not_ready",
            Some(3),
        ),
        ("image-failed", ControlError::ImageFailed(text()), 409, "image_failed", None),
        ("too-large", too_large(), 409, "too_large", None),
        ("start-failed", ControlError::StartFailed(text()), 502, "start_failed", None),
        ("late", ControlError::DeadlineExceeded, 504, "deadline_exceeded", None),
        (
            "metadata",
            ControlError::Metadata(MetadataError::Unavailable(text())),
            503,
            "metadata_unavailable",
            Some(1),
        ),
        ("closed", ControlError::Closed, 503, "shutting_down", Some(1)),
    ]
}

fn too_large() -> ControlError {
    let size = |memory_bytes| Resources { memory_bytes, cpu_millis: 100 };
    ControlError::TooLarge { needs: size(2 << 30), most: size(1 << 30) }
}

fn function(name: FunctionName, spec: FunctionSpec) -> FunctionView {
    let image_state = match spec.image.as_str() {
        "registry.example/broken:1" => ImageState::Failed { reason: "layer 2 is truncated".into() },
        _ => ImageState::Ready {
            id: Digest::from_bytes([1; 32]),
            source: Digest::from_bytes([2; 32]),
            plain_bytes: 500 << 20,
            stored_bytes: 200 << 20,
        },
    };
    FunctionView { name, spec, image_state, code_state: None, ready: 1, starting: 0, waiting: 0 }
}

fn start_view(id: StartId) -> StartView {
    let timeline_us = Timeline {
        waiting: Some(1_000),
        placing: Some(500),
        connecting: Some(3_000),
        index: Some(2_500),
        metadata: Some(40_000),
        whole: None,
        mount: Some(5_000),
        run: Some(80_000),
        probe: Some(120_000),
        ready: Some(252_000),
    };
    StartView {
        id,
        function: "app".parse().expect("valid"),
        accepted_at_ms: Some(1_700_000_000_000),
        request_id: Some("call-17".parse().expect("valid")),
        vm: Some("vm-1".parse().expect("valid")),
        state: StartState::Ready,
        reason: None,
        timeline_us,
        bytes: BytesBySource { parent: 30 << 20, ancestor: 0, origin: 14 << 20 },
        stalls: 3,
        stalled_us: 45_000,
        longest_stall_us: 30_000,
        waits: Waits::default(),
        worst_stall: None,
    }
}

fn vm() -> VmView {
    VmView {
        id: "vm-1".parse().expect("valid"),
        address: Some(([127, 0, 0, 1], 7072).into()),
        state: VmState::Up,
        draining: false,
        tenant: Some("default".parse().expect("valid")),
        memory_bytes: 4 << 30,
        memory_used_bytes: 256 << 20,
        cpu_millis: 2000,
        cpu_used_millis: 100,
        instances: vec![START.parse().expect("valid")],
        trees: vec![],
        cold: vec![],
    }
}

/// What starts of the function read: nothing that is known if its image is a new one.
fn profile(spec: &FunctionSpec) -> Result<ProfileView, ControlError> {
    if spec.image.contains("new") {
        return Err(ControlError::Conflict("no start was recorded; start an instance".into()));
    }
    let path = |text: &str| text.parse::<FilePath>().expect("valid");
    let parts = [(path("/usr/bin/python3"), 0..3 << 20), (path("/app/main.py"), 0..5000)];
    let profile = Profile::recorded(parts);
    Ok(ProfileView {
        source: Digest::from_bytes([2; 32]),
        image: Digest::from_bytes([1; 32]),
        recordings: profile.recordings(),
        files: 2,
        plain_bytes: profile.bytes(),
        blocks: Some(7),
        stored_bytes: Some(1 << 20),
        is_packed: true,
        packing: match spec.image.contains("broken") {
            true => PackingState::Failed { reason: "no space left".into(), attempts: 2 },
            false => PackingState::Done,
        },
        profile,
    })
}

/// The only VM, which is drained by force.
fn drained(name: VmId, force: bool) -> Result<VmView, ControlError> {
    if name != vm().id {
        return Err(ControlError::NotFound("VM"));
    }
    let draining = VmView { state: VmState::Draining, draining: true, ..vm() };
    if force { Ok(draining) } else { Err(ControlError::Conflict("it is the last; let another join".into())) }
}

/// One VM that holds three quarters of the image.
fn preheated(what: Warmth, is_done: bool) -> PreheatView {
    let row = PreheatedVm {
        vm: vm().id,
        what: Some(what),
        is_done,
        blocks_present: 75,
        blocks_total: 100,
        bytes: BytesBySource { parent: 30 << 20, ancestor: 0, origin: 14 << 20 },
    };
    PreheatView { image: Digest::from_bytes([1; 32]), vms: vec![row] }
}

/// vm-0 with the children vm-1 and vm-2, and vm-3 below vm-1.
fn tree() -> TreeView {
    let vm = |number: u32| -> VmId { format!("vm-{number}").parse().expect("valid") };
    let member = |place: u32, parent: Option<u32>, children: &[u32], blocks_present: u32| MemberView {
        vm: vm(place),
        place,
        parent: parent.map(vm),
        children: children.iter().copied().map(vm).collect(),
        ready: blocks_present > 50,
        blocks_present,
        blocks_total: 100,
    };
    TreeView {
        image: Digest::from_bytes([1; 32]),
        epoch: Epoch { term: 1, counter: 4 },
        height: 2,
        members: vec![
            member(0, None, &[1, 2], 100),
            member(1, Some(0), &[3], 75),
            member(2, Some(0), &[], 51),
            member(3, Some(1), &[], 0),
        ],
        further_stripes: Vec::new(),
        code: None,
    }
}

/// The image in two stripes, the second one with vm-2 as its root; the code in one.
fn striped_tree(of_code: bool) -> TreeView {
    let vm = |number: u32| -> VmId { format!("vm-{number}").parse().expect("valid") };
    let place = |place, number, parent: Option<u32>, children: &[u32]| PlaceView {
        vm: vm(number),
        place,
        parent: parent.map(vm),
        children: children.iter().copied().map(vm).collect(),
    };
    let mut tree = tree();
    if of_code {
        tree.image = Digest::from_bytes([2; 32]);
        tree.members.truncate(1);
        tree.members[0].children = Vec::new();
        tree.height = 0;
    } else {
        tree.further_stripes = vec![vec![
            place(0, 2, None, &[3, 1]),
            place(1, 3, Some(2), &[0]),
            place(2, 1, Some(2), &[]),
            place(3, 0, Some(3), &[]),
        ]];
    }
    tree
}

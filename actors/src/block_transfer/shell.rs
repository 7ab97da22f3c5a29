//! The actor around the core: connections, cache and holder.

use super::{
    core::{ChildId, Effect, Event, TransferCore, TransferLimits},
    done::{Done, DoneByAll},
    messages::{
        Ahead, Attach, ChildEvent, Demand, FromChild, FromImage, GetReport, HolderBack, ImageEvent,
        MountEnded, OpenChild, Opened, OriginAnswered, Placed, StoreBack, TransferReport, Wished,
    },
};
use crate::{
    agent::world::{
        ChildLink, Disk, DiskError, FromUpstream, Holder, IndexCell, OpenedImage, TaskLink, TreeRecord,
        UpstreamEvent, UpstreamTarget, Upstreams,
    },
    block_store::{BlockStore, Distrust, Found, Keep, Load, Release, disk_bytes},
    id::{BlockId, RequestId, StartId, TreeId, VmId},
    image::{BLOCK_BYTES, BlockImage},
    support::{Flow, Hop, Life, Observe, Snapshot, Stop, flow, millis},
    wire::{
        control::{Capability, Place, Step, Upstream},
        holder::{Mount, ToHolder},
        peer::{FromParent, NotServed, Refusal, ToParent, Urgency},
    },
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Far below the shortest deadline that a transfer keeps, `retry_min`.
const TICK: Duration = Duration::from_millis(50);

/// What a transfer uses of its VM.
#[derive(Clone)]
pub struct TransferWorld {
    pub vm: VmId,
    pub limits: TransferLimits,
    pub upstreams: Arc<dyn Upstreams>,
    pub disk: Arc<dyn Disk>,
    pub holder: Arc<dyn Holder>,
    pub store: Addr<BlockStore>,
    /// Where this and all others on the VM are counted.
    pub done: Arc<DoneByAll>,
    /// What the manager is to know.
    pub news: Recipient<TransferNews>,
}

/// Told to the agent, for the manager.
#[derive(Message)]
#[rtype(result = "()")]
pub struct TransferNews {
    pub tree: TreeId,
    pub complaint: Complaint,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Complaint {
    /// An upstream VM does not serve.
    UpstreamLost(VmId),
    /// Nobody serves this VM, which waits for so many blocks.
    OriginWanted { blocks: u32 },
}

impl Flow for TransferNews {
    fn hop(&self) -> Option<Hop<'_>> {
        Some(match &self.complaint {
            Complaint::UpstreamLost(vm) => Hop { message: "UpstreamLost", about: vm, permit: "" },
            Complaint::OriginWanted { .. } => Hop { message: "OriginWanted", about: &self.tree, permit: "" },
        })
    }
}

/// Moves the blocks of one block image: in from upstreams, to the cache, out to children.
pub struct BlockTransfer {
    tree: TreeId,
    image: Arc<BlockImage>,
    world: TransferWorld,
    core: TransferCore,
    index: IndexCell,
    /// The index as it travels: one copy, however many children ask.
    encoded_index: Option<Bytes>,
    plain_path: PathBuf,
    capability: Capability,
    links: BTreeMap<Upstream, (u64, TaskLink<ToParent>)>,
    links_made: u64,
    children: BTreeMap<ChildId, ChildLink>,
    children_seen: u64,
    /// The request behind what reads on this VM wait for.
    request: Option<RequestId>,
    /// The same of children, the last that each has named.
    children_read_for: BTreeMap<ChildId, RequestId>,
    /// Blocks that a child doubts and that are read again.
    rechecked: BTreeSet<BlockId>,
    followers: BTreeMap<StartId, Recipient<FromImage>>,
    steps: BTreeSet<Step>,
    mounted: Option<Result<(), String>>,
    /// The holder has mounted the image for a former agent, and takes for present what that one had.
    is_mounted_before: bool,
    /// Whether the next mount records what is read.
    record: bool,
    /// What is in the counts of all.
    counted: Done,
    life: Life<TreeId>,
}

impl BlockTransfer {
    /// `opened` is what the cache holds of the image.
    pub fn new(
        tree: TreeId,
        record: TreeRecord,
        opened: OpenedImage,
        world: TransferWorld,
        life: Life<TreeId>,
    ) -> Self {
        let index = IndexCell::default();
        let mut steps = BTreeSet::new();
        if let Some(found) = &opened.index {
            index.set(Arc::clone(found)).expect("the cell is new");
            steps.insert(Step::Index);
        }
        let core =
            TransferCore::new(world.vm.clone(), world.limits, opened.index, BTreeSet::new(), Instant::now())
                .with_found(opened.unverified);
        Self {
            tree,
            image: Arc::new(record.image),
            world,
            core,
            index,
            encoded_index: None,
            plain_path: opened.plain_path,
            capability: record.place.capability,
            links: BTreeMap::new(),
            links_made: 0,
            children: BTreeMap::new(),
            children_seen: 0,
            request: None,
            children_read_for: BTreeMap::new(),
            rechecked: BTreeSet::new(),
            followers: BTreeMap::new(),
            steps,
            mounted: None,
            is_mounted_before: false,
            record: false,
            counted: Done::default(),
            life,
        }
    }

    fn apply(&mut self, event: Event, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        let mut effects = Vec::new();
        self.core.apply(event, Instant::now(), &mut effects);
        let done = self.core.done();
        self.world.done.went_on(std::mem::replace(&mut self.counted, done), done);
        for effect in effects {
            self.perform(effect, ctx);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::Connect(upstream) => self.connect(upstream, ctx),
            Effect::Disconnect(upstream) => {
                self.links.remove(&upstream);
            }
            Effect::AskIndex { upstream, reach } => {
                self.ask(&upstream, ToParent::WantIndex { reach }, ctx);
            }
            Effect::Ask { upstream, blocks, urgency, path, reach } => {
                let request = (urgency == Urgency::Demand).then(|| self.reads_for()).flatten();
                self.ask(&upstream, ToParent::Want { blocks, urgency, path, reach, request }, ctx);
            }
            Effect::Hurry { upstream, blocks } => self.ask(&upstream, ToParent::Hurry { blocks }, ctx),
            Effect::TellCorrupt { upstream, block } => {
                tracing::warn!(tree = %self.tree, ?upstream, ?block, "a block from an upstream is corrupt");
                let source = match &upstream {
                    Upstream::Origin => "the origin".to_owned(),
                    Upstream::Vm { vm, .. } => format!("VM {vm}"),
                };
                let trouble = format!("{source} gave a damaged block {}", block.0);
                self.tell_followers(&ImageEvent::Trouble(trouble));
                self.ask(&upstream, ToParent::Corrupt { block }, ctx);
            }
            Effect::Keep { block, stored } => self.keep(block, stored, ctx),
            Effect::Check { block } => self.check(block, ctx),
            Effect::Serve { child, block, urgency, stored: Some(stored) } => {
                self.tell(child, urgency, FromParent::Block { block }, stored, ctx);
            }
            Effect::Serve { child, block, urgency, stored: None } => self.load(child, block, urgency, ctx),
            Effect::ServeIndex { child } => {
                let encoded = self.encoded_index();
                self.tell(child, Urgency::Demand, FromParent::Index, encoded, ctx);
            }
            Effect::NotServed { child, block, reason } => {
                self.tell(child, Urgency::Demand, FromParent::NotServed { block, reason }, Bytes::new(), ctx);
            }
            Effect::TellWaiting { child, silent } => {
                let silent_ms = millis(silent);
                self.tell(child, Urgency::Demand, FromParent::Waiting { silent_ms }, Bytes::new(), ctx);
            }
            Effect::RefuseChild { child } => {
                let busy = FromParent::Refused { reason: Refusal::Busy };
                self.tell(child, Urgency::Demand, busy, Bytes::new(), ctx);
                self.children.remove(&child);
            }
            Effect::Present { blocks } => self.tell_holder(|image| ToHolder::Present { image, blocks }),
            Effect::Unavailable { blocks } => {
                self.tell_holder(|image| ToHolder::Unavailable { image, blocks })
            }
            Effect::Step(step) => {
                if self.steps.insert(step) {
                    self.tell_followers(&ImageEvent::Step(step));
                }
            }
            Effect::Mount => self.mount(),
            Effect::ReportLost { vm } => self.complain(Complaint::UpstreamLost(vm)),
            Effect::WantOrigin { blocks } => self.complain(Complaint::OriginWanted { blocks }),
        }
    }

    fn complain(&self, complaint: Complaint) {
        let news = TransferNews { tree: self.tree.clone(), complaint };
        flow::record(self.life.kind(), "agent", &news);
        self.world.news.do_send(news);
    }

    fn encoded_index(&mut self) -> Bytes {
        let index = self.index.get();
        let encode = || index.map(|index| index.encode()).unwrap_or_default().into();
        self.encoded_index.get_or_insert_with(encode).clone()
    }

    fn connect(&mut self, upstream: Upstream, ctx: &mut Context<Self>) {
        self.links_made += 1;
        let target = UpstreamTarget {
            upstream: upstream.clone(),
            link: self.links_made,
            tree: self.tree.clone(),
            image: Arc::clone(&self.image),
            capability: self.capability.clone(),
            index: Arc::clone(&self.index),
        };
        let link = self.world.upstreams.open(target, ctx.address().recipient());
        self.links.insert(upstream, (self.links_made, link));
    }

    fn ask(&mut self, upstream: &Upstream, command: ToParent, ctx: &mut Context<Self>) {
        let is_sent = self.links.get(upstream).is_some_and(|(_, link)| link.send(command));
        if !is_sent {
            self.links.remove(upstream);
            self.apply_later(Event::Lost { upstream: upstream.clone() }, ctx);
        }
    }

    /// For what is found out while effects are performed: the core sees it after them.
    fn apply_later(&self, event: Event, ctx: &mut Context<Self>) {
        ctx.address().do_send(Later(event));
    }

    fn keep(&self, block: BlockId, stored: Bytes, ctx: &mut Context<Self>) {
        let index = Arc::clone(self.index.get().expect("blocks are verified against the index"));
        let again = stored.clone();
        let keeping = self.world.store.send(Keep { tree: self.tree.clone(), index, block, stored });
        ctx.spawn(keeping.into_actor(self).map(move |kept, transfer, ctx| {
            let event = match kept {
                Ok(Ok(())) => Event::Kept { block },
                Ok(Err(error)) => {
                    tracing::error!(tree = %transfer.tree, ?block, %error, "a block was not kept");
                    transfer.tell_followers(&ImageEvent::NotKept(error.to_string()));
                    Event::NotKept { block }
                }
                // The store is being rebuilt.
                Err(_) => {
                    ctx.run_later(TICK, move |transfer, ctx| transfer.keep(block, again, ctx));
                    return;
                }
            };
            transfer.apply(event, ctx);
        }));
    }

    fn load(&mut self, child: ChildId, block: BlockId, urgency: Urgency, ctx: &mut Context<Self>) {
        let index = Arc::clone(self.index.get().expect("only blocks of a known index are present"));
        let loading = self.world.store.send(Load { tree: self.tree.clone(), index, block });
        ctx.spawn(loading.into_actor(self).map(move |loaded, transfer, ctx| {
            if let Ok(Ok(stored)) = loaded {
                return transfer.tell(child, urgency, FromParent::Block { block }, stored, ctx);
            }
            let refusal = FromParent::NotServed { block, reason: NotServed::NoSource };
            transfer.tell(child, Urgency::Demand, refusal, Bytes::new(), ctx);
            transfer.apply(Event::ChildSent { child, urgency }, ctx);
            if let Ok(Err(error)) = loaded {
                transfer.lost_on_disk(block, &error, ctx);
            }
        }));
    }

    fn tell(
        &mut self,
        child: ChildId,
        urgency: Urgency,
        header: FromParent,
        body: Bytes,
        ctx: &mut Context<Self>,
    ) {
        let Some(link) = self.children.get(&child) else {
            return;
        };
        if !link.send(urgency, header, body) {
            // Its queue is full or its connection gone. Dropping the link ends the connection.
            self.children.remove(&child);
            self.apply_later(Event::ChildLost { child }, ctx);
        }
    }

    fn tell_holder(&self, message: impl FnOnce(crate::id::ImageId) -> ToHolder) {
        // A holder that is away hears of all present blocks with the next `Mount` or asks again.
        let _ = self.world.holder.send(message(self.tree.image));
    }

    /// Tells what of the disk this image takes.
    fn tell_store(&self) {
        let Some(index) = self.core.index() else {
            return;
        };
        let bytes = self.core.on_disk().map(|block| disk_bytes(index, *block));
        self.world.store.do_send(Found { tree: self.tree.clone(), disk_bytes: bytes.sum() });
    }

    fn tell_followers(&self, event: &ImageEvent) {
        for follower in self.followers.values() {
            let message = self.said(event.clone());
            flow::record(self.life.kind(), "instance", &message);
            follower.do_send(message);
        }
    }

    fn said(&self, event: ImageEvent) -> FromImage {
        FromImage { image: self.tree.image, event }
    }

    fn mount(&self) {
        // Also without the index, which may be lost while the image is mounted.
        let blocks = self.image.plain_bytes.div_ceil(u64::from(BLOCK_BYTES)) as usize;
        let mut present = vec![0_u8; blocks.div_ceil(8)];
        for block in self.core.present() {
            present[block.0 as usize / 8] |= 1 << (block.0 % 8);
        }
        let mount = Mount {
            image: self.tree.image,
            plain_path: self.plain_path.clone(),
            plain_bytes: self.image.plain_bytes,
            present,
            record: self.record,
            packed: self.core.index().is_some_and(|index| index.hot_blocks() > index.metadata_blocks()),
        };
        let _ = self.world.holder.send(ToHolder::Mount(mount));
    }

    fn upstream_said(&mut self, upstream: Upstream, event: UpstreamEvent, ctx: &mut Context<Self>) {
        match event {
            UpstreamEvent::Opened => self.apply(Event::Opened { upstream }, ctx),
            UpstreamEvent::Index { index, encoded } => {
                if self.index.set(Arc::clone(&index)).is_ok() {
                    let saving = self.world.disk.save_index(&self.tree, encoded);
                    ctx.spawn(saving.into_actor(self).map(|saved, transfer, _| {
                        if let Err(error) = saved {
                            tracing::error!(tree = %transfer.tree, %error, "the index was not kept");
                        }
                    }));
                }
                self.apply(Event::IndexArrived { index }, ctx);
            }
            UpstreamEvent::Blocks(blocks) => self.apply(Event::Arrived { upstream, blocks }, ctx),
            UpstreamEvent::Corrupt(block) => self.apply(Event::Corrupt { upstream, block }, ctx),
            UpstreamEvent::NotServed { block, reason } => {
                self.apply(Event::NotServed { upstream, block, reason }, ctx);
            }
            UpstreamEvent::Waits => self.apply(Event::UpstreamWaits { upstream }, ctx),
            UpstreamEvent::Closed { reason } => {
                tracing::info!(tree = %self.tree, ?upstream, %reason, "an upstream does not serve");
                self.tell_followers(&ImageEvent::Trouble(reason));
                self.links.remove(&upstream);
                self.apply(Event::Lost { upstream }, ctx);
            }
        }
    }
}

impl Actor for BlockTransfer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.tell_store();
        ctx.run_interval(TICK, |transfer, ctx| {
            if !transfer.life.parent_is_up() {
                return ctx.stop();
            }
            transfer.apply(Event::Tick, ctx);
        });
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Later(Event);

impl Handler<Later> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, Later(event): Later, ctx: &mut Context<Self>) {
        self.apply(event, ctx);
    }
}

impl Handler<Placed> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, Placed(place): Placed, ctx: &mut Context<Self>) {
        if self.core.epoch().is_some_and(|accepted| place.epoch < accepted) {
            return; // invariant 4
        }
        let Place { tree: _, epoch, stripes, seat, capability } = place.clone();
        self.capability = capability;
        let record = TreeRecord { image: (*self.image).clone(), place };
        let saving = self.world.disk.save_place(&self.tree, record);
        ctx.spawn(saving.into_actor(self).map(|saved, transfer, _| {
            if let Err(error) = saved {
                tracing::error!(tree = %transfer.tree, %error, "the place in the tree was not kept");
            }
        }));
        self.apply(Event::Placed { epoch, stripes, seat }, ctx);
    }
}

impl Handler<OriginAnswered> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, OriginAnswered(answer): OriginAnswered, ctx: &mut Context<Self>) {
        self.apply(Event::OriginAnswered { answer }, ctx);
    }
}

impl Handler<Wished> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, Wished { wish, request }: Wished, ctx: &mut Context<Self>) {
        self.request = request;
        self.apply(Event::Wished { wish }, ctx);
    }
}

impl Handler<FromUpstream> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, FromUpstream { upstream, link, event }: FromUpstream, ctx: &mut Context<Self>) {
        let is_present = self.links.get(&upstream).is_some_and(|(present, _)| *present == link);
        if is_present {
            self.upstream_said(upstream, event, ctx);
        }
    }
}

impl Handler<Ahead> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, Ahead { hot, record }: Ahead, ctx: &mut Context<Self>) {
        // A mount that there is already has been read: what is read of it now is not what a start reads.
        self.record |= record && self.mounted.is_none();
        self.apply(Event::Ahead { blocks: hot }, ctx);
    }
}

impl Handler<Demand> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, Demand(blocks): Demand, ctx: &mut Context<Self>) {
        self.apply(Event::Demanded { blocks }, ctx);
    }
}

impl Handler<MountEnded> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, MountEnded(ended): MountEnded, _: &mut Context<Self>) {
        self.record &= ended.is_err();
        let event = match &ended {
            Ok(()) => ImageEvent::Mounted,
            Err(reason) => ImageEvent::MountFailed(reason.clone()),
        };
        self.mounted = Some(ended);
        self.tell_followers(&event);
    }
}

impl Handler<HolderBack> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, HolderBack { is_mounted }: HolderBack, _: &mut Context<Self>) {
        self.is_mounted_before = is_mounted;
        if is_mounted {
            self.mounted = Some(Ok(()));
            // Tells what arrived meanwhile; the holder asks again for what its reads still need.
            self.mount();
        } else if self.steps.contains(&Step::Metadata) {
            self.mounted = None;
            self.mount();
        }
    }
}

impl Handler<StoreBack> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, StoreBack(store): StoreBack, _: &mut Context<Self>) {
        self.world.store = store;
        self.tell_store();
    }
}

impl Handler<Attach> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, Attach { start, events }: Attach, _: &mut Context<Self>) {
        for step in &self.steps {
            events.do_send(self.said(ImageEvent::Step(*step)));
        }
        match &self.mounted {
            Some(Ok(())) => events.do_send(self.said(ImageEvent::Mounted)),
            // Another start tries again.
            Some(Err(_)) => {
                self.mounted = None;
                self.mount();
            }
            None => {}
        }
        self.followers.retain(|_, follower| follower.connected());
        self.followers.insert(start, events);
    }
}

impl Handler<GetReport> for BlockTransfer {
    type Result = TransferReport;

    fn handle(&mut self, GetReport: GetReport, _: &mut Context<Self>) -> TransferReport {
        TransferReport::of(&self.core, Instant::now())
    }
}

/// The VM has left the tree.
impl Handler<Stop> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl Handler<OpenChild> for BlockTransfer {
    type Result = Result<Opened, Refusal>;

    fn handle(&mut self, OpenChild { vm, link }: OpenChild, ctx: &mut Context<Self>) -> Self::Result {
        self.children_seen += 1;
        let child = ChildId(self.children_seen);
        self.children.insert(child, link);
        self.apply(Event::ChildOpened { child, vm }, ctx);
        if !self.children.contains_key(&child) {
            return Err(Refusal::Busy);
        }
        Ok(Opened { child, requests: ctx.address().recipient() })
    }
}

impl Handler<FromChild> for BlockTransfer {
    type Result = ();

    fn handle(&mut self, FromChild { child, event }: FromChild, ctx: &mut Context<Self>) {
        match event {
            ChildEvent::WantsIndex { reach } => self.apply(Event::ChildWantsIndex { child, reach }, ctx),
            ChildEvent::Wants { blocks, urgency, path, reach, request } => {
                self.child_reads_for(child, request);
                self.apply(Event::ChildWanted { child, blocks, urgency, path, reach }, ctx);
            }
            ChildEvent::Hurries(blocks) => self.apply(Event::ChildHurries { child, blocks }, ctx),
            ChildEvent::Sent(urgency) => self.apply(Event::ChildSent { child, urgency }, ctx),
            ChildEvent::SaysCorrupt(block) => {
                tracing::warn!(tree = %self.tree, ?block, "a child says that this VM's copy of a block is bad");
                self.world.store.do_send(Distrust { tree: self.tree.clone(), block });
                self.recheck(block, ctx);
            }
            ChildEvent::Gone => {
                self.children.remove(&child);
                self.children_read_for.remove(&child);
                self.apply(Event::ChildLost { child }, ctx);
            }
        }
    }
}

impl Handler<Observe> for BlockTransfer {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        self.core.observe()
    }
}

impl BlockTransfer {
    /// What is passed on for children goes on under their request when this VM has none of its own.
    fn reads_for(&self) -> Option<RequestId> {
        self.request.clone().or_else(|| self.children_read_for.values().next().cloned())
    }

    /// Told once for each request, however many blocks it needs.
    fn child_reads_for(&mut self, child: ChildId, request: Option<RequestId>) {
        let Some(request) = request.filter(|_| self.children.contains_key(&child)) else { return };
        if self.children_read_for.get(&child) != Some(&request) {
            tracing::info!(tree = %self.tree, child = child.0, %request, "a child reads for a request");
            self.children_read_for.insert(child, request);
        }
    }

    /// Reads a block that is said to be bad from the disk again; a bad one is fetched anew.
    fn recheck(&mut self, block: BlockId, ctx: &mut Context<Self>) {
        let Some(index) = self.index.get().filter(|_| self.core.present().contains(&block)) else {
            return;
        };
        // Children may say so as often as they like.
        if self.rechecked.len() >= self.world.limits.in_flight_blocks_min || !self.rechecked.insert(block) {
            return;
        }
        let loading = self.world.disk.load(&self.tree, Arc::clone(index), block);
        ctx.spawn(loading.into_actor(self).map(move |loaded, transfer, ctx| {
            transfer.rechecked.remove(&block);
            if let Err(error) = loaded {
                transfer.lost_on_disk(block, &error, ctx);
            }
        }));
    }

    /// Verifies a block that a former agent kept.
    fn check(&self, block: BlockId, ctx: &mut Context<Self>) {
        let index = Arc::clone(self.index.get().expect("blocks are found by the index"));
        let checking = self.world.disk.check(&self.tree, Arc::clone(&index), block);
        ctx.spawn(checking.into_actor(self).map(move |checked, transfer, ctx| {
            let is_whole = checked.unwrap_or_else(|error| {
                tracing::error!(tree = %transfer.tree, ?block, %error, "a kept block cannot be read");
                false
            });
            if !is_whole {
                let (tree, disk_bytes) = (transfer.tree.clone(), disk_bytes(&index, block));
                transfer.world.store.do_send(Release { tree, disk_bytes });
            }
            transfer.apply(Event::Checked { block, is_whole }, ctx);
            if !is_whole && transfer.is_mounted_before {
                transfer.apply(Event::Damaged { block }, ctx);
            }
        }));
    }

    fn lost_on_disk(&mut self, block: BlockId, error: &DiskError, ctx: &mut Context<Self>) {
        tracing::error!(tree = %self.tree, ?block, %error, "a kept block cannot be used any more");
        if let Some(index) = self.index.get().filter(|_| self.core.present().contains(&block)) {
            let disk_bytes = disk_bytes(index, block);
            self.world.store.do_send(Release { tree: self.tree.clone(), disk_bytes });
        }
        self.steps.remove(&Step::Whole);
        self.apply(Event::Dropped { block }, ctx);
        if matches!(self.mounted, Some(Ok(()))) {
            self.apply(Event::Damaged { block }, ctx);
        }
    }
}

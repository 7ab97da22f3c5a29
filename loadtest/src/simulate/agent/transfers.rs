//! Places in trees, and the transfers of their images.

use super::*;

impl Agent {
    /// Takes over a place, and opens the cache if it is not.
    pub(super) fn place(
        &mut self,
        tree: &TreeId,
        record: TreeRecord,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let place = record.place.clone();
        match self.trees.get_mut(tree) {
            Some(known) if place.epoch < known.record.place.epoch => return,
            Some(known) => (known.record, known.is_left) = (record.clone(), false),
            None => drop(self.trees.insert(tree.clone(), Tree::new(record.clone()))),
        }
        self.cold.remove(tree);
        self.settle(tree, now, effects);
        effects.push(Effect::SavePlace { tree: tree.clone(), record: Box::new(record) });
        if self.trees[tree].transfer.is_some() {
            let placed = placed(place);
            self.transfer(tree, placed, now, effects);
        } else {
            self.open(tree, effects);
        }
    }

    /// The cache is open and holds that.
    pub fn start_transfer(
        &mut self,
        tree: &TreeId,
        cached: &Cached,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(image) = image(&self.images, tree) else { return };
        let Some(known) = self.trees.get_mut(tree).filter(|known| known.transfer.is_none()) else { return };
        let own_index = Arc::clone(&image.index);
        let index = cached.has_index.then(|| Arc::clone(&own_index));
        let steps = index.iter().map(|_| Step::Index).collect();
        let (own, limits) = (self.vm.clone(), self.limits.transfer);
        let core =
            TransferCore::new(own, limits, index, BTreeSet::new(), now).with_found(cached.blocks.clone());
        let (links, children) = (BTreeMap::new(), BTreeSet::new());
        known.transfer = Some(Transfer { core, links, children, steps });
        let place = known.record.place.clone();
        let placed = placed(place);
        self.tell_ahead(tree, now, effects);
        self.transfer(tree, placed, now, effects);
        for (conn, tree, vm) in
            self.early.extract_if(.., |(_, awaited, _)| awaited == tree).collect::<Vec<_>>()
        {
            self.child_came(conn, tree, vm, now, effects);
        }
        let followers = self.ordered.iter().filter(|(_, ordered)| ordered.order.place.tree == *tree);
        for start in followers.map(|(start, _)| start.clone()).collect::<Vec<_>>() {
            self.attach(tree, &start, now, effects);
        }
        let bytes = cached.blocks.iter().map(|block| disk_bytes(&own_index, *block)).sum();
        self.room(RoomEvent::Found { tree: tree.clone(), bytes }, now, effects);
        self.settle(tree, now, effects);
    }

    pub(super) fn transfer(
        &mut self,
        tree: &TreeId,
        event: block_transfer::Event,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(transfer) = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut()) else {
            return;
        };
        let mut done = Vec::new();
        transfer.core.apply(event, now, &mut done);
        for effect in done {
            self.transfer_effect(tree, effect, now, effects);
        }
    }

    pub(super) fn transfer_effect(
        &mut self,
        tree: &TreeId,
        effect: block_transfer::Effect,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        use block_transfer::Effect as Done;
        let Some(transfer) = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut()) else {
            return;
        };
        match effect {
            Done::Connect(upstream) => {
                self.conns_made += 1;
                let conn = self.conns_made;
                if let Some(conn) = transfer.links.insert(upstream.clone(), conn) {
                    effects.push(Effect::HangUp { conn });
                }
                effects.push(Effect::Dial { conn, tree: tree.clone(), upstream });
            }
            Done::Disconnect(upstream) => {
                let conn = transfer.links.remove(&upstream);
                effects.extend(conn.map(|conn| Effect::HangUp { conn }));
            }
            Done::AskIndex { upstream, reach } => {
                ask(transfer, &upstream, ToParent::WantIndex { reach }, effects);
            }
            Done::Ask { upstream, blocks, urgency, path, reach } => {
                ask(
                    transfer,
                    &upstream,
                    ToParent::Want { blocks, urgency, path, reach, request: None },
                    effects,
                );
            }
            Done::Hurry { upstream, blocks } => ask(transfer, &upstream, ToParent::Hurry { blocks }, effects),
            Done::TellCorrupt { upstream, block } => {
                ask(transfer, &upstream, ToParent::Corrupt { block }, effects);
                let trouble = format!("a damaged block {}", block.0);
                self.tell_followers(tree, &ImageEvent::Trouble(trouble), now, effects);
            }
            Done::Keep { block, stored } => {
                self.keep(tree, block, stored, now, effects);
            }
            Done::Check { block } => effects.push(Effect::Check { tree: tree.clone(), block }),
            Done::Serve { child, block, urgency, stored } => {
                self.serve(tree, child, block, urgency, stored, effects);
            }
            Done::ServeIndex { child } => {
                let (urgency, message, body) = (Urgency::Demand, FromParent::Index, Bytes::new());
                effects.push(Effect::Tell { conn: child.0, urgency, message, body });
            }
            Done::NotServed { child, block, reason } => {
                effects.push(not_served(child, block, reason));
            }
            Done::TellWaiting { child, silent } => {
                let message = FromParent::Waiting { silent_ms: millis(silent) };
                let (urgency, body) = (Urgency::Demand, Bytes::new());
                effects.push(Effect::Tell { conn: child.0, urgency, message, body });
            }
            Done::RefuseChild { child } => {
                transfer.children.remove(&child);
                effects.push(Effect::Refuse { conn: child.0, reason: Refusal::Busy });
            }
            Done::Present { blocks } => effects.push(Effect::Present { tree: tree.clone(), blocks }),
            Done::Unavailable { blocks } => {
                effects.push(Effect::Unavailable { tree: tree.clone(), blocks });
            }
            Done::Step(step) => {
                if transfer.steps.insert(step) {
                    self.tell_followers(tree, &ImageEvent::Step(step), now, effects);
                }
            }
            Done::Mount => {
                let record = self.trees.get_mut(tree).is_some_and(|known| std::mem::take(&mut known.records));
                effects.push(Effect::Mount { tree: tree.clone(), record });
            }
            Done::ReportLost { vm } => {
                let epoch = self.trees[tree].record.place.epoch;
                let lost = ToManager::UpstreamLost { tree: tree.clone(), epoch, vm };
                self.say(lost, now, effects);
            }
            Done::WantOrigin { blocks } => {
                self.say(ToManager::OriginWanted { tree: tree.clone(), blocks }, now, effects);
            }
        }
    }

    pub(super) fn serve(
        &mut self,
        tree: &TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
        stored: Option<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        let message = FromParent::Block { block };
        if let Some(body) = stored.or_else(|| self.store.recall(tree, block)) {
            return effects.push(Effect::Tell { conn: child.0, urgency, message, body });
        }
        effects.push(Effect::Load { tree: tree.clone(), child, block, urgency });
    }

    pub(super) fn loaded(
        &mut self,
        tree: &TreeId,
        child: ChildId,
        block: BlockId,
        urgency: Urgency,
        effects: &mut Vec<Effect>,
    ) {
        let Some(image) = image(&self.images, tree) else { return };
        let (message, body) = (FromParent::Block { block }, image.stored(block));
        self.store.remember(tree, block, body.clone());
        effects.push(Effect::Tell { conn: child.0, urgency, message, body });
    }

    pub(super) fn upstream(
        &mut self,
        tree: &TreeId,
        upstream: Upstream,
        conn: u64,
        said: FromPeer,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(transfer) = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut()) else {
            return;
        };
        if transfer.links.get(&upstream) != Some(&conn) {
            return; // of an earlier connection
        }
        let event = match said {
            FromPeer::Opened => block_transfer::Event::Opened { upstream },
            FromPeer::Index => {
                let Some(image) = image(&self.images, tree) else { return };
                block_transfer::Event::IndexArrived { index: Arc::clone(&image.index) }
            }
            FromPeer::Block(block, stored) => {
                block_transfer::Event::Arrived { upstream, blocks: vec![(block, stored)] }
            }
            FromPeer::Corrupt(block, _) => block_transfer::Event::Corrupt { upstream, block },
            FromPeer::NotServed(block, reason) => {
                block_transfer::Event::NotServed { upstream, block, reason }
            }
            FromPeer::Waits => block_transfer::Event::UpstreamWaits { upstream },
            FromPeer::Closed(reason) => {
                transfer.links.remove(&upstream);
                self.tell_followers(tree, &ImageEvent::Trouble(reason), now, effects);
                block_transfer::Event::Lost { upstream }
            }
        };
        self.transfer(tree, event, now, effects);
    }

    pub(super) fn child_came(
        &mut self,
        conn: u64,
        tree: TreeId,
        vm: VmId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(transfer) = self.trees.get_mut(&tree).and_then(|known| known.transfer.as_mut()) else {
            // In a burst a child may be here before the order that makes this VM its parent.
            self.early.push((conn, tree, vm));
            return effects.push(Effect::WaitForTree { conn });
        };
        let child = ChildId(conn);
        transfer.children.insert(child);
        let at = effects.len();
        self.transfer(&tree, block_transfer::Event::ChildOpened { child, vm }, now, effects);
        let is_in =
            |known: &Tree| known.transfer.as_ref().is_some_and(|transfer| transfer.children.contains(&child));
        if self.trees.get(&tree).is_some_and(is_in) {
            // Before whatever the transfer says to the child.
            effects.insert(at, Effect::Admit { conn });
        }
    }

    pub(super) fn child(
        &mut self,
        conn: u64,
        tree: &TreeId,
        said: ToParent,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let child = ChildId(conn);
        let event = match said {
            ToParent::WantIndex { reach } => block_transfer::Event::ChildWantsIndex { child, reach },
            ToParent::Want { blocks, urgency, path, reach, request: _ } => {
                block_transfer::Event::ChildWanted { child, blocks, urgency, path, reach }
            }
            ToParent::Hurry { blocks } => block_transfer::Event::ChildHurries { child, blocks },
            // The disk is not at fault here: what it holds was checked when it was written.
            ToParent::Corrupt { block } => return self.store.forget(tree, block),
            ToParent::Open { .. } => return,
        };
        self.transfer(tree, event, now, effects);
    }

    pub(super) fn child_lost(
        &mut self,
        tree: &TreeId,
        child: ChildId,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let transfer = self.trees.get_mut(tree).and_then(|known| known.transfer.as_mut());
        if transfer.is_some_and(|transfer| transfer.children.remove(&child)) {
            self.transfer(tree, block_transfer::Event::ChildLost { child }, now, effects);
        }
    }
}

fn ask(transfer: &Transfer, upstream: &Upstream, message: ToParent, effects: &mut Vec<Effect>) {
    let conn = transfer.links.get(upstream);
    effects.extend(conn.map(|&conn| Effect::Ask { conn, message }));
}

pub(super) fn from_image(tree: &TreeId, event: ImageEvent) -> instance::Event {
    instance::Event::Image(FromImage { image: tree.image, event })
}

fn placed(place: Place) -> block_transfer::Event {
    let Place { epoch, stripes, seat, .. } = place;
    block_transfer::Event::Placed { epoch, stripes, seat }
}

fn not_served(child: ChildId, block: BlockId, reason: NotServed) -> Effect {
    let message = FromParent::NotServed { block, reason };
    Effect::Tell { conn: child.0, urgency: Urgency::Demand, message, body: Bytes::new() }
}

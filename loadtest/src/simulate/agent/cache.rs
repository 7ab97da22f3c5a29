//! The place of images in the cache: room for blocks, images of trees that were left, and which of them go.

use super::*;

impl Agent {
    pub(super) fn room(&mut self, event: RoomEvent, now: Instant, effects: &mut Vec<Effect>) {
        let mut done = Vec::new();
        self.room.apply(event, now, &mut done);
        for effect in done {
            match effect {
                RoomEffect::Grant(ticket) => {
                    let granted = self.writes.remove(&ticket);
                    effects.extend(granted.map(|(tree, block, stored)| Effect::Keep { tree, block, stored }));
                }
                RoomEffect::Refuse(ticket) => {
                    let Some((tree, block, stored)) = self.writes.remove(&ticket) else { continue };
                    effects.push(Effect::NotKept { tree: tree.clone(), bytes: stored.len() as u64 });
                    let full = ImageEvent::NotKept("the disk is full".into());
                    self.tell_followers(&tree, &full, now, effects);
                    self.transfer(&tree, block_transfer::Event::NotKept { block }, now, effects);
                }
                RoomEffect::Ask { bytes, candidates } => {
                    self.say(ToManager::RoomWanted { bytes, candidates }, now, effects);
                }
                RoomEffect::Remove(tree) if self.cold.contains_key(&tree) => self.drop_cold(&tree, effects),
                RoomEffect::Remove(tree) => {
                    if !self.trees.contains_key(&tree) && !self.removing.contains(&tree) {
                        self.room(RoomEvent::Removed { tree }, now, effects);
                    }
                }
            }
        }
    }

    /// A verified block is to be written.
    pub(super) fn keep(
        &mut self,
        tree: &TreeId,
        block: BlockId,
        stored: Bytes,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let Some(bytes) = image(&self.images, tree).map(|image| disk_bytes(&image.index, block)) else {
            return;
        };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.store.remember(tree, block, stored.clone());
        self.writes.insert(ticket, (tree.clone(), block, stored));
        self.room(RoomEvent::Wanted { ticket, tree: tree.clone(), bytes }, now, effects);
    }

    /// Tells a transfer how much of its image the instances want, the strictest of them decides, and the cache
    /// what the image is to this VM.
    pub(super) fn settle(&mut self, tree: &TreeId, now: Instant, effects: &mut Vec<Effect>) {
        let of_tree = self.ordered.values().filter(|ordered| ordered.order.place.tree == *tree);
        let wish = of_tree.map(|ordered| Wish::of(ordered.order.mode, ordered.is_ready)).max();
        let preheat = self.trees.get(tree).and_then(|known| known.preheat);
        let to_preheat = preheat.map(|(_, what)| Wish::to_preheat(what));
        let standing = if wish.is_some() {
            Standing::Needed
        } else if self.trees.contains_key(tree) {
            Standing::Member
        } else {
            Standing::Cold
        };
        let wish = wish.max(to_preheat).unwrap_or_default();
        self.transfer(tree, block_transfer::Event::Wished { wish }, now, effects);
        self.room(RoomEvent::Stands { tree: tree.clone(), standing }, now, effects);
    }

    pub(super) fn leave(&mut self, tree: &TreeId, now: Instant, effects: &mut Vec<Effect>) {
        if self.ordered.values().any(|ordered| ordered.order.place.tree == *tree) {
            // The instances need its blocks still.
            if let Some(known) = self.trees.get_mut(tree) {
                known.is_left = true;
            }
            return;
        }
        let report = self.counters(tree, now);
        let Some(known) = self.trees.remove(tree) else { return };
        if let Some(transfer) = known.transfer {
            effects.extend(transfer.links.into_values().map(|conn| Effect::HangUp { conn }));
            effects.extend(transfer.children.into_iter().map(|ChildId(conn)| Effect::DropChild { conn }));
        }
        if known.is_mounted {
            effects.push(Effect::Unmount { tree: tree.clone() });
        }
        let (blocks_present, blocks_total) = (report.blocks_present, report.blocks_total);
        self.left += 1;
        self.cold
            .insert(tree.clone(), (self.left, ColdTree { tree: tree.clone(), blocks_present, blocks_total }));
        effects.push(Effect::SaveLeft { tree: tree.clone() });
        self.settle(tree, now, effects);
    }

    /// What a former life of the agent has left of trees, what was used last at the end.
    pub(super) fn restore_cold(
        &mut self,
        cold: &[(TreeId, Cached)],
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        for (tree, cached) in
            cold.iter().filter(|(tree, _)| !self.trees.contains_key(tree)).cloned().collect::<Vec<_>>()
        {
            let Some(index) = image(&self.images, &tree).map(|image| Arc::clone(&image.index)) else {
                continue;
            };
            let bytes = cached.blocks.iter().map(|block| disk_bytes(&index, *block)).sum();
            let blocks_present = cached.blocks.len() as u32;
            self.left += 1;
            let known = ColdTree { tree: tree.clone(), blocks_present, blocks_total: index.block_count() };
            self.cold.insert(tree.clone(), (self.left, known));
            self.room(RoomEvent::Found { tree: tree.clone(), bytes }, now, effects);
            self.settle(&tree, now, effects);
        }
    }

    /// Leaves the trees of other tenants, and gives up what is kept of others.
    pub(super) fn leave_others(&mut self, tree: &TreeId, now: Instant, effects: &mut Vec<Effect>) {
        let foreign = self.trees.keys().filter(|known| known.tenant != tree.tenant);
        for known in foreign.cloned().collect::<Vec<_>>() {
            self.leave(&known, now, effects);
        }
        self.purge_foreign(&tree.tenant, effects);
    }

    pub(super) fn purge_foreign(&mut self, tenant: &TenantId, effects: &mut Vec<Effect>) {
        let foreign = self.cold.keys().filter(|tree| tree.tenant != *tenant);
        for tree in foreign.cloned().collect::<Vec<_>>() {
            self.drop_cold(&tree, effects);
        }
    }

    fn drop_cold(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        // While it is being opened it is removed after that.
        if self.cold.remove(tree).is_some() && !self.opening.contains(tree) {
            self.remove(tree, effects);
        }
    }

    /// Empties the place of a tree in the cache. It is not opened anew before that is done.
    fn remove(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        if self.removing.insert(tree.clone()) {
            effects.push(Effect::RemoveCache { tree: tree.clone() });
        }
    }

    pub(super) fn removed(&mut self, tree: TreeId, now: Instant, effects: &mut Vec<Effect>) {
        self.removing.remove(&tree);
        self.store.forget_all(&tree);
        self.room(RoomEvent::Removed { tree }, now, effects);
        for tree in self.trees.keys().cloned().collect::<Vec<_>>() {
            self.open(&tree, effects);
        }
    }

    pub(super) fn open(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        let is_being_emptied = self.removing.iter().any(|other| other == tree || other.tenant != tree.tenant);
        let is_open = self.trees.get(tree).is_none_or(|known| known.transfer.is_some());
        if !is_open && !is_being_emptied && self.opening.insert(tree.clone()) {
            effects.push(Effect::OpenCache { tree: tree.clone() });
        }
    }

    pub(super) fn cache_opened(&mut self, tree: &TreeId, effects: &mut Vec<Effect>) {
        self.opening.remove(tree);
        if !self.cold.contains_key(tree) && !self.trees.contains_key(tree) {
            self.remove(tree, effects);
        }
    }

    /// Tells the manager what is kept of trees that were left, when that has changed.
    pub(super) fn say_cold(&mut self, effects: &mut Vec<Effect>) {
        let mut cold: Vec<_> = self.cold.values().cloned().collect();
        cold.sort_by_key(|(left, _)| Reverse(*left));
        let trees: Vec<ColdTree> = cold.into_iter().map(|(_, tree)| tree).collect();
        if trees != self.said_cold {
            self.said_cold.clone_from(&trees);
            let message = ToManager::Cold { trees, proofs: Vec::new() };
            effects.push(Effect::Say { link: self.link, message });
        }
    }
}

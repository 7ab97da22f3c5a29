//! Images of trees that this VM has left. They stay in the cache, are served to nobody, and go when room is needed
//! or another tenant comes.

use super::*;
use crate::{
    id::TenantId,
    support::Stop,
    wire::control::{Capability, ColdTree},
};
use std::cmp::Reverse;

impl Agent {
    /// Keeps the image of a tree that was left just now.
    pub(super) fn keep_cold(
        &mut self,
        tree: &TreeId,
        record: TreeRecord,
        transfer: Option<Addr<BlockTransfer>>,
        ctx: &mut Context<Self>,
    ) {
        self.left += 1;
        let image = ColdImage { record, blocks_present: 0, blocks_total: 0, disk_bytes: 0 };
        self.cold.insert(tree.clone(), (self.left, image));
        let tree = tree.clone();
        // The record is written when the transfer has written its last one.
        let report = transfer.as_ref().map(|transfer| transfer.send(GetReport));
        transfer.iter().for_each(|transfer| transfer.do_send(Stop));
        let asking = async move {
            match report {
                Some(report) => report.await.unwrap_or_default(),
                None => TransferReport::default(),
            }
        };
        ctx.spawn(asking.into_actor(self).map(move |report, agent, ctx| agent.left(&tree, &report, ctx)));
    }

    fn left(&mut self, tree: &TreeId, report: &TransferReport, ctx: &mut Context<Self>) {
        if self.has_yielded {
            return; // the next process finds a member, and is told to leave
        }
        let Some((_, image)) = self.cold.get_mut(tree) else { return };
        (image.blocks_present, image.blocks_total) = (report.blocks_present, report.blocks_total);
        let saving = self.world.disk.save_left(tree, image.record.clone());
        ctx.spawn(saving.into_actor(self).map(|saved, _, _| {
            if let Err(error) = saved {
                tracing::error!(%error, "it was not kept that a tree was left");
            }
        }));
        self.settle(tree);
    }

    /// A cache that was made anew learns what there is, what was used last at the end.
    pub(super) fn tell_store_all(&self) {
        let mut cold: Vec<_> = self.cold.iter().collect();
        cold.sort_by_key(|(_, (left, _))| *left);
        for (tree, (_, image)) in cold {
            self.store.send(&STORE, Found { tree: tree.clone(), disk_bytes: image.disk_bytes });
            self.settle(tree);
        }
        self.trees.keys().for_each(|tree| self.settle(tree));
    }

    /// Whoever runs on a VM shares it with no other tenant's files, not even with those that nobody can ask for: a
    /// container that broke out would find them. Nothing of the new tenant is opened before they are gone.
    pub(super) fn purge_foreign(&mut self, tenant: &TenantId, ctx: &mut Context<Self>) {
        let foreign = self.cold.keys().filter(|tree| tree.tenant != *tenant).cloned();
        for tree in foreign.collect::<Vec<_>>() {
            self.drop_cold(&tree, ctx);
        }
    }

    pub(super) fn drop_cold(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        // While it is being opened it is removed after that.
        if self.cold.remove(tree).is_some() && !self.opening.contains(tree) {
            self.remove(tree.clone(), ctx);
        }
    }

    /// Whether what must be gone before the tree's place is opened is not gone yet.
    pub(super) fn is_being_emptied_for(&self, tree: &TreeId) -> bool {
        self.removing.iter().any(|other| other == tree || other.tenant != tree.tenant)
    }

    /// Empties the place of a tree in the cache.
    pub(super) fn remove(&mut self, tree: TreeId, ctx: &mut Context<Self>) {
        if self.has_yielded {
            return; // the cache is the next process's
        }
        self.removing.insert(tree.clone());
        let removing = self.world.disk.remove(&tree);
        ctx.spawn(removing.into_actor(self).map(move |removed, agent, ctx| {
            match removed {
                Ok(()) => tracing::info!(%tree, "an image was removed from the cache"),
                Err(error) => tracing::error!(%tree, %error, "an image was not removed from the cache"),
            }
            agent.removing.remove(&tree);
            agent.store.send(&STORE, Removed(tree));
            agent.open_all(ctx);
        }));
    }

    fn cold(&self) -> Cold {
        let mut images: Vec<_> = self.cold.iter().collect();
        images.sort_by_key(|(_, (left, _))| Reverse(*left));
        let proof = |image: &ColdImage| -> Capability { image.record.place.capability.clone() };
        let cold = |tree: &TreeId, image: &ColdImage| ColdTree {
            tree: tree.clone(),
            blocks_present: image.blocks_present,
            blocks_total: image.blocks_total,
        };
        Cold {
            trees: images.iter().map(|(tree, (_, image))| cold(tree, image)).collect(),
            proofs: images.iter().map(|(_, (_, image))| proof(image)).collect(),
        }
    }
}

impl Handler<GetCold> for Agent {
    type Result = Cold;

    fn handle(&mut self, _: GetCold, _: &mut Context<Self>) -> Cold {
        self.cold()
    }
}

impl Handler<StoreNews> for Agent {
    type Result = ();

    fn handle(&mut self, news: StoreNews, ctx: &mut Context<Self>) {
        match news {
            StoreNews::RoomWanted { bytes, candidates } => {
                self.say(ToManager::RoomWanted { bytes, candidates });
            }
            StoreNews::Remove(tree) if self.cold.contains_key(&tree) => self.drop_cold(&tree, ctx),
            StoreNews::Remove(tree) => {
                // Used again, which the cache has been told; or gone, which it may have missed.
                if !self.trees.contains_key(&tree) && !self.removing.contains(&tree) {
                    self.store.send(&STORE, Removed(tree));
                }
            }
        }
    }
}

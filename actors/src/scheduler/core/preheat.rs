//! Images that are brought to VMs before any start.
//!
//! What VMs hold is known from them alone; here is remembered only what was asked for, until a VM leaves the tree
//! or this manager ends. A VM counts as its tenant's from the choice on, as if it rested with the image.

use super::{Answer, ControlError, Effect, FunctionKey, Image, Rest, SchedulerCore, Ticket, Vm};
use crate::{
    function_tree::PreheatDraft,
    id::{TreeId, VmId},
    image::BlockImage,
    model::{PreheatSpec, PreheatView, PreheatedVm},
    wire::control::Warmth,
};
use rand::Rng;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time::Instant;

/// What a VM was told to hold of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preheat {
    number: u64,
    pub what: Warmth,
    /// Until when it counts as a member of the tree although its node has not said so. None: it has.
    awaited_until: Option<Instant>,
}

impl Preheat {
    pub fn is_awaited(&self) -> bool {
        self.awaited_until.is_some()
    }
}

impl SchedulerCore {
    pub(super) fn preheat(
        &mut self,
        ticket: Ticket,
        key: &FunctionKey,
        spec: &PreheatSpec,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let answer = self.try_preheat(key, spec, now, effects).map(|view| Answer::Preheat(Box::new(view)));
        effects.push(Effect::Answer { ticket, answer });
    }

    /// All of the VMs that are asked for, or none.
    fn try_preheat(
        &mut self,
        key: &FunctionKey,
        spec: &PreheatSpec,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Result<PreheatView, ControlError> {
        let (image, _) = self.image_of(&key.0, &key.1)?;
        let tree = TreeId { tenant: key.0.clone(), image: image.id };
        if spec.what == Warmth::Hot && !self.knows_hot(&tree, &image) {
            return Err(ControlError::Conflict(
                "nothing is known of what its starts read: start an instance, or preheat the whole image"
                    .into(),
            ));
        }
        let most = self.limits.preheat_vms_max;
        let in_range = |count: usize| {
            let bounds = format!("1 to {most} VMs may be preheated with one request");
            if (1..=most).contains(&count) { Ok(()) } else { Err(ControlError::Invalid(bounds)) }
        };
        let vms = match (spec.vms, spec.names.as_slice()) {
            (Some(count), []) => {
                in_range(count as usize)?;
                self.coolest(key, &tree, count as usize)?
            }
            (None, names) => {
                in_range(names.len())?;
                self.named(&tree, names)?
            }
            (Some(_), _) => return Err(ControlError::Invalid("give vms or names, not both".into())),
        };
        for vm in &vms {
            self.preheat_vm(vm, &tree, &image, spec.what, now, effects);
        }
        let rows = vms.iter().map(|vm| self.vms[vm].preheated(vm, &tree)).collect();
        Ok(PreheatView { image: image.id, vms: rows })
    }

    /// Whether it is known what starts on that image read.
    fn knows_hot(&self, tree: &TreeId, image: &BlockImage) -> bool {
        let hint = self.hints.get(&(tree.tenant.clone(), image.source));
        hint.is_some_and(|hint| {
            let is_packed = hint.packed.as_ref().is_some_and(|packed| packed.id == image.id);
            is_packed || hint.hot.get(&image.id).is_some_and(|hot| !hot.is_empty())
        })
    }

    /// VMs that can take a start of the function: those that hold most of its image, then others of the tenant,
    /// then free ones.
    fn coolest(
        &self,
        key: &FunctionKey,
        tree: &TreeId,
        count: usize,
    ) -> Result<BTreeSet<VmId>, ControlError> {
        let needs = self.functions[key].spec.needs();
        let may_start =
            |vm: &Vm| vm.entry.is_some() && vm.has_room(key, needs, self.limits.functions_per_vm_max);
        let rank = |(name, vm): (&VmId, &Vm)| {
            let is_member = vm.trees_of().any(|other| other == tree);
            (
                Reverse(vm.blocks_of(tree)),
                Reverse(is_member),
                vm.tenant.is_none(),
                vm.starting.len(),
                name.clone(),
            )
        };
        let mut ranked: Vec<_> = self.vms.iter().filter(|(_, vm)| may_start(vm)).map(rank).collect();
        let there = ranked.len();
        if there < count {
            return Err(ControlError::Conflict(format!(
                "{there} VMs have room for an instance of it; join more, drain fewer, or ask for fewer"
            )));
        }
        ranked.sort();
        Ok(ranked.into_iter().take(count).map(|(.., name)| name).collect())
    }

    /// A VM that is another tenant's is refused like one that is not there.
    fn named(&self, tree: &TreeId, names: &[VmId]) -> Result<BTreeSet<VmId>, ControlError> {
        let may = |name: &VmId| {
            let vm = self.vms.get(name).filter(|vm| vm.entry.is_some());
            vm.is_some_and(|vm| vm.tenant.as_ref().is_none_or(|tenant| *tenant == tree.tenant))
        };
        match names.iter().find(|name| !may(name)) {
            None => Ok(names.iter().cloned().collect()),
            Some(name) => Err(ControlError::Conflict(format!(
                "VM {name} cannot be used: it is not there, takes no starts, or belongs to others; give a \
                 number of VMs instead of names"
            ))),
        }
    }

    fn preheat_vm(
        &mut self,
        name: &VmId,
        tree: &TreeId,
        image: &Arc<BlockImage>,
        what: Warmth,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (hot, _) = self.look_ahead(name, tree, image);
        // At random: what a VM says of an order of an earlier manager is not taken for this one.
        let number = self.rng.next_u64();
        let until = now + self.limits.lease;
        let vm = self.vms.get_mut(name).expect("callers looked");
        let awaited_until = (!vm.member_of.contains(tree)).then_some(until);
        let what = vm.preheats.get(tree).map_or(what, |before| what.max(before.what));
        vm.preheats.insert(tree.clone(), Preheat { number, what, awaited_until });
        vm.tenant = Some(tree.tenant.clone());
        let contact = vm.contact().expect("a VM that is up has said who it is");
        let rests = vm.functions.is_empty();
        if awaited_until.is_some() {
            self.preheats_awaited.insert((until, name.clone(), tree.clone()));
        }
        if rests {
            self.set_rest(name, Rest::Idle { until: now + self.limits.vm_idle });
        }
        self.pool(name);
        let draft = PreheatDraft { number, image: Arc::clone(image), what, hot };
        effects.push(Effect::Preheat {
            tree: tree.clone(),
            vm: name.clone(),
            contact,
            draft: Box::new(draft),
        });
    }

    /// Functions of a tree use another image from now on: what VMs were to hold of the one before they are to hold
    /// of the new one.
    pub(super) fn preheat_instead(
        &mut self,
        before: &TreeId,
        tree: &TreeId,
        image: &Arc<BlockImage>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let of = |(name, vm): (&VmId, &Vm)| {
            let preheat = vm.preheats.get(before).filter(|_| vm.entry.is_some())?;
            Some((name.clone(), preheat.what))
        };
        for (name, what) in self.vms.iter().filter_map(of).collect::<Vec<_>>() {
            self.preheat_vm(&name, tree, image, what, now, effects);
        }
    }

    /// An agent that is there again may be another process, which was told nothing.
    pub(super) fn preheat_again(&mut self, name: &VmId, now: Instant, effects: &mut Vec<Effect>) {
        let vm = &self.vms[name];
        if vm.entry.is_none() {
            return;
        }
        let image_of = |tree: &TreeId| {
            let own = self.functions.iter().filter(|((tenant, _), _)| *tenant == tree.tenant);
            own.into_iter().find_map(|(_, function)| match &function.image {
                Image::Ready(image) if image.id == tree.image => Some(Arc::clone(image)),
                _ => None,
            })
        };
        let again = vm.preheats.iter().map(|(tree, preheat)| (tree.clone(), image_of(tree), preheat.what));
        for (tree, image, what) in again.collect::<Vec<_>>() {
            if let Some(image) = image {
                self.preheat_vm(name, &tree, &image, what, now, effects);
            }
        }
    }

    /// Orders of which nothing was heard within a lease are lost.
    pub(super) fn end_preheats(&mut self, now: Instant) {
        while let Some((at, name, tree)) = self.preheats_awaited.pop_first() {
            if at > now {
                self.preheats_awaited.insert((at, name, tree));
                return;
            }
            let Some(vm) = self.vms.get_mut(&name) else { continue };
            if vm.preheats.get(&tree).is_some_and(|preheat| preheat.awaited_until == Some(at)) {
                vm.preheats.remove(&tree);
                self.settle(&name, now);
            }
        }
    }

    /// VMs that hold something of a function's image, or are to.
    pub fn preheat_view(&self, key: &FunctionKey) -> Result<PreheatView, ControlError> {
        let tree = self.tree_of(&key.0, &key.1)?;
        let has = |vm: &Vm| vm.up && (vm.held.contains_key(&tree) || vm.preheats.contains_key(&tree));
        let vms = self.vms.iter().filter(|(_, vm)| has(vm)).map(|(name, vm)| vm.preheated(name, &tree));
        Ok(PreheatView { image: tree.image, vms: vms.collect() })
    }
}

impl Vm {
    /// Trees that it is in, or is about to be without a start.
    pub(super) fn trees_of(&self) -> impl Iterator<Item = &TreeId> {
        let awaited = self.preheats.iter().filter(|(_, preheat)| preheat.is_awaited()).map(|(tree, _)| tree);
        self.held.keys().chain(&self.member_of).chain(awaited)
    }

    /// Its node has said which trees it is a member of.
    pub(super) fn is_member_of(&mut self, trees: BTreeSet<TreeId>) {
        self.preheats.retain(|tree, preheat| {
            if trees.contains(tree) {
                preheat.awaited_until = None;
                return true;
            }
            preheat.is_awaited()
        });
        self.member_of = trees;
    }

    fn preheated(&self, name: &VmId, tree: &TreeId) -> PreheatedVm {
        let (held, preheat) = (self.held.get(tree), self.preheats.get(tree));
        let is_whole =
            held.is_some_and(|held| held.blocks_total > 0 && held.blocks_present == held.blocks_total);
        let said = held.and_then(|held| held.preheated);
        let is_done = preheat
            .zip(said)
            .is_some_and(|(preheat, said)| said.order == preheat.number && said.missing == 0);
        PreheatedVm {
            vm: name.clone(),
            what: preheat.map(|preheat| preheat.what),
            is_done: is_whole || is_done,
            blocks_present: held.map_or(0, |held| held.blocks_present),
            blocks_total: held.map_or(0, |held| held.blocks_total),
            bytes: held.map(|held| held.bytes).unwrap_or_default(),
        }
    }
}

pub(super) type Preheats = BTreeMap<TreeId, Preheat>;

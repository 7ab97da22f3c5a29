//! The invariants of `ARCHITECTURE.md` by their numbers, as functions over the world.
//!
//! What a single message can break is checked where it passes: 5 where a block is kept or sent, 9 where a
//! client is answered, the order of a start's events (10) where the manager hears them, and 11 where a
//! demand is sent. The cores assert the first half of 7 (present and in flight) by themselves.

use super::{
    agent::Cached,
    book::{Departure, Parents},
    manager::parents,
    model::{SECOND, nanos},
    world::World,
};
use faasnet::settings::Topology;
use faasnet_actors::{
    block_store::disk_bytes,
    id::{TenantId, TreeId, VmId},
    image::Index,
    model::{StartState, TreeView, VmState},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    pub invariant: u8,
    pub what: String,
}

impl Violation {
    pub(super) fn new(invariant: u8, what: String) -> Self {
        Self { invariant, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "invariant {}: {}", self.invariant, self.what)
    }
}

/// How much is looked at, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Everything after each event.
    Full,
    /// What single messages break; the rest is asked for by `check_all`.
    Light,
}

pub(super) fn check(world: &mut World, depth: Depth) -> Option<Violation> {
    match depth {
        Depth::Full => check_all(world).err(),
        Depth::Light => None,
    }
}

/// Everything that holds at every moment.
pub(super) fn check_all(world: &mut World) -> Result<(), Violation> {
    trees_have_one_root_and_no_cycle(world)?;
    departures_move_one_other(world)?;
    epochs_rise(world)?;
    origin_is_read_by_few(world)?;
    reads_end_in_time(world)?;
    vms_are_not_overfull(world)?;
    caches_are_within_their_limit(world)?;
    acknowledged_is_durable(world)
}

fn ensure(holds: bool, invariant: u8, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(invariant, what())) }
}

fn views(world: &World) -> Vec<(TreeId, TreeView)> {
    let trees = world.manager.iter().flat_map(|manager| &manager.trees);
    trees.map(|(tree, core)| (tree.clone(), core.view(tree.image))).collect()
}

/// Invariants 1 and 2: each member once, one root, everyone reaches it; the height is that of a
/// complete tree.
fn trees_have_one_root_and_no_cycle(world: &World) -> Result<(), Violation> {
    world.manager.iter().flat_map(|manager| manager.trees.values()).for_each(|core| core.check());
    for (tree, view) in views(world) {
        let parents: BTreeMap<&VmId, Option<&VmId>> =
            view.members.iter().map(|member| (&member.vm, member.parent.as_ref())).collect();
        ensure(parents.len() == view.members.len(), 1, || format!("{tree} has a member twice"))?;
        let roots = parents.values().filter(|parent| parent.is_none()).count();
        ensure(roots == view.members.len().min(1), 1, || format!("{tree} has {roots} roots"))?;
        let mut height = 0;
        for vm in parents.keys() {
            let above = std::iter::successors(parents[vm], |above| parents.get(above).copied().flatten());
            let steps = above.take(view.members.len() + 1).count();
            ensure(steps < view.members.len(), 1, || format!("{vm} does not reach the root of {tree}"))?;
            height = height.max(steps);
        }
        let least = complete_height(view.members.len(), world.limits.shape.fan_out);
        let is_complete = world.limits.shape.topology == Topology::Complete;
        ensure(height == least || !is_complete, 2, || {
            format!("{tree} has height {height} where {least} would do")
        })?;
    }
    Ok(())
}

fn complete_height(members: usize, fan_out: usize) -> usize {
    std::iter::successors(members.checked_sub(1), |place| place.checked_sub(1).map(|place| place / fan_out))
        .count()
        .saturating_sub(1)
}

/// Invariant 2: a departure moves at most one other VM.
fn departures_move_one_other(world: &mut World) -> Result<(), Violation> {
    let departures = world.book.take_departures();
    if departures.is_empty() {
        return Ok(());
    }
    let after: BTreeMap<TreeId, Parents> =
        views(world).into_iter().map(|(tree, view)| (tree, parents(view))).collect();
    for (number, Departure { tree, before, gone }) in departures.iter().enumerate() {
        let next = departures[number + 1..].iter().find(|later| later.tree == *tree);
        let Some(after) = next.map(|next| &next.before).or_else(|| after.get(tree)) else { continue };
        let is_moved = |(vm, parent): &(&VmId, &Option<VmId>)| {
            *vm != gone
                && parent.as_ref() != Some(gone)
                && after.get(*vm).is_some_and(|after| after != *parent)
        };
        let moved = before.iter().filter(is_moved).count();
        ensure(moved <= 1, 2, || format!("{gone} left {tree} and {moved} others were moved"))?;
    }
    Ok(())
}

/// Invariant 4: no VM goes back to an older epoch.
fn epochs_rise(world: &mut World) -> Result<(), Violation> {
    let book = &mut world.book;
    for (number, host) in world.hosts.iter().enumerate() {
        for (tree, known) in host.agent.iter().flat_map(|agent| &agent.trees) {
            let transfer = known.transfer.as_ref().and_then(|transfer| transfer.core.epoch());
            let epoch = transfer.unwrap_or(known.record.place.epoch);
            let last = book.epochs.entry((number, tree.clone())).or_insert(epoch);
            ensure(epoch >= *last, 4, || format!("{} went from {last:?} to {epoch:?}", host.id))?;
            *last = epoch;
        }
    }
    Ok(())
}

/// Invariant 6, as far as it can be said at every moment: each VM that was ever sent to the origin reads
/// the image at most once, and what was in flight when a connection was lost.
fn origin_is_read_by_few(world: &World) -> Result<(), Violation> {
    for (tree, by_host) in &world.book.origin_bytes {
        let Some(image) = super::agent::image(&world.images, tree) else { continue };
        for (host, bytes) in by_host {
            let most = 2 * image.description.blob_bytes;
            ensure(*bytes <= most, 6, || {
                format!("vm-{host:05} asked the origin for {bytes} bytes of an image of {}", most / 2)
            })?;
        }
    }
    Ok(())
}

/// Invariant 7: every waiting read is answered or failed before its deadline. A VM that was paused may
/// be late by that.
fn reads_end_in_time(world: &World) -> Result<(), Violation> {
    let deadline = nanos(world.limits.transfer.read_deadline) + SECOND;
    for host in world.hosts.iter().filter(|host| host.paused_until + SECOND < world.now) {
        for (start, container) in &host.holder.containers {
            let in_time = container.waits.is_none_or(|(_, since)| world.now <= since + deadline);
            ensure(in_time, 7, || format!("a read of {start} on {} waits and waits", host.id))?;
        }
    }
    Ok(())
}

/// Invariant 8, as the manager sees it and on the VMs themselves.
fn vms_are_not_overfull(world: &World) -> Result<(), Violation> {
    let limits = &world.limits.scheduler;
    for vm in world.manager.iter().flat_map(|manager| manager.scheduler.vm_views()) {
        let fits = vm.memory_used_bytes <= vm.memory_bytes || vm.state == VmState::Lost;
        ensure(fits, 8, || format!("the manager counts {} bytes on {}", vm.memory_used_bytes, vm.id))?;
    }
    for host in &world.hosts {
        let Some(agent) = &host.agent else { continue };
        let orders = || agent.ordered.values().map(|ordered| &ordered.order);
        let tenants: BTreeSet<&TenantId> = orders().map(|order| &order.place.tree.tenant).collect();
        ensure(tenants.len() <= 1, 8, || format!("{} runs {tenants:?}", host.id))?;
        let functions: BTreeSet<_> = orders().map(|order| &order.function).collect();
        let most = limits.functions_per_vm_max;
        ensure(functions.len() <= most, 8, || format!("{} runs {} functions", host.id, functions.len()))?;
        let memory: u64 = orders().map(|order| order.memory_bytes).sum();
        let has = world.model.memory_bytes;
        ensure(memory <= has, 8, || format!("instances of {} take {memory} of {has} bytes", host.id))?;
    }
    Ok(())
}

/// Invariant 12: no more is on a disk than its cache may take. That nothing goes which is needed is checked where it
/// goes.
fn caches_are_within_their_limit(world: &World) -> Result<(), Violation> {
    let most = world.limits.disk.bytes_max;
    for host in &world.hosts {
        let of_image = |(tree, cached): (&TreeId, &Cached)| {
            let index = super::agent::image(&world.images, tree).map(|image| &image.index);
            let bytes =
                |index: &Arc<Index>| cached.blocks.iter().map(|block| disk_bytes(index, *block)).sum();
            index.map_or(0, bytes)
        };
        let used: u64 = host.cached.iter().map(of_image).sum();
        ensure(used <= most, 12, || format!("{} has {used} bytes on a disk of {most}", host.id))?;
    }
    Ok(())
}

/// Invariant 9: what was acknowledged is durable until it has ended.
fn acknowledged_is_durable(world: &mut World) -> Result<(), Violation> {
    let book = &mut world.book;
    for (start, ((tenant, _), _)) in &book.acknowledged {
        if book.ended.contains(start) {
            continue;
        }
        let view = world.manager.as_ref().map(|manager| manager.scheduler.start_view(tenant, start));
        if matches!(&view, Some(Ok(view)) if view.state == StartState::Ended) {
            book.ended.insert(start.clone());
            continue;
        }
        let is_durable = world.rows.has_start(start);
        ensure(is_durable, 9, || format!("the row of {start} is gone before the start has ended"))?;
        let is_known = !matches!(view, Some(Err(_)));
        ensure(is_known, 9, || format!("the manager does not know the acknowledged start {start}"))?;
    }
    Ok(())
}

/// Invariant 10, when faults are over and time was given: each start is ready or has ended with a reason.
pub(super) fn every_start_ended(world: &World) -> Result<(), Violation> {
    let Some(manager) = &world.manager else {
        return Err(Violation::new(10, "the manager is away".into()));
    };
    for (start, ((tenant, _), _)) in &world.book.acknowledged {
        let view = match manager.scheduler.start_view(tenant, start) {
            Ok(view) => view,
            Err(_) if world.book.ended.contains(start) => continue,
            Err(_) => return Err(Violation::new(10, format!("nobody knows the start {start}"))),
        };
        let has_ended = match view.state {
            StartState::Ready => true,
            StartState::Ended => view.reason.is_some(),
            StartState::Waiting | StartState::Starting => false,
        };
        ensure(has_ended, 10, || format!("the start {start} is {:?} on {:?}", view.state, view.vm))?;
    }
    Ok(())
}

/// Invariant 11, when faults are over: nothing waits for anything any more, and all agree who is whose
/// parent.
pub(super) fn all_is_quiet(world: &World) -> Result<(), Violation> {
    for host in &world.hosts {
        let waiting = host.holder.reads.keys().next();
        ensure(waiting.is_none(), 11, || format!("a read of {waiting:?} on {} never ends", host.id))?;
    }
    for (tree, view) in views(world) {
        let members: BTreeSet<&VmId> = view.members.iter().map(|member| &member.vm).collect();
        let holds = |host: &super::host::Host| {
            host.agent.as_ref().is_some_and(|agent| agent.trees.contains_key(&tree))
        };
        let holders: BTreeSet<&VmId> =
            world.hosts.iter().filter(|host| holds(host)).map(|host| &host.id).collect();
        ensure(members == holders, 1, || {
            format!("{tree} has the members {members:?}, and {holders:?} hold it")
        })?;
        for member in &view.members {
            let host = world.hosts.iter().find(|host| host.id == member.vm);
            let known = host.and_then(|host| host.agent.as_ref()?.trees.get(&tree));
            let first = known.and_then(|known| known.record.place.stripes.first()?.first());
            let parent = match first {
                Some(faasnet_actors::wire::control::Upstream::Vm { vm, .. }) => Some(vm),
                _ => None,
            };
            ensure(parent == member.parent.as_ref(), 1, || {
                format!("{} asks {parent:?}, its parent is {:?}", member.vm, member.parent)
            })?;
        }
    }
    Ok(())
}

//! The root of the manager's actors: makes the services, rebuilds them, and decides when it is enough.
//!
//! ```text
//! Manager -+- Journal
//!          +- Scheduler
//!          +- Forest ---- FunctionTree (x tree)
//!          +- Fleet ----- VmNode (x VM)
//! ```

#[cfg(test)]
mod tests;

use crate::{
    function_tree::{Forest, ForestSettings, ToForest, ToTree, TreeLimits},
    journal::{Journal, JournalHandle, JournalLimits},
    scheduler::{Limits, Request, Scheduler, SchedulerHandle, SchedulerSettings},
    support::{AfterExit, ChildExited, Children, ExitNotice, Link, LinkSource, Stop},
    tree::Topology,
    vm_node::{Fleet, FleetSettings, ToFleet, ToVm, VmNews},
    world::{CapabilityIssuer, Converter, Metadata},
};
use actix::{WeakRecipient, prelude::*};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Names of the services.
const JOURNAL: &str = "journal";
const SCHEDULER: &str = "scheduler";
const FOREST: &str = "forest";
const FLEET: &str = "fleet";

/// All that the manager's actors need of the process.
#[derive(Clone)]
pub struct ManagerWorld {
    pub metadata: Arc<dyn Metadata>,
    pub converter: Arc<dyn Converter>,
    pub capabilities: Arc<dyn CapabilityIssuer>,
    /// Ed25519, as agents check capabilities with it.
    pub capability_key: Vec<u8>,
    /// Makes the shape of a new tree.
    pub topology: Arc<dyn Fn() -> Box<dyn Topology> + Send + Sync>,
    /// Durable before this value was made, and higher than that of any manager before.
    pub term: u64,
    /// Seed of the ids of starts.
    pub seed: [u8; 32],
    pub limits: ManagerLimits,
}

#[derive(Debug, Clone, Copy)]
pub struct ManagerLimits {
    pub scheduler: Limits,
    pub tree: TreeLimits,
    pub heartbeat: Duration,
    pub lease: Duration,
    /// Messages that may wait for the scheduler.
    pub mailbox_permits: usize,
    /// Bytes of writes that may wait for the metadata store.
    pub journal_bytes_max: usize,
}

/// How often the scheduler looks for deadlines: what may be late by that much.
const SCHEDULER_TICK: Duration = Duration::from_millis(20);
/// Commits that wait or are under way: those of all requests that the scheduler lets in, and its own.
const COMMITS_PER_PERMIT: usize = 2;

pub struct Manager {
    world: ManagerWorld,
    journal: JournalHandle,
    schedulers: Children<&'static str, Scheduler>,
    forests: Children<&'static str, Forest>,
    fleets: Children<&'static str, Fleet>,
    journals: Children<&'static str, Journal>,
    news: LinkSource<VmNews>,
    vms: LinkSource<ToVm>,
    fleet: LinkSource<ToFleet>,
    trees: LinkSource<ToTree>,
    forest: LinkSource<ToForest>,
}

/// The manager's actors as the process sees them. Cheap to clone.
#[derive(Clone)]
pub struct ManagerHandle {
    root: Addr<Manager>,
    pub scheduler: SchedulerHandle,
    pub fleet: Link<ToFleet>,
    pub vms: Link<ToVm>,
}

impl ManagerHandle {
    /// Ends all actors, and with them the sessions. What has been acknowledged is durable already.
    pub async fn shut_down(&self) {
        // It may have given up before; then there is nothing to end.
        let _gone = self.root.send(Stop).await;
    }

    /// False when the actors crashed too often: the process is to end.
    pub fn is_up(&self) -> bool {
        self.root.connected()
    }
}

impl Manager {
    pub fn start(world: ManagerWorld) -> ManagerHandle {
        let (fleet, vms) = (LinkSource::default(), LinkSource::default());
        let (fleet_link, vms_link) = (fleet.link(), vms.link());
        let permits = world.limits.mailbox_permits;
        let root = Self::create(move |ctx| {
            let mut journals = Children::default();
            let metadata = Arc::clone(&world.metadata);
            let commits = journals
                .start(&JOURNAL, parent(ctx), |exit| Journal::new(metadata, Some(exit)).start())
                .clone()
                .recipient();
            let limits = JournalLimits {
                commits_max: permits * COMMITS_PER_PERMIT,
                bytes_max: world.limits.journal_bytes_max,
                batch: world.metadata.limits(),
            };
            let mut manager = Self {
                journal: JournalHandle::new(commits, limits),
                world,
                schedulers: Children::default(),
                forests: Children::default(),
                fleets: Children::default(),
                journals,
                news: LinkSource::default(),
                vms,
                fleet,
                trees: LinkSource::default(),
                forest: LinkSource::default(),
            };
            // Here and not when it has started, so that links lead somewhere from the beginning.
            for name in [FLEET, FOREST, SCHEDULER] {
                manager.start_service(name, ctx);
            }
            manager
        });
        let scheduler = SchedulerHandle::new(root.clone().recipient(), permits);
        ManagerHandle { root, scheduler, fleet: fleet_link, vms: vms_link }
    }

    fn start_fleet(&mut self, ctx: &mut Context<Self>) {
        let settings = FleetSettings {
            lease: self.world.limits.lease,
            heartbeat: self.world.limits.heartbeat,
            capability_key: self.world.capability_key.clone(),
            // A silent VM is noticed within a lease and a third of it.
            tick: self.world.limits.lease / 3,
            metadata: Arc::clone(&self.world.metadata),
            journal: self.journal.clone(),
            news: self.news.link(),
            trees: self.trees.link(),
            forest: self.forest.link(),
        };
        let build = |exit: ExitNotice<_>| Fleet::new(settings, Some(exit)).start();
        let fleet = self.fleets.start(&FLEET, parent(ctx), build);
        self.vms.point_to(Some(fleet.clone().recipient()));
        self.fleet.point_to(Some(fleet.clone().recipient()));
    }

    fn start_forest(&mut self, ctx: &mut Context<Self>) {
        let settings = ForestSettings {
            limits: self.world.limits.tree,
            topology: Arc::clone(&self.world.topology),
            capabilities: Arc::clone(&self.world.capabilities),
            vms: self.vms.link(),
            fleet: self.fleet.link(),
            tick: self.world.limits.heartbeat,
            term: self.world.term,
            waiting_max: self.world.limits.scheduler.starts_waiting_max,
        };
        let build = |exit: ExitNotice<_>| Forest::new(settings, Some(exit)).start();
        let forest = self.forests.start(&FOREST, parent(ctx), build);
        self.trees.point_to(Some(forest.clone().recipient()));
        self.forest.point_to(Some(forest.clone().recipient()));
    }

    fn start_scheduler(&mut self, ctx: &mut Context<Self>) {
        let settings = SchedulerSettings {
            limits: self.world.limits.scheduler,
            tick: SCHEDULER_TICK,
            seed: self.world.seed,
            metadata: Arc::clone(&self.world.metadata),
            journal: self.journal.clone(),
            converter: Arc::clone(&self.world.converter),
            vms: self.vms.link(),
            fleet: self.fleet.link(),
            trees: self.trees.link(),
            forest: self.forest.link(),
        };
        let build = |exit: ExitNotice<_>| Scheduler::new(settings, Some(exit)).start();
        let scheduler = self.schedulers.start(&SCHEDULER, parent(ctx), build);
        self.news.point_to(Some(scheduler.clone().recipient()));
    }

    fn start_service(&mut self, name: &'static str, ctx: &mut Context<Self>) {
        match name {
            FLEET => self.start_fleet(ctx),
            FOREST => self.start_forest(ctx),
            SCHEDULER => self.start_scheduler(ctx),
            other => unreachable!("no service has the name {other}"),
        }
    }
}

fn parent(ctx: &Context<Manager>) -> WeakRecipient<ChildExited<&'static str>> {
    ctx.address().downgrade().recipient()
}

impl Actor for Manager {
    type Context = Context<Self>;
}

/// Requests go to the scheduler that is there now. While it is rebuilt they are dropped, which their
/// callers see at once.
impl Handler<Request> for Manager {
    type Result = ();

    fn handle(&mut self, request: Request, _ctx: &mut Context<Self>) {
        if let Some(scheduler) = self.schedulers.get(&SCHEDULER) {
            scheduler.do_send(request);
        }
    }
}

impl Handler<ChildExited<&'static str>> for Manager {
    type Result = ();

    fn handle(&mut self, exit: ChildExited<&'static str>, ctx: &mut Context<Self>) {
        let (name, now) = (exit.child, Instant::now());
        let after = match name {
            FLEET => self.fleets.exited(&exit, now),
            FOREST => self.forests.exited(&exit, now),
            SCHEDULER => self.schedulers.exited(&exit, now),
            // What a journal had in hand when it panicked may be on the disk or not: nobody knows.
            _ => AfterExit::GiveUp,
        };
        match after {
            AfterExit::Ignore => {}
            AfterExit::Rebuild { pause } => {
                tracing::error!(service = name, "service panicked and is rebuilt");
                ctx.run_later(pause, move |manager, ctx| manager.start_service(name, ctx));
            }
            // A service stops by itself only when it cannot go on.
            AfterExit::Gone | AfterExit::GiveUp => {
                tracing::error!(service = name, "service cannot go on");
                ctx.stop();
            }
        }
    }
}

impl Handler<Stop> for Manager {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        if let Some(scheduler) = self.schedulers.remove(&SCHEDULER) {
            scheduler.do_send(Stop);
        }
        if let Some(forest) = self.forests.remove(&FOREST) {
            forest.do_send(Stop);
        }
        if let Some(fleet) = self.fleets.remove(&FLEET) {
            fleet.do_send(Stop);
        }
        if let Some(journal) = self.journals.remove(&JOURNAL) {
            journal.do_send(Stop);
        }
        ctx.stop();
    }
}

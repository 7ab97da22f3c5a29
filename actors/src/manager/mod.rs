//! The root of the manager's actors: makes the services, rebuilds them, and decides when it is enough.
//!
//! ```text
//! Manager -+- Journal
//!          +- EventLog
//!          +- Scheduler
//!          +- Profiles
//!          +- Forest ---- FunctionTree (x tree)
//!          +- Fleet ----- VmNode (x VM)
//! ```

#[cfg(test)]
pub(crate) mod tests;

use crate::{
    event_log::{EventLog, EventLogHandle, EventLogLimits, EventLogSettings, Teller, ToEventLog, WallClock},
    function_tree::{Forest, ForestSettings, ToForest, ToTree, TreeLimits},
    id::VmId,
    journal::{Commit, Journal, JournalHandle, JournalSettings},
    profiles::{Hinted, ProfileLimits, Profiles, ProfilesSettings, ToProfiles},
    scheduler::{Limits, Request, Scheduler, SchedulerHandle, SchedulerSettings},
    support::{
        ActorView, AfterExit, ChildExited, Children, Link, LinkSource, Observe, Snapshot, Stop, Threads,
        supervise,
    },
    tree::Topology,
    vm_node::{Fleet, FleetSettings, NodeLimits, ToFleet, ToVm, VmMessage, VmNews},
    world::{CapabilityIssuer, Converter, Metadata, Surveyor},
};
use actix::{WeakRecipient, prelude::*};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;
/// Names of the services, and of others in flows.
const MANAGER: &str = "manager";
const JOURNAL: &str = "journal";
const EVENT_LOG: &str = "event_log";
const HTTP: &str = "http";
const SCHEDULER: &str = "scheduler";
const PROFILES: &str = "profiles";
const FOREST: &str = "forest";
const FLEET: &str = "fleet";
const FUNCTION_TREE: &str = "function_tree";
const VM_NODE: &str = "vm_node";
const SESSION: &str = "session";

/// All that the manager's actors need of the process.
#[derive(Clone)]
pub struct ManagerWorld {
    pub metadata: Arc<dyn Metadata>,
    pub converter: Arc<dyn Converter>,
    pub surveyor: Arc<dyn Surveyor>,
    pub capabilities: Arc<dyn CapabilityIssuer>,
    /// Ed25519, as agents check capabilities with it.
    pub capability_key: Vec<u8>,
    /// Makes the shape of a new tree.
    pub topology: Arc<dyn Fn() -> Box<dyn Topology> + Send + Sync>,
    /// Durable before this value was made, and higher than that of any manager before.
    pub term: u64,
    /// Seed of the ids of starts.
    pub seed: [u8; 32],
    /// For the times of events; nothing is decided by it.
    pub wall_clock: WallClock,
    pub limits: ManagerLimits,
}

#[derive(Debug, Clone, Copy)]
pub struct ManagerLimits {
    pub scheduler: Limits,
    pub profiles: ProfileLimits,
    pub tree: TreeLimits,
    pub heartbeat: Duration,
    pub lease: Duration,
    /// Starts under way on one VM; further ones wait for that.
    pub orders_in_flight_max: usize,
    /// Starts that wait for that on one VM.
    pub orders_queued_max: usize,
    /// How long trees of a new manager wait for their members to report.
    pub rejoin_grace: Duration,
    /// Messages that may wait for the scheduler.
    pub mailbox_permits: usize,
    /// Threads for function trees and VM nodes; with none they share that of the services.
    pub tree_threads: usize,
    /// Bytes of writes that may wait for the metadata store.
    pub journal_bytes_max: usize,
    pub events: EventLogLimits,
}

/// How often the scheduler looks for deadlines: what may be late by that much.
const SCHEDULER_TICK: Duration = Duration::from_millis(20);
/// Commits that wait or are under way: those of all requests that the scheduler lets in, and its own.
const COMMITS_PER_PERMIT: usize = 2;

pub struct Manager {
    world: ManagerWorld,
    threads: Threads,
    journal_settings: JournalSettings,
    commits: LinkSource<Commit>,
    schedulers: Children<&'static str, Scheduler>,
    profiles: Children<&'static str, Profiles>,
    forests: Children<&'static str, Forest>,
    fleets: Children<&'static str, Fleet>,
    journals: Children<&'static str, Journal>,
    event_logs: Children<&'static str, EventLog>,
    event_log_settings: EventLogSettings,
    events: LinkSource<ToEventLog>,
    news: LinkSource<VmNews>,
    vms: LinkSource<ToVm>,
    fleet: LinkSource<ToFleet>,
    trees: LinkSource<ToTree>,
    forest: LinkSource<ToForest>,
    /// To the keeper of profiles, and from it to the scheduler.
    to_profiles: LinkSource<ToProfiles>,
    hints: LinkSource<Hinted>,
}

/// The manager's actors as the process sees them. Cheap to clone.
#[derive(Clone)]
pub struct ManagerHandle {
    root: Addr<Manager>,
    pub scheduler: SchedulerHandle,
    pub fleet: Link<ToFleet>,
    pub vms: Link<ToVm>,
    pub events: EventLogHandle,
    pub teller: Teller,
}

impl ManagerHandle {
    /// Ends all actors, and with them the sessions. What has been acknowledged is durable already.
    pub async fn shut_down(&self) {
        // It may have given up before; then there is nothing to end.
        let _gone = self.root.send(Stop).await;
    }

    /// All actors as they are now. None when there are none any more.
    pub async fn observe(&self, ask: Observe) -> Option<ActorView> {
        Some(self.root.send(ask).await.ok()?.into_root(MANAGER))
    }

    /// The actors of an agent. None when it has no session or does not answer within `within`.
    pub async fn observe_agent(&self, vm: VmId, within: Duration, children_max: usize) -> Option<ActorView> {
        let (reply, answer) = oneshot::channel();
        self.vms.send(ToVm { vm, message: VmMessage::Observe { children_max, reply } });
        tokio::time::timeout(within, answer).await.ok()?.ok()
    }

    /// False when the actors crashed too often: the process is to end.
    pub fn is_up(&self) -> bool {
        self.root.connected()
    }
}

impl Manager {
    pub fn start(world: ManagerWorld) -> ManagerHandle {
        let (fleet, vms) = (LinkSource::new(FLEET), LinkSource::new(FLEET));
        let (fleet_link, vms_link) = (fleet.link(SESSION), vms.link(SESSION));
        let permits = world.limits.mailbox_permits;
        // Of its own, so that texts for those who watch take no time of those who decide.
        let thread = Threads::new(usize::from(world.limits.tree_threads > 0));
        let clock = Arc::clone(&world.wall_clock);
        let event_log = EventLogSettings::new(world.limits.events, world.term, clock, thread);
        let events = LinkSource::new(EVENT_LOG);
        let (log_handle, teller) = (event_log.handle(events.link(HTTP)), event_log.teller(events.link(HTTP)));
        let root = Self::create(move |ctx| {
            let metadata = Arc::clone(&world.metadata);
            let bytes_max = world.limits.journal_bytes_max;
            let mut manager = Self {
                journal_settings: JournalSettings::new(metadata, permits * COMMITS_PER_PERMIT, bytes_max),
                commits: LinkSource::new(JOURNAL),
                threads: Threads::new(world.limits.tree_threads),
                world,
                schedulers: Children::vital(MANAGER, SCHEDULER),
                // Without it starts read as they did before.
                profiles: Children::many(MANAGER, PROFILES),
                forests: Children::vital(MANAGER, FOREST),
                fleets: Children::vital(MANAGER, FLEET),
                journals: Children::vital(MANAGER, JOURNAL),
                // Without it nobody sees what happens, and everything happens all the same.
                event_logs: Children::many(MANAGER, EVENT_LOG),
                event_log_settings: event_log,
                events,
                news: LinkSource::new(SCHEDULER),
                vms,
                fleet,
                trees: LinkSource::new(FOREST),
                forest: LinkSource::new(FOREST),
                to_profiles: LinkSource::new(PROFILES),
                hints: LinkSource::new(SCHEDULER),
            };
            // Here and not when it has started, so that links lead somewhere from the beginning.
            manager.start_event_log(ctx);
            manager.start_journal(ctx);
            manager.start_fleet(ctx);
            manager.start_forest(ctx);
            manager.start_scheduler(ctx);
            manager.start_profiles(ctx);
            manager
        });
        let scheduler = SchedulerHandle::new(root.clone().recipient(), permits);
        ManagerHandle { root, scheduler, fleet: fleet_link, vms: vms_link, events: log_handle, teller }
    }

    fn start_fleet(&mut self, ctx: &mut Context<Self>) {
        let settings = FleetSettings {
            limits: NodeLimits {
                lease: self.world.limits.lease,
                in_flight_max: self.world.limits.orders_in_flight_max,
                queued_max: self.world.limits.orders_queued_max,
                functions_max: self.world.limits.scheduler.functions_per_vm_max,
            },
            heartbeat: self.world.limits.heartbeat,
            capability_key: self.world.capability_key.clone(),
            // A silent VM is noticed within a lease and a third of it.
            tick: self.world.limits.lease / 3,
            threads: self.threads.clone(),
            metadata: Arc::clone(&self.world.metadata),
            journal: self.journal(FLEET),
            news: self.news.link(VM_NODE),
            trees: self.trees.link(VM_NODE),
            forest: self.forest.link(FLEET),
        };
        self.fleets.start(&FLEET, parent(ctx), |life| Fleet::new(settings, life).start());
        self.fleets.link(&FLEET, &self.vms);
        self.fleets.link(&FLEET, &self.fleet);
    }

    fn start_forest(&mut self, ctx: &mut Context<Self>) {
        let settings = ForestSettings {
            limits: self.world.limits.tree,
            topology: Arc::clone(&self.world.topology),
            capabilities: Arc::clone(&self.world.capabilities),
            vms: self.vms.link(FUNCTION_TREE),
            fleet: self.fleet.link(FUNCTION_TREE),
            news: self.news.link(FOREST),
            teller: self.teller(FUNCTION_TREE),
            tick: self.world.limits.heartbeat,
            rejoin_grace: self.world.limits.rejoin_grace,
            term: self.world.term,
            threads: self.threads.clone(),
            waiting_max: self.world.limits.scheduler.starts_waiting_max,
        };
        self.forests.start(&FOREST, parent(ctx), |life| Forest::new(settings, life).start());
        self.forests.link(&FOREST, &self.trees);
        self.forests.link(&FOREST, &self.forest);
    }

    fn start_scheduler(&mut self, ctx: &mut Context<Self>) {
        let settings = SchedulerSettings {
            limits: self.world.limits.scheduler,
            tick: SCHEDULER_TICK,
            seed: self.world.seed,
            metadata: Arc::clone(&self.world.metadata),
            journal: self.journal(SCHEDULER),
            converter: Arc::clone(&self.world.converter),
            vms: self.vms.link(SCHEDULER),
            fleet: self.fleet.link(SCHEDULER),
            trees: self.trees.link(SCHEDULER),
            forest: self.forest.link(SCHEDULER),
            profiles: self.to_profiles.link(SCHEDULER),
            teller: self.teller(SCHEDULER),
            wall_clock: Arc::clone(&self.world.wall_clock),
        };
        self.schedulers.start(&SCHEDULER, parent(ctx), |life| Scheduler::new(settings, life).start());
        self.schedulers.link(&SCHEDULER, &self.news);
        self.schedulers.link(&SCHEDULER, &self.hints);
    }

    fn start_profiles(&mut self, ctx: &mut Context<Self>) {
        let settings = ProfilesSettings {
            limits: self.world.limits.profiles,
            metadata: Arc::clone(&self.world.metadata),
            journal: self.journal(PROFILES),
            converter: Arc::clone(&self.world.converter),
            surveyor: Arc::clone(&self.world.surveyor),
            scheduler: self.hints.link(PROFILES),
        };
        self.profiles.start(&PROFILES, parent(ctx), |life| Profiles::new(settings, life).start());
        self.profiles.link(&PROFILES, &self.to_profiles);
    }

    fn start_journal(&mut self, ctx: &mut Context<Self>) {
        let settings = self.journal_settings.clone();
        self.journals.start(&JOURNAL, parent(ctx), |life| Journal::new(settings, life).start());
        self.journals.link(&JOURNAL, &self.commits);
    }

    fn start_event_log(&mut self, ctx: &mut Context<Self>) {
        let settings = self.event_log_settings.clone();
        self.event_logs.start(&EVENT_LOG, parent(ctx), |life| {
            settings.threads.clone().start(EVENT_LOG, move || EventLog::new(settings, life))
        });
        self.event_logs.link(&EVENT_LOG, &self.events);
    }

    fn teller(&self, from: &'static str) -> Teller {
        self.event_log_settings.teller(self.events.link(from))
    }

    fn journal(&self, from: &'static str) -> JournalHandle {
        self.journal_settings.handle(self.commits.link(from))
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
        self.schedulers.send(&SCHEDULER, request);
    }
}

impl Handler<ChildExited<&'static str>> for Manager {
    type Result = ();

    fn handle(&mut self, exit: ChildExited<&'static str>, ctx: &mut Context<Self>) {
        let after = match exit.child {
            FLEET => {
                supervise(self, &exit, |root| &mut root.fleets, |root, _, ctx| root.start_fleet(ctx), ctx)
            }
            FOREST => {
                supervise(self, &exit, |root| &mut root.forests, |root, _, ctx| root.start_forest(ctx), ctx)
            }
            SCHEDULER => supervise(
                self,
                &exit,
                |root| &mut root.schedulers,
                |root, _, ctx| root.start_scheduler(ctx),
                ctx,
            ),
            PROFILES => supervise(
                self,
                &exit,
                |root| &mut root.profiles,
                |root, _, ctx| root.start_profiles(ctx),
                ctx,
            ),
            EVENT_LOG => supervise(
                self,
                &exit,
                |root| &mut root.event_logs,
                |root, _, ctx| root.start_event_log(ctx),
                ctx,
            ),
            JOURNAL => {
                supervise(self, &exit, |root| &mut root.journals, |root, _, ctx| root.start_journal(ctx), ctx)
            }
            other => unreachable!("no service has the name {other}"),
        };
        match after {
            AfterExit::Ignore | AfterExit::Gone | AfterExit::Rebuild { .. } => {}
            AfterExit::Abandon { .. } if [PROFILES, EVENT_LOG].contains(&exit.child) => {}
            // The process sees that its root has ended.
            AfterExit::Abandon { .. } | AfterExit::GiveUp => ctx.stop(),
        }
    }
}

impl Handler<Observe> for Manager {
    type Result = ResponseFuture<Snapshot>;

    fn handle(&mut self, ask: Observe, _: &mut Context<Self>) -> Self::Result {
        let (journal, scheduler) = (self.journals.observe(ask), self.schedulers.observe(ask));
        let (forest, fleet) = (self.forests.observe(ask), self.fleets.observe(ask));
        let (profiles, events) = (self.profiles.observe(ask), self.event_logs.observe(ask));
        let snapshot = Snapshot::new(format!("term {}", self.world.term));
        Box::pin(async move {
            let (journal, events, scheduler, profiles, forest, fleet) =
                tokio::join!(journal, events, scheduler, profiles, forest, fleet);
            let services = snapshot.children(journal).children(events).children(scheduler).children(profiles);
            services.children(forest).children(fleet)
        })
    }
}

impl Handler<Stop> for Manager {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        if let Some(scheduler) = self.schedulers.remove(&SCHEDULER) {
            scheduler.do_send(Stop);
        }
        if let Some(profiles) = self.profiles.remove(&PROFILES) {
            profiles.do_send(Stop);
        }
        if let Some(forest) = self.forests.remove(&FOREST) {
            forest.do_send(Stop);
        }
        if let Some(fleet) = self.fleets.remove(&FLEET) {
            fleet.do_send(Stop);
        }
        if let Some(log) = self.event_logs.remove(&EVENT_LOG) {
            log.do_send(Stop);
        }
        if let Some(journal) = self.journals.remove(&JOURNAL) {
            journal.do_send(Stop);
        }
        ctx.stop();
    }
}

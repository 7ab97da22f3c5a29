//! The parent of all function trees: finds them by name, makes them, and rebuilds them.

use super::{
    Event, FunctionTree, TreeCore, TreeLimits,
    messages::{EpochRaised, GetView, Happened, ToForest, ToTree},
};
use crate::{
    event_log::Teller,
    id::{Epoch, TreeId},
    scheduler::ControlError,
    support::{AfterExit, ChildExited, Children, Life, Link, Observe, Snapshot, Stop, Threads, supervise},
    tree::Topology,
    vm_node::{ToFleet, ToVm, VmEvent, VmNews},
    wire::control::{EndReason, StartReport},
    world::CapabilityIssuer,
};
use actix::prelude::*;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
/// What all trees have in common.
#[derive(Clone)]
pub struct ForestSettings {
    pub limits: TreeLimits,
    /// Makes the shape of a new tree.
    pub topology: Arc<dyn Fn() -> Box<dyn Topology> + Send + Sync>,
    pub capabilities: Arc<dyn CapabilityIssuer>,
    pub vms: Link<ToVm>,
    pub fleet: Link<ToFleet>,
    pub news: Link<VmNews>,
    pub teller: Teller,
    /// How often trees look at what is due.
    pub tick: Duration,
    /// How long a tree that is rebuilt waits for its members.
    pub rejoin_grace: Duration,
    /// The manager's term.
    pub term: u64,
    /// Where trees run.
    pub threads: Threads,
    /// Starts kept for a tree that is being rebuilt; further ones are placed anew by the scheduler.
    pub waiting_max: usize,
}

/// Owns the function trees. Lives as long as its own parent keeps it.
pub struct Forest {
    settings: ForestSettings,
    trees: Children<TreeId, FunctionTree>,
    /// The last epoch of each tree that is there.
    counters: BTreeMap<TreeId, u64>,
    /// No tree that is gone had a higher epoch; new ones begin behind it.
    floor: u64,
    /// Trees may have members that this forest does not know of.
    gathers: bool,
    /// Starts for trees that are being rebuilt.
    waiting: VecDeque<ToTree>,
    life: Life<&'static str>,
}

/// Epochs that one forest may use up; a rebuilt forest, which forgot them, begins behind them.
const EPOCHS_PER_FOREST: u64 = 1 << 32;

impl Forest {
    pub fn new(settings: ForestSettings, life: Life<&'static str>) -> Self {
        Self {
            settings,
            trees: Children::many("forest", "function_tree"),
            counters: BTreeMap::new(),
            floor: u64::from(life.generation()) * EPOCHS_PER_FOREST,
            gathers: true,
            waiting: VecDeque::new(),
            life,
        }
    }

    fn start_tree(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        if self.gathers {
            self.start_tree_with(tree, TreeCore::rejoining, ctx);
        } else {
            self.start_tree_with(tree, TreeCore::new, ctx);
        }
    }

    /// The members, or some of them, are still to report.
    fn start_tree_again(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        self.start_tree_with(tree, TreeCore::rejoining, ctx);
        let rebuilt = tree.clone();
        ctx.run_later(self.settings.rejoin_grace, move |forest, _| forest.gathered(Some(&rebuilt)));
    }

    /// Everyone has reported, or their time is over.
    fn gathered(&mut self, only: Option<&TreeId>) {
        self.gathers &= only.is_some();
        for (tree, _) in self.trees.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
            self.trees.send(tree, Happened { event: Event::Gathered, slot: None });
        }
    }

    fn start_tree_with(
        &mut self,
        tree: &TreeId,
        make: fn(TreeLimits, Box<dyn Topology>, Epoch) -> TreeCore,
        ctx: &mut Context<Self>,
    ) {
        let counter = *self.counters.entry(tree.clone()).or_insert(self.floor);
        let epoch = Epoch { term: self.settings.term, counter };
        let (name, settings) = (tree.clone(), self.settings.clone());
        let parent = ctx.address().downgrade().recipient();
        self.trees.start(tree, ctx.address().downgrade().recipient(), |life| {
            settings.threads.clone().start(&tree.to_string(), move || FunctionTree {
                core: make(settings.limits, (settings.topology)(), epoch),
                tree: name,
                capabilities: settings.capabilities,
                issued: BTreeMap::new(),
                vms: settings.vms,
                fleet: settings.fleet,
                teller: settings.teller,
                parent,
                tick: settings.tick,
                life,
            })
        });
    }

    /// Ends a start for a tree that cannot be kept up; the scheduler would only try again.
    fn refuse(&self, message: ToTree) {
        if let Event::Join { vm, start, .. } = message.event {
            let reason =
                EndReason::ImageUnavailable("the actor of its function tree crashes again and again".into());
            let event = VmEvent::Ended { start: start.start, reason, report: StartReport::default() };
            self.settings.news.send(VmNews { vm, event, slot: None });
        }
    }

    /// Sends what came for a tree while it was being rebuilt.
    fn resend(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        for message in std::mem::take(&mut self.waiting) {
            if message.tree == *tree {
                self.deliver(message, ctx);
            } else {
                self.waiting.push_back(message);
            }
        }
    }

    fn deliver(&mut self, message: ToTree, ctx: &mut Context<Self>) {
        if !self.trees.knows(&message.tree) {
            match message.event {
                Event::Join { .. } | Event::Preheat { .. } | Event::Reported { .. } => {
                    self.start_tree(&message.tree, ctx);
                }
                // About a tree that is gone: there is nobody to tell.
                Event::Held { .. }
                | Event::Ready { .. }
                | Event::Gone { .. }
                | Event::Leave { .. }
                | Event::UpstreamLost { .. }
                | Event::OriginWanted { .. }
                | Event::Gathered
                | Event::Dissolve
                | Event::Tick => return,
            }
        }
        if self.trees.get(&message.tree).is_some() {
            let dissolves = matches!(message.event, Event::Dissolve);
            self.trees.send(&message.tree, Happened { event: message.event, slot: message.slot });
            if dissolves {
                self.trees.remove(&message.tree);
                // The last change of the tree, which will not be reported, is within the next one.
                let last = self.counters.remove(&message.tree).unwrap_or_default();
                self.floor = self.floor.max(last + EPOCHS_IN_MAILBOX);
            }
            return;
        }
        if self.trees.rests(&message.tree) {
            return self.refuse(message);
        }
        // All but what the scheduler wants is asked for again by the rebuilt tree.
        let kept = matches!(
            message.event,
            Event::Join { .. } | Event::Preheat { .. } | Event::Leave { .. } | Event::Dissolve
        );
        if kept && self.waiting.len() < self.settings.waiting_max {
            self.waiting.push_back(message);
        }
    }
}

impl Actor for Forest {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_later(self.settings.rejoin_grace, |forest, _| forest.gathered(None));
        if self.life.is_rebuilt() {
            self.settings.fleet.send(ToFleet::Rejoin { tree: None });
        }
    }
}

impl Handler<ToTree> for Forest {
    type Result = ();

    fn handle(&mut self, message: ToTree, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.deliver(message, ctx);
    }
}

/// Changes that a tree may make between its last report to the forest and its end: what its mailbox
/// may hold.
const EPOCHS_IN_MAILBOX: u64 = 1 << 20;

impl Handler<ToForest> for Forest {
    type Result = ();

    fn handle(&mut self, message: ToForest, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        match message {
            ToForest::View { tree, reply } => match self.trees.get(&tree) {
                Some(child) => child.do_send(GetView(reply)),
                None => {
                    // Whoever asked may be gone; then nobody wants the answer.
                    let _gone = reply.send(Err(ControlError::NotFound("tree")));
                }
            },
            ToForest::Gathered { tree } => self.gathered(tree.as_ref()),
            ToForest::VmGone { vm } => {
                for (tree, _) in self.trees.iter() {
                    self.trees.send(tree, Happened { event: Event::Gone { vm: vm.clone() }, slot: None });
                }
            }
        }
    }
}

impl Handler<EpochRaised> for Forest {
    type Result = ();

    fn handle(&mut self, raised: EpochRaised, _ctx: &mut Context<Self>) {
        if let Some(counter) = self.counters.get_mut(&raised.tree) {
            *counter = raised.counter.max(*counter);
        }
    }
}

impl Handler<ChildExited<TreeId>> for Forest {
    type Result = ();

    fn handle(&mut self, exit: ChildExited<TreeId>, ctx: &mut Context<Self>) {
        let rebuild = |forest: &mut Self, tree: &TreeId, ctx: &mut Context<Self>| {
            forest.start_tree_again(tree, ctx);
            forest.resend(tree, ctx);
        };
        match supervise(self, &exit, |forest| &mut forest.trees, rebuild, ctx) {
            AfterExit::Ignore | AfterExit::Rebuild { .. } => {}
            AfterExit::Gone => {
                let last = self.counters.remove(&exit.child).unwrap_or_default();
                self.floor = self.floor.max(last);
            }
            AfterExit::Abandon { .. } => {
                let (given_up, others) =
                    std::mem::take(&mut self.waiting).into_iter().partition(|one| one.tree == exit.child);
                self.waiting = others;
                let given_up: VecDeque<ToTree> = given_up;
                given_up.into_iter().for_each(|message| self.refuse(message));
            }
            AfterExit::GiveUp => self.life.give_up(ctx),
        }
    }
}

impl Handler<Observe> for Forest {
    type Result = ResponseFuture<Snapshot>;

    fn handle(&mut self, ask: Observe, _: &mut Context<Self>) -> Self::Result {
        let snapshot = Snapshot::new(format!("{} trees", self.trees.len())).queue(
            "for trees being rebuilt",
            self.waiting.len(),
            self.settings.waiting_max,
        );
        let trees = self.trees.observe(ask);
        Box::pin(async move { snapshot.children(trees.await) })
    }
}

impl Handler<Stop> for Forest {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.trees.iter().for_each(|(_, tree)| tree.do_send(Stop));
        ctx.stop();
    }
}

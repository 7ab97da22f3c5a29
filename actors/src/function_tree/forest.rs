//! The parent of all function trees: finds them by name, makes them, and rebuilds them.

use super::{
    Event, FunctionTree, TreeCore, TreeLimits,
    messages::{EpochRaised, GetView, Happened, ToForest, ToTree},
};
use crate::{
    id::{Epoch, TreeId},
    scheduler::ControlError,
    support::{AfterExit, Budget, ChildExited, Children, ExitNotice, Link, Stop},
    tree::Topology,
    vm_node::{ToFleet, ToVm},
    world::CapabilityIssuer,
};
use actix::prelude::*;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// What all trees have in common.
#[derive(Clone)]
pub struct ForestSettings {
    pub limits: TreeLimits,
    /// Makes the shape of a new tree.
    pub topology: Arc<dyn Fn() -> Box<dyn Topology> + Send + Sync>,
    pub capabilities: Arc<dyn CapabilityIssuer>,
    pub vms: Link<ToVm>,
    pub fleet: Link<ToFleet>,
    /// How often trees look at what is due.
    pub tick: Duration,
    /// The manager's term.
    pub term: u64,
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
    /// Starts for trees that are being rebuilt.
    waiting: VecDeque<ToTree>,
    budget: Budget,
    exit: Option<ExitNotice<&'static str>>,
}

/// Epochs that one forest may use up; a rebuilt forest, which forgot them, begins behind them.
const EPOCHS_PER_FOREST: u64 = 1 << 32;

impl Forest {
    pub fn new(settings: ForestSettings, exit: Option<ExitNotice<&'static str>>) -> Self {
        let generation = exit.as_ref().map_or(0, ExitNotice::generation);
        Self {
            settings,
            trees: Children::default(),
            counters: BTreeMap::new(),
            floor: u64::from(generation) * EPOCHS_PER_FOREST,
            waiting: VecDeque::new(),
            budget: Budget::default(),
            exit,
        }
    }

    fn start_tree(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        let counter = *self.counters.entry(tree.clone()).or_insert(self.floor);
        let epoch = Epoch { term: self.settings.term, counter };
        let settings = &self.settings;
        self.trees.start(tree, ctx.address().downgrade().recipient(), |exit| {
            FunctionTree {
                tree: tree.clone(),
                core: TreeCore::new(settings.limits, (settings.topology)(), epoch),
                capabilities: Arc::clone(&settings.capabilities),
                vms: settings.vms.clone(),
                fleet: settings.fleet.clone(),
                parent: ctx.address().downgrade().recipient(),
                tick: settings.tick,
                budget: Budget::default(),
                exit,
            }
            .start()
        });
    }

    /// Sends what came for a tree while it was being rebuilt.
    fn resend(&mut self, tree: &TreeId, ctx: &mut Context<Self>) {
        for message in std::mem::take(&mut self.waiting) {
            if message.tree == *tree {
                ctx.address().do_send(message);
            } else {
                self.waiting.push_back(message);
            }
        }
    }
}

impl Actor for Forest {
    type Context = Context<Self>;

    fn started(&mut self, _ctx: &mut Context<Self>) {
        if self.exit.as_ref().is_some_and(|exit| exit.generation() > 0) {
            self.settings.fleet.send(ToFleet::Rejoin { tree: None });
        }
    }
}

impl Handler<ToTree> for Forest {
    type Result = ();

    fn handle(&mut self, message: ToTree, ctx: &mut Context<Self>) {
        self.budget.spend(ctx);
        if !self.trees.knows(&message.tree) {
            match message.event {
                Event::Join { .. } | Event::Reported { .. } => self.start_tree(&message.tree, ctx),
                // About a tree that is gone: there is nobody to tell.
                Event::Held { .. }
                | Event::Ready { .. }
                | Event::Gone { .. }
                | Event::Leave { .. }
                | Event::UpstreamLost { .. }
                | Event::Dissolve
                | Event::Tick => return,
            }
        }
        if let Some(tree) = self.trees.get(&message.tree) {
            let dissolves = matches!(message.event, Event::Dissolve);
            tree.do_send(Happened { event: message.event, slot: message.slot });
            if dissolves {
                self.trees.remove(&message.tree);
                // The last change of the tree, which will not be reported, is within the next one.
                let last = self.counters.remove(&message.tree).unwrap_or_default();
                self.floor = self.floor.max(last + EPOCHS_IN_MAILBOX);
            }
            return;
        }
        // All but starts and orders to leave is asked for again by the rebuilt tree.
        let kept = matches!(message.event, Event::Join { .. } | Event::Leave { .. } | Event::Dissolve);
        if kept && self.waiting.len() < self.settings.waiting_max {
            self.waiting.push_back(message);
        }
    }
}

/// Changes that a tree may make between its last report to the forest and its end: what its mailbox
/// may hold.
const EPOCHS_IN_MAILBOX: u64 = 1 << 20;

impl Handler<ToForest> for Forest {
    type Result = ();

    fn handle(&mut self, message: ToForest, ctx: &mut Context<Self>) {
        self.budget.spend(ctx);
        match message {
            ToForest::View { tree, reply } => match self.trees.get(&tree) {
                Some(child) => child.do_send(GetView(reply)),
                None => {
                    // Whoever asked may be gone; then nobody wants the answer.
                    let _gone = reply.send(Err(ControlError::NotFound("tree")));
                }
            },
            ToForest::VmGone { vm } => {
                for (_, tree) in self.trees.iter() {
                    tree.do_send(Happened { event: Event::Gone { vm: vm.clone() }, slot: None });
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
        match self.trees.exited(&exit, Instant::now()) {
            AfterExit::Ignore => {}
            AfterExit::Gone => {
                let last = self.counters.remove(&exit.child).unwrap_or_default();
                self.floor = self.floor.max(last);
            }
            AfterExit::Rebuild { pause } => {
                tracing::error!(tree = %exit.child, "function tree panicked and is rebuilt");
                ctx.run_later(pause, move |forest, ctx| {
                    if forest.trees.knows(&exit.child) {
                        forest.start_tree(&exit.child, ctx);
                        forest.resend(&exit.child, ctx);
                    }
                });
            }
            AfterExit::GiveUp => {
                tracing::error!(tree = %exit.child, "function tree panics again and again");
                ctx.stop();
            }
        }
    }
}

impl Handler<Stop> for Forest {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.trees.iter().for_each(|(_, tree)| tree.do_send(Stop));
        ctx.stop();
    }
}

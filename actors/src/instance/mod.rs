//! One container: waits for its image, has the holder run it, probes it, tells how it ended.

mod core;

pub use self::core::{Effect, Event, InstanceCore, Phase, Wants};

use crate::{
    agent::world::{Holder, Prober},
    block_transfer::FromImage,
    id::StartId,
    support::{self, Flow, Hop, Life, Observe, Snapshot, flow, micros, millis},
    wire::{
        control::{EndReason, StartOrder, Step},
        holder::{Exit, Run, ToHolder},
    },
};
use actix::prelude::*;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Half of the shortest interval that is kept, the pause between probes.
const TICK: Duration = Duration::from_millis(10);

/// The bounds of instances on this VM.
#[derive(Debug, Clone, Copy)]
pub struct InstanceLimits {
    pub probe_interval: Duration,
    pub probe_timeout: Duration,
    pub stop_grace: Duration,
    pub pids_max: u32,
    pub writable_bytes: u64,
    pub log_bytes_max: u64,
}

/// What an instance uses of its VM.
#[derive(Clone)]
pub struct InstanceWorld {
    pub holder: Arc<dyn Holder>,
    pub prober: Arc<dyn Prober>,
    pub limits: InstanceLimits,
    pub reports: Recipient<InstanceReport>,
}

/// Told to the agent, for the manager.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct InstanceReport {
    pub start: StartId,
    pub news: InstanceNews,
    /// When each step was done, in microseconds from the order.
    pub steps_us: BTreeMap<Step, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceNews {
    Progress { step: Step, elapsed: Duration },
    Ready,
    Ended(EndReason),
}

/// The holder said something of this instance.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum FromHolderAbout {
    Running,
    RunFailed(String),
    Exited(Exit),
    /// After a new connection: it has the container.
    Held,
    /// After a new connection: it does not have the container.
    NotHeld {
        is_mounted: bool,
    },
}

impl Flow for FromHolderAbout {
    fn hop(&self) -> Option<Hop<'_>> {
        let message = match self {
            Self::Running => "Running",
            Self::RunFailed(_) => "RunFailed",
            Self::Exited(_) => "Exited",
            Self::Held => "Held",
            Self::NotHeld { .. } => "NotHeld",
        };
        Some(Hop { message, about: &"", permit: "" })
    }
}

impl Flow for InstanceReport {
    fn hop(&self) -> Option<Hop<'_>> {
        let message = match self.news {
            InstanceNews::Progress { .. } => return None,
            InstanceNews::Ready => "Ready",
            InstanceNews::Ended(_) => "Ended",
        };
        Some(Hop { message, about: &self.start, permit: "instance" })
    }
}

/// End the instance.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

impl Flow for Stop {
    fn hop(&self) -> Option<Hop<'_>> {
        Some(Hop { message: "Stop", about: &"", permit: "" })
    }
}

pub struct Instance {
    order: StartOrder,
    port: u16,
    core: InstanceCore,
    world: InstanceWorld,
    life: Life<StartId>,
}

impl Instance {
    /// An instance that was just ordered.
    pub fn new(order: StartOrder, port: u16, world: InstanceWorld, life: Life<StartId>) -> Self {
        let deadline = Duration::from_millis(order.ready_deadline_ms);
        let core =
            InstanceCore::new(Instant::now(), deadline, world.limits.probe_interval, Wants::of(&order));
        Self { order, port, core, world, life }
    }

    /// An instance whose container runs already.
    pub fn resumed(order: StartOrder, port: u16, world: InstanceWorld, life: Life<StartId>) -> Self {
        let deadline = Duration::from_millis(order.ready_deadline_ms);
        let core =
            InstanceCore::resumed(Instant::now(), deadline, world.limits.probe_interval, Wants::of(&order));
        Self { order, port, core, world, life }
    }

    /// An instance that was ready before the agent was replaced.
    pub fn ready(order: StartOrder, port: u16, world: InstanceWorld, life: Life<StartId>) -> Self {
        let deadline = Duration::from_millis(order.ready_deadline_ms);
        let core =
            InstanceCore::ready(Instant::now(), deadline, world.limits.probe_interval, Wants::of(&order));
        Self { order, port, core, world, life }
    }

    fn apply(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.core.apply(event, Instant::now(), &mut effects);
        for effect in effects {
            self.perform(effect, ctx);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::Launch => self.launch(ctx),
            Effect::Probe => self.probe(ctx),
            Effect::Stop => {
                let grace_ms = millis(self.world.limits.stop_grace);
                self.world.holder.send(ToHolder::Stop { start: self.order.start.clone(), grace_ms });
            }
            Effect::Progress { step, elapsed } => self.report(InstanceNews::Progress { step, elapsed }),
            Effect::Ready => self.report(InstanceNews::Ready),
            Effect::Ended(reason) => {
                self.report(InstanceNews::Ended(reason));
                ctx.stop();
            }
        }
    }

    fn report(&self, news: InstanceNews) {
        let steps_us = self.core.steps().iter().map(|(step, at)| (*step, micros(*at))).collect();
        let report = InstanceReport { start: self.order.start.clone(), news, steps_us };
        flow::record(self.life.kind(), "agent", &report);
        self.world.reports.do_send(report);
    }

    fn launch(&self, ctx: &mut Context<Self>) {
        let run = Run {
            start: self.order.start.clone(),
            image: self.order.image.id,
            code: self.order.code.as_ref().map(|code| code.image.id),
            runtime: self.order.image.runtime.clone(),
            command: self.order.command.clone(),
            env: self.order.env.clone(),
            port: self.port,
            memory_bytes: self.order.memory_bytes,
            cpu_millis: self.order.cpu_millis,
            pids_max: self.world.limits.pids_max,
            writable_bytes: self.world.limits.writable_bytes,
            log_bytes_max: self.world.limits.log_bytes_max,
        };
        if !self.world.holder.send(ToHolder::Run(Box::new(run))) {
            ctx.address().do_send(FromHolderAbout::RunFailed("the holder is not there".into()));
        }
    }

    fn probe(&self, ctx: &mut Context<Self>) {
        let path = self.order.probe_path.clone();
        let probing = self.world.prober.probe(self.port, path, self.world.limits.probe_timeout);
        let answered = probing
            .into_actor(self)
            .map(|is_ready, instance, ctx| instance.apply(Event::Probed(is_ready), ctx));
        ctx.spawn(answered);
    }
}

impl Actor for Instance {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |instance, ctx| {
            if !instance.life.parent_is_up() {
                return ctx.stop();
            }
            instance.apply(Event::Tick, ctx);
        });
    }
}

impl Handler<FromImage> for Instance {
    type Result = ();

    fn handle(&mut self, event: FromImage, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(Event::Image(event), ctx);
    }
}

impl Handler<FromHolderAbout> for Instance {
    type Result = ();

    fn handle(&mut self, message: FromHolderAbout, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        let event = match message {
            FromHolderAbout::Running => Event::Running,
            FromHolderAbout::RunFailed(reason) => Event::RunFailed(reason),
            FromHolderAbout::Exited(exit) => Event::Exited(exit),
            FromHolderAbout::Held => Event::Held,
            FromHolderAbout::NotHeld { is_mounted } => Event::NotHeld { is_mounted },
        };
        self.apply(event, ctx);
    }
}

impl Handler<Stop> for Instance {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(Event::Stop, ctx);
    }
}

/// The actor ends; its container goes on.
impl Handler<support::Stop> for Instance {
    type Result = ();

    fn handle(&mut self, _: support::Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl Handler<Observe> for Instance {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        Snapshot::new(match self.core.phase() {
            Phase::Image => "waits for its image",
            Phase::Launching => "is being run",
            Phase::Probing => "is probed",
            Phase::Ready => "ready",
            Phase::Stopping(_) => "is being stopped",
            Phase::Ended => "ended",
        })
    }
}

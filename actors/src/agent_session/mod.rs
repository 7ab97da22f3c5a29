//! The agent's session with the manager: connects, says hello, beats, reconnects.

mod core;

pub use self::core::{Effect, Event, SessionCore};

use crate::{
    agent::{
        Agent, Cold, GetCold, GetHeld, GetHello, Yielded,
        world::{FromManager, ManagerDialer, ManagerEvent, TaskLink},
    },
    support::{Flow, Hop, Life, Observe, Snapshot, Stop, flow},
    wire::control::{ToAgent, ToManager},
};
use actix::{WeakAddr, prelude::*};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Below the shortest pause between attempts.
const TICK: Duration = Duration::from_millis(50);

/// Something to tell the manager. Bounded by instances and trees of this VM.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Say(pub ToManager);

impl Flow for Say {
    fn hop(&self) -> Option<Hop<'_>> {
        self.0.hop()
    }
}

/// Another process takes over: the manager is told, and no session follows.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Yield;

pub struct AgentSession {
    core: SessionCore,
    agent: WeakAddr<Agent>,
    dialer: Arc<dyn ManagerDialer>,
    link: Option<TaskLink<ToManager>>,
    links_made: u64,
    /// What the manager was told on this session of images of trees that were left.
    cold: Cold,
    life: Life<&'static str>,
}

impl AgentSession {
    pub fn new(
        core: SessionCore,
        agent: WeakAddr<Agent>,
        dialer: Arc<dyn ManagerDialer>,
        life: Life<&'static str>,
    ) -> Self {
        Self { core, agent, dialer, link: None, links_made: 0, cold: Cold::default(), life }
    }

    fn apply(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.core.apply(event, Instant::now(), &mut effects);
        for effect in effects {
            match effect {
                Effect::Connect => self.connect(ctx),
                Effect::Send(message) => self.send(*message, ctx),
                Effect::Heartbeat => self.heartbeat(ctx),
                Effect::Leave => self.leave(ctx),
            }
        }
    }

    fn connect(&mut self, ctx: &mut Context<Self>) {
        self.links_made += 1;
        self.cold = Cold::default();
        let link = self.links_made;
        let Some(agent) = self.agent.upgrade() else {
            return ctx.stop();
        };
        ctx.spawn(agent.send(GetHello).into_actor(self).map(move |hello, session, ctx| match hello {
            _ if session.core.has_left() => {}
            Ok(hello) => session.link = Some(session.dialer.open(hello, link, ctx.address().recipient())),
            Err(_) => session.apply(Event::Closed, ctx),
        }));
    }

    fn leave(&mut self, ctx: &mut Context<Self>) {
        match self.agent.upgrade() {
            Some(agent) => agent.do_send(Yielded),
            None => ctx.stop(),
        }
    }

    fn heartbeat(&mut self, ctx: &mut Context<Self>) {
        let Some(agent) = self.agent.upgrade() else {
            return ctx.stop();
        };
        ctx.spawn(agent.send(GetHeld).into_actor(self).map(|held, session, ctx| {
            if let Ok(held) = held {
                session.send(ToManager::Heartbeat { held }, ctx);
            }
        }));
        ctx.spawn(agent.send(GetCold).into_actor(self).map(|cold, session, ctx| match cold {
            Ok(cold) if cold != session.cold => {
                session.cold = cold.clone();
                let Cold { trees, proofs } = cold;
                session.send(ToManager::Cold { trees, proofs }, ctx);
            }
            Ok(_) | Err(_) => {}
        }));
    }

    fn send(&mut self, message: ToManager, ctx: &mut Context<Self>) {
        if self.link.as_ref().is_some_and(|link| link.send(message.clone())) {
            return;
        }
        if self.link.take().is_some() {
            tracing::warn!("the manager does not read; the session is opened anew");
            self.links_made += 1; // what the old connection still says is not ours any more
            self.apply(Event::Closed, ctx);
        }
        // It is in the next `Hello`, or said again after it.
    }
}

impl Actor for AgentSession {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |session, ctx| session.apply(Event::Tick, ctx));
    }
}

impl Handler<Say> for AgentSession {
    type Result = ();

    fn handle(&mut self, Say(message): Say, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(Event::Say(Box::new(message)), ctx);
    }
}

impl Handler<Yield> for AgentSession {
    type Result = ();

    fn handle(&mut self, _: Yield, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.apply(Event::Yield, ctx);
    }
}

impl Handler<Stop> for AgentSession {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl Handler<FromManager> for AgentSession {
    type Result = ();

    fn handle(&mut self, FromManager { link, event }: FromManager, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        if link != self.links_made {
            return;
        }
        match event {
            ManagerEvent::Says(ToAgent::Welcome { version: _, heartbeat_ms, capability_key }) => {
                let heartbeat = Duration::from_millis(heartbeat_ms.max(1));
                self.apply(Event::Welcomed { heartbeat }, ctx);
                if let Some(agent) = self.agent.upgrade() {
                    agent.do_send(crate::agent::Welcomed { capability_key });
                }
            }
            ManagerEvent::Says(ToAgent::Yielded) => self.apply(Event::Yielded, ctx),
            ManagerEvent::Says(order) => {
                if let Some(agent) = self.agent.upgrade() {
                    let order = crate::agent::Order(order);
                    flow::record(self.life.kind(), "agent", &order);
                    agent.do_send(order);
                }
            }
            ManagerEvent::Closed { reason } => {
                tracing::warn!(%reason, "no session with the manager");
                self.link = None;
                self.apply(Event::Closed, ctx);
            }
        }
    }
}

impl Handler<Observe> for AgentSession {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        let snapshot = Snapshot::new(if self.core.is_open() { "open" } else { "no session" });
        let Some(link) = &self.link else { return snapshot };
        let (free, limit) = (link.commands.capacity(), link.commands.max_capacity());
        snapshot.queue("reports", limit - free, limit)
    }
}

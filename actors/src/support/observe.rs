//! What an actor tells of itself to whoever watches: small, without locks, and in bounded time.

use super::supervision::{Child, Children};
use actix::{dev::ToEnvelope, prelude::*};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::{fmt::Display, time::Duration};
use tokio::time::Instant;
use utoipa::ToSchema;

/// Asks an actor, and through it those below it, for a snapshot.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Snapshot")]
pub struct Observe {
    /// Whoever has not answered then is shown as silent.
    pub deadline: Instant,
    /// Children of one actor that are shown; further ones are counted.
    pub children_max: usize,
}

/// What an actor says; its parent adds the rest of the [`ActorView`].
#[derive(Debug, Default, MessageResponse)]
pub struct Snapshot {
    state: String,
    thread: String,
    queues: Vec<QueueView>,
    children: Vec<ActorView>,
    children_left_out: usize,
}

/// One actor, as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActorView {
    pub kind: String,
    pub name: String,
    /// How often it was rebuilt.
    pub generation: u32,
    /// Crashes within the last minute.
    pub crashes: usize,
    /// Messages in its mailbox, as far as senders count them.
    pub mailbox: usize,
    /// In a few words.
    pub state: String,
    pub thread: String,
    pub queues: Vec<QueueView>,
    #[schema(no_recursion)]
    pub children: Vec<ActorView>,
    pub children_left_out: usize,
}

/// Something bounded: what waits, what is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    pub name: String,
    pub length: u64,
    pub limit: u64,
}

impl Observe {
    /// For those below: they are to be late before their parent is.
    fn below(self) -> Self {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Self { deadline: self.deadline - left / 4, ..self }
    }

    /// With `within` from now.
    pub fn new(within: Duration, children_max: usize) -> Self {
        Self { deadline: Instant::now() + within, children_max }
    }
}

impl Snapshot {
    pub fn new(state: impl Into<String>) -> Self {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        Self { state: state.into(), thread, ..Self::default() }
    }

    #[must_use]
    pub fn queue(mut self, name: &str, length: usize, limit: usize) -> Self {
        self.queues.push(QueueView { name: name.into(), length: length as u64, limit: limit as u64 });
        self
    }

    #[must_use]
    pub fn children(mut self, (children, left_out): (Vec<ActorView>, usize)) -> Self {
        self.children.extend(children);
        self.children_left_out += left_out;
        self
    }

    /// As the view of an actor without a parent.
    pub fn into_root(self, kind: &str) -> ActorView {
        self.into_view(kind, kind.to_owned(), 0, 0, 0)
    }

    fn into_view(
        self,
        kind: &str,
        name: String,
        generation: u32,
        crashes: usize,
        mailbox: usize,
    ) -> ActorView {
        let Self { state, thread, queues, children, children_left_out } = self;
        let kind = kind.to_owned();
        ActorView {
            kind,
            name,
            generation,
            crashes,
            mailbox,
            state,
            thread,
            queues,
            children,
            children_left_out,
        }
    }
}

impl<K, A> Children<K, A>
where
    K: Ord + Clone + Send + Display + 'static,
    A: Actor + Handler<Observe>,
    A::Context: ToEnvelope<A, Observe>,
{
    /// Views of the children, those in trouble first, and how many are left out.
    pub fn observe(&self, ask: Observe) -> impl Future<Output = (Vec<ActorView>, usize)> + use<K, A> {
        let mut shown: Vec<(&K, &Child<A>)> = self.children.iter().collect();
        shown.sort_by_key(|(_, child)| child.crashes.is_empty());
        let left_out = shown.len().saturating_sub(ask.children_max);
        shown.truncate(ask.children_max);
        let (kind, ask) = (self.kind, ask.below());
        let views = shown.into_iter().map(|(name, child)| {
            let (name, generation, crashes) = (name.to_string(), child.generation, child.crashes.len());
            let mailbox = child.inbox.waiting();
            let answer = child.address.as_ref().map(|address| address.send(ask));
            async move {
                let snapshot = match answer {
                    None => Snapshot { state: "waits to be rebuilt".into(), ..Snapshot::default() },
                    Some(answer) => match tokio::time::timeout_at(ask.deadline, answer).await {
                        Ok(Ok(snapshot)) => snapshot,
                        Ok(Err(_)) => Snapshot { state: "has just ended".into(), ..Snapshot::default() },
                        Err(_) => Snapshot { state: "does not answer".into(), ..Snapshot::default() },
                    },
                };
                snapshot.into_view(kind, name, generation, crashes, mailbox)
            }
        });
        let views = join_all(views.collect::<Vec<_>>());
        async move { (views.await, left_out) }
    }
}

//! Supervision: a parent hears of each child's end, rebuilds what panicked after a growing pause, and
//! gives up when that does not help, so that its own parent decides.
//!
//! ```text
//!            panicked, gave up                 pause over
//!   up -----------------------> to be rebuilt ------------> up
//!    |                               |
//!    | stopped                       | too often: one of many rests for a whole window,
//!    v                               v a vital one, or too many of many, end their parent
//!   gone                         given up
//! ```
//!
//! actix's `Supervisor` does not restart after a panic, therefore this.

use super::{
    flow::{self, Flow},
    life::{Inbox, Life},
    link::{LinkSource, Service},
};
use actix::{WeakRecipient, dev::ToEnvelope, prelude::*};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Display,
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    Stopped,
    Panicked,
    /// It could not go on, because of its own children for instance.
    GaveUp,
}

/// Ends an actor and its children on purpose.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// A child has ended. Bounded by the number of children.
#[derive(Debug)]
pub struct ChildExited<K> {
    pub child: K,
    pub(super) serial: u64,
    pub(super) cause: ExitCause,
}

impl<K: 'static> Message for ChildExited<K> {
    type Result = ();
}

/// What a parent does after the end of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterExit {
    /// The notice is of an actor that was replaced or forgotten.
    Ignore,
    /// It was stopped on purpose.
    Gone,
    /// It is built again after a pause.
    Rebuild { pause: Duration },
    /// It crashes again and again, and rests: whoever waits for it is to be told.
    Abandon { pause: Duration },
    /// It is no use: the parent gives up and its own parent decides.
    GiveUp,
}

/// A child that crashes more often than this within `CRASH_WINDOW` is not rebuilt at once: the fourth
/// time within a minute it is not bad luck. The same holds for the number of children that rest.
const CRASHES_MAX: usize = 3;
const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// Pause before the first rebuilding, doubled for each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The children of one actor by their names.
pub struct Children<K, A: Actor> {
    parent: &'static str,
    pub(super) kind: &'static str,
    /// The parent cannot do without each of them.
    vital: bool,
    pub(super) children: BTreeMap<K, Child<A>>,
    started: u64,
    /// When children were sent to rest.
    abandoned: VecDeque<Instant>,
}

pub(super) struct Child<A: Actor> {
    /// Of the actor, and never given out again: a late notice must not hit the successor of a child that
    /// was forgotten.
    serial: u64,
    pub generation: u32,
    /// None while it waits to be rebuilt.
    pub address: Option<Addr<A>>,
    pub inbox: Inbox,
    pub crashes: VecDeque<Instant>,
}

impl<A: Actor> Child<A> {
    fn new() -> Self {
        let (inbox, crashes) = (Inbox::default(), VecDeque::new());
        Self { serial: 0, generation: 0, address: None, inbox, crashes }
    }
}

impl<K: Ord + Clone + Send + Display + 'static, A: Actor> Children<K, A> {
    /// Children of that kind without which their parent, of another kind, is of no use.
    pub fn vital(parent: &'static str, kind: &'static str) -> Self {
        let (children, abandoned) = (BTreeMap::new(), VecDeque::new());
        Self { parent, kind, vital: true, children, started: 0, abandoned }
    }

    /// Children each of which can fail without the others.
    pub fn many(parent: &'static str, kind: &'static str) -> Self {
        Self { vital: false, ..Self::vital(parent, kind) }
    }

    /// The present address. Not to be kept: a rebuilt child has another.
    pub fn get(&self, child: &K) -> Option<&Addr<A>> {
        self.children.get(child)?.address.as_ref()
    }

    /// Whether the child is up or about to be rebuilt.
    pub fn knows(&self, child: &K) -> bool {
        self.children.contains_key(child)
    }

    /// Whether the child crashed too often, and rests.
    pub fn rests(&self, child: &K) -> bool {
        let rests = |child: &Child<A>| child.address.is_none() && child.crashes.len() > CRASHES_MAX;
        self.children.get(child).is_some_and(rests)
    }

    pub fn len(&self) -> usize {
        self.children.len()
    }

    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// All children that are up, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Addr<A>)> {
        self.children.iter().filter_map(|(name, child)| Some((name, child.address.as_ref()?)))
    }

    /// Hands a message to a child. False when it is not up; the message is dropped then.
    pub fn send<M>(&self, child: &K, message: M) -> bool
    where
        M: Message + Flow + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let Some(Child { address: Some(address), inbox, .. }) = self.children.get(child) else {
            return false;
        };
        flow::record(self.parent, self.kind, &message);
        inbox.sent();
        address.do_send(message);
        true
    }

    /// From now on the link leads to that child.
    pub fn link<M>(&self, child: &K, link: &LinkSource<M>)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        if let Some(Child { address: Some(address), inbox, .. }) = self.children.get(child) {
            link.point_to(Service { recipient: address.clone().recipient(), inbox: inbox.clone() });
        }
    }

    /// Starts a child, or starts it again, with what it must keep of its parent.
    pub fn start(
        &mut self,
        name: &K,
        parent: WeakRecipient<ChildExited<K>>,
        build: impl FnOnce(Life<K>) -> Addr<A>,
    ) -> &Addr<A> {
        self.started += 1;
        let child = self.children.entry(name.clone()).or_insert_with(Child::new);
        child.serial = self.started;
        child.inbox = Inbox::default();
        let (serial, generation) = (child.serial, child.generation);
        let life = Life::new(parent, self.kind, name.clone(), serial, generation, child.inbox.clone());
        child.address.insert(build(life))
    }

    /// Takes a notice into account and says what to do.
    fn exited(&mut self, exit: &ChildExited<K>, now: Instant) -> AfterExit {
        let Some(child) = self.children.get_mut(&exit.child) else { return AfterExit::Ignore };
        if child.serial != exit.serial || child.address.is_none() {
            return AfterExit::Ignore;
        }
        if exit.cause == ExitCause::Stopped {
            self.children.remove(&exit.child);
            return AfterExit::Gone;
        }
        child.address = None;
        child.generation += 1;
        let crashes = count(&mut child.crashes, now);
        let pause = PAUSE_FIRST * (1 << (crashes - 1).min(CRASHES_MAX));
        let (kind, name, cause) = (self.kind, &exit.child, exit.cause);
        if crashes <= CRASHES_MAX {
            tracing::error!(kind, %name, ?cause, crashes, "an actor crashed and is rebuilt");
            return AfterExit::Rebuild { pause };
        }
        // Counted once for each time that it begins to rest.
        let given_up = if crashes == CRASHES_MAX + 1 { count(&mut self.abandoned, now) } else { 0 };
        if self.vital || given_up > CRASHES_MAX {
            tracing::error!(kind, %name, ?cause, crashes, "actors crash again and again: their parent gives up");
            return AfterExit::GiveUp;
        }
        tracing::error!(kind, %name, ?cause, crashes, "an actor crashes again and again, and rests");
        AfterExit::Abandon { pause: CRASH_WINDOW }
    }

    /// Forgets a child that is to stop; its notice will be ignored.
    pub fn remove(&mut self, child: &K) -> Option<Addr<A>> {
        self.children.remove(child)?.address
    }
}

/// Adds one to what happened within the window, and says how much that is.
fn count(times: &mut VecDeque<Instant>, now: Instant) -> usize {
    while times.front().is_some_and(|at| now.duration_since(*at) >= CRASH_WINDOW) {
        times.pop_front();
    }
    times.push_back(now);
    times.len()
}

/// What every parent does with the notice of a child's end: it has the child built again after a pause,
/// unless that is no use. Says which, because more may be due.
pub fn supervise<P, K, A>(
    parent: &mut P,
    exit: &ChildExited<K>,
    children: fn(&mut P) -> &mut Children<K, A>,
    build: fn(&mut P, &K, &mut Context<P>),
    ctx: &mut Context<P>,
) -> AfterExit
where
    P: Actor<Context = Context<P>>,
    K: Ord + Clone + Send + Display + 'static,
    A: Actor,
{
    let after = children(parent).exited(exit, Instant::now());
    if let AfterExit::Rebuild { pause } | AfterExit::Abandon { pause } = after {
        let name = exit.child.clone();
        ctx.run_later(pause, move |parent, ctx| {
            let children = children(parent);
            if children.knows(&name) && children.get(&name).is_none() {
                build(parent, &name, ctx);
            }
        });
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dummy;

    impl Actor for Dummy {
        type Context = Context<Self>;
    }

    impl Handler<ChildExited<u32>> for Dummy {
        type Result = ();
        fn handle(&mut self, _: ChildExited<u32>, _: &mut Context<Self>) {}
    }

    fn crash(children: &mut Children<u32, Dummy>, name: u32, now: Instant) -> AfterExit {
        let nobody = Dummy.start().downgrade().recipient();
        children.start(&name, nobody, |_life| Dummy.start());
        let serial = children.children[&name].serial;
        children.exited(&ChildExited { child: name, serial, cause: ExitCause::Panicked }, now)
    }

    #[test]
    fn pauses_grow_and_the_fourth_crash_in_a_minute_sends_to_rest() {
        crate::testing::simulate(async {
            let mut children = Children::many("parent", "dummy");
            let now = Instant::now();
            let pauses = [0, 1, 2].map(|_| crash(&mut children, 1, now));
            let millis = |pause| AfterExit::Rebuild { pause: Duration::from_millis(pause) };
            assert_eq!(pauses, [millis(100), millis(200), millis(400)]);
            assert_eq!(crash(&mut children, 1, now), AfterExit::Abandon { pause: CRASH_WINDOW });
            assert!(children.rests(&1));
            assert_eq!(crash(&mut children, 1, now + 2 * CRASH_WINDOW), millis(100));
        });
    }

    #[test]
    fn a_parent_gives_up_when_many_rest_or_a_vital_one_would() {
        crate::testing::simulate(async {
            let now = Instant::now();
            let mut many = Children::many("parent", "dummy");
            let last = |children: &mut _, name| {
                (0..=CRASHES_MAX).map(|_| crash(children, name, now)).last().expect("some")
            };
            for name in 1..=3 {
                assert!(matches!(last(&mut many, name), AfterExit::Abandon { .. }));
            }
            assert_eq!(last(&mut many, 4), AfterExit::GiveUp);
            assert_eq!(last(&mut Children::vital("parent", "dummy"), 1), AfterExit::GiveUp);
        });
    }
}

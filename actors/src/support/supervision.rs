//! Supervision: a parent hears of each child's end, rebuilds what panicked after a growing pause, and
//! gives up when one child panics again and again, so that its own parent decides.
//!
//! actix's `Supervisor` does not restart after a panic, therefore this.

use actix::{WeakRecipient, prelude::*};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// A place in the queue of whoever caused a message; free again when the last message made from it
/// has been handled.
pub type Slot = Option<Arc<OwnedSemaphorePermit>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    Stopped,
    Panicked,
}

/// Ends an actor and its children on purpose.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// A child has ended. Bounded by the number of children.
#[derive(Debug)]
pub struct ChildExited<K> {
    pub child: K,
    pub serial: u64,
    pub cause: ExitCause,
}

impl<K: 'static> Message for ChildExited<K> {
    type Result = ();
}

/// Field of a supervised actor: reports its end from `Drop`, the only hook that always runs. Weak, so
/// that a child never keeps its parent alive.
pub struct ExitNotice<K: Send + Clone + 'static> {
    parent: WeakRecipient<ChildExited<K>>,
    child: K,
    serial: u64,
    generation: u32,
}

impl<K: Send + Clone + 'static> ExitNotice<K> {
    /// A child with a timer must ask, because a timer keeps it alive when nobody knows it any more.
    pub fn parent_is_up(&self) -> bool {
        self.parent.upgrade().is_some_and(|parent| parent.connected())
    }

    /// How often the child was rebuilt after a crash.
    pub fn generation(&self) -> u32 {
        self.generation
    }
}

impl<K: Send + Clone + 'static> Drop for ExitNotice<K> {
    fn drop(&mut self) {
        let cause = if std::thread::panicking() { ExitCause::Panicked } else { ExitCause::Stopped };
        if let Some(parent) = self.parent.upgrade() {
            parent.do_send(ChildExited { child: self.child.clone(), serial: self.serial, cause });
        }
    }
}

/// What a parent does after the end of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterExit {
    /// The notice is of an actor that was replaced or forgotten.
    Ignore,
    /// It was stopped on purpose.
    Gone,
    /// Build it again after a pause.
    Rebuild { pause: Duration },
    /// It panics again and again: the parent stops and its own parent decides.
    GiveUp,
}

/// A child that panics more often than this within `CRASH_WINDOW` is not rebuilt: the fourth time
/// within a minute it is not bad luck.
const CRASHES_MAX: usize = 3;
const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// Pause before the first rebuilding, doubled for each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The children of one actor by their names.
pub struct Children<K, A: Actor> {
    children: BTreeMap<K, Child<A>>,
    started: u64,
}

struct Child<A: Actor> {
    /// Of the actor, and never given out again: a late notice must not hit the successor of a child that
    /// was forgotten.
    serial: u64,
    generation: u32,
    /// None while it waits to be rebuilt.
    address: Option<Addr<A>>,
    crashes: VecDeque<Instant>,
}

impl<K, A: Actor> Default for Children<K, A> {
    fn default() -> Self {
        Self { children: BTreeMap::new(), started: 0 }
    }
}

impl<K: Ord + Clone + Send + 'static, A: Actor> Children<K, A> {
    /// The present address. Not to be kept: a rebuilt child has another.
    pub fn get(&self, child: &K) -> Option<&Addr<A>> {
        self.children.get(child)?.address.as_ref()
    }

    /// Whether the child is up or about to be rebuilt.
    pub fn knows(&self, child: &K) -> bool {
        self.children.contains_key(child)
    }

    /// All children that are up, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Addr<A>)> {
        self.children.iter().filter_map(|(name, child)| Some((name, child.address.as_ref()?)))
    }

    /// Starts a child, or starts it again, with the notice of its end that it must keep.
    pub fn start(
        &mut self,
        name: &K,
        parent: WeakRecipient<ChildExited<K>>,
        build: impl FnOnce(ExitNotice<K>) -> Addr<A>,
    ) -> &Addr<A> {
        self.started += 1;
        let child = self.children.entry(name.clone()).or_insert_with(|| Child {
            serial: 0,
            generation: 0,
            address: None,
            crashes: VecDeque::new(),
        });
        child.serial = self.started;
        let (serial, generation) = (child.serial, child.generation);
        let notice = ExitNotice { parent, child: name.clone(), serial, generation };
        child.address.insert(build(notice))
    }

    /// Takes a notice into account and says what to do.
    pub fn exited(&mut self, exit: &ChildExited<K>, now: Instant) -> AfterExit {
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
        while child.crashes.front().is_some_and(|at| now.duration_since(*at) >= CRASH_WINDOW) {
            child.crashes.pop_front();
        }
        child.crashes.push_back(now);
        if child.crashes.len() > CRASHES_MAX {
            return AfterExit::GiveUp;
        }
        AfterExit::Rebuild { pause: PAUSE_FIRST * (1 << (child.crashes.len() - 1)) }
    }

    /// Forgets a child that is to stop; its notice will be ignored.
    pub fn remove(&mut self, child: &K) -> Option<Addr<A>> {
        self.children.remove(child)?.address
    }
}

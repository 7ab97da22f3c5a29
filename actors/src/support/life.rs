//! What an actor has of its parent, and its share of the thread.

use super::supervision::{ChildExited, ExitCause};
use actix::{WeakRecipient, prelude::*};
use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Messages that an actor handles before its thread goes to others: 64 of a microsecond each are far
/// below the time that waking another thread takes.
const MESSAGES_PER_TURN: u32 = 64;

/// Messages that were sent to an actor and that it has not begun to handle. Counted, because actix's
/// mailboxes do not tell.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<AtomicUsize>);

impl Inbox {
    pub fn sent(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn taken(&self) {
        // Some messages are not counted when they are sent: an actor's to itself, the world's.
        let _zero = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }

    pub fn waiting(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Field of a supervised actor. Reports the actor's end from `Drop`, the only hook that always runs.
/// Weak, so that a child never keeps its parent alive.
pub struct Life<K: Send + Clone + 'static> {
    pub(super) parent: WeakRecipient<ChildExited<K>>,
    pub(super) kind: &'static str,
    pub(super) name: K,
    pub(super) serial: u64,
    pub(super) generation: u32,
    pub(super) inbox: Inbox,
    pub(super) left_of_turn: u32,
    pub(super) gave_up: bool,
}

impl<K: Send + Clone + Display + 'static> Life<K> {
    pub(super) fn new(
        parent: WeakRecipient<ChildExited<K>>,
        kind: &'static str,
        name: K,
        serial: u64,
        generation: u32,
        inbox: Inbox,
    ) -> Self {
        let left_of_turn = MESSAGES_PER_TURN;
        Self { parent, kind, name, serial, generation, inbox, left_of_turn, gave_up: false }
    }

    /// A child with a timer must ask, because a timer keeps it alive when nobody knows it any more.
    pub fn parent_is_up(&self) -> bool {
        self.parent.upgrade().is_some_and(|parent| parent.connected())
    }

    /// The actor's name in flows.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// How often the child was rebuilt after a crash.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    pub fn is_rebuilt(&self) -> bool {
        self.generation > 0
    }

    /// To be called once for each message: hands the thread back from time to time. A mailbox is drained
    /// without a pause, so that a flooded actor would starve its own timers and every neighbour.
    pub fn took<A: Actor<Context = Context<A>>>(&mut self, ctx: &mut Context<A>) {
        self.inbox.taken();
        #[cfg(test)]
        crash::strike(self.kind, &self.name);
        self.left_of_turn -= 1;
        if self.left_of_turn == 0 {
            self.left_of_turn = MESSAGES_PER_TURN;
            ctx.wait(actix::fut::wrap_future::<_, A>(tokio::task::yield_now()));
        }
    }

    /// Ends the actor, which cannot go on: its parent decides, as after a panic.
    pub fn give_up<A: Actor<Context = Context<A>>>(&mut self, ctx: &mut Context<A>) {
        self.gave_up = true;
        ctx.stop();
    }
}

impl<K: Send + Clone + 'static> Drop for Life<K> {
    fn drop(&mut self) {
        let cause = if std::thread::panicking() {
            ExitCause::Panicked
        } else if self.gave_up {
            ExitCause::GaveUp
        } else {
            ExitCause::Stopped
        };
        if let Some(parent) = self.parent.upgrade() {
            parent.do_send(ChildExited { child: self.name.clone(), serial: self.serial, cause });
        }
    }
}

/// Panics where a test wants them: in any actor, while it handles a message that is then lost.
#[cfg(test)]
pub mod crash {
    use std::{cell::RefCell, fmt::Display};

    struct Mine {
        kind: &'static str,
        part: String,
        spared: u32,
        times: u32,
    }

    thread_local! {
        // Tests run each on a thread of its own.
        static MINE: RefCell<Option<Mine>> = const { RefCell::new(None) };
    }

    /// After `spared` further messages, each of the next `times` messages to actors of that kind, with that
    /// part in their name, panics.
    pub fn arm(kind: &'static str, part: &str, spared: u32, times: u32) {
        MINE.set(Some(Mine { kind, part: part.to_owned(), spared, times }));
    }

    /// Takes the mine away, and says how many panics were still to come.
    pub fn disarm() -> u32 {
        MINE.take().map_or(0, |mine| mine.times)
    }

    pub(super) fn strike(kind: &str, name: &impl Display) {
        let strikes = MINE.with_borrow_mut(|mine| {
            let Some(mine) = mine.as_mut().filter(|mine| mine.kind == kind && mine.times > 0) else {
                return false;
            };
            if !name.to_string().contains(&mine.part) {
                return false;
            }
            if mine.spared > 0 {
                mine.spared -= 1;
                return false;
            }
            mine.times -= 1;
            true
        });
        assert!(!strikes, "injected into {kind} {name}");
    }
}

//! Fairness: an actor's mailbox is drained without a pause, so that a flooded actor starves its own
//! timers and every neighbour on the thread.

use actix::prelude::*;

/// Hands the thread back every `per_turn` messages, so that timers and neighbours run.
pub struct Budget {
    per_turn: u32,
    left: u32,
}

impl Default for Budget {
    /// 64 messages of a microsecond each: far below the time that waking another thread takes.
    fn default() -> Self {
        Self::new(64)
    }
}

impl Budget {
    pub fn new(per_turn: u32) -> Self {
        assert!(per_turn > 0, "a turn has at least one message");
        Self { per_turn, left: per_turn }
    }

    /// To be called once for each message.
    pub fn spend<A: Actor<Context = Context<A>>>(&mut self, ctx: &mut Context<A>) {
        self.left -= 1;
        if self.left == 0 {
            self.left = self.per_turn;
            ctx.wait(actix::fut::wrap_future::<_, A>(tokio::task::yield_now()));
        }
    }
}

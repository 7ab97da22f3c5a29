//! Threads on which many like actors are spread.

use crate::ring::Ring;
use actix::prelude::*;
use std::{collections::BTreeMap, sync::Arc};

/// A fixed set of threads. An actor's thread follows from its name by consistent hashing: a rebuilt one
/// gets the thread that it had, and messages to it keep their order.
#[derive(Clone)]
pub struct Threads(Arc<Inner>);

struct Inner {
    arbiters: BTreeMap<String, Arbiter>,
    ring: Ring<String>,
}

impl Threads {
    /// With none, everything runs on the thread that starts it.
    pub fn new(count: usize) -> Self {
        let arbiters: BTreeMap<String, Arbiter> =
            (1..=count).map(|number| (format!("thread {number}"), Arbiter::new())).collect();
        let ring = Ring::new(arbiters.keys().cloned());
        Self(Arc::new(Inner { arbiters, ring }))
    }

    /// Starts an actor on the thread of that name.
    pub fn start<A>(&self, name: &str, make: impl FnOnce() -> A + Send + 'static) -> Addr<A>
    where
        A: Actor<Context = Context<A>>,
    {
        match self.0.ring.first(name).and_then(|thread| self.0.arbiters.get(&thread)) {
            None => make().start(),
            Some(arbiter) => A::start_in_arbiter(&arbiter.handle(), |_| make()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for arbiter in self.arbiters.values() {
            // False: it has ended with the system.
            let _ended = arbiter.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    struct Where;

    impl Actor for Where {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "String")]
    struct Ask;

    /// The current thread's id, as text because ids have no order.
    fn current() -> String {
        format!("{:?}", std::thread::current().id())
    }

    impl Handler<Ask> for Where {
        type Result = MessageResult<Ask>;

        fn handle(&mut self, _: Ask, _: &mut Context<Self>) -> Self::Result {
            MessageResult(current())
        }
    }

    async fn threads_of(threads: &Threads) -> Vec<String> {
        let mut of = Vec::new();
        for number in 0..40 {
            let actor = threads.start(&format!("acme/{number}"), || Where);
            of.push(actor.send(Ask).await.expect("up"));
        }
        of
    }

    #[test]
    fn actors_are_spread_over_the_threads_and_stay_where_they_are() {
        System::new().block_on(async {
            let threads = Threads::new(3);
            let first = threads_of(&threads).await;
            assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3);
            assert!(!first.contains(&current()));
            assert_eq!(threads_of(&threads).await, first);
            let own = threads_of(&Threads::new(0)).await;
            assert!(own.iter().all(|thread| *thread == current()));
        });
    }
}

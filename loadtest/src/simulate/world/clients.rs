//! Clients that want starts, and try again when they are told to.

use super::*;
use faasnet_actors::{
    event_log::{Happening as Told, News, RingLimits, StreamId},
    model::StartState,
    scheduler::{Answer, ControlError},
};

/// So many starts of a function by its number, in one request.
#[derive(Debug, Clone, Copy)]
pub(in crate::simulate) struct Wish {
    function: usize,
    count: u32,
}

#[derive(Default)]
pub(super) struct Clients {
    asking: BTreeMap<Ticket, Wish>,
    /// Requests that are made again later.
    resting: usize,
}

impl World {
    /// Clients ask for so many starts, each for as many as one request may be for.
    pub(in crate::simulate) fn want(&mut self, function: usize, mut count: u32) {
        let most = self.limits.scheduler.starts_per_request_max.max(1);
        while count > 0 {
            let wish = Wish { function, count: count.min(most) };
            count -= wish.count;
            self.make_request(wish);
        }
    }

    fn make_request(&mut self, wish: Wish) {
        if self.manager.is_none() {
            return self.book.refuse(wish.count, "nobody answers");
        }
        // Before it asks: a refusal comes at once.
        let ticket = self.ticket();
        self.clients.asking.insert(ticket, wish);
        self.request(ticket, wish.function, wish.count);
    }

    pub(super) fn ask_again(&mut self, wish: Wish) {
        self.clients.resting -= 1;
        self.book.asked_again += 1;
        self.make_request(wish);
    }

    pub(super) fn client_hears(&mut self, ticket: Ticket, answer: &Result<Answer, ControlError>) {
        let Some(wish) = self.clients.asking.remove(&ticket) else { return };
        let Err(error) = answer else { return };
        match error.retry_after() {
            Some(length) => {
                self.clients.resting += 1;
                self.after(nanos(length), Happening::Asks(wish));
            }
            None => self.book.refuse(wish.count, &error.to_string()),
        }
    }

    /// The manager is gone; whether it did what it was asked for they do not know, and do not ask twice.
    pub(super) fn clients_hang_up(&mut self) {
        for wish in std::mem::take(&mut self.clients.asking).into_values() {
            self.book.refuse(wish.count, "the manager went away");
        }
    }

    /// Every client has its answer, and every start that was acknowledged has answered a probe or ended.
    pub(in crate::simulate) fn all_settled(&self) -> bool {
        self.clients.asking.is_empty() && self.clients.resting == 0 && self.book.all_settled()
    }

    /// Keeps what the event log of the manager is told from now on.
    pub(in crate::simulate) fn watch(&mut self) {
        let ring = RingLimits { events_max: usize::MAX, bytes_max: usize::MAX };
        self.log = Some(EventLogCore::new(StreamId::default(), ring, usize::MAX));
    }

    /// What it was told, as subscribers get it.
    pub(in crate::simulate) fn told(&self) -> Vec<String> {
        let page = self.log.as_ref().map(|log| log.read(1, usize::MAX, usize::MAX));
        page.into_iter().flat_map(|page| page.records).map(|record| record.json.to_string()).collect()
    }

    pub(super) fn is_told(&mut self, news: News) {
        if let Told::Start(view) = &news.happening
            && view.state == StartState::Ended
        {
            self.book.is_over(&view.id, view.reason.as_ref());
        }
        let now_ms = self.now / MILLISECOND;
        if let Some(log) = &mut self.log {
            log.happened(news, now_ms);
        }
    }
}

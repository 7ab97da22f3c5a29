//! The name of a service whose actor may be rebuilt: resolved to the present address at each message.

use super::{
    flow::{self, Flow},
    life::Inbox,
};
use actix::{Message, Recipient};
use tokio::sync::watch;

/// Where messages for a service go. Cheap to clone; stays right when the service is rebuilt.
pub struct Link<M>
where
    M: Message + Send,
    M::Result: Send,
{
    from: &'static str,
    to: &'static str,
    service: watch::Receiver<Option<Service<M>>>,
}

/// The parent's end of a link.
pub struct LinkSource<M>
where
    M: Message + Send,
    M::Result: Send,
{
    to: &'static str,
    service: watch::Sender<Option<Service<M>>>,
}

pub(super) struct Service<M>
where
    M: Message + Send,
    M::Result: Send,
{
    pub recipient: Recipient<M>,
    pub inbox: Inbox,
}

impl<M> Clone for Link<M>
where
    M: Message + Send,
    M::Result: Send,
{
    fn clone(&self) -> Self {
        Self { from: self.from, to: self.to, service: self.service.clone() }
    }
}

impl<M> Link<M>
where
    M: Message + Flow + Send + 'static,
    M::Result: Send,
{
    /// Hands the message to the service. While the service is being rebuilt the message is dropped:
    /// a rebuilt service asks for what it must know.
    pub fn send(&self, message: M) {
        if let Some(service) = self.service.borrow().as_ref() {
            flow::record(self.from, self.to, &message);
            service.inbox.sent();
            service.recipient.do_send(message);
        }
    }
}

impl<M> LinkSource<M>
where
    M: Message + Send,
    M::Result: Send,
{
    /// `to` is the service's name in flows.
    pub fn new(to: &'static str) -> Self {
        Self { to, service: watch::Sender::new(None) }
    }

    /// A link for the actor with that name.
    pub fn link(&self, from: &'static str) -> Link<M> {
        Link { from, to: self.to, service: self.service.subscribe() }
    }

    pub(super) fn point_to(&self, service: Service<M>) {
        self.service.send_replace(Some(service));
    }
}

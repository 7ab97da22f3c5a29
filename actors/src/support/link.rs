//! The name of a service whose actor may be rebuilt: resolved to the present address at each message.

use actix::{Message, Recipient};
use tokio::sync::watch;

/// Where messages for a service go. Cheap to clone; stays right when the service is rebuilt.
pub struct Link<M>(watch::Receiver<Option<Recipient<M>>>)
where
    M: Message + Send,
    M::Result: Send;

/// The parent's end of a link.
pub struct LinkSource<M>(watch::Sender<Option<Recipient<M>>>)
where
    M: Message + Send,
    M::Result: Send;

impl<M> Clone for Link<M>
where
    M: Message + Send,
    M::Result: Send,
{
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Link<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    /// Hands the message to the service. While the service is being rebuilt the message is dropped:
    /// a rebuilt service asks for what it must know.
    pub fn send(&self, message: M) {
        if let Some(service) = self.0.borrow().as_ref() {
            service.do_send(message);
        }
    }
}

impl<M> Default for LinkSource<M>
where
    M: Message + Send,
    M::Result: Send,
{
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl<M> LinkSource<M>
where
    M: Message + Send,
    M::Result: Send,
{
    pub fn link(&self) -> Link<M> {
        Link(self.0.subscribe())
    }

    /// From now on messages go there, or nowhere.
    pub fn point_to(&self, service: Option<Recipient<M>>) {
        self.0.send_replace(service);
    }
}

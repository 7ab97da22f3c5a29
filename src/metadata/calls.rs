//! Calls to the one thread or task that writes a store.

use faasnet_actors::world::MetadataError;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

pub type Reply<T> = oneshot::Sender<Result<T, MetadataError>>;

/// Waits for a place in the queue and then for the answer; `ended` is the error when nobody takes calls.
pub fn call<C: Send + 'static, T: Send + 'static>(
    calls: &mpsc::Sender<C>,
    ended: fn() -> MetadataError,
    call: impl FnOnce(Reply<T>) -> C + Send + 'static,
) -> BoxFuture<'static, Result<T, MetadataError>> {
    let calls = calls.clone();
    Box::pin(async move {
        let (reply, answer) = oneshot::channel();
        calls.send(call(reply)).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    })
}

/// Has the store closed after all calls before.
pub fn close<C: Send + 'static>(
    calls: &mpsc::Sender<C>,
    call: fn(oneshot::Sender<()>) -> C,
) -> BoxFuture<'static, ()> {
    let calls = calls.clone();
    Box::pin(async move {
        let (reply, closed) = oneshot::channel();
        // An error of either says that it is closed already.
        let _ = calls.send(call(reply)).await;
        let _ = closed.await;
    })
}

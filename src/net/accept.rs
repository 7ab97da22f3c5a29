//! The loop that takes connections off a listener.

use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Hands each connection to `serve`, at most `connections_max` at a time: one counts until its permit is
/// dropped. Goes on until the task is ended.
pub async fn accept_each(
    listener: TcpListener,
    connections_max: usize,
    serve: impl Fn(TcpStream, OwnedSemaphorePermit),
) {
    let connections = Arc::new(Semaphore::new(connections_max));
    loop {
        // Further ones wait in the kernel's queue.
        let permit = Arc::clone(&connections).acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, permit),
            Err(error) => {
                // Out of descriptors, for instance: others must end first.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

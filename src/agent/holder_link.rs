//! The unix socket to the holder. A holder that ends is started again; its containers are lost.

use crate::{
    holder,
    net::framed::{self, FrameReader},
};
use actix::Recipient;
use anyhow::Context;
use faasnet_actors::{
    agent::world::{Holder, HolderEvent},
    wire::{
        PROTOCOL_VERSION,
        frame::FrameLimits,
        holder::{FromHolder, ToHolder},
    },
};
use std::{path::PathBuf, time::Duration};
use tokio::sync::{mpsc, watch};

/// Messages that may wait for the holder: presence of all blocks of a burst of transfers.
const MESSAGES_MAX: usize = 16 * 1024;

/// Frames of the holder: a state with thousands of mounts and instances fits.
const FRAME: FrameLimits = FrameLimits { header_bytes_max: 16 << 20, body_bytes_max: 0 };

/// Pause before a holder that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(200);

pub struct HolderLink {
    messages: mpsc::Sender<ToHolder>,
}

impl Holder for HolderLink {
    fn send(&self, message: ToHolder) -> bool {
        self.messages.try_send(message).is_ok()
    }
}

impl HolderLink {
    /// The link, and what the task needs that keeps it up.
    pub fn new() -> (Self, mpsc::Receiver<ToHolder>) {
        let (messages, queue) = mpsc::channel(MESSAGES_MAX);
        (Self { messages }, queue)
    }
}

/// Keeps the connection until told to leave: then a holder that ends is not started again.
pub async fn keep(
    data: PathBuf,
    config: Option<PathBuf>,
    mut queue: mpsc::Receiver<ToHolder>,
    events: Recipient<HolderEvent>,
    mut leaving: watch::Receiver<bool>,
) {
    loop {
        if let Err(error) = converse(&data, config.clone(), &mut queue, &events).await {
            tracing::warn!(error = format!("{error:#}"), "the connection to the holder ended");
        }
        events.do_send(HolderEvent::Lost);
        if *leaving.borrow_and_update() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn converse(
    data: &std::path::Path,
    config: Option<PathBuf>,
    queue: &mut mpsc::Receiver<ToHolder>,
    events: &Recipient<HolderEvent>,
) -> anyhow::Result<()> {
    let folder = data.to_owned();
    let starting = tokio::task::spawn_blocking(move || holder::spawn(&folder, config.as_deref()));
    starting.await.context("starting the holder")?.context("starting the holder")?;
    let stream = holder::connect(data).await.context("connecting to the holder")?;
    let (reading, mut writing) = stream.into_split();
    // What was meant for the holder before is in its `State`, or will be said again.
    while queue.try_recv().is_ok() {}
    framed::write(&mut writing, &ToHolder::Hello { version: PROTOCOL_VERSION }, &[]).await?;
    let mut frames = FrameReader::<_, FromHolder>::new(reading, FRAME);
    loop {
        tokio::select! {
            biased;
            frame = frames.next() => match frame? {
                None => anyhow::bail!("the holder closed the connection"),
                Some(frame) => events.do_send(HolderEvent::Says(frame.header)),
            },
            message = queue.recv() => match message {
                None => return Ok(()),
                Some(message) => framed::write(&mut writing, &message, &[]).await?,
            },
        }
    }
}

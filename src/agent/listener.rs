//! Connections from others: children that read blocks, and the manager that forwards requests.

use crate::{
    holder::read_log_tail,
    net::{
        Purpose,
        accept::accept_each,
        capability,
        framed::{self, FrameReader},
        identity::{MANAGER_NAME, Peer},
        tls::{Accepted, Acceptor},
    },
};
use actix::Addr;
use bytes::Bytes;
use faasnet_actors::{
    agent::{Agent, GetPort, OpenChildOf, world::ChildLink},
    block_transfer::{ChildEvent, ChildId, FromChild, Opened},
    id::{StartId, TreeId},
    wire::{
        PROTOCOL_VERSION,
        frame::FrameLimits,
        peer::{FromParent, Refusal, ToParent, Urgency},
        request::{RequestAnswer, RequestHead},
    },
};
use socket2::SockRef;
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

/// The bounds of connections from others.
#[derive(Debug, Clone)]
pub struct ListenerLimits {
    /// Frames that children send.
    pub frame: FrameLimits,
    pub handshake: Duration,
    pub connections_max: usize,
    pub queued_blocks_max: usize,
    pub unsent_socket_bytes_max: u32,
    /// By its name in the kernel; the host's own if empty.
    pub congestion_control: String,
    pub requests_per_instance_max: usize,
    pub log_bytes_max: u64,
}

/// What the tasks of all connections share.
pub struct Doors {
    pub agent: Addr<Agent>,
    pub acceptor: watch::Receiver<Acceptor>,
    pub capability_key: watch::Receiver<Vec<u8>>,
    pub data: PathBuf,
    pub limits: ListenerLimits,
    /// Connections under way.
    pub tasks: TaskTracker,
    /// True when children are to turn to others.
    pub leaving: watch::Receiver<bool>,
    /// Requests under way at each instance. Held for a map look-up only, never across an await.
    pub requests: Mutex<BTreeMap<StartId, Arc<Semaphore>>>,
}

/// Accepts connections until the task is ended.
pub async fn listen(listener: TcpListener, doors: Arc<Doors>) {
    accept_each(listener, doors.limits.connections_max, |stream, permit| {
        let shared = Arc::clone(&doors);
        doors.tasks.spawn(async move { admit(stream, &shared, permit).await });
    })
    .await;
}

async fn admit(stream: TcpStream, doors: &Doors, _permit: OwnedSemaphorePermit) {
    let acceptor = doors.acceptor.borrow().clone();
    let Accepted { stream, purpose, peer } = match acceptor.accept(stream).await {
        Ok(accepted) => accepted,
        Err(error) => return tracing::debug!(%error, "a connection was refused"),
    };
    let Some(peer) = peer else {
        return;
    };
    match purpose {
        Purpose::Blocks => {
            let mut leaving = doors.leaving.clone();
            tokio::select! {
                () = serve_child(stream, &peer, doors) => {}
                _ = leaving.wait_for(|leaves| *leaves) => {}
            }
        }
        Purpose::Request if peer.name == MANAGER_NAME => serve_request(stream, doors).await,
        Purpose::Request | Purpose::Join | Purpose::Control => {
            tracing::warn!(peer = %peer.name, ?purpose, "a connection that is not for this peer was refused");
        }
    }
}

/// Serves one child until one side ends.
async fn serve_child(stream: TlsStream<TcpStream>, peer: &Peer, doors: &Doors) {
    // Blocks wait where demands can overtake them, not in the kernel. What cannot be set costs only that.
    let socket = SockRef::from(stream.get_ref().0);
    if let Err(error) = socket.set_tcp_notsent_lowat(doors.limits.unsent_socket_bytes_max) {
        tracing::debug!(%error, "the socket's buffer was not limited");
    }
    let congestion_control = &doors.limits.congestion_control;
    if !congestion_control.is_empty()
        && let Err(error) = socket.set_tcp_congestion(congestion_control.as_bytes())
    {
        tracing::warn!(%error, congestion_control, "blocks are sent with the host's congestion control");
    }
    let (reading, mut writing) = tokio::io::split(stream);
    let mut frames = FrameReader::<_, ToParent>::new(reading, doors.limits.frame);
    let opened = match open_child(&mut frames, peer, doors).await {
        Ok(opened) => opened,
        Err(reason) => {
            tracing::info!(peer = %peer.name, %reason, "a child was refused");
            let _ = framed::write(&mut writing, &FromParent::Refused { reason }, &[]).await;
            let _ = writing.shutdown().await;
            return;
        }
    };
    let (tree, Opened { child, requests }, waiting, expires_at) = opened;
    if framed::write(&mut writing, &FromParent::Opened, &[]).await.is_ok() {
        let lifetime = Duration::from_secs(expires_at.saturating_sub(capability::now_seconds()));
        tokio::select! {
            () = send_blocks(&mut writing, waiting, child, &requests) => {}
            () = hear_child(&mut frames, child, &requests) => {}
            () = tokio::time::sleep(lifetime) => {
                tracing::info!(peer = %peer.name, %tree, "a child's capability has expired");
                let reason = Refusal::Capability;
                let _ = framed::write(&mut writing, &FromParent::Refused { reason }, &[]).await;
            }
        }
    }
    requests.do_send(FromChild { child, event: ChildEvent::Gone });
    let _ = writing.shutdown().await;
}

type Queue = mpsc::Receiver<(FromParent, Bytes)>;

/// What waits to be sent to a child, by urgency.
struct Waiting {
    demand: Queue,
    prefetch: Queue,
    background: Queue,
}

async fn open_child<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R, ToParent>,
    peer: &Peer,
    doors: &Doors,
) -> Result<(TreeId, Opened, Waiting, u64), Refusal> {
    let opening = frames.expect(doors.limits.handshake).await.map_err(|_| Refusal::Protocol)?;
    let ToParent::Open { version, tree, capability } = opening.header else {
        return Err(Refusal::Protocol);
    };
    if version != PROTOCOL_VERSION {
        return Err(Refusal::Version);
    }
    let vm = peer.vm().ok_or(Refusal::Capability)?;
    let key = doors.capability_key.borrow().clone();
    let expires_at = capability::check(&capability, &key, &tree, &peer.key_hash, capability::now_seconds())
        .map_err(|_| Refusal::Capability)?;
    // Answers and refusals share the queue with demanded blocks.
    let (demand, demanded) = mpsc::channel(2 * doors.limits.queued_blocks_max);
    let (prefetch, prefetched) = mpsc::channel(doors.limits.queued_blocks_max);
    let (background, in_background) = mpsc::channel(doors.limits.queued_blocks_max);
    let link = ChildLink { demand, prefetch, background };
    let opening = doors.agent.send(OpenChildOf { tree: tree.clone(), vm, link });
    let opened = opening.await.unwrap_or(Err(Refusal::NotHeld))?;
    let waiting = Waiting { demand: demanded, prefetch: prefetched, background: in_background };
    Ok((tree, opened, waiting, expires_at))
}

/// Sends what waits, the most urgent first. Ends when the transfer drops the child or the connection breaks.
async fn send_blocks(
    writing: &mut (impl AsyncWrite + Unpin),
    waiting: Waiting,
    child: ChildId,
    requests: &actix::Recipient<FromChild>,
) {
    let Waiting { mut demand, mut prefetch, mut background } = waiting;
    loop {
        let (urgency, next) = tokio::select! {
            biased;
            next = demand.recv() => (Urgency::Demand, next),
            Some(next) = prefetch.recv() => (Urgency::Prefetch, Some(next)),
            Some(next) = background.recv() => (Urgency::Background, Some(next)),
        };
        let Some((header, body)) = next else {
            return;
        };
        if framed::write(writing, &header, &body).await.is_err() {
            return;
        }
        // As many as the transfer lets be on their way.
        if matches!(header, FromParent::Block { .. }) {
            requests.do_send(FromChild { child, event: ChildEvent::Sent(urgency) });
        }
    }
}

async fn hear_child<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R, ToParent>,
    child: ChildId,
    requests: &actix::Recipient<FromChild>,
) {
    while let Ok(Some(frame)) = frames.next().await {
        let event = match frame.header {
            ToParent::WantIndex { reach } => ChildEvent::WantsIndex { reach },
            ToParent::Want { blocks, urgency, path, reach, request } => {
                ChildEvent::Wants { blocks, urgency, path, reach, request }
            }
            ToParent::Hurry { blocks } => ChildEvent::Hurries(blocks),
            ToParent::Corrupt { block } => ChildEvent::SaysCorrupt(block),
            ToParent::Open { .. } => return,
        };
        // Waiting for the answer is the limit: one message of a child is in the mailbox at a time.
        if requests.send(FromChild { child, event }).await.is_err() {
            return;
        }
    }
}

/// Answers the manager's one question, or copies bytes to and from an instance.
async fn serve_request(stream: TlsStream<TcpStream>, doors: &Doors) {
    let (reading, mut writing) = tokio::io::split(stream);
    let mut frames = FrameReader::<_, RequestHead>::new(reading, doors.limits.frame);
    let Ok(frame) = frames.expect(doors.limits.handshake).await else {
        return;
    };
    match frame.header {
        RequestHead::Logs { start, tail_bytes } => {
            let (data, bytes) = (doors.data.clone(), tail_bytes.min(doors.limits.log_bytes_max));
            let reading = tokio::task::spawn_blocking(move || read_log_tail(&data, &start, bytes));
            let (answer, text) = match reading.await {
                Ok(Ok(text)) => (RequestAnswer::Logs, text),
                Ok(Err(_)) | Err(_) => (RequestAnswer::NotHere, Vec::new()),
            };
            let _ = framed::write(&mut writing, &answer, &text).await;
            let _ = writing.shutdown().await;
        }
        RequestHead::Forward { start } => {
            let (reading, ahead) = frames.into_parts();
            let mut stream = reading.unsplit(writing);
            forward(&start, &mut stream, &ahead, doors).await;
        }
    }
}

async fn forward(start: &StartId, stream: &mut TlsStream<TcpStream>, ahead: &[u8], doors: &Doors) {
    let Some((mut instance, _permit)) = reach(start, doors).await else {
        let _ = framed::write(stream, &RequestAnswer::NotHere, &[]).await;
        let _ = stream.shutdown().await;
        return;
    };
    if framed::write(stream, &RequestAnswer::Ready, &[]).await.is_ok()
        && instance.write_all(ahead).await.is_ok()
    {
        // An end of either side is no error: clients leave, instances close.
        let _ = tokio::io::copy_bidirectional(stream, &mut instance).await;
    }
}

/// A connection to the instance's port, if it is here, listens, and has room for another.
async fn reach(start: &StartId, doors: &Doors) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let port = doors.agent.send(GetPort { start: start.clone() }).await.ok()??;
    let slots = {
        let mut requests = doors.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Instances that have ended leave an entry that nobody holds.
        requests.retain(|known, slots| known == start || Arc::strong_count(slots) > 1);
        let slots = || Arc::new(Semaphore::new(doors.limits.requests_per_instance_max));
        Arc::clone(requests.entry(start.clone()).or_insert_with(slots))
    };
    let permit = slots.try_acquire_owned().ok()?;
    let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let stream = tokio::time::timeout(doors.limits.handshake, connecting).await.ok()?.ok()?;
    stream.set_nodelay(true).ok()?;
    Some((stream, permit))
}

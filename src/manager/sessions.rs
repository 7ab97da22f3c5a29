//! The control listener: VMs that join, and the sessions of agents.
//!
//! A session is one task: it reads reports, each with a slot that bounds how many are on their way
//! through the actors, and writes the orders of a bounded queue. It ends when either side of the
//! connection does, or when nobody holds the queue's sender any more.

use crate::{
    net::{
        Purpose,
        accept::accept_each,
        capability,
        framed::{self, FrameReader},
        identity::{Authority, IdentityError, Peer},
        tls::{Accepted, Acceptor},
    },
    tokens::JoinTokens,
};
use faasnet_actors::{
    id::{TreeId, VmId},
    support::Link,
    vm_node::{Opening, SessionId, ToFleet, ToVm, VmMessage},
    wire::{
        PROTOCOL_VERSION,
        control::{Capability, ColdTree, Hello, JoinAnswer, JoinRefusal, JoinRequest, ToAgent, ToManager},
        frame::{Frame, FrameLimits},
    },
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    pub frame: FrameLimits,
    pub handshake: Duration,
    /// Time for an agent to take an order off the connection.
    pub lease: Duration,
    pub connections_max: usize,
    pub orders_queued_max: usize,
    pub certificate_ttl: Duration,
}

/// Reports of one agent on their way through the actors; further ones wait in the connection.
const REPORTS_IN_FLIGHT_MAX: usize = 64;

/// What the tasks of all connections share.
pub struct Doors {
    pub fleet: Link<ToFleet>,
    pub vms: Link<ToVm>,
    pub acceptor: watch::Receiver<Acceptor>,
    pub authority: Arc<Authority>,
    pub join: Arc<JoinTokens>,
    /// With which the capabilities of earlier sessions were signed.
    pub capability_key: Vec<u8>,
    pub limits: SessionLimits,
    pub tasks: TaskTracker,
}

/// Accepts connections until the task is ended.
pub async fn listen(listener: TcpListener, doors: Arc<Doors>) {
    accept_each(listener, doors.limits.connections_max, |stream, permit| {
        let shared = Arc::clone(&doors);
        doors.tasks.spawn(async move {
            admit(stream, &shared).await;
            drop(permit);
        });
    })
    .await;
}

async fn admit(stream: TcpStream, doors: &Doors) {
    let acceptor = doors.acceptor.borrow().clone();
    let Accepted { stream, purpose, peer } = match acceptor.accept(stream).await {
        Ok(accepted) => accepted,
        Err(error) => return tracing::debug!(%error, "a connection was refused"),
    };
    match (purpose, peer) {
        (Purpose::Join, _) => join(stream, doors).await,
        (Purpose::Control, Some(peer)) => session(stream, &peer, doors).await,
        (Purpose::Control, None) | (Purpose::Blocks | Purpose::Request, _) => {
            tracing::warn!(?purpose, "a connection that is not for the manager was refused");
        }
    }
}

/// Answers one request to join.
async fn join(stream: TlsStream<TcpStream>, doors: &Doors) {
    let mut frames = FrameReader::<_, JoinRequest>::new(stream, doors.limits.frame);
    let Ok(request) = frames.expect(doors.limits.handshake).await else {
        return;
    };
    let (mut stream, _) = frames.into_parts();
    let vm = request.header.vm.clone();
    let answer = match certify(request.header, doors).await {
        Ok(certificate) => {
            tracing::info!(%vm, "a VM joined");
            JoinAnswer::Joined { certificate }
        }
        Err(reason) => {
            tracing::warn!(%vm, %reason, "a VM was not let in");
            JoinAnswer::Refused { reason }
        }
    };
    let answering = async {
        // The VM may be gone; it asks again.
        let _gone = framed::write(&mut stream, &answer, &[]).await;
        let _gone = stream.shutdown().await;
    };
    let _late = timeout(doors.limits.handshake, answering).await;
}

async fn certify(request: JoinRequest, doors: &Doors) -> Result<String, JoinRefusal> {
    if request.version != PROTOCOL_VERSION {
        return Err(JoinRefusal::Version);
    }
    let now = SystemTime::now();
    match doors.join.check(&request.secret, now).await {
        Ok(true) => {}
        Ok(false) => return Err(JoinRefusal::Token),
        Err(error) => {
            tracing::error!(%error, "check a join token");
            return Err(JoinRefusal::Request);
        }
    }
    let life = doors.limits.certificate_ttl;
    let issued = doors.authority.issue_vm(&request.vm, &request.signing_request, now, life);
    let (certificate, key_hash) = issued.map_err(|error: IdentityError| {
        tracing::warn!(vm = %request.vm, %error, "issue a certificate");
        JoinRefusal::Request
    })?;
    // Sent only when the name is this key's for good.
    let (reply, answer) = oneshot::channel();
    let key_hash = Arc::from(key_hash);
    doors.fleet.send(ToFleet::Register { vm: request.vm, key_hash, reply });
    timeout(doors.limits.handshake, answer)
        .await
        .map_err(|_| JoinRefusal::Request)?
        .map_err(|_| JoinRefusal::Request)??;
    Ok(certificate)
}

/// Serves one agent until one side ends.
async fn session(stream: TlsStream<TcpStream>, peer: &Peer, doors: &Doors) {
    let Some(vm) = peer.vm() else {
        return tracing::warn!(peer = %peer.name, "a session is for VMs only");
    };
    let (reading, mut writing) = tokio::io::split(stream);
    let mut frames = FrameReader::<_, ToManager>::new(reading, doors.limits.frame);
    let hello = match frames.expect(doors.limits.handshake).await.map(|frame| frame.header) {
        Ok(ToManager::Hello(hello)) => proven(hello, &vm, peer, doors),
        Ok(_) => return tracing::warn!(%vm, "an agent did not begin with hello"),
        Err(error) => return tracing::info!(%vm, %error, "an agent said no hello"),
    };
    let (session, orders) = match open(&vm, peer, hello, doors).await {
        Ok(opened) => opened,
        Err(reason) => {
            tracing::warn!(%vm, %reason, "an agent was refused");
            let refusal = ToAgent::Refused { reason };
            let refusing = framed::write(&mut writing, &refusal, &[]);
            // The agent may be gone already.
            let _late = timeout(doors.limits.handshake, refusing).await;
            let _late = timeout(doors.limits.handshake, writing.shutdown()).await;
            return;
        }
    };
    tracing::info!(%vm, "an agent is here");
    let (renewed, certificates) = mpsc::channel(1);
    let reason = tokio::select! {
        reason = write_orders(&mut writing, orders, certificates, doors.limits.lease) => reason,
        reason = hear(&mut frames, &vm, peer, session, &renewed, doors) => reason,
    };
    doors.vms.send(ToVm { vm: vm.clone(), message: VmMessage::Closed { session } });
    tracing::info!(%vm, reason, "an agent's session has ended");
    let _late = timeout(doors.limits.handshake, writing.shutdown()).await;
}

/// The hello without what the VM may not say of itself.
fn proven(hello: Hello, vm: &VmId, peer: &Peer, doors: &Doors) -> Hello {
    let now = capability::now_seconds();
    let trees = capability::opened_trees(&hello.proofs, &doors.capability_key, &peer.key_hash, now);
    let said = (hello.held.len(), hello.instances.len());
    let hello = believe(hello, &trees);
    if said != (hello.held.len(), hello.instances.len()) {
        tracing::warn!(%vm, "an agent named trees or instances that it cannot prove to be its own");
    }
    hello
}

/// Images of those trees only that the VM was in once: a capability that has expired proves that too. A VM that
/// named others would be sent the starts of strangers before VMs that name none.
fn proven_cold(mut trees: Vec<ColdTree>, proofs: Vec<Capability>, peer: &Peer, doors: &Doors) -> ToManager {
    let once_opened = capability::opened_trees(&proofs, &doors.capability_key, &peer.key_hash, 0);
    trees.retain(|cold| once_opened.contains(&cold.tree));
    ToManager::Cold { trees, proofs: Vec::new() }
}

/// Keeps the trees that the VM was given a capability for, and instances of their images.
fn believe(mut hello: Hello, trees: &BTreeSet<TreeId>) -> Hello {
    hello.held.retain(|held| trees.contains(&held.tree));
    hello.instances.retain(|one| trees.contains(&TreeId { tenant: one.tenant.clone(), image: one.image }));
    hello
}

async fn open(
    vm: &VmId,
    peer: &Peer,
    hello: Hello,
    doors: &Doors,
) -> Result<(SessionId, mpsc::Receiver<ToAgent>), JoinRefusal> {
    let (orders, queue) = mpsc::channel(doors.limits.orders_queued_max);
    let (reply, answer) = oneshot::channel();
    let key_hash = Arc::from(peer.key_hash);
    doors.fleet.send(ToFleet::Open(Opening { vm: vm.clone(), key_hash, hello, orders, reply }));
    let answer = timeout(doors.limits.handshake, answer).await;
    // Unanswered while an actor is rebuilt: the agent tries again.
    let session = answer.map_err(|_| JoinRefusal::Request)?.map_err(|_| JoinRefusal::Request)??;
    Ok((session, queue))
}

async fn write_orders(
    writing: &mut (impl AsyncWrite + Unpin),
    mut orders: mpsc::Receiver<ToAgent>,
    mut certificates: mpsc::Receiver<ToAgent>,
    lease: Duration,
) -> &'static str {
    loop {
        let next = tokio::select! {
            next = orders.recv() => next,
            Some(next) = certificates.recv() => Some(next),
        };
        let Some(order) = next else {
            return "the manager closed it";
        };
        match timeout(lease, framed::write(writing, &order, &[])).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return "the connection broke",
            Err(_) => return "the agent does not read",
        }
    }
}

async fn hear(
    frames: &mut FrameReader<impl AsyncRead + Unpin, ToManager>,
    vm: &VmId,
    peer: &Peer,
    session: SessionId,
    renewed: &mpsc::Sender<ToAgent>,
    doors: &Doors,
) -> &'static str {
    let slots = Arc::new(Semaphore::new(REPORTS_IN_FLIGHT_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("never closed");
        let message = match frames.next().await {
            Ok(Some(Frame { header: ToManager::Renew { signing_request }, .. })) => {
                if let Some(certificate) = renew(vm, peer, &signing_request, doors) {
                    // One that was asked for twice is sent once.
                    let _full = renewed.try_send(ToAgent::Renewed { certificate });
                }
                continue;
            }
            Ok(Some(Frame { header: ToManager::Cold { trees, proofs }, .. })) => {
                Box::new(proven_cold(trees, proofs, peer, doors))
            }
            Ok(Some(frame)) => Box::new(frame.header),
            Ok(None) => return "the agent closed it",
            Err(error) => {
                tracing::info!(%vm, %error, "read a report");
                return "the connection broke";
            }
        };
        let message = VmMessage::Heard { session, message, slot: Some(Arc::new(slot)) };
        doors.vms.send(ToVm { vm: vm.clone(), message });
    }
}

/// A new certificate for the key that the connection was made with, and for no other.
fn renew(vm: &VmId, peer: &Peer, signing_request: &str, doors: &Doors) -> Option<String> {
    let life = doors.limits.certificate_ttl;
    match doors.authority.issue_vm(vm, signing_request, SystemTime::now(), life) {
        Ok((certificate, key_hash)) if key_hash == peer.key_hash => {
            tracing::info!(%vm, "a certificate was renewed");
            Some(certificate)
        }
        Ok(_) => {
            tracing::warn!(%vm, "a certificate for another key was asked for");
            None
        }
        Err(error) => {
            tracing::warn!(%vm, %error, "a certificate was not renewed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_actors::{
        id::{Digest, Epoch},
        wire::control::{BytesBySource, HeldTree, RunningInstance},
    };

    #[test]
    fn a_vm_is_not_believed_about_the_trees_of_others() {
        let tree = |tenant: &str| TreeId {
            tenant: tenant.parse().expect("valid"),
            image: Digest::from_bytes([1; 32]),
        };
        let held = |tree| HeldTree {
            tree,
            epoch: Epoch::default(),
            place: 0,
            blocks_present: 9,
            blocks_total: 9,
            bytes: BytesBySource::default(),
            longest_stall_us: 0,
            preheated: None,
        };
        let instance = |tree: TreeId| RunningInstance {
            start: "s1".parse().expect("valid"),
            tenant: tree.tenant,
            function: "web".parse().expect("valid"),
            image: tree.image,
            code: None,
            memory_bytes: 1,
            cpu_millis: 1,
            ready: true,
        };
        let (own, other) = (tree("own"), tree("other"));
        let hello = Hello {
            version: PROTOCOL_VERSION,
            memory_bytes: 1,
            cpu_millis: 1,
            address: ([127, 0, 0, 1], 1).into(),
            held: vec![held(own.clone()), held(other.clone())],
            proofs: Vec::new(),
            instances: vec![instance(other), instance(own.clone())],
        };
        let believed = believe(hello, &BTreeSet::from([own.clone()]));
        assert_eq!(believed.held, [held(own.clone())]);
        assert_eq!(believed.instances, [instance(own)]);
    }
}

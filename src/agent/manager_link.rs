//! Joining the manager, and the session with it.

use crate::{
    net::{
        framed::{self, FrameReader},
        identity::{Identity, new_request},
        tls::{Dialer, connect_to_join},
    },
    tokens::JoinToken,
};
use actix::Recipient;
use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use faasnet_actors::{
    agent::world::{FromManager, ManagerDialer, ManagerEvent, TaskLink},
    id::VmId,
    wire::{
        PROTOCOL_VERSION,
        control::{Hello, JoinAnswer, JoinRequest, ToAgent, ToManager},
        frame::FrameLimits,
    },
};
use std::{path::Path, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::lookup_host,
    sync::{mpsc, watch},
};

/// Gets a certificate for this VM in exchange for a join token, and keeps it in `folder`.
pub async fn join(
    folder: &Path,
    vm: &VmId,
    manager: &str,
    token: &JoinToken,
    frame: FrameLimits,
    deadline: Duration,
) -> anyhow::Result<Identity> {
    let address = resolve(manager).await?;
    let (mut stream, ca) = connect_to_join(address, token.ca_hash, deadline).await.with_context(|| {
        format!(
            "joining the manager at {manager}: it is not there, or is not the one that made the join token"
        )
    })?;
    let (key, signing_request) = new_request()?;
    let request = JoinRequest {
        version: PROTOCOL_VERSION,
        vm: vm.clone(),
        secret: token.secret.clone(),
        signing_request,
    };
    framed::write(&mut stream, &request, &[]).await.context("asking to join")?;
    let mut frames = FrameReader::<_, JoinAnswer>::new(stream, frame);
    let answer = frames.expect(deadline).await.context("waiting for the manager's answer")?.header;
    let (mut stream, _) = frames.into_parts();
    let _ = stream.shutdown().await;
    match answer {
        JoinAnswer::Joined { certificate } => {
            let ca =
                format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(&ca));
            Ok(Identity::store(folder, &key, &certificate, &ca)?)
        }
        JoinAnswer::Refused { reason } => bail!("the manager refuses VM {vm}: {reason}"),
    }
}

pub async fn resolve(manager: &str) -> anyhow::Result<std::net::SocketAddr> {
    let mut addresses = lookup_host(manager)
        .await
        .with_context(|| format!("finding the manager {manager:?}; use HOST:PORT"))?;
    addresses.next().with_context(|| format!("the manager's name {manager:?} has no address"))
}

/// Opens sessions; each is a task of its own.
pub struct ManagerLink {
    pub manager: String,
    pub dialer: watch::Receiver<Dialer>,
    pub frame: FrameLimits,
    pub handshake: Duration,
    /// Reports that may wait for the connection.
    pub reports_max: usize,
}

impl ManagerDialer for ManagerLink {
    fn open(&self, hello: Hello, link: u64, events: Recipient<FromManager>) -> TaskLink<ToManager> {
        let (commands, reports) = mpsc::channel(self.reports_max);
        let (dialer, manager) = (self.dialer.borrow().clone(), self.manager.clone());
        let (frame, handshake) = (self.frame, self.handshake);
        let task = tokio::spawn(async move {
            let tell = |event| events.do_send(FromManager { link, event });
            let end = session(&dialer, &manager, hello, reports, frame, handshake, &tell).await;
            let reason = match end {
                Ok(()) => "the manager closed the connection".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            tell(ManagerEvent::Closed { reason });
        });
        TaskLink { commands, task: task.abort_handle() }
    }
}

async fn session(
    dialer: &Dialer,
    manager: &str,
    hello: Hello,
    mut reports: mpsc::Receiver<ToManager>,
    frame: FrameLimits,
    handshake: Duration,
    tell: &impl Fn(ManagerEvent),
) -> anyhow::Result<()> {
    let stream = dialer.manager(resolve(manager).await?).await.context("reaching the manager")?;
    let (reading, mut writing) = tokio::io::split(stream);
    framed::write(&mut writing, &ToManager::Hello(hello), &[]).await.context("saying hello")?;
    let mut frames = FrameReader::<_, ToAgent>::new(reading, frame);
    match frames.expect(handshake).await.context("waiting for the manager's welcome")?.header {
        ToAgent::Refused { reason } => bail!("{reason}"),
        ToAgent::Welcome { version, .. } if version != PROTOCOL_VERSION => {
            bail!("the manager speaks version {version} of the protocol, this agent {PROTOCOL_VERSION}")
        }
        welcome @ ToAgent::Welcome { .. } => tell(ManagerEvent::Says(welcome)),
        _ => bail!("the manager does not begin with a welcome"),
    }
    loop {
        tokio::select! {
            biased;
            frame = frames.next() => match frame.context("reading an order")? {
                None => return Ok(()),
                Some(frame) => match frame.header {
                    ToAgent::Refused { reason } => bail!("{reason}"),
                    order => tell(ManagerEvent::Says(order)),
                },
            },
            report = reports.recv() => match report {
                None => return Ok(()),
                Some(report) => framed::write(&mut writing, &report, &[]).await.context("reporting")?,
            },
        }
    }
}

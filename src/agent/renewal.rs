//! Renews the VM's certificate before it expires.

use crate::net::{
    identity::{Identity, IdentityError, renewal_at, renewal_request},
    tls::{Acceptor, Dialer},
};
use actix::Addr;
use base64::{Engine, engine::general_purpose::STANDARD};
use faasnet_actors::agent::{Agent, Renew};
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::sync::{mpsc, watch};

/// Pause between questions while the manager does not answer. A third of the certificate's life is left
/// for them.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What uses the certificate and is told of a new one.
pub struct Users {
    pub acceptors: watch::Sender<Acceptor>,
    pub dialers: watch::Sender<Dialer>,
    pub handshake: Duration,
    pub connect: Duration,
}

impl Users {
    fn take(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.acceptors.send_replace(Acceptor::agent(identity, self.handshake)?);
        self.dialers.send_replace(Dialer::new(identity, self.connect)?);
        Ok(())
    }
}

/// Keeps the certificate fresh until the task is ended. What fails, for instance because the disk is
/// full, is tried again.
pub async fn keep_fresh(
    folder: PathBuf,
    mut identity: Identity,
    agent: Addr<Agent>,
    mut certificates: mpsc::Receiver<String>,
    users: Users,
) {
    loop {
        match renew(&folder, &identity, &agent, &mut certificates, &users).await {
            Ok(Some(renewed)) => {
                identity = renewed;
                tracing::info!("the VM has a new certificate");
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "the VM's certificate was not renewed");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

/// Waits until it is time, and asks once. `None` when no answer came.
async fn renew(
    folder: &Path,
    identity: &Identity,
    agent: &Addr<Agent>,
    certificates: &mut mpsc::Receiver<String>,
    users: &Users,
) -> Result<Option<Identity>, IdentityError> {
    let left = renewal_at(&identity.certificate)?.duration_since(SystemTime::now());
    tokio::time::sleep(left.unwrap_or_default()).await;
    let (key, signing_request) = renewal_request(folder)?;
    agent.do_send(Renew { signing_request });
    let Ok(Some(certificate)) = tokio::time::timeout(ASK_AGAIN, certificates.recv()).await else {
        return Ok(None);
    };
    let renewed = Identity::store(folder, &key, &certificate, &pem(&identity.ca))?;
    users.take(&renewed)?;
    Ok(Some(renewed))
}

/// A certificate as text.
pub fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

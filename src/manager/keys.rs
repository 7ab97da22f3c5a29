//! The key that signs capabilities, which a manager brings from its metadata store into a new life, and the
//! renewal of its certificate while it lives.

use crate::{
    net::{
        capability::CapabilityKey,
        identity::Authority,
        tls::{Acceptor, Dialer},
    },
    settings::Settings,
};
use anyhow::Context;
use faasnet_actors::{
    id::{TreeId, VmId},
    wire::control::Capability,
    world::{CapabilityIssuer, Metadata, Row, Table, Write},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;

const CAPABILITY_KEY: &str = "capability_key";

/// Reads the key, or makes one when there is none. Returns when that is durable.
pub async fn open(metadata: &dyn Metadata, capability_ttl: Duration) -> anyhow::Result<Issuer> {
    let rows = metadata.scan(Table::Values).await.context("reading the capability key")?;
    let key = match rows.into_iter().find(|row| row.key == CAPABILITY_KEY) {
        Some(row) => row.value,
        None => {
            let key = CapabilityKey::generate();
            let row = Row { table: Table::Values, key: CAPABILITY_KEY.into(), value: key.clone() };
            metadata.commit(vec![Write::Put(row)].into()).await.context("keeping the capability key")?;
            key
        }
    };
    let key = CapabilityKey::from_pkcs8(&key).context("the metadata store has a damaged capability key")?;
    Ok(Issuer { key, ttl: capability_ttl })
}

/// Issues capabilities that live as long as the settings say.
pub struct Issuer {
    key: CapabilityKey,
    ttl: Duration,
}

impl Issuer {
    pub fn public(&self) -> &[u8] {
        self.key.public()
    }
}

impl CapabilityIssuer for Issuer {
    fn issue(&self, tree: &TreeId, vm: &VmId, key_hash: &[u8]) -> Capability {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.key.issue(tree, vm, key_hash, (now + self.ttl).as_secs())
    }
}

/// Makes a new certificate when half of the life of the present one is over.
pub async fn renew(
    authority: Arc<Authority>,
    settings: Settings,
    acceptors: watch::Sender<Acceptor>,
    dialers: watch::Sender<Dialer>,
) {
    let life = Duration::from_millis(settings.manager.certificate_ttl_ms);
    let handshake = Duration::from_millis(settings.manager.handshake_ms);
    let connect = Duration::from_millis(settings.agent.connect_ms);
    loop {
        tokio::time::sleep(life / 2).await;
        let renewed = authority.issue_manager(SystemTime::now(), life).and_then(|identity| {
            Ok((Acceptor::manager(&identity, handshake)?, Dialer::new(&identity, connect)?))
        });
        match renewed {
            Ok((acceptor, dialer)) => {
                acceptors.send_replace(acceptor);
                dialers.send_replace(dialer);
            }
            Err(error) => tracing::error!(%error, "renew the manager's certificate"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::RedbMetadata;

    #[tokio::test]
    async fn the_key_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let metadata = RedbMetadata::open(&folder.path().join("metadata.redb")).expect("opened");
        let ttl = Duration::from_secs(60);
        let first = open(&metadata, ttl).await.expect("first");
        let second = open(&metadata, ttl).await.expect("second");
        assert_eq!(first.public(), second.public());
    }
}

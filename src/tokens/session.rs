//! Sessions of browsers: what stands for a token once somebody has logged in with it.
//!
//! A session is not kept anywhere: its text names the row of the token and when it ends, under a seal that only
//! this manager's key makes. It is worth nothing once the token is deleted.

use super::{SECRET_BYTES, SecretSource, TokenError, decode, encode};
use faasnet_actors::world::{Metadata, Row, Table, Write};
use ring::hmac;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const SESSION_KEY: &str = "session_key";
/// Of a token's row: that of a BLAKE3 hash.
const ROW_BYTES: usize = 32;
const EXPIRY_BYTES: usize = 8;

#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    pub ttl: Duration,
    /// Logins with a wrong token from one address within a window.
    pub tries_max: u32,
    pub tries_window: Duration,
    /// Addresses of which that is counted; the one that was counted first makes room.
    pub addresses_max: usize,
}

/// Makes and checks sessions, and bounds how often a wrong token is tried.
pub struct Sessions {
    key: hmac::Key,
    limits: SessionLimits,
    tries: Mutex<Tries>,
}

impl Sessions {
    /// Reads the key, or makes one when there is none: nobody is logged out by a restart.
    pub async fn open(
        metadata: &dyn Metadata,
        secrets: SecretSource,
        limits: SessionLimits,
    ) -> Result<Self, TokenError> {
        let rows = metadata.scan(Table::Values).await?;
        let key = match rows.into_iter().find(|row| row.key == SESSION_KEY) {
            Some(row) => row.value,
            None => {
                let key = secrets()?.to_vec();
                let row = Row { table: Table::Values, key: SESSION_KEY.into(), value: key.clone() };
                metadata.commit(vec![Write::Put(row)].into()).await?;
                key
            }
        };
        if key.len() != SECRET_BYTES {
            return Err(TokenError::SessionKey);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Ok(Self { key, limits, tries: Mutex::new(Tries::new(limits)) })
    }

    pub fn ttl(&self) -> Duration {
        self.limits.ttl
    }

    /// The text of a session of the token with this row.
    pub fn issue(&self, row: &str, now: SystemTime) -> String {
        let hash = blake3::Hash::from_hex(row).expect("a row's key is a hash");
        let expires_at = seconds(now + self.limits.ttl);
        let body = [hash.as_bytes().as_slice(), &expires_at.to_be_bytes()].concat();
        let seal = hmac::sign(&self.key, &body);
        encode(&[&body, seal.as_ref()].concat())
    }

    /// The row of the token, if the session is one of ours and has not ended.
    pub fn check(&self, text: &str, now: SystemTime) -> Option<String> {
        let bytes = decode(text)?;
        let (body, seal) = bytes.split_at_checked(ROW_BYTES + EXPIRY_BYTES)?;
        hmac::verify(&self.key, body, seal).ok()?;
        let (row, expires_at) = body.split_at(ROW_BYTES);
        let expires_at = u64::from_be_bytes(expires_at.try_into().ok()?);
        (seconds(now) < expires_at)
            .then(|| blake3::Hash::from_slice(row).ok().map(|row| row.to_hex().to_string()))?
    }

    /// Takes one try of this address, or says how long there is none.
    pub fn try_login(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).take(from, now)
    }

    /// The token was right: the address has all its tries again.
    pub fn logged_in(&self, from: IpAddr) {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).forget(from);
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Logins under way or failed, by address.
struct Tries {
    limits: SessionLimits,
    /// When the window of an address began, and its tries since.
    by_address: BTreeMap<IpAddr, (Instant, u32)>,
}

impl Tries {
    fn new(limits: SessionLimits) -> Self {
        Self { limits, by_address: BTreeMap::new() }
    }

    fn take(&mut self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let from = site(from);
        let window = self.limits.tries_window;
        if let Some((began, tries)) = self.by_address.get_mut(&from) {
            let passed = now.saturating_duration_since(*began);
            if passed >= window {
                (*began, *tries) = (now, 0);
            }
            if *tries >= self.limits.tries_max {
                return Err(window - passed);
            }
            *tries += 1;
            return Ok(());
        }
        if self.by_address.len() >= self.limits.addresses_max {
            let first = self.by_address.iter().min_by_key(|(_, (began, _))| *began).map(|(first, _)| *first);
            first.map(|first| self.by_address.remove(&first));
        }
        self.by_address.insert(from, (now, 1));
        Ok(())
    }

    fn forget(&mut self, from: IpAddr) {
        self.by_address.remove(&site(from));
    }
}

/// Whoever has one IPv6 address has the 2^64 beside it.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metadata::RedbMetadata,
        tokens::{row_key, system_secrets},
    };
    use tempfile::TempDir;

    const LIMITS: SessionLimits = SessionLimits {
        ttl: Duration::from_secs(60),
        tries_max: 2,
        tries_window: Duration::from_secs(10),
        addresses_max: 2,
    };

    async fn sessions(metadata: &dyn Metadata) -> Sessions {
        Sessions::open(metadata, system_secrets(), LIMITS).await.expect("opened")
    }

    #[tokio::test]
    async fn a_session_outlives_the_manager_and_ends_in_time() {
        let folder = TempDir::new().expect("folder");
        let metadata = RedbMetadata::open(&folder.path().join("metadata.redb")).expect("opened");
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let row = row_key("fn_abc");
        let text = sessions(&metadata).await.issue(&row, now);
        assert!(!text.contains("fn_abc") && !text.contains(&row));

        let next = sessions(&metadata).await;
        assert_eq!(next.check(&text, now), Some(row.clone()));
        assert_eq!(next.check(&text, now + LIMITS.ttl), None, "it has ended");
        let bytes = decode(&text).expect("encoded");
        for place in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[place] ^= 1;
            assert_eq!(next.check(&encode(&forged), now), None, "byte {place} was changed");
        }
        for text in ["", "!", &text[..text.len() - 1], &encode(&[0; 40])] {
            assert_eq!(next.check(text, now), None, "{text}");
        }

        let other = TempDir::new().expect("folder");
        let metadata = RedbMetadata::open(&other.path().join("metadata.redb")).expect("opened");
        assert_eq!(sessions(&metadata).await.check(&text, now), None, "another manager's");
    }

    #[test]
    fn tries_are_bounded_for_each_address_and_come_back() {
        let mut tries = Tries::new(LIMITS);
        let now = Instant::now();
        let [one, two, three] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        assert_eq!([tries.take(one, now), tries.take(one, now)], [Ok(()), Ok(())]);
        let later = now + Duration::from_secs(4);
        assert_eq!(tries.take(one, later), Err(Duration::from_secs(6)));
        assert_eq!(tries.take(two, later), Ok(()), "another address has its own");
        assert_eq!(tries.take(one, now + LIMITS.tries_window), Ok(()));
        tries.take(two, later).expect("the second");
        tries.forget(two);
        assert_eq!(tries.take(two, later), Ok(()), "it was right");
        tries.take(three, later).expect("the first to come made room");
        assert_eq!(tries.by_address.len(), LIMITS.addresses_max);

        let neighbours =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:9::"].map(|text| text.parse().expect("valid"));
        let [a, b, c] = neighbours.map(|address: IpAddr| tries.take(address, later).is_ok());
        assert_eq!([a, b, c], [true, true, false], "one network is one address");
    }
}

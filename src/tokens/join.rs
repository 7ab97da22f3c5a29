//! Join tokens: what a VM shows to get its certificate, and how it knows the manager.

use super::{SECRET_BYTES, SecretSource, TokenError, decode, encode, row_key};
use faasnet_actors::world::{Metadata, MetadataError, Row, Table, Write};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use subtle::ConstantTimeEq;

const PREFIX: &str = "fnj_";
const HASH_BYTES: usize = 32;

/// A join token as an agent reads it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the manager's CA certificate (DER): the manager must show it before it is told anything.
    pub ca_hash: [u8; HASH_BYTES],
    /// For `JoinRequest::secret`.
    pub secret: String,
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = text.trim().strip_prefix(PREFIX).and_then(decode).ok_or(TokenError::NotAJoinToken)?;
        if bytes.len() != HASH_BYTES + SECRET_BYTES {
            return Err(TokenError::NotAJoinToken);
        }
        let (hash, secret) = bytes.split_at(HASH_BYTES);
        Ok(Self { ca_hash: hash.try_into().expect("split at its length"), secret: encode(secret) })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("JoinToken").field("ca_hash", &encode(&self.ca_hash)).finish_non_exhaustive()
    }
}

/// What is kept of a join token, below the hash of its secret.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Seconds since the Unix epoch.
    expires_at: u64,
}

/// Makes and checks join tokens. Several VMs may join with one until it expires.
pub struct JoinTokens {
    metadata: Arc<dyn Metadata>,
    secrets: SecretSource,
    ca_hash: [u8; HASH_BYTES],
    ttl: Duration,
    tokens_max: usize,
}

impl JoinTokens {
    /// `ca_hash` is the SHA-256 of the CA's certificate in DER; a token lives for `ttl`, and at most
    /// `tokens_max` are valid at once.
    pub fn new(
        metadata: Arc<dyn Metadata>,
        secrets: SecretSource,
        ca_hash: [u8; HASH_BYTES],
        ttl: Duration,
        tokens_max: usize,
    ) -> Self {
        Self { metadata, secrets, ca_hash, ttl, tokens_max }
    }

    /// Makes a token and forgets those that have expired.
    pub async fn create(&self, now: SystemTime) -> Result<String, TokenError> {
        let mut writes = Vec::new();
        let mut valid = 0;
        for (key, kept) in self.kept().await? {
            if kept.expires_at > seconds(now) {
                valid += 1;
            } else {
                writes.push(Write::Delete { table: Table::JoinTokens, key });
            }
        }
        if valid >= self.tokens_max {
            return Err(TokenError::TooMany(valid));
        }
        let secret = (self.secrets)()?;
        let kept = Kept { expires_at: seconds(now + self.ttl) };
        let value = serde_json::to_vec(&kept).expect("a number can be written");
        writes.push(Write::Put(Row { table: Table::JoinTokens, key: row_key(&encode(&secret)), value }));
        self.metadata.commit(writes.into()).await?;
        Ok(format!("{PREFIX}{}", encode(&[self.ca_hash, secret].concat())))
    }

    /// Whether a VM that shows this secret may join.
    pub async fn check(&self, secret: &str, now: SystemTime) -> Result<bool, TokenError> {
        let hash = row_key(secret);
        let mut found = false;
        for (key, kept) in self.kept().await? {
            let same = bool::from(key.as_bytes().ct_eq(hash.as_bytes()));
            found |= same && kept.expires_at > seconds(now);
        }
        Ok(found)
    }

    async fn kept(&self) -> Result<Vec<(String, Kept)>, TokenError> {
        let rows = self.metadata.scan(Table::JoinTokens).await?;
        let read = |row: Row| match serde_json::from_slice(&row.value) {
            Ok(kept) => Ok((row.key, kept)),
            Err(error) => Err(MetadataError::Damaged(format!("join token {}: {error}", row.key)).into()),
        };
        rows.into_iter().map(read).collect()
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metadata::RedbMetadata, tokens::system_secrets};
    use tempfile::TempDir;

    const TTL: Duration = Duration::from_secs(60);

    fn join_tokens(folder: &TempDir) -> JoinTokens {
        let metadata = RedbMetadata::open(&folder.path().join("metadata.redb")).expect("opened");
        JoinTokens::new(Arc::new(metadata), system_secrets(), [7; 32], TTL, 2)
    }

    #[tokio::test]
    async fn a_token_names_the_authority_and_is_accepted_until_it_expires() {
        let folder = TempDir::new().expect("folder");
        let tokens = join_tokens(&folder);
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let token: JoinToken = tokens.create(now).await.expect("made").parse().expect("readable");
        assert_eq!(token.ca_hash, [7; 32]);
        assert!(tokens.check(&token.secret, now).await.expect("checked"));
        assert!(!tokens.check(&token.secret, now + TTL).await.expect("checked"), "expired");
        assert!(!tokens.check("", now).await.expect("checked"));
        assert!(!tokens.check(&encode(&[0; 32]), now).await.expect("checked"));
    }

    #[tokio::test]
    async fn tokens_are_bounded_and_expired_ones_make_room() {
        let folder = TempDir::new().expect("folder");
        let tokens = join_tokens(&folder);
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        tokens.create(now).await.expect("first");
        tokens.create(now).await.expect("second");
        assert!(matches!(tokens.create(now).await, Err(TokenError::TooMany(2))));
        tokens.create(now + TTL).await.expect("after the others expired");
        assert_eq!(tokens.kept().await.expect("read").len(), 1);
    }

    #[test]
    fn other_texts_are_not_join_tokens() {
        let short = format!("{PREFIX}{}", encode(&[1; 63]));
        for text in ["", "fnj_", "fn_abc", "fnj_!!!!", &short] {
            assert!(text.parse::<JoinToken>().is_err(), "{text}");
        }
    }
}

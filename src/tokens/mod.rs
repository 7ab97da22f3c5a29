//! Secrets that people and VMs show: API tokens, join tokens and sessions. Only hashes are kept.

mod api;
mod file;
mod join;
mod session;

pub use api::{ApiToken, ApiTokens, Principal, Role, TenantScope};
pub use file::FileToken;
pub use join::{JoinToken, JoinTokens};
pub use session::{SessionLimits, Sessions};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use faasnet_actors::world::MetadataError;
use rand::{TryRng, rngs::SysRng};
use std::{io, path::PathBuf, sync::Arc};

/// Bytes of randomness in a secret: too many to guess, and all that BLAKE3 can tell apart.
const SECRET_BYTES: usize = 32;

/// Where secrets come from: 32 bytes that nobody can foresee.
pub type SecretSource = Arc<dyn Fn() -> Result<[u8; SECRET_BYTES], TokenError> + Send + Sync>;

/// Why a token could not be made or checked.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("the token cannot be written to {}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{} holds no token; remove the file, and a new one is made at the next start", .0.display())]
    NotAToken(PathBuf),
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    #[error("{0} join tokens are valid already; wait until one has expired, or use one of them")]
    TooMany(usize),
    #[error("this is not a join token; ask the manager for one with `faasnet vm join-token`")]
    NotAJoinToken,
    #[error("there are {0} API tokens already; delete one that nobody uses")]
    TooManyApi(usize),
    #[error("there is no such token")]
    Unknown,
    #[error("this is the last token of an administrator of all tenants; make another one first")]
    LastAdmin,
    #[error("the metadata store has a damaged session key")]
    SessionKey,
}

/// Takes secrets from the operating system.
pub fn system_secrets() -> SecretSource {
    Arc::new(|| {
        let mut bytes = [0; SECRET_BYTES];
        SysRng.try_fill_bytes(&mut bytes).map_err(|error| TokenError::Random(error.to_string()))?;
        Ok(bytes)
    })
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// The key of a token's row: its text cannot be found from it. A plain hash is enough, because
/// secrets of 256 random bits cannot be tried one by one.
fn row_key(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

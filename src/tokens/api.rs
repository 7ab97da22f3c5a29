//! API tokens: who calls, what it may do, and for which tenant.

use super::{SecretSource, TokenError, encode, row_key};
use faasnet_actors::{
    id::TenantId,
    world::{Metadata, MetadataError, Row, Table, Write},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io::Write as _, path::Path, sync::Arc};
use subtle::ConstantTimeEq;

/// Makes tokens recognisable, for people and for scanners of leaked secrets.
const PREFIX: &str = "fn_";

/// What a token allows. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Deploys, starts, stops and invokes functions.
    Operator,
    /// Admits and removes VMs.
    Admin,
}

/// The tenants that a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantScope {
    All,
    One(TenantId),
}

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// For logs; not an identity.
    pub name: String,
    pub role: Role,
    pub tenant: TenantScope,
}

/// The tokens that the API accepts, read once from the metadata store.
pub struct ApiTokens {
    metadata: Arc<dyn Metadata>,
    secrets: SecretSource,
    /// By the hash of the token's text.
    principals: BTreeMap<String, Principal>,
}

impl ApiTokens {
    /// Reads the tokens. When there is none, makes the admin's token and writes its text to
    /// `admin_file`, readable by its owner only; it is kept nowhere else.
    pub async fn open(
        metadata: Arc<dyn Metadata>,
        secrets: SecretSource,
        admin_file: &Path,
    ) -> Result<Self, TokenError> {
        let mut principals = BTreeMap::new();
        for row in metadata.scan(Table::Tokens).await? {
            let principal = serde_json::from_slice(&row.value)
                .map_err(|error| MetadataError::Damaged(format!("token {}: {error}", row.key)))?;
            principals.insert(row.key, principal);
        }
        let mut tokens = Self { metadata, secrets, principals };
        if tokens.principals.is_empty() {
            tokens.create_admin(admin_file).await?;
        }
        Ok(tokens)
    }

    /// The file comes first: a crash before the commit makes a new token at the next start, a crash
    /// after it would leave one that nobody knows.
    async fn create_admin(&mut self, file: &Path) -> Result<(), TokenError> {
        let text = self.new_text()?;
        write_private(file, &text).map_err(|error| TokenError::File { path: file.to_owned(), error })?;
        let admin = Principal { name: "admin".into(), role: Role::Admin, tenant: TenantScope::All };
        self.insert(&text, admin).await
    }

    /// Makes a token and returns its text, which is kept nowhere.
    pub async fn create(&mut self, principal: Principal) -> Result<String, TokenError> {
        let text = self.new_text()?;
        self.insert(&text, principal).await?;
        Ok(text)
    }

    async fn insert(&mut self, text: &str, principal: Principal) -> Result<(), TokenError> {
        let key = row_key(text);
        let value = serde_json::to_vec(&principal).expect("a principal has only text fields");
        let row = Row { table: Table::Tokens, key: key.clone(), value };
        self.metadata.commit(vec![Write::Put(row)].into()).await?;
        self.principals.insert(key, principal);
        Ok(())
    }

    fn new_text(&self) -> Result<String, TokenError> {
        Ok(format!("{PREFIX}{}", encode(&(self.secrets)()?)))
    }

    /// Who an `Authorization` header belongs to, if it holds a valid bearer token.
    ///
    /// The lookup compares hashes, so its time says nothing about the text of a valid token; the
    /// full comparison afterwards takes the same time whatever differs.
    pub fn authenticate(&self, header: &str) -> Option<&Principal> {
        let (scheme, text) = header.split_once(' ')?;
        let text = text.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || !text.starts_with(PREFIX) {
            return None;
        }
        let hash = row_key(text);
        let (known, principal) = self.principals.get_key_value(&hash)?;
        bool::from(known.as_bytes().ct_eq(hash.as_bytes())).then_some(principal)
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A temporary file has mode 0600 from the beginning.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metadata::RedbMetadata, tokens::system_secrets};
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    fn metadata(folder: &TempDir) -> Arc<RedbMetadata> {
        Arc::new(RedbMetadata::open(&folder.path().join("metadata.redb")).expect("opened"))
    }

    #[tokio::test]
    async fn the_admin_token_is_made_once_and_survives() {
        let folder = TempDir::new().expect("folder");
        let file = folder.path().join("admin.token");
        let metadata = metadata(&folder);
        ApiTokens::open(metadata.clone(), system_secrets(), &file).await.expect("first start");
        let text = std::fs::read_to_string(&file).expect("written");
        let mode = std::fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let tokens = ApiTokens::open(metadata.clone(), system_secrets(), &file).await.expect("second start");
        assert_eq!(std::fs::read_to_string(&file).expect("still there"), text);
        let admin = tokens.authenticate(&format!("Bearer {text}")).expect("valid");
        assert_eq!((admin.role, &admin.tenant), (Role::Admin, &TenantScope::All));

        let rows = metadata.scan(Table::Tokens).await.expect("scanned");
        let secret = text.trim().trim_start_matches(PREFIX);
        for row in rows {
            let kept = format!("{} {}", row.key, String::from_utf8_lossy(&row.value));
            assert!(!kept.contains(secret), "the text of a token is kept: {kept}");
        }
    }

    #[tokio::test]
    async fn only_the_exact_token_is_accepted() {
        let folder = TempDir::new().expect("folder");
        let mut tokens =
            ApiTokens::open(metadata(&folder), system_secrets(), &folder.path().join("admin.token"))
                .await
                .expect("opened");
        let viewer = Principal {
            name: "ci".into(),
            role: Role::Viewer,
            tenant: TenantScope::One("team-a".parse().expect("valid")),
        };
        let text = tokens.create(viewer.clone()).await.expect("made");
        assert_eq!(tokens.authenticate(&format!("bearer  {text}")), Some(&viewer));
        let shorter = &text[..text.len() - 1];
        for header in ["", "Bearer", "Bearer ", "Bearer fn_", &text, &format!("Basic {text}"), shorter] {
            assert_eq!(tokens.authenticate(header), None, "{header}");
        }
        assert_eq!(tokens.authenticate(&format!("Bearer {shorter}")), None);
        assert_eq!(tokens.authenticate(&format!("Bearer {text}A")), None);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_named() {
        let folder = TempDir::new().expect("folder");
        let file = folder.path().join("missing/admin.token");
        let error = ApiTokens::open(metadata(&folder), system_secrets(), &file).await.err().expect("refused");
        assert!(error.to_string().contains("missing/admin.token"), "{error}");
    }
}

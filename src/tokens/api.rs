//! API tokens: who calls, what it may do, and for which tenant.

use super::{SecretSource, TokenError, encode, row_key};
use faasnet_actors::{
    id::TenantId,
    world::{Metadata, MetadataError, Row, Table, Write},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;

/// Makes tokens recognisable, for people and for scanners of leaked secrets.
const PREFIX: &str = "fn_";

/// What a token allows. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Deploys, starts, stops and invokes functions.
    Operator,
    /// Admits and removes VMs and tokens.
    Admin,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// The tenants that a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantScope {
    All,
    One(TenantId),
}

impl TenantScope {
    /// Whether whoever has this scope may decide on what has the other one.
    pub fn covers(&self, other: &Self) -> bool {
        *self == Self::All || self == other
    }
}

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// For logs; not an identity.
    pub name: String,
    pub role: Role,
    pub tenant: TenantScope,
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    /// The beginning of the hash of its text: enough to name it, useless to whoever wants to be it.
    pub id: String,
    pub name: String,
    pub role: Role,
    /// The tenant that it is good for; none stands for all of them.
    pub tenant: Option<TenantId>,
}

/// Letters of a hash that name a token.
const ID_CHARS: usize = 16;

fn id_of(row: &str) -> &str {
    &row[..ID_CHARS.min(row.len())]
}

type Principals = BTreeMap<String, Principal>;

/// The tokens that the API accepts, read once from the metadata store.
pub struct ApiTokens {
    metadata: Arc<dyn Metadata>,
    secrets: SecretSource,
    tokens_max: usize,
    /// By the hash of the token's text. Never held while the store is waited for.
    principals: RwLock<Principals>,
}

impl ApiTokens {
    /// Reads the tokens. When there is none, makes the admin's token and writes its text to
    /// `admin_file`, readable by its owner only; it is kept nowhere else.
    pub async fn open(
        metadata: Arc<dyn Metadata>,
        secrets: SecretSource,
        tokens_max: usize,
        admin_file: &Path,
    ) -> Result<Self, TokenError> {
        let mut principals = BTreeMap::new();
        for row in metadata.scan(Table::Tokens).await? {
            let principal = serde_json::from_slice(&row.value)
                .map_err(|error| MetadataError::Damaged(format!("token {}: {error}", row.key)))?;
            principals.insert(row.key, principal);
        }
        let is_first = principals.is_empty();
        let tokens = Self { metadata, secrets, tokens_max, principals: RwLock::new(principals) };
        if is_first {
            tokens.create_admin(admin_file).await?;
        }
        Ok(tokens)
    }

    /// The file comes first: a crash before the commit makes a new token at the next start, a crash
    /// after it would leave one that nobody knows.
    async fn create_admin(&self, file: &Path) -> Result<(), TokenError> {
        let text = new_text(&self.secrets)?;
        write_private(file, &text).map_err(|error| TokenError::File { path: file.to_owned(), error })?;
        let admin = Principal { name: "admin".into(), role: Role::Admin, tenant: TenantScope::All };
        self.insert(&text, admin).await.map(drop)
    }

    /// Makes a token and returns its text, which is kept nowhere, and how it is listed.
    pub async fn create(&self, principal: Principal) -> Result<(String, ApiToken), TokenError> {
        let text = new_text(&self.secrets)?;
        let listed = self.insert(&text, principal).await?;
        Ok((text, listed))
    }

    /// It counts before it is durable, so that several at once do not pass the limit; until then nobody knows
    /// its text.
    async fn insert(&self, text: &str, principal: Principal) -> Result<ApiToken, TokenError> {
        let key = row_key(text);
        let value = serde_json::to_vec(&principal).expect("a principal has only text fields");
        let listed = listed(&key, &principal);
        {
            let mut principals = self.write();
            if principals.len() >= self.tokens_max {
                return Err(TokenError::TooManyApi(principals.len()));
            }
            principals.insert(key.clone(), principal);
        }
        let row = Row { table: Table::Tokens, key: key.clone(), value };
        if let Err(error) = self.metadata.commit(vec![Write::Put(row)].into()).await {
            self.write().remove(&key);
            return Err(error.into());
        }
        Ok(listed)
    }

    /// The tokens that somebody with this scope may see.
    pub fn list(&self, scope: &TenantScope) -> Vec<ApiToken> {
        let principals = self.read();
        let seen = principals.iter().filter(|(_, principal)| scope.covers(&principal.tenant));
        seen.map(|(row, principal)| listed(row, principal)).collect()
    }

    /// Deletes a token that somebody with this scope may see. It is refused from now on, and forgotten for good
    /// when this returns.
    pub async fn delete(&self, id: &str, scope: &TenantScope) -> Result<(), TokenError> {
        let (key, principal) = {
            let mut principals = self.write();
            let named = |(row, principal): &(&String, &Principal)| {
                id_of(row) == id && scope.covers(&principal.tenant)
            };
            let key = principals.iter().find(named).map(|(row, _)| row.clone()).ok_or(TokenError::Unknown)?;
            let rules = |principal: &&Principal| {
                principal.role == Role::Admin && principal.tenant == TenantScope::All
            };
            if principals.values().filter(rules).count() == 1 && rules(&&principals[&key]) {
                return Err(TokenError::LastAdmin);
            }
            principals.remove_entry(&key).expect("it was found")
        };
        let gone = Write::Delete { table: Table::Tokens, key: key.clone() };
        if let Err(error) = self.metadata.commit(vec![gone].into()).await {
            self.write().insert(key, principal);
            return Err(error.into());
        }
        Ok(())
    }

    /// The row of the token in an `Authorization` header, if it holds a valid bearer token.
    pub fn row_of(&self, header: &str) -> Option<String> {
        self.find(bearer(header)?).map(|(row, _)| row)
    }

    /// Who such a header belongs to.
    pub fn authenticate(&self, header: &str) -> Option<Principal> {
        self.of_row(&self.row_of(header)?)
    }

    /// The row of a token and who it belongs to, if this is the text of a valid one.
    ///
    /// The lookup compares hashes, so its time says nothing about the text of a valid token; the
    /// full comparison afterwards takes the same time whatever differs.
    pub fn find(&self, text: &str) -> Option<(String, Principal)> {
        let text = text.trim();
        if !looks_like_one(text) {
            return None;
        }
        let hash = row_key(text);
        let principals = self.read();
        let (known, principal) = principals.get_key_value(&hash)?;
        bool::from(known.as_bytes().ct_eq(hash.as_bytes())).then(|| (hash, principal.clone()))
    }

    /// Who the token with this row belongs to, while there is one.
    pub fn of_row(&self, row: &str) -> Option<Principal> {
        self.read().get(row).cloned()
    }

    fn read(&self) -> RwLockReadGuard<'_, Principals> {
        self.principals.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Principals> {
        self.principals.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listed(row: &str, principal: &Principal) -> ApiToken {
    let tenant = match &principal.tenant {
        TenantScope::All => None,
        TenantScope::One(tenant) => Some(tenant.clone()),
    };
    ApiToken { id: id_of(row).to_owned(), name: principal.name.clone(), role: principal.role, tenant }
}

pub(super) fn new_text(secrets: &SecretSource) -> Result<String, TokenError> {
    Ok(format!("{PREFIX}{}", encode(&secrets()?)))
}

pub(super) fn looks_like_one(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// What an `Authorization` header shows, if it is a bearer token.
pub(super) fn bearer(header: &str) -> Option<&str> {
    let (scheme, text) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(text)
}

pub(super) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
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

    const TOKENS_MAX: usize = 3;

    fn metadata(folder: &TempDir) -> Arc<RedbMetadata> {
        Arc::new(RedbMetadata::open(&folder.path().join("metadata.redb")).expect("opened"))
    }

    #[tokio::test]
    async fn the_admin_token_is_made_once_and_survives() {
        let folder = TempDir::new().expect("folder");
        let file = folder.path().join("admin.token");
        let metadata = metadata(&folder);
        ApiTokens::open(metadata.clone(), system_secrets(), TOKENS_MAX, &file).await.expect("first start");
        let text = std::fs::read_to_string(&file).expect("written");
        let mode = std::fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let tokens = ApiTokens::open(metadata.clone(), system_secrets(), TOKENS_MAX, &file)
            .await
            .expect("second start");
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
        let tokens = ApiTokens::open(
            metadata(&folder),
            system_secrets(),
            TOKENS_MAX,
            &folder.path().join("admin.token"),
        )
        .await
        .expect("opened");
        let viewer = Principal {
            name: "ci".into(),
            role: Role::Viewer,
            tenant: TenantScope::One("team-a".parse().expect("valid")),
        };
        let (text, listed) = tokens.create(viewer.clone()).await.expect("made");
        assert_eq!(tokens.authenticate(&format!("bearer  {text}")), Some(viewer.clone()));
        let shorter = &text[..text.len() - 1];
        for header in ["", "Bearer", "Bearer ", "Bearer fn_", &text, &format!("Basic {text}"), shorter] {
            assert_eq!(tokens.authenticate(header), None, "{header}");
        }
        assert_eq!(tokens.authenticate(&format!("Bearer {shorter}")), None);
        assert_eq!(tokens.authenticate(&format!("Bearer {text}A")), None);

        let (row, found) = tokens.find(&text).expect("valid");
        assert_eq!((&found, tokens.of_row(&row).as_ref()), (&viewer, Some(&viewer)));
        assert!(row.starts_with(&listed.id) && listed.id.len() == ID_CHARS);
        tokens.delete(&listed.id, &viewer.tenant).await.expect("deleted by its own tenant");
        assert_eq!((tokens.find(&text), tokens.of_row(&row)), (None, None));
    }

    #[tokio::test]
    async fn tokens_are_bounded_listed_by_scope_and_the_last_admin_stays() {
        let folder = TempDir::new().expect("folder");
        let file = folder.path().join("admin.token");
        let store = metadata(&folder);
        let tokens =
            ApiTokens::open(store.clone(), system_secrets(), TOKENS_MAX, &file).await.expect("opened");
        let team = |name: &str| TenantScope::One(name.parse().expect("valid"));
        let principal = |role, tenant| Principal { name: "x".into(), role, tenant };
        let (_, one) = tokens.create(principal(Role::Admin, team("team-a"))).await.expect("made");
        tokens.create(principal(Role::Viewer, team("team-b"))).await.expect("made");
        let fourth = tokens.create(principal(Role::Viewer, TenantScope::All)).await;
        assert!(matches!(fourth, Err(TokenError::TooManyApi(TOKENS_MAX))));
        assert_eq!(tokens.list(&TenantScope::All).len(), TOKENS_MAX);
        assert_eq!(tokens.list(&team("team-a")), std::slice::from_ref(&one));

        let foreign = tokens.delete(&one.id, &team("team-b")).await;
        assert!(matches!(foreign, Err(TokenError::Unknown)), "of another tenant");
        let all = tokens.list(&TenantScope::All);
        let admin = all.iter().find(|token| token.tenant.is_none()).expect("there");
        let last = tokens.delete(&admin.id, &TenantScope::All).await;
        assert!(matches!(last, Err(TokenError::LastAdmin)));
        tokens.delete(&one.id, &TenantScope::All).await.expect("deleted");

        let reopened = ApiTokens::open(store, system_secrets(), TOKENS_MAX, &file).await.expect("opened");
        assert_eq!(reopened.list(&TenantScope::All), tokens.list(&TenantScope::All));
        assert_eq!(reopened.list(&TenantScope::All).len(), TOKENS_MAX - 1);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_named() {
        let folder = TempDir::new().expect("folder");
        let file = folder.path().join("missing/admin.token");
        let error = ApiTokens::open(metadata(&folder), system_secrets(), TOKENS_MAX, &file)
            .await
            .err()
            .expect("refused");
        assert!(error.to_string().contains("missing/admin.token"), "{error}");
    }
}

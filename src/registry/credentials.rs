//! Credentials where docker keeps them: `config.json` and credential helpers.
//!
//! They are read again for each new token, because helpers hand out secrets that expire. Nothing here
//! prints a secret; the output of a helper is never repeated, because it may hold one.

use super::RegistryError;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::PathBuf,
    time::Duration,
};

/// Longest `config.json`.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The name under which docker keeps the credentials for Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// A text that no log and no error shows.
#[derive(Clone)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(secret)")
    }
}

#[derive(Debug, Clone)]
pub(super) enum Credentials {
    None,
    Password {
        user: String,
        password: Secret,
    },
    /// An OAuth refresh token.
    IdentityToken(Secret),
}

#[derive(Debug, Clone)]
pub(super) struct CredentialStore {
    /// Empty: where docker looks.
    config: PathBuf,
    /// For a helper's answer.
    deadline: Duration,
}

impl CredentialStore {
    pub(super) fn new(config: PathBuf, deadline: Duration) -> Self {
        Self { config, deadline }
    }

    /// The credentials for that registry. None are no error: many images are public.
    pub(super) async fn lookup(&self, registry: &str) -> Result<Credentials, RegistryError> {
        let (store, name) = (self.clone(), registry.to_owned());
        let lookup = tokio::task::spawn_blocking(move || store.lookup_blocking(&name));
        let unusable = |reason: &str| RegistryError::Credentials {
            registry: registry.to_owned(),
            reason: reason.to_owned(),
        };
        match tokio::time::timeout(self.deadline, lookup).await {
            Err(_) => Err(unusable("the credential helper does not answer")),
            Ok(Err(_)) => Err(unusable("looking them up panicked")),
            Ok(Ok(found)) => found.map_err(|reason| unusable(&reason)),
        }
    }

    fn lookup_blocking(&self, registry: &str) -> Result<Credentials, String> {
        let Some(file) = self.open()? else { return Ok(Credentials::None) };
        let key = if registry == "docker.io" { HUB_KEY } else { registry };
        match docker_credential::get_credential_from_reader(file.take(CONFIG_BYTES_MAX), key) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                Ok(Credentials::Password { user, password: Secret(password) })
            }
            Ok(DockerCredential::IdentityToken(token)) => Ok(Credentials::IdentityToken(Secret(token))),
            Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(Credentials::None),
            // What docker's own helpers say when they know no credentials for a registry.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.contains("credentials not found") =>
            {
                Ok(Credentials::None)
            }
            Err(CredentialRetrievalError::HelperFailure { helper, .. }) => Err(format!("{helper} failed")),
            Err(other) => Err(other.to_string().to_lowercase()),
        }
    }

    fn open(&self) -> Result<Option<File>, String> {
        let is_named = !self.config.as_os_str().is_empty();
        let path = if is_named { Some(self.config.clone()) } else { docker_config_path() };
        let Some(path) = path else { return Ok(None) };
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => Ok(None),
            Err(error) => Err(format!("{} (origin.docker_config): {error}", path.display())),
        }
    }
}

/// `config.json` in `$DOCKER_CONFIG`, otherwise in `~/.docker`.
fn docker_config_path() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    folder.or_else(home).map(|folder| folder.join("config.json"))
}

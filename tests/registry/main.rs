//! Reading from and writing to real registries: Debian's docker-registry, images made by umoci and
//! pushed by skopeo. Faults come from a proxy before it.

mod client;
mod convert;
mod destination;
mod origin;
#[path = "../support/proxy.rs"]
mod proxy;
mod referrers;
#[path = "../support/registry.rs"]
mod registry;
mod source;
#[path = "../support/token.rs"]
mod token;

use faasnet::settings::{OriginSettings, Settings};
use rand::{Rng, SeedableRng, rngs::StdRng};
use registry::{Layout, USER};
use tempfile::NamedTempFile;

/// Settings that speak to these hosts without TLS, with short pauses and no credentials of the machine.
fn settings<const N: usize>(plain_http: [String; N]) -> OriginSettings {
    let mut settings = Settings::load(None).expect("defaults").origin;
    settings.plain_http_registries = plain_http.to_vec();
    settings.retry_min_ms = 1;
    settings.retry_max_ms = 2000;
    settings.docker_config =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/registry/no-credentials.json").into();
    settings
}

/// Bytes that do not shrink, the same in each run.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(len as u64).fill_bytes(&mut bytes);
    bytes
}

/// An image with one file. Whole sectors: `umoci insert` does not pad the last file of its archives.
fn layout() -> Layout {
    Layout::make(&[("data", &noise(6000 * 512))])
}

/// Logs in at that host; the configuration lasts as long as the file that is returned.
fn log_in(settings: &mut OriginSettings, host: &str, password: &str) -> NamedTempFile {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let auth = BASE64_STANDARD.encode(format!("{USER}:{password}"));
    use_docker_config(settings, &serde_json::json!({ "auths": { host: { "auth": auth } } }))
}

fn use_docker_config(settings: &mut OriginSettings, config: &serde_json::Value) -> NamedTempFile {
    let file = NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), config.to_string()).expect("written");
    settings.docker_config = file.path().to_owned();
    file
}

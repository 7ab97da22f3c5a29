//! Reading from and writing to real registries: Debian's docker-registry, images made by umoci and
//! pushed by skopeo. Faults come from a proxy before it.

mod client;
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
use registry::{Layout, PASSWORD, USER};
use std::path::PathBuf;

/// Settings that speak to these hosts without TLS, with short pauses and no credentials of the machine.
fn settings<const N: usize>(plain_http: [String; N]) -> OriginSettings {
    let mut settings = Settings::load(None).expect("defaults").origin;
    settings.plain_http_registries = plain_http.to_vec();
    settings.retry_min_ms = 1;
    settings.retry_max_ms = 2000;
    settings.docker_config = empty_docker_config();
    settings
}

/// Bytes that do not shrink, the same in each run.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(len as u64).fill_bytes(&mut bytes);
    bytes
}

fn layout() -> Layout {
    Layout::make(&[("data", &noise(3_000_000))])
}

fn empty_docker_config() -> PathBuf {
    write_docker_config("{}".to_owned())
}

/// A docker configuration with the password for that host.
fn docker_config(host: &str, password: &str) -> PathBuf {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let auth = BASE64_STANDARD.encode(format!("{USER}:{password}"));
    write_docker_config(serde_json::json!({ "auths": { host: { "auth": auth } } }).to_string())
}

fn good_docker_config(host: &str) -> PathBuf {
    docker_config(host, PASSWORD)
}

/// Writes it where it lasts as long as the process.
fn write_docker_config(text: String) -> PathBuf {
    static FOLDER: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("temporary folder"));
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = folder.path().join(format!("{number}.json"));
    std::fs::write(&path, text).expect("written");
    path
}

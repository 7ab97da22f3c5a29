//! Who we are, whom we trust, and what is said when that fails.

use crate::{
    docker_config, good_docker_config, layout,
    proxy::{Fault, Proxy},
    registry::{Options, PASSWORD, Registry, USER},
    settings,
    token::TokenServer,
    write_docker_config,
};
use faasnet::{
    registry::{Content, Reference, RegistryClient, RegistryError},
    settings::OriginSettings,
};
use std::{
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{Arc, atomic::Ordering},
};

async fn pull(settings: &OriginSettings, reference: &str) -> Result<(), RegistryError> {
    let reference: Reference = reference.parse()?;
    RegistryClient::new(settings, 1)?.manifest(&reference, 1 << 20).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_taken_from_dockers_configuration_and_never_shown() {
    let registry = Registry::start(Options { password: true, ..Options::default() });
    let reference = registry.push(&layout(), "app:1");
    let mut settings = settings([registry.host()]);
    for config in [settings.docker_config.clone(), docker_config(&registry.host(), "wrong-pass")] {
        settings.docker_config = config;
        let error = pull(&settings, &reference).await.expect_err("not let in");
        assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains("docker login"), "{error}");
        assert!(!format!("{error} {error:?}").contains("wrong-pass"), "{error:?}");
    }
    settings.docker_config = good_docker_config(&registry.host());
    pull(&settings, &reference).await.expect("let in");
    let client = RegistryClient::new(&settings, 1).expect("made");
    client.manifest(&reference.parse().expect("valid"), 1 << 20).await.expect("let in");
    assert!(!format!("{client:?}").contains(PASSWORD));
    settings.docker_config = "/nowhere/config.json".into();
    let error = pull(&settings, &reference).await.expect_err("no such file").to_string();
    assert!(error.contains("origin.docker_config"), "{error}");
}

/// Runs itself again with a PATH that holds a credential helper.
#[test]
fn a_password_is_taken_from_a_credential_helper() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let helper = folder.path().join("docker-credential-test");
    let script =
        format!("#!/bin/sh\nread -r server\necho '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n");
    std::fs::write(&helper, script).expect("written");
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("set"));
    let mut again = Command::new(std::env::current_exe().expect("known"));
    again
        .args(["--exact", "client::with_helper_in_path", "--nocapture"])
        .env("PATH", path)
        .env("HELPER_TEST", "1");
    let output = again.output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_helper_in_path() {
    if std::env::var_os("HELPER_TEST").is_none() {
        return;
    }
    let registry = Registry::start(Options { password: true, ..Options::default() });
    let reference = registry.push(&layout(), "app:1");
    let mut settings = settings([registry.host()]);
    let helpers = serde_json::json!({ "credHelpers": { registry.host(): "test" } });
    settings.docker_config = write_docker_config(helpers.to_string());
    pull(&settings, &reference).await.expect("let in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_once_kept_and_renewed() {
    let server = TokenServer::start().await;
    let token = Some(server.registry_section());
    let (registry, layout) = (Registry::start(Options { token, ..Options::default() }), layout());
    let reference = registry.push(&layout, "app:1");
    let given = || server.scopes.lock().expect("not poisoned").clone();
    let before = given().len();
    let mut settings = settings([registry.host(), server.host()]);
    settings.docker_config = good_docker_config(&registry.host());
    let client = RegistryClient::new(&settings, 1).expect("made");
    let reference: Reference = reference.parse().expect("valid");
    let repository = &reference.repository;
    let reads = (0..8).map(|_| client.manifest(&reference, 1 << 20));
    for read in futures::future::join_all(reads).await {
        read.expect("let in");
    }
    assert_eq!(given()[before..], ["repository:app:pull"], "one token for eight");
    let content = Content::bytes("new");
    let blob =
        "sha256:11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437".parse().expect("valid");
    assert!(client.push_blob(repository, blob, &content).await.expect("may write"));
    assert!(given().last().expect("a token").contains("push"), "{:?}", given());
    // An answer that has expired when it arrives: each call needs another.
    server.expires_in.store(0, Ordering::Relaxed);
    let client = RegistryClient::new(&settings, 1).expect("made");
    let before = given().len();
    for _ in 0..3 {
        client.manifest(&reference, 1 << 20).await.expect("let in");
    }
    assert_eq!(given().len() - before, 3);
    settings.docker_config = docker_config(&registry.host(), "wrong-pass");
    let error = pull(&settings, &reference.to_string()).await.expect_err("not let in");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_is_replaced() {
    let server = TokenServer::start().await;
    let token = Some(server.registry_section());
    let (registry, layout) = (Registry::start(Options { token, ..Options::default() }), layout());
    registry.push(&layout, "app:1");
    let realm = format!(
        "www-authenticate: Bearer realm=\"http://{}/token\",service=\"test registry\"\r\n",
        server.host()
    );
    // The first call is challenged and let in; the token of the second is refused.
    let proxy = Proxy::start(registry.address(), move |_, before| match before {
        2 => Fault::Answer(401, realm.clone()),
        _ => Fault::None,
    })
    .await;
    let mut settings = settings([proxy.host(), server.host()]);
    settings.docker_config = good_docker_config(&proxy.host());
    let client = RegistryClient::new(&settings, 1).expect("made");
    let reference: Reference = format!("{}/app:1", proxy.host()).parse().expect("valid");
    let before = server.scopes.lock().expect("not poisoned").len();
    client.manifest(&reference, 1 << 20).await.expect("let in");
    client.manifest(&reference, 1 << 20).await.expect("let in with another token");
    assert_eq!(server.scopes.lock().expect("not poisoned").len() - before, 2);
    let requests = proxy.requests();
    let brought = |number: usize| requests[number].header("authorization");
    assert_eq!((requests.len(), brought(0)), (4, None));
    assert_eq!(brought(1), brought(2));
    assert_ne!(brought(2), brought(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_when_named() {
    let registry = Registry::start(Options { tls: true, ..Options::default() });
    let reference = registry.push(&layout(), "app:1");
    let mut settings = settings([]);
    let error = pull(&settings, &reference).await.expect_err("unknown authority");
    assert!(matches!(&error, RegistryError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("origin.ca_files"), "{error}");
    settings.ca_files = vec![registry.ca_file()];
    pull(&settings, &reference).await.expect("trusted");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_is_an_error_that_names_the_key() {
    let registry = Registry::start(Options::default());
    let reference = registry.push(&layout(), "app:1");
    let error = pull(&settings([]), &reference).await.expect_err("no TLS").to_string();
    let hint = format!("add {:?} to origin.plain_http_registries", registry.host());
    assert!(error.contains(&hint), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_registry_is_said_to_be() {
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let error = pull(&settings([closed.to_string()]), &format!("{closed}/app")).await.expect_err("closed");
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_uploaded_once_and_again_after_a_failure() {
    let registry = Registry::start(Options { password: true, ..Options::default() });
    let proxy = Proxy::start(registry.address(), |request, before| match request.method.as_str() {
        "POST" if before == 2 => Fault::Answer(503, String::new()),
        _ => Fault::None,
    })
    .await;
    let mut settings = settings([proxy.host()]);
    settings.docker_config = good_docker_config(&proxy.host());
    let client = RegistryClient::new(&settings, 1).expect("made");
    let reference: Reference = format!("{}/app", proxy.host()).parse().expect("valid");
    for (number, len) in [20_000_000, 700_000].into_iter().enumerate() {
        let bytes = crate::noise(len);
        let digest = sha256(&bytes);
        let mut file = tempfile::tempfile().expect("temporary file");
        std::io::Write::write_all(&mut file, &bytes).expect("written");
        let content = Content::file(Arc::new(file), len as u64);
        assert!(client.push_blob(&reference.repository, digest, &content).await.expect("sent"), "{number}");
        assert!(!client.push_blob(&reference.repository, digest, &content).await.expect("there"), "{number}");
        let range = client.blob_range(&reference.repository, digest, 100..200).await;
        assert_eq!(range.result.expect("read"), bytes[100..200]);
    }
    let wrong = client.push_blob(&reference.repository, sha256(b"other"), &Content::bytes("this")).await;
    let text = wrong.expect_err("wrong digest").to_string();
    assert!(text.contains("DIGEST_INVALID"), "{text}");
}

fn sha256(bytes: &[u8]) -> faasnet_actors::id::Digest {
    use sha2::{Digest, Sha256};
    faasnet_actors::id::Digest::from_bytes(Sha256::digest(bytes).into())
}

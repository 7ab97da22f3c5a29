//! The list of referrers of a registry without the referrers API.

use crate::{
    proxy::{Fault, Proxy},
    registry::{Options, Registry},
    settings,
};
use faasnet::registry::{Descriptor, Reference, RegistryClient, RegistryError, Repository};
use faasnet_actors::id::Digest;
use serde_json::json;
use std::collections::BTreeMap;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn subject() -> Digest {
    Digest::from_bytes([9; 32])
}

fn tag(repository: &Repository) -> Reference {
    format!("{repository}:sha256-{}", subject().hex()).parse().expect("valid")
}

/// Pushes an artifact without layers and describes it.
async fn artifact(client: &RegistryClient, repository: &Repository, name: &str) -> Descriptor {
    use sha2::{Digest as _, Sha256};
    let digest_of = |bytes: &[u8]| Digest::from_bytes(Sha256::digest(bytes).into());
    let config = json!({ "name": name }).to_string();
    let config_digest = digest_of(config.as_bytes());
    let size = config.len();
    client
        .push_blob(repository, config_digest, &faasnet::registry::Content::bytes(config))
        .await
        .expect("sent");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": "application/json", "digest": config_digest, "size": size },
    })
    .to_string();
    let digest = digest_of(manifest.as_bytes());
    let size = manifest.len() as u64;
    let reference = Reference { repository: repository.clone(), tag: None, digest: Some(digest) };
    let is_listed = client.push_manifest(&reference, MANIFEST, manifest.into()).await.expect("sent");
    assert!(!is_listed, "this registry keeps no list");
    let annotations = BTreeMap::from([("name".to_owned(), name.to_owned())]);
    Descriptor {
        media_type: MANIFEST.to_owned(),
        digest,
        size,
        artifact_type: Some("x/y".to_owned()),
        annotations,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_added_and_those_of_others_stay() {
    let registry = Registry::start(Options::default());
    let client = RegistryClient::new(&settings([registry.host()]), 1).expect("made");
    let repository: Repository = format!("{}/app", registry.host()).parse().expect("valid");
    assert_eq!(client.referrers(&repository, subject(), 1 << 20).await.expect("none"), []);
    let foreign = artifact(&client, &repository, "foreign").await;
    let mut entry = serde_json::to_value(&foreign).expect("JSON");
    entry["extension"] = json!({ "kept": true });
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry], "annotations": { "a": "b" } });
    client.push_manifest(&tag(&repository), INDEX, index.to_string().into()).await.expect("sent");
    let mut wanted = vec![foreign.digest];
    let mut ours = Vec::new();
    for number in 0..6 {
        ours.push(artifact(&client, &repository, &number.to_string()).await);
    }
    let adds = ours.iter().map(|entry| client.add_referrer(&repository, subject(), entry, false, 1 << 20));
    for added in futures::future::join_all(adds).await {
        added.expect("added");
    }
    client.add_referrer(&repository, subject(), &ours[0], false, 1 << 20).await.expect("already there");
    wanted.extend(ours.iter().map(|entry| entry.digest));
    let mut found = client.referrers(&repository, subject(), 1 << 20).await.expect("read");
    assert!(found.contains(&ours[3]));
    found.sort_by_key(|entry| entry.digest);
    wanted.sort();
    assert_eq!(found.iter().map(|entry| entry.digest).collect::<Vec<_>>(), wanted);
    let index = client.manifest(&tag(&repository), 1 << 20).await.expect("read");
    let index: serde_json::Value = serde_json::from_slice(&index.bytes).expect("JSON");
    assert_eq!(index["annotations"]["a"], "b");
    assert_eq!(index["manifests"][0]["extension"]["kept"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_another_writer_wiped_out_is_added_again() {
    let registry = Registry::start(Options::default());
    // The first two writes of the list are acknowledged and have no effect, as when somebody else
    // wrote right after.
    let proxy = Proxy::start(registry.address(), |request, before| {
        match request.method == "PUT" && request.path.contains("/manifests/sha256-") && before < 2 {
            true => Fault::Answer(201, String::new()),
            false => Fault::None,
        }
    })
    .await;
    let client = RegistryClient::new(&settings([proxy.host()]), 1).expect("made");
    let repository: Repository = format!("{}/app", proxy.host()).parse().expect("valid");
    let entry = artifact(&client, &repository, "ours").await;
    client.add_referrer(&repository, subject(), &entry, false, 1 << 20).await.expect("added");
    assert_eq!(client.referrers(&repository, subject(), 1 << 20).await.expect("read"), [entry]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_means_something_else_is_left_alone() {
    let registry = Registry::start(Options::default());
    let client = RegistryClient::new(&settings([registry.host()]), 1).expect("made");
    let repository: Repository = format!("{}/app", registry.host()).parse().expect("valid");
    let image = registry.push(&crate::layout(), &format!("app:sha256-{}", subject().hex()));
    let entry = artifact(&client, &repository, "ours").await;
    let error =
        client.add_referrer(&repository, subject(), &entry, false, 1 << 20).await.expect_err("in use");
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains(&image), "{error}");
}

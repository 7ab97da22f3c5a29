//! Block images published to a registry.

use crate::{
    log_in, noise,
    proxy::{Fault, Proxy},
    registry::{Layout, Options, PASSWORD, Registry},
    settings,
};
use faasnet::{
    image::{
        progress::Progress,
        publish::{
            ARTIFACT_TYPE, Artifact, Destination, MANIFEST_MEDIA_TYPE, PublishError,
            registry::RegistryDestination,
        },
        source::BlobRef,
    },
    origin,
    registry::{BlockingClient, Repository},
    settings::OriginSettings,
};
use faasnet_actors::{
    id::Digest,
    image::{BlockImage, ImageLocation, RuntimeConfig},
    world::{Origin, Part},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{fs, path::Path};

const BLOB_BYTES: usize = 5_000_000;

fn reference(media_type: &str, bytes: &[u8]) -> BlobRef {
    let digest = Digest::from_bytes(Sha256::digest(bytes).into());
    BlobRef { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 }
}

fn artifact(folder: &Path, subject: Digest, name: &str) -> Artifact {
    let (blob, index, config) = (noise(BLOB_BYTES), b"index".to_vec(), json!({ "name": name }).to_string());
    let blob_path = folder.join("blob");
    fs::write(&blob_path, &blob).expect("written");
    let config_ref = reference("application/json", config.as_bytes());
    let (index_ref, blob_ref) =
        (reference("application/x-index", &index), reference("application/x-blob", &blob));
    let subject = BlobRef { media_type: MANIFEST_MEDIA_TYPE.to_owned(), digest: subject, size: 7 };
    let describe =
        |blob: &BlobRef| json!({ "mediaType": blob.media_type, "digest": blob.digest, "size": blob.size });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE, "artifactType": ARTIFACT_TYPE,
        "config": describe(&config_ref), "layers": [describe(&index_ref), describe(&blob_ref)],
        "subject": describe(&subject), "annotations": { "name": name },
    });
    let manifest = manifest.to_string().into_bytes();
    let manifest_digest = reference("", &manifest).digest;
    let config = config.into_bytes();
    let annotations = [("name".to_owned(), name.to_owned())].into();
    Artifact {
        manifest,
        manifest_digest,
        config,
        config_ref,
        index,
        index_ref,
        blob_path,
        blob_ref,
        subject,
        annotations,
    }
}

fn destination(settings: &OriginSettings, host: &str) -> RegistryDestination {
    let client = BlockingClient::new(settings, 1).expect("made");
    RegistryDestination::new(client, format!("{host}/blocks").parse().expect("valid"), 1 << 20)
}

#[test]
fn a_published_block_image_is_whole_listed_and_readable_as_origin() {
    let registry = Registry::start(Options { password: true, ..Options::default() });
    let mut settings = settings([registry.host()]);
    let _config = log_in(&mut settings, &registry.host(), PASSWORD);
    let (destination, folder) =
        (destination(&settings, &registry.host()), tempfile::tempdir().expect("folder"));
    let source = Layout::make(&[("x", b"x")]).manifest().0.parse().expect("valid");
    let (first, second) =
        (artifact(folder.path(), source, "first"), artifact(folder.path(), source, "second"));
    assert!(!destination.has(first.manifest_digest).expect("asked"));
    let mut location = None;
    for artifact in [&first, &second, &first] {
        let progress = Progress::default();
        location = Some(destination.publish(artifact, &progress).expect("published"));
        let total = artifact.config_ref.size + artifact.index_ref.size + artifact.blob_ref.size;
        assert_eq!(progress.snapshot().done_bytes, total);
        assert!(destination.has(artifact.manifest_digest).expect("asked"));
    }
    let client = BlockingClient::new(&settings, 1).expect("made");
    let repository: Repository = format!("{}/blocks", registry.host()).parse().expect("valid");
    let listed = client.wait(|client| client.referrers(&repository, source, 1 << 20)).expect("listed");
    let digests: Vec<_> = listed.iter().map(|entry| entry.digest).collect();
    assert_eq!(digests, [first.manifest_digest, second.manifest_digest]);
    assert_eq!(listed[0].artifact_type.as_deref(), Some(ARTIFACT_TYPE));
    assert_eq!(listed[1].annotations["name"], "second");
    let location = location.expect("published");
    assert_eq!(location, ImageLocation::Registry { repository: repository.to_string() });
    let image = BlockImage {
        id: first.manifest_digest,
        source,
        index_digest: first.index_ref.digest,
        index_bytes: first.index_ref.size,
        blob_digest: first.blob_ref.digest,
        blob_bytes: first.blob_ref.size,
        plain_bytes: 0,
        location,
        runtime: RuntimeConfig::default(),
    };
    let reader = origin::open(&settings, 1).expect("opened");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let read = runtime.block_on(reader.read(&image, Part::Blob, 4_000_000..4_500_000)).expect("read");
    assert!(read == noise(BLOB_BYTES)[4_000_000..4_500_000]);
}

#[test]
fn an_artifact_that_lost_a_blob_is_not_there() {
    let registry = Registry::start(Options::default());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let folder = tempfile::tempdir().expect("folder");
    let artifact = artifact(folder.path(), Digest::from_bytes([3; 32]), "x");
    let lost = artifact.index_ref.digest.to_string();
    let plan = move |request: &crate::proxy::Request, _| match request.path.contains(&lost)
        && request.method == "HEAD"
    {
        true => Fault::Answer(404, String::new()),
        false => Fault::None,
    };
    let proxy = runtime.block_on(Proxy::start(registry.address(), plan));
    destination(&settings([registry.host()]), &registry.host())
        .publish(&artifact, &Progress::default())
        .expect("published");
    let destination = destination(&settings([proxy.host()]), &proxy.host());
    assert!(!destination.has(artifact.manifest_digest).expect("asked"));
}

#[test]
fn what_keeps_a_block_image_from_being_published_is_said() {
    let registry = Registry::start(Options { password: true, ..Options::default() });
    let folder = tempfile::tempdir().expect("folder");
    let mut artifact = artifact(folder.path(), Digest::from_bytes([3; 32]), "x");
    let mut settings = settings([registry.host()]);
    let publish = |settings: &OriginSettings, artifact: &Artifact| {
        destination(settings, &registry.host()).publish(artifact, &Progress::default()).expect_err("refused")
    };
    let error = publish(&settings, &artifact);
    assert!(matches!(error, PublishError::Unauthorized { .. }), "{error:?}");
    let _config = log_in(&mut settings, &registry.host(), PASSWORD);
    let cancelled = Progress::default();
    cancelled.cancel();
    let error =
        destination(&settings, &registry.host()).publish(&artifact, &cancelled).expect_err("cancelled");
    assert!(matches!(error, PublishError::Cancelled(_)), "{error:?}");
    artifact.blob_ref.digest = Digest::from_bytes([5; 32]);
    let error = publish(&settings, &artifact);
    assert!(matches!(error, PublishError::Refused { .. }), "{error:?}");
    artifact.blob_ref.size += 1;
    let error = publish(&settings, &artifact);
    assert!(!matches!(error, PublishError::Refused { .. }), "a file shorter than stated: {error:?}");
    artifact.blob_path = folder.path().join("missing");
    let error = publish(&settings, &artifact);
    assert!(matches!(error, PublishError::Io { .. }), "{error:?}");
}

//! The whole road: a source image in a registry becomes a block image in the registry, and each of its
//! blocks is read from there.

use crate::{
    layout, log_in,
    proxy::{Fault, Proxy},
    registry::{Options, PASSWORD, Registry},
};
use faasnet::{
    image::{
        convert::{ConvertError, ConvertOptions, convert},
        progress::Progress,
        publish,
        resolve::Platform,
        source::{self, SourceError},
    },
    origin,
    registry::{BlockingClient, Reference},
    settings::Settings,
};
use faasnet_actors::{
    id::BlockId,
    image::{BlockImage, Index},
    world::{Origin, Part},
};
use serde_json::json;
use std::path::Path;

fn convert_in(settings: &Settings, host: &str, spool: &Path) -> Result<BlockImage, ConvertError> {
    let source = source::open(&format!("{host}/app:1"), settings).expect("a reference");
    let destination = publish::open(&format!("registry:{host}/blocks"), settings).expect("a repository");
    let options = ConvertOptions {
        platform: Platform::of_this_machine(),
        settings: settings.image.clone(),
        spool: spool.to_owned(),
    };
    convert(&*source, &*destination, &options, &Progress::default())
}

fn settings(hosts: &[String]) -> Settings {
    let mut settings = Settings::load(None).expect("defaults");
    settings.origin = crate::settings([]);
    settings.origin.plain_http_registries = hosts.to_vec();
    settings
}

#[test]
fn an_image_in_a_registry_becomes_a_block_image_in_it() {
    let registry = Registry::start(Options { password: true, ..Options::default() });
    let layout = layout();
    registry.push(&layout, "app:1");
    let mut settings = settings(&[registry.host()]);
    let _config = log_in(&mut settings.origin, &registry.host(), PASSWORD);
    let spool = tempfile::tempdir().expect("folder");
    let image = convert_in(&settings, &registry.host(), spool.path()).expect("converted");
    assert_eq!(image.source.to_string(), layout.manifest().0);
    assert_eq!(convert_in(&settings, &registry.host(), spool.path()).expect("again"), image);

    let reader = origin::open(&settings.origin, 1).expect("opened");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let read = |part, range| runtime.block_on(reader.read(&image, part, range)).expect("read");
    let index = Index::decode(&read(Part::Index, 0..image.index_bytes)).expect("an index");
    assert!(index.block_count() > 5, "{}", index.block_count());
    for number in 0..index.block_count() {
        let entry = index.entry(BlockId(number)).expect("within the count");
        let stored = read(Part::Blob, entry.offset..entry.offset + u64::from(entry.stored_bytes));
        assert!(index.verify(BlockId(number), &stored), "block {number}");
    }
    // What the registry says it sent of the blob is one image, no byte more.
    let blob = image.blob_digest.to_string();
    let answers = index.block_count() as usize;
    assert_eq!(registry.response_bytes("GET", &blob, answers), image.blob_bytes);
    assert_eq!(reader.counters().snapshot().bytes, image.blob_bytes + image.index_bytes);
}

#[test]
fn docker_manifests_and_indexes_of_several_platforms_are_understood() {
    let (registry, layout) = (Registry::start(Options::default()), layout());
    let (settings, spool) = (settings(&[registry.host()]), tempfile::tempdir().expect("folder"));
    let client = BlockingClient::new(&settings.origin, 1).expect("made");
    let pushed: Reference = registry.push_as(&layout, "app:docker", "v2s2").parse().expect("valid");
    let manifest = client.wait(|client| client.manifest(&pushed, 1 << 20)).expect("there");
    assert_eq!(manifest.media_type, "application/vnd.docker.distribution.manifest.v2+json");
    let ours = Platform::of_this_machine().architecture;
    for (kind, foreign) in [
        ("application/vnd.docker.distribution.manifest.list.v2+json", "s390x"),
        ("application/vnd.oci.image.index.v1+json", "riscv64"),
    ] {
        let entry = |digest: &str, architecture: &str| {
            json!({
                "mediaType": manifest.media_type, "digest": digest, "size": manifest.bytes.len(),
                "platform": { "os": "linux", "architecture": architecture },
            })
        };
        let ours = entry(&manifest.digest.to_string(), &ours);
        // docker-registry refuses an index that names what it has not.
        let other = entry(&manifest.digest.to_string(), foreign);
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [other, ours] }).to_string();
        let tag: Reference = format!("{}/app:1", registry.host()).parse().expect("valid");
        client.wait(|client| client.push_manifest(&tag, kind, index.into())).expect("pushed");
        let image = convert_in(&settings, &registry.host(), spool.path()).expect("converted");
        assert_eq!(image.source, manifest.digest);
    }
}

#[test]
fn a_layer_that_is_damaged_or_ends_early_is_named() {
    let registry = Registry::start(Options::default());
    let layout = layout();
    registry.push(&layout, "app:1");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let spool = tempfile::tempdir().expect("folder");
    let layer = layout.manifest().1["layers"][0]["digest"].as_str().expect("a digest").to_owned();
    let convert_with = |fault: Fault| {
        let path = format!("/blobs/{layer}");
        let plan = move |request: &crate::proxy::Request, before| match request.path.ends_with(&path) {
            true if before == 0 => fault.clone(),
            true => Fault::Cut(0),
            false => Fault::None,
        };
        let proxy = runtime.block_on(Proxy::start(registry.address(), plan));
        convert_in(&settings(&[proxy.host()]), &proxy.host(), spool.path()).expect_err("not converted")
    };
    let error = convert_with(Fault::Flip(1_000_000));
    assert!(matches!(error, ConvertError::Source(SourceError::WrongDigest { .. })), "{error:?}");
    assert!(error.to_string().contains(&layer), "{error}");
    let error = convert_with(Fault::Cut(1_000_000));
    assert!(
        matches!(error, ConvertError::Source(SourceError::Truncated { got: 1_000_000, .. })),
        "{error:?}"
    );
    assert_eq!(std::fs::read_dir(spool.path()).expect("there").count(), 0, "nothing is left behind");
}

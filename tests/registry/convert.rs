//! The whole road: a source image in a registry becomes a block image in the registry, and each of its
//! blocks is read from there.

use crate::{
    layout, log_in, noise,
    proxy::{Fault, Proxy},
    registry::{Layout, Options, PASSWORD, Registry},
};
use faasnet::{
    image::{
        convert::{ConvertError, ConvertOptions, convert, convert_again},
        inspect::{InspectError, OriginParts, open_artifact, verify},
        progress::Progress,
        publish::{self, Destination},
        resolve::Platform,
        source::{self, Source, SourceError},
    },
    origin,
    registry::{BlockingClient, Reference},
    settings::Settings,
};
use faasnet_actors::{
    id::BlockId,
    image::{BlockImage, ImageLocation, Index},
    profile::Profile,
    world::{Origin, Packing, Part},
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path, sync::Arc};

fn convert_in(settings: &Settings, host: &str, spool: &Path) -> Result<BlockImage, ConvertError> {
    let (source, destination, options) = ends(settings, host, spool);
    convert(&*source, &*destination, &options, &Progress::default())
}

fn ends(
    settings: &Settings,
    host: &str,
    spool: &Path,
) -> (Box<dyn Source>, Box<dyn Destination>, ConvertOptions) {
    let source = source::open(&format!("{host}/app:1"), settings).expect("a reference");
    let destination = publish::open(&format!("registry:{host}/blocks"), settings).expect("a repository");
    let options = ConvertOptions {
        platform: Platform::of_this_machine(),
        settings: settings.image.clone(),
        spool: spool.to_owned(),
    };
    (source, destination, options)
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
fn plain_and_packed_artifacts_of_one_source_are_told_apart_by_their_referrers() {
    let registry = Registry::start(Options::default());
    registry.push(&layout(), "app:1");
    let (settings, spool) = (settings(&[registry.host()]), tempfile::tempdir().expect("folder"));
    let plain = convert_in(&settings, &registry.host(), spool.path()).expect("converted");
    // The name leads to another image meanwhile.
    registry.push(&Layout::make(&[("other", &noise(512))]), "app:1");
    let parts = [("/data".parse().expect("a path"), 1_000_000..1_100_000)];
    let profile = Arc::new(Profile::recorded(parts));
    let (source, destination, options) = ends(&settings, &registry.host(), spool.path());
    let packing = Packing { source: plain.source, profile: Arc::clone(&profile) };
    let packed =
        convert_again(&*source, &*destination, &options, &packing, &Progress::default()).expect("packed");
    assert_eq!(packed.source, plain.source);
    assert_ne!(packed.id, plain.id);

    let client = BlockingClient::new(&settings.origin, 1).expect("made");
    let repository = format!("{}/blocks", registry.host()).parse().expect("a repository");
    let listed = client.wait(|client| client.referrers(&repository, plain.source, 1 << 20)).expect("listed");
    let profiles: BTreeMap<_, _> = listed
        .into_iter()
        .map(|entry| (entry.digest, entry.annotations.get("io.faasnet.profile").cloned()))
        .collect();
    assert_eq!(profiles, [(plain.id, None), (packed.id, Some(profile.fingerprint()))].into());

    for image in [plain, packed] {
        let reference = format!("{}/blocks@{}", registry.host(), image.id);
        let artifact = source::open(&reference, &settings).expect("a reference");
        let opened = open_artifact(&*artifact, image.location.clone(), 1 << 20).expect("an artifact");
        assert_eq!(opened, image);
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let origin = origin::open(&settings.origin, 1).expect("opened");
        let parts = OriginParts { origin, image: image.clone(), runtime: runtime.handle().clone() };
        verify(&image, &parts, &Progress::default()).expect("sound");
    }
    let nowhere = ImageLocation::Registry { repository: "nowhere/app".to_owned() };
    assert!(matches!(open_artifact(&*source, nowhere, 1 << 20), Err(InspectError::Artifact { .. })));
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

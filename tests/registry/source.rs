//! Source images in a registry, read by code that blocks.

use crate::{
    layout,
    proxy::{Fault, Proxy, Request},
    registry::{Layout, Options, Registry},
    settings,
};
use faasnet::{
    image::source::{BlobRef, Source, SourceError, registry::RegistrySource},
    registry::BlockingClient,
};
use std::{fs, io::Read, time::Duration};
use tokio::runtime::Runtime;

struct World {
    runtime: Runtime,
    registry: Registry,
    layout: Layout,
}

fn world() -> World {
    let (registry, layout) = (Registry::start(Options::default()), layout());
    registry.push(&layout, "app:1");
    World { runtime: Runtime::new().expect("runtime"), registry, layout }
}

impl World {
    fn proxy(&self, plan: impl Fn(&Request, usize) -> Fault + Send + Sync + 'static) -> Proxy {
        self.runtime.block_on(Proxy::start(self.registry.address(), plan))
    }

    fn layer(&self) -> (BlobRef, Vec<u8>) {
        let layer = &self.layout.manifest().1["layers"][0];
        let digest = layer["digest"].as_str().expect("a digest");
        let bytes = fs::read(self.layout.blob_file(digest)).expect("there");
        let media_type = layer["mediaType"].as_str().expect("a type").to_owned();
        (BlobRef { media_type, digest: digest.parse().expect("valid"), size: bytes.len() as u64 }, bytes)
    }
}

fn source(host: &str, reference: &str) -> RegistrySource {
    limited_source(host, reference, 1 << 20)
}

fn limited_source(host: &str, reference: &str, manifest_bytes_max: u64) -> RegistrySource {
    let client = BlockingClient::new(&settings([host.to_owned()]), 1).expect("made");
    let reference = format!("{host}/{reference}").parse().expect("valid");
    RegistrySource::new(client, reference, manifest_bytes_max)
}

fn read_all(source: &RegistrySource, blob: &BlobRef) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    match source.blob(blob)?.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.downcast().expect("wraps the reason")),
    }
}

#[test]
fn an_image_is_read_by_tag_and_by_digest() {
    let world = world();
    let (digest, _) = world.layout.manifest();
    let (blob, bytes) = world.layer();
    for name in ["app:1".to_owned(), format!("app@{digest}"), format!("app:wrong@{digest}")] {
        let source = source(&world.registry.host(), &name);
        let root = source.root().expect("there");
        assert_eq!(root.digest.to_string(), digest);
        assert_eq!(root.media_type, "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(root.bytes, fs::read(world.layout.blob_file(&digest)).expect("there"));
        assert_eq!(source.manifest(root.digest).expect("there"), root);
        for _ in 0..2 {
            assert!(read_all(&source, &blob).expect("read") == bytes);
        }
    }
}

#[test]
fn a_layer_that_is_cut_is_resumed_where_it_stopped() {
    let world = world();
    let (blob, bytes) = world.layer();
    let proxy = world.proxy(|request, before| match before {
        0 | 1 if request.is_blob() => Fault::Cut(700_000),
        _ => Fault::None,
    });
    assert!(read_all(&source(&proxy.host(), "app:1"), &blob).expect("read") == bytes);
    let requests = proxy.requests();
    let ranges: Vec<_> = requests.iter().map(|request| request.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=700000-"), Some("bytes=1400000-")]);
}

#[test]
fn each_failing_answer_is_told_apart() {
    let world = world();
    let (blob, bytes) = world.layer();
    let error_of = |fault: Fault| {
        let proxy = world.proxy(move |request, before| match request.is_blob() {
            true if before > 0 && matches!(fault, Fault::Cut(_)) => Fault::Cut(0),
            _ => fault.clone(),
        });
        let source = source(&proxy.host(), "app:1");
        let (root, layer) = (source.root(), read_all(&source, &blob));
        (root.expect_err("the manifest fails"), layer.expect_err("the layer fails"))
    };
    let both = |(one, other): (SourceError, SourceError), is_right: fn(&SourceError) -> bool| {
        assert!(is_right(&one) && is_right(&other), "{one:?} {other:?}");
    };
    both(error_of(Fault::Answer(404, String::new())), |error| matches!(error, SourceError::NotFound { .. }));
    both(error_of(Fault::Answer(403, String::new())), |error| {
        matches!(error, SourceError::Unauthorized { .. })
    });
    both(error_of(Fault::Answer(401, "www-authenticate: Basic realm=\"x\"\r\n".to_owned())), |error| {
        matches!(error, SourceError::Unauthorized { .. })
    });
    both(
        error_of(Fault::Answer(429, "retry-after: 99\r\n".to_owned())),
        |error| matches!(error, SourceError::RateLimited { retry_after, .. } if *retry_after == Some(Duration::from_secs(99))),
    );
    both(
        error_of(Fault::Answer(500, String::new())),
        |error| matches!(error, SourceError::Unavailable { reason, .. } if reason.contains("500")),
    );
    let (root, layer) = error_of(Fault::Cut(100));
    assert!(matches!(root, SourceError::Truncated { got: 100, .. }), "{root:?}");
    let expected = bytes.len() as u64;
    assert!(
        matches!(layer, SourceError::Truncated { got: 100, expected: e, .. } if e == expected),
        "{layer:?}"
    );
}

#[test]
fn a_changed_manifest_a_long_one_and_a_long_layer_are_refused() {
    let world = world();
    let (digest, _) = world.layout.manifest();
    let proxy = world.proxy(|_, _| Fault::Flip(20));
    for name in [format!("app@{digest}"), "app:1".to_owned()] {
        let changed = source(&proxy.host(), &name).root().expect_err("changed");
        assert!(matches!(changed, SourceError::WrongDigest { .. }), "{changed:?}");
    }
    let long = limited_source(&world.registry.host(), "app:1", 100).root().expect_err("long");
    assert!(long.to_string().contains("image.manifest_bytes_max"), "{long}");
    let (mut blob, _) = world.layer();
    blob.size -= 1;
    let longer = read_all(&source(&world.registry.host(), "app:1"), &blob).expect_err("longer than stated");
    assert!(matches!(longer, SourceError::Invalid { .. }), "{longer:?}");
    blob.size += 2;
    let shorter = read_all(&source(&world.registry.host(), "app:1"), &blob).expect_err("shorter than stated");
    assert!(!matches!(shorter, SourceError::Invalid { .. }), "{shorter:?}");
}

#[test]
fn trouble_with_the_connection_is_told_apart() {
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let error = source(&closed.to_string(), "app:1").root().expect_err("closed");
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error:?}");
    let registry = Registry::start(Options { tls: true, ..Options::default() });
    let client = BlockingClient::new(&settings([]), 1).expect("made");
    let reference = format!("{}/app:1", registry.host()).parse().expect("valid");
    let error = RegistrySource::new(client, reference, 1 << 20).root().expect_err("unknown authority");
    assert!(matches!(error, SourceError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains("origin.ca_files"), "{error}");
}

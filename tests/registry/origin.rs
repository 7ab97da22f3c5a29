//! The origin over a registry.

use crate::{
    good_docker_config, layout,
    proxy::{Fault, Proxy},
    registry::{Layout, Options, Registry},
    settings,
};
use faasnet::{
    origin::{self, OriginReader},
    settings::OriginSettings,
};
use faasnet_actors::{
    image::{BlockImage, ImageLocation, RuntimeConfig},
    world::{Origin, OriginError, Part},
};
use std::{fs, sync::Arc, time::Duration};

/// The layer of an image as blob, its configuration as index.
fn image(layout: &Layout, host: &str) -> (BlockImage, Vec<u8>) {
    let (digest, manifest) = layout.manifest();
    let (config, layer) = (&manifest["config"], &manifest["layers"][0]);
    let digest_of =
        |blob: &serde_json::Value| blob["digest"].as_str().expect("a digest").parse().expect("valid");
    let image = BlockImage {
        id: digest.parse().expect("valid"),
        source: digest.parse().expect("valid"),
        index_digest: digest_of(config),
        index_bytes: config["size"].as_u64().expect("a size"),
        blob_digest: digest_of(layer),
        blob_bytes: layer["size"].as_u64().expect("a size"),
        plain_bytes: 0,
        location: ImageLocation::Registry { repository: format!("{host}/app") },
        runtime: RuntimeConfig::default(),
    };
    let blob = fs::read(layout.blob_file(layer["digest"].as_str().expect("a digest"))).expect("there");
    (image, blob)
}

struct World {
    registry: Registry,
    proxy: Proxy,
    image: BlockImage,
    blob: Vec<u8>,
}

/// A registry with an image, and a proxy that does this to the n-th request for the blob.
async fn world(fault: impl Fn(usize) -> Fault + Send + Sync + 'static) -> World {
    let (registry, layout) = (Registry::start(Options::default()), layout());
    registry.push(&layout, "app:1");
    let plan = move |request: &crate::proxy::Request, before| {
        if request.is_blob() { fault(before) } else { Fault::None }
    };
    let proxy = Proxy::start(registry.address(), plan).await;
    let (image, blob) = image(&layout, &proxy.host());
    World { registry, proxy, image, blob }
}

impl World {
    fn reader(&self, change: impl FnOnce(&mut OriginSettings)) -> Arc<OriginReader> {
        let mut settings = settings([self.proxy.host(), self.registry.host()]);
        change(&mut settings);
        origin::open(&settings, 1).expect("opened")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_the_right_bytes_and_the_counts_are_the_registrys() {
    let world = world(|_| Fault::None).await;
    let reader = world.reader(|_| {});
    let end = world.image.blob_bytes;
    for range in [0..524_288, 1_000_000..1_524_288, end - 1..end, 5..5, 0..end] {
        let bytes = reader.read(&world.image, Part::Blob, range.clone()).await.expect("read");
        assert_eq!(bytes, world.blob[range.start as usize..range.end as usize]);
    }
    let index = reader.read(&world.image, Part::Index, 0..world.image.index_bytes).await.expect("read");
    assert!(index.starts_with(b"{"));
    let counts = reader.counters().snapshot();
    assert_eq!((counts.retries, counts.wasted_bytes), (0, 0));
    // Nothing else reads blobs: the push asked only whether they were there.
    assert_eq!(counts.requests, 5);
    assert_eq!(counts.bytes, world.registry.response_bytes("GET", "/blobs/", 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stumbling_registry_is_asked_again_and_each_byte_is_counted() {
    let world = world(|before| match before {
        0 => Fault::Answer(500, String::new()),
        1 => Fault::Answer(429, "retry-after: 1\r\n".to_owned()),
        2 => Fault::Cut(1000),
        _ => Fault::None,
    })
    .await;
    let reader = world.reader(|_| {});
    let bytes = reader.read(&world.image, Part::Blob, 10..500_010).await.expect("read");
    assert_eq!(bytes, world.blob[10..500_010]);
    let counts = reader.counters().snapshot();
    assert_eq!((counts.requests, counts.retries), (4, 3));
    assert_eq!((counts.bytes, counts.wasted_bytes), (501_000, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_waited_for() {
    let world = world(|before| match before {
        0 => Fault::Answer(429, "retry-after: 1\r\n".to_owned()),
        _ => Fault::None,
    })
    .await;
    let began = std::time::Instant::now();
    world.reader(|_| {}).read(&world.image, Part::Blob, 0..10).await.expect("read");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_get_better_fails_with_its_reason_after_few_requests() {
    let truncated = OriginError::Truncated { got: 1000, wanted: 10_000 };
    let hour = Some(Duration::from_secs(3600));
    type Check = Box<dyn Fn(&OriginError) -> bool>;
    let cases: [(Fault, usize, Check); 7] = [
        (Fault::Answer(500, String::new()), 4, Box::new(|error| error.to_string().contains("500"))),
        (Fault::Cut(1000), 4, Box::new(move |error| *error == truncated)),
        (Fault::Answer(404, String::new()), 1, Box::new(|error| matches!(error, OriginError::NotFound(_)))),
        (
            Fault::Answer(403, String::new()),
            1,
            Box::new(|error| matches!(error, OriginError::Unauthorized(_))),
        ),
        (Fault::Answer(416, String::new()), 1, Box::new(|error| error.to_string().contains("416"))),
        (
            Fault::Answer(429, "retry-after: 3600\r\n".to_owned()),
            1,
            Box::new(move |error| *error == OriginError::Busy { retry_after: hour }),
        ),
        (Fault::Answer(206, String::new()), 1, Box::new(|error| error.to_string().contains("range"))),
    ];
    for (fault, requests, is_right) in cases {
        let told = fault.clone();
        let world = world(move |_| told.clone()).await;
        let error = world.reader(|_| {}).read(&world.image, Part::Blob, 0..10_000).await.expect_err("fails");
        assert!(is_right(&error), "{fault:?}: {error}");
        assert_eq!(world.proxy.requests().len(), requests, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_is_left_at_the_deadline() {
    let world = world(|_| Fault::Hold(1000)).await;
    let reader = world.reader(|settings| {
        settings.read_ms = 2000;
        settings.attempts_max = 1;
    });
    let error = reader.read(&world.image, Part::Blob, 0..10_000).await.expect_err("silent");
    assert_eq!(error, OriginError::Truncated { got: 1000, wanted: 10_000 });
    assert_eq!(reader.counters().snapshot().bytes, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_ignores_ranges_is_not_read_to_the_end() {
    let world = world(|_| Fault::NoRange).await;
    let reader = world.reader(|_| {});
    let near = reader.read(&world.image, Part::Blob, 1000..2000).await.expect("near the start");
    assert_eq!(near, world.blob[1000..2000]);
    let far = reader.read(&world.image, Part::Blob, 2_000_000..2_001_000).await.expect_err("far");
    assert!(far.to_string().contains("ignores ranges"), "{far}");
    let counts = reader.counters().snapshot();
    assert_eq!(counts.requests, 2);
    assert!(counts.bytes < 500_000, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_was_asked_for_is_not_used() {
    let world = world(|_| Fault::Surplus(5000)).await;
    let reader = world.reader(|_| {});
    let bytes = reader.read(&world.image, Part::Blob, 0..100).await.expect("read");
    assert_eq!(bytes, world.blob[..100]);
    let counts = reader.counters().snapshot();
    assert_eq!(counts.bytes, 100 + counts.wasted_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_takes_no_credentials_along() {
    let (registry, layout) = (Registry::start(Options { password: true, ..Options::default() }), layout());
    registry.push(&layout, "app:1");
    let storage = Registry::start(Options::default());
    storage.push(&layout, "app:1");
    let elsewhere = Proxy::start(storage.address(), |_, _| Fault::None).await;
    let target = elsewhere.host();
    let proxy = Proxy::start(registry.address(), move |request, _| {
        let is_let_in = request.header("authorization").is_some();
        match request.is_blob() && is_let_in {
            true => Fault::Answer(307, format!("location: http://{target}{}\r\n", request.path)),
            false => Fault::None,
        }
    })
    .await;
    let (image, blob) = image(&layout, &proxy.host());
    let mut settings = settings([proxy.host(), elsewhere.host()]);
    settings.docker_config = good_docker_config(&proxy.host());
    let reader = origin::open(&settings, 1).expect("opened");
    let bytes = reader.read(&image, Part::Blob, 7..70).await.expect("read over the redirect");
    assert_eq!(bytes, blob[7..70]);
    let sent = elsewhere.requests();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].header("authorization").is_none(), "{sent:?}");
    assert_eq!(sent[0].header("range"), Some("bytes=7-69"));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_limited_and_do_not_give_up_tls() {
    let world = world(|_| Fault::Answer(302, "location: ?again\r\n".to_owned())).await;
    let error = world.reader(|_| {}).read(&world.image, Part::Blob, 0..10).await.expect_err("a loop");
    assert!(error.to_string().contains("origin.redirects_max"), "{error}");
    assert_eq!(world.proxy.requests().len(), 6);
    let world = self::world(|_| Fault::Answer(302, "location: http://10.0.0.1:81/x\r\n".to_owned())).await;
    let error = world.reader(|_| {}).read(&world.image, Part::Blob, 0..10).await.expect_err("no TLS");
    let text = error.to_string();
    assert!(text.contains("\"10.0.0.1:81\" to origin.plain_http_registries"), "{text}");
}

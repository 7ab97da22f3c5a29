//! The parts that tests are built on, themselves tested on the real programs.

#![allow(clippy::unwrap_used, reason = "clippy knows test functions, but not the helpers beside them")]

use faasnet_loadtest::{
    bed::{Bed, BedSpec, HostSpec, Rate},
    rig::{Api, Image, Registry, Variant},
};
use std::{fs, path::Path};

fn cache() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rig")
}

#[test]
fn the_registry_and_the_interface_count_the_same_bytes() {
    let rate = Some(Rate::mbit(1000));
    let hosts = vec![HostSpec::new("registry", rate), HostSpec::new("client", rate)];
    let bed = Bed::up(BedSpec { hosts }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::on_bed(bed.state(), "registry", folder.path()).unwrap();
    let image = Image::cached(&cache(), Variant::Minimal).unwrap();
    registry.push(&image, "library/python").unwrap();

    let address = registry.name().parse().unwrap();
    let from = Some((bed.state().clone(), "client".to_owned()));
    let client = Api { address, token: "unused".to_owned(), from };
    let manifest = image.manifest().unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let before = bed.counters("client").unwrap().received_bytes;
    let blob = client.call("GET", &format!("/v2/library/python/blobs/{layer}"), "").unwrap().body;
    let received = bed.counters("client").unwrap().received_bytes - before;

    assert_eq!(fs::read(registry.blob_file(layer)).unwrap(), blob);
    let given = registry.given(layer).unwrap();
    assert_eq!((given.answers, given.bytes), (1, blob.len() as u64));
    let ratio = received as f64 / blob.len() as f64;
    assert!((1.0..1.1).contains(&ratio), "{received} bytes received for {}", blob.len());
}

#[test]
fn the_image_is_an_image_to_containerd_and_its_server_answers() {
    let hosts = vec![HostSpec::new("registry", None), HostSpec::new("vm-1", None)];
    let bed = Bed::up(BedSpec { hosts }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::on_bed(bed.state(), "registry", folder.path()).unwrap();
    let image = Image::cached(&cache(), Variant::Minimal).unwrap();
    let reference = registry.push(&image, "library/python").unwrap();
    let measured =
        faasnet_loadtest::compare::pull_and_run(bed.state(), "vm-1", &reference, "IMPORTS=1").unwrap();
    eprintln!("{measured:?}");
    assert!(measured.received_bytes >= image.layer_bytes().unwrap(), "{measured:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("containerd"), "{mounts}");
}

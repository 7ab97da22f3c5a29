//! The sample function: built on the spot, served from an OCI layout folder.

use crate::support::*;
use faasnet::sample::{self, SampleOptions};
use faasnet_loadtest::rig::Cluster;
use serde_json::Value;

#[test]
fn the_sample_reads_at_its_start_what_its_builder_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        SampleOptions { seed: 5, program: program().into(), ballast_bytes: 64 << 20, read_bytes: 8 << 20 };
    let image = sample::build(&folder.path().join("layout"), &options).unwrap();
    let mut spec = spec(2);
    let root = folder.path().to_str().unwrap().to_owned();
    spec.settings.insert("IMAGE__LAYOUT_ROOTS".to_owned(), root);
    let cluster = Cluster::up(spec).unwrap();
    let more = ["--env", "GREETING=hello"];
    cluster
        .cli(&[&["function", "deploy", "sample", "--image", &image.reference()], &more[..]].concat())
        .unwrap();

    for start in start_ready(&cluster, "sample", 2) {
        let answer: Value = serde_json::from_str(&invoke(&cluster, "sample", "/", &start)).unwrap();
        assert_eq!(text(&answer, "start_digest"), image.start_digest, "{answer}");
        let env: Value = serde_json::from_str(&invoke(&cluster, "sample", "/env", &start)).unwrap();
        assert_eq!(text(&env, "GREETING"), "hello");
    }
    let echoed = cluster.cli(&["invoke", "sample", "/echo", "--data", "round trip"]).unwrap();
    assert_eq!(echoed, "round trip");
}

//! A burst onto eight VMs that have nothing, with a registry and links of 1 Gbit/s.

use crate::support::*;
use faasnet_loadtest::{bed::Rate, rig::ClusterSpec};
use std::collections::BTreeSet;

const VMS: usize = 8;
/// Frames, TCP, TLS and heartbeats on top of what the stores count, and what TCP sent again.
const OVERHEAD: f64 = 1.15;
/// Control messages, certificates, requests and listings that no store counts.
const OTHER_BYTES: u64 = 8 << 20;

#[test]
fn eight_vms_answer_the_registry_gives_one_image_and_the_counters_agree() {
    let rate = Some(Rate::mbit(1000));
    let mut spec = ClusterSpec { rate, ..spec(VMS) };
    // To tell what the first starts read, the manager reads the image's index and metadata as well.
    spec.settings.insert("PROFILE__RECORDINGS_MAX".into(), "0".into());
    let (cluster, reference) = cluster_with_python(spec);
    cluster.cli(&["function", "deploy", "python", "--image", &reference, "--memory", "128"]).unwrap();
    let given_before = cluster.registry.given_by_blob().unwrap();
    let sent_before = cluster.bed.counters("registry").unwrap().sent_bytes;
    let names: Vec<String> = (1..=VMS).map(|number| format!("vm-{number}")).collect();
    let received = |vm: &String| cluster.bed.counters(vm).unwrap().received_bytes;
    let received_before: Vec<u64> = names.iter().map(received).collect();

    let starts = start_ready(&cluster, "python", VMS);
    let vms: BTreeSet<&str> = starts.iter().map(|start| text(start, "vm")).collect();
    assert_eq!(vms.len(), VMS, "one instance on each VM: {vms:?}");
    let mut processes = BTreeSet::new();
    for start in &starts {
        let answer: serde_json::Value =
            serde_json::from_str(&invoke(&cluster, "python", "/", start)).unwrap();
        processes.insert((text(start, "vm").to_owned(), number(&answer, "/port")));
    }
    assert_eq!(processes.len(), VMS, "every instance answers for itself");

    // The API first, the interfaces after it: what is counted meanwhile only widens the interfaces' side.
    let resting = resting_vms(&cluster);
    let mut origin_bytes = 0;
    for (vm, before) in names.iter().zip(received_before) {
        let counted = stored_bytes(&resting[vm]);
        let [_, _, origin] = counted;
        origin_bytes += origin;
        let stored: u64 = counted.iter().sum();
        let on_the_wire = received(vm) - before;
        eprintln!("{vm}: stores {counted:?}, interface {on_the_wire}");
        assert!(stored > 0, "{vm} got blocks");
        assert!(on_the_wire >= stored, "{vm}: stores counted {stored}, the interface {on_the_wire}");
        let most = (stored as f64 * OVERHEAD) as u64 + OTHER_BYTES;
        assert!(on_the_wire <= most, "{vm}: stores counted {stored}, the interface {on_the_wire}");
    }

    // The registry's own account: no byte of any blob twice.
    let mut given_bytes = 0;
    for (digest, given) in cluster.registry.given_by_blob().unwrap() {
        let before = given_before.get(&digest).copied().unwrap_or_default();
        let bytes = given.bytes - before.bytes;
        let length = std::fs::metadata(cluster.registry.blob_file(&digest)).unwrap().len();
        eprintln!(
            "registry: {bytes} of {length} bytes of {digest} in {} answers",
            given.answers - before.answers
        );
        assert!(bytes <= length, "{bytes} bytes of {digest}, which has {length}");
        given_bytes += bytes;
    }
    assert!(given_bytes >= origin_bytes, "stores counted {origin_bytes}, the registry gave {given_bytes}");
    let sent = cluster.bed.counters("registry").unwrap().sent_bytes - sent_before;
    assert!(sent >= given_bytes, "the registry gave {given_bytes}, its interface sent {sent}");
    let most = (given_bytes as f64 * OVERHEAD) as u64 + OTHER_BYTES;
    assert!(sent <= most, "the registry gave {given_bytes}, its interface sent {sent}");

    // What a root and what a leaf of the tree sees is the image.
    let image = reference_listing(&python());
    let of_vm = |vm: &str| starts.iter().find(|start| text(start, "vm") == vm).expect("one on each VM");
    let tree = cluster.api.get("/v1/functions/python/tree").unwrap();
    let members = tree["members"].as_array().unwrap();
    assert_eq!(members.len(), VMS);
    let root = members.iter().find(|member| member["parent"].is_null()).expect("a root");
    let is_leaf = |member: &&serde_json::Value| member["children"].as_array().is_some_and(Vec::is_empty);
    let leaf = members.iter().rfind(is_leaf).expect("a leaf");
    for vm in [text(root, "vm"), text(leaf, "vm")] {
        let lines = invoke(&cluster, "python", "/list", of_vm(vm));
        assert_same_tree(&image, &container_listing(&lines));
    }
}

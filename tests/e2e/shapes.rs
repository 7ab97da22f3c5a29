//! The whole image on six VMs in a tree of another shape, one of which loses its power in the middle.

use crate::support::*;
use faasnet_loadtest::{
    bed::Rate,
    rig::{Cluster, ClusterSpec, wait_until},
};
use std::{collections::BTreeMap, thread};

const VMS: usize = 6;
/// The image's blocks take about four seconds at that rate, so that there is a middle.
const LINK: u64 = 60;
/// Neither the root nor at the end of the tree, as the order of joins has it.
const VICTIM: &str = "vm-3";

/// Bytes that each VM has sent, after all that are left have read every file and what they read was the image's.
fn sent_when_one_is_lost(topology: &str) -> (BTreeMap<String, u64>, u64) {
    let mut spec = ClusterSpec { rate: Some(Rate::mbit(LINK)), ..spec_of_single_instances(VMS) };
    spec.settings.insert("TREE__TOPOLOGY".into(), topology.into());
    let (mut cluster, reference) = cluster_with_python(spec);
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let names: Vec<String> = (1..=VMS).map(|number| format!("vm-{number}")).collect();
    let counters = |cluster: &Cluster, vm: &str| cluster.bed.counters(vm).unwrap();
    let sent_before: BTreeMap<&String, u64> =
        names.iter().map(|vm| (vm, counters(&cluster, vm).sent_bytes)).collect();
    let starts = start_ready(&cluster, "python", VMS);
    let tree = cluster.api.get("/v1/functions/python/tree").unwrap();
    let further = tree.get("further_stripes").map_or(0, |stripes| stripes.as_array().unwrap().len());
    assert_eq!(further, usize::from(topology == "striped"), "{tree}");
    let image = reference_listing(&python());
    let before: BTreeMap<&String, u64> =
        names.iter().map(|vm| (vm, counters(&cluster, vm).received_bytes)).collect();
    let readers: Vec<_> = starts
        .iter()
        .map(|start| {
            let mut command = cluster.command("manager").unwrap();
            command.args(["invoke", "python", "/list", "--on", text(start, "id")]);
            (text(start, "vm").to_owned(), thread::spawn(move || command.output().unwrap()))
        })
        .collect();
    let received = |cluster: &Cluster| counters(cluster, VICTIM).received_bytes - before[&VICTIM.to_owned()];
    let in_the_middle = || Ok((received(&cluster) > 4 << 20).then_some(()));
    wait_until("the victim to have some of the image", READY, in_the_middle).unwrap();
    cluster.cut_power(VICTIM).unwrap();
    for (vm, reader) in readers {
        let output = reader.join().unwrap();
        if vm != VICTIM {
            assert!(output.status.success(), "{vm}: {}", String::from_utf8_lossy(&output.stderr));
            assert_same_tree(&image, &container_listing(&String::from_utf8(output.stdout).unwrap()));
        }
    }
    let resting = resting_vms(&cluster);
    let mut stored = 0;
    let mut sent = BTreeMap::new();
    for vm in names.iter().filter(|vm| *vm != VICTIM) {
        let bytes = stored_bytes(&resting[vm]);
        stored = stored.max(bytes.iter().sum());
        sent.insert(vm.clone(), counters(&cluster, vm).sent_bytes - sent_before[vm]);
        eprintln!("{topology} {vm}: parent, others, origin {bytes:?}; sent {}", sent[vm]);
    }
    (sent, stored)
}

#[test]
fn every_uplink_of_a_striped_tree_is_used_and_the_image_is_whole_when_a_vm_is_lost() {
    let (sent, stored) = sent_when_one_is_lost("striped");
    // Two stripes: who is interior gives each of its children half of the image. The one that is lost may
    // have been the only child of somebody.
    for (vm, bytes) in sent {
        assert!(bytes > stored / 5, "{vm} has sent {bytes} of an image of {stored}");
    }
}

#[test]
fn the_image_is_whole_in_an_avl_tree_when_a_vm_is_lost() {
    let (sent, stored) = sent_when_one_is_lost("avl");
    assert!(sent.values().any(|bytes| *bytes > stored), "a VM with two children feeds both: {sent:?}");
}

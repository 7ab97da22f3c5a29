//! What the first start read is fetched ahead by the next ones, also after the manager was killed.

use crate::support::*;
use faasnet_loadtest::rig::{Cluster, ClusterSpec, wait_until};
use serde_json::Value;

/// VMs with room for one instance each; the first start is recorded and no other, and nothing is packed unasked.
fn recorded_once(vms: usize) -> ClusterSpec {
    packed_after(0, vms)
}

/// The first start is recorded and no other; the image is packed by itself after so many recordings.
fn packed_after(recordings: u32, vms: usize) -> ClusterSpec {
    let mut spec = spec_of_single_instances(vms);
    spec.settings.insert("PROFILE__RECORDINGS_MAX".into(), "1".into());
    spec.settings.insert("PROFILE__OPTIMIZE_AFTER".into(), recordings.to_string());
    spec
}

fn profile(cluster: &Cluster) -> Value {
    let asked = || Ok(cluster.api.get("/v1/functions/python/profile").ok());
    wait_until("the first start to be recorded", READY, asked).unwrap()
}

#[test]
fn the_second_start_has_what_it_reads_before_it_reads_it() {
    let (mut cluster, reference) = cluster_with_python(recorded_once(2));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let unread = cluster.cli(&["image", "profile", "python"]).unwrap_err();
    assert!(format!("{unread:#}").contains("start an instance"), "{unread:#}");

    let first = start_ready(&cluster, "python", 1).remove(0);
    let recorded = profile(&cluster);
    assert_eq!(number(&recorded, "/recordings"), 1);
    let (plain, blocks) = (number(&recorded, "/plain_bytes"), number(&recorded, "/blocks"));
    assert!(plain > 1 << 20 && number(&recorded, "/files") > 20, "{plain} bytes");
    let parts = recorded["profile"]["parts"].as_array().unwrap();
    assert!(parts.iter().any(|part| text(part, "path").contains("python3")), "the interpreter was read");

    cluster.kill_manager().unwrap();
    cluster.start_manager().unwrap();
    cluster.wait_for_vms(2).unwrap();
    assert_eq!(profile(&cluster), recorded);

    let second = start_ready(&cluster, "python", 1).remove(0);
    assert_ne!(text(&second, "vm"), text(&first, "vm"));
    let stalls = |start: &Value| number(start, "/stalls");
    eprintln!("stalls {} and {}, {blocks} hot blocks", stalls(&first), stalls(&second));
    assert!(stalls(&first) >= blocks / 2, "the first start waits for most of what it reads");
    assert!(stalls(&second) <= stalls(&first) / 2, "the second one has asked for it before");
    assert_eq!(number(&second, "/bytes/origin"), 0, "{second}");
    // What starts read is read right, however it came.
    let answers =
        [&first, &second].map(|start| container_listing(&invoke(&cluster, "python", "/list", start)));
    assert_same_tree(&answers[0], &answers[1]);
}

/// What the tree of a start's image gave to its VM, in blocks and stored bytes.
fn given(cluster: &Cluster, start: &Value) -> (u64, u64) {
    let vms = resting_vms(cluster);
    let vm = &vms[text(start, "vm")];
    let trees = vm["trees"].as_array().unwrap();
    assert_eq!(trees.len(), 1, "{vm}");
    (number(&trees[0], "/blocks_present"), stored_bytes(vm).iter().sum())
}

#[test]
fn starts_on_a_packed_image_read_the_same_in_a_part_of_the_bytes() {
    let (cluster, reference) = cluster_with_python(recorded_once(3));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let first = start_ready(&cluster, "python", 1).remove(0);
    let recorded = profile(&cluster);
    let plain = given(&cluster, &first);

    let packed = cluster.cli(&["--json", "image", "optimize", "python", "--wait"]).unwrap();
    let packed: Value = serde_json::from_str(&packed).unwrap();
    assert_eq!((&packed["is_packed"], text(&packed["packing"], "state")), (&Value::Bool(true), "done"));
    assert_ne!(text(&packed, "image"), text(&recorded, "image"));
    assert!(number(&packed, "/blocks") * 2 < number(&recorded, "/blocks"), "{packed:#}");

    let second = start_ready(&cluster, "python", 1).remove(0);
    let third = start_ready(&cluster, "python", 1).remove(0);
    let on_packed = [given(&cluster, &second), given(&cluster, &third)];
    let read = number(&recorded, "/plain_bytes");
    eprintln!("{read} bytes read; blocks and stored bytes: {plain:?} plain, {on_packed:?} packed");
    for (blocks, bytes) in on_packed {
        assert!(blocks * 2 < plain.0, "{blocks} blocks instead of {}", plain.0);
        // A start of this small image reads a quarter of it, so there is less to gain than in larger ones.
        assert!(bytes * 10 <= plain.1 * 6, "{bytes} stored bytes instead of {}", plain.1);
    }
    assert_eq!(number(&third, "/bytes/origin"), 0, "{third}");

    // The instance on the image before stays, in a tree of its own.
    assert_eq!(
        text(&cluster.api.get(&format!("/v1/starts/{}", text(&first, "id"))).unwrap(), "state"),
        "ready"
    );
    let image = reference_listing(&python());
    for start in [&first, &second, &third] {
        assert_same_tree(&image, &container_listing(&invoke(&cluster, "python", "/list", start)));
    }
}

#[test]
fn an_image_is_packed_by_itself_when_enough_starts_were_recorded() {
    let (cluster, reference) = cluster_with_python(packed_after(1, 2));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let first = start_ready(&cluster, "python", 1).remove(0);
    let plain = given(&cluster, &first);
    let is_packed = || {
        let profile = cluster.api.get("/v1/functions/python/profile").ok();
        Ok(profile.filter(|profile| profile["is_packed"] == true && profile["blocks"].is_u64()))
    };
    let packed = wait_until("the image to be packed", READY, is_packed).unwrap();

    let second = start_ready(&cluster, "python", 1).remove(0);
    let (blocks, bytes) = given(&cluster, &second);
    eprintln!("blocks and stored bytes: {plain:?} before, {:?} after", (blocks, bytes));
    assert!(blocks * 2 < plain.0, "{blocks} blocks instead of {}: {packed:#}", plain.0);
    assert!(bytes < plain.1, "{bytes} stored bytes instead of {}", plain.1);
    let image = reference_listing(&python());
    for start in [&first, &second] {
        assert_same_tree(&image, &container_listing(&invoke(&cluster, "python", "/list", start)));
    }
}

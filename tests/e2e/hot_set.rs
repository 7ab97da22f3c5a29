//! What the first start read is fetched ahead by the next ones, also after the manager was killed.

use crate::support::*;
use faasnet_loadtest::rig::{Cluster, ClusterSpec, wait_until};
use serde_json::Value;

/// VMs with room for one instance each; the first start is recorded and no other, and nothing is packed unasked.
fn recorded_once(vms: usize) -> ClusterSpec {
    let mut spec = spec_of_single_instances(vms);
    spec.settings.insert("PROFILE__RECORDINGS_MAX".into(), "1".into());
    spec.settings.insert("PROFILE__OPTIMIZE_AFTER".into(), "0".into());
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

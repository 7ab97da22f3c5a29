//! An image that is on VMs before any start.

use crate::support::*;
use serde_json::Value;

#[test]
fn a_start_on_a_preheated_vm_reads_nothing_over_the_network() {
    let (cluster, reference) = cluster_with_python(spec_of_single_instances(3));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let unread = cluster.cli(&["image", "preheat", "python", "--hot"]).unwrap_err();
    assert!(format!("{unread:#}").contains("start an instance"), "{unread:#}");

    let preheat = ["--json", "image", "preheat", "python", "--vms", "2", "--whole"];
    let held: Value = serde_json::from_str(&cluster.cli(&preheat).unwrap()).unwrap();
    let rows = held["vms"].as_array().unwrap();
    let vms: Vec<&str> = rows.iter().map(|row| text(row, "vm")).collect();
    assert_eq!(vms.len(), 2);
    for row in rows {
        let (present, total) = (number(row, "/blocks_present"), number(row, "/blocks_total"));
        assert!(present == total && total > 50, "{row}");
    }
    let origin: u64 = rows.iter().map(|row| number(row, "/bytes/origin")).sum();
    let parent: u64 = rows.iter().map(|row| number(row, "/bytes/parent")).sum();
    assert!(origin > 0 && parent > origin / 2, "one reads the origin, the other one its parent: {held}");

    let starts = start_ready(&cluster, "python", 2);
    for start in &starts {
        assert!(vms.contains(&text(start, "vm")), "{start}");
        let bytes = ["parent", "ancestor", "origin"].map(|source| number(start, &format!("/bytes/{source}")));
        assert_eq!(bytes, [0; 3], "{start}");
    }
    let image = reference_listing(&python());
    assert_same_tree(&image, &container_listing(&invoke(&cluster, "python", "/list", &starts[0])));
}

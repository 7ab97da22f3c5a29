//! kill -9 of the manager while instances run and one is being started.

use crate::support::*;
use faasnet_loadtest::rig::wait_until;

#[test]
fn instances_and_trees_outlive_a_killed_manager() {
    let (mut cluster, reference) = cluster_with_python(spec_of_single_instances(3));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let starts = start_ready(&cluster, "python", 2);
    let hellos: Vec<String> = starts.iter().map(|start| invoke(&cluster, "python", "/", start)).collect();

    cluster.kill_manager().unwrap();
    cluster.start_manager().unwrap();
    cluster.wait_for_vms(3).unwrap();

    // What was acknowledged is known, and requests reach the same processes.
    for (start, hello) in starts.iter().zip(&hellos) {
        let again = || Ok(cluster.cli(&["invoke", "python", "/", "--on", text(start, "id")]).ok());
        assert_eq!(&wait_until("the instance to be known again", READY, again).unwrap(), hello);
    }
    // The tree is there again: a third VM gets its blocks from a member, not from the origin.
    let third = start_ready(&cluster, "python", 1).remove(0);
    assert_eq!(number(&third, "/bytes/origin"), 0, "{third}");
    assert!(number(&third, "/bytes/parent") > 0, "{third}");
}

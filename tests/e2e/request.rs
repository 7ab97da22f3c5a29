//! The id of a caller's request, from the manager to whoever reads from the registry for it.

use crate::support::*;
use faasnet_loadtest::rig::Cluster;
use serde_json::Value;
use std::fs;

/// The line of a process's log that says this and has the id of the request that the start was made by.
fn assert_logged(cluster: &Cluster, process: &str, what: &str, start: &Value) {
    let path = cluster.logs().join(format!("{process}.log"));
    let log = fs::read_to_string(&path).unwrap();
    let id = text(start, "request_id");
    let is_it = |line: &str| line.contains(what) && line.contains(id);
    assert!(log.lines().any(is_it), "no \"{what}\" with {id} in {}:\n{log}", path.display());
}

#[test]
fn a_request_is_followed_through_all_logs_by_its_id() {
    let mut spec = spec_of_single_instances(2);
    spec.settings.insert("LOG__FILTER".into(), "info,faasnet::http=debug".into());
    let (cluster, reference) = cluster_with_python(spec);
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let [first, second] = [(), ()].map(|()| start_ready(&cluster, "python", 1).remove(0));
    assert_ne!(first["request_id"], second["request_id"]);
    let (parent, child) = (text(&first, "vm"), text(&second, "vm"));
    for start in [&first, &second] {
        assert_logged(&cluster, "manager", "request answered", start);
        assert_logged(&cluster, text(start, "vm"), "a start was ordered", start);
        assert_logged(&cluster, text(start, "vm"), "a start is ready", start);
    }
    assert_logged(&cluster, parent, "the origin is read for a request", &first);
    assert_ne!(parent, child);
    assert_logged(&cluster, parent, "a child reads for a request", &second);
}

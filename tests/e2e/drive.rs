//! Load of `faasnet-loadtest drive` on a real cluster: what is counted, written, and said by the exit status.

use crate::support::*;
use clap::{FromArgMatches, Subcommand};
use faasnet_loadtest::{drive::DriveVerb, rig::Cluster};
use serde_json::Value;
use std::{path::Path, process::ExitCode};

const VMS: usize = 2;

/// Runs the verb as from a command line, in the manager's network.
fn drive(cluster: &Cluster, out: &Path, arguments: &[&str]) -> ExitCode {
    let api = format!("http://{}", cluster.api.address);
    let token = cluster.data("manager").join("admin.token");
    let fixed = ["--api", &api, "--token-file", token.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let command = DriveVerb::augment_subcommands(clap::Command::new("drive"));
    let words = ["drive"].iter().chain(arguments).chain(&fixed);
    let verb = DriveVerb::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap();
    cluster.bed.inside("manager", || verb.run()).unwrap().unwrap()
}

fn report(out: &Path, name: &str) -> Value {
    let html = std::fs::read_to_string(out.join(format!("{name}.html"))).unwrap();
    assert!(html.matches("<svg").count() >= 5, "plots of requests, starts, blocks and trees");
    serde_json::from_slice(&std::fs::read(out.join(format!("{name}.json"))).unwrap()).unwrap()
}

fn figure(report: &Value, name: &str) -> f64 {
    report["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {}", report["figures"]))
}

#[test]
fn a_burst_and_a_trace_are_counted_and_thresholds_decide_the_exit_status() {
    let (cluster, reference) = cluster_with_python(spec(VMS));
    let out = tempfile::tempdir().unwrap();
    let fine = ["--fail-if", "errors > 0", "--fail-if", "p99_ready_ms > 120000", "--fail-if", "starts < 4"];
    let burst = ["burst", "--count", "4", "--image", &reference, "--path", "/sleep?ms=500"];
    assert_eq!(drive(&cluster, out.path(), &[&burst[..], &fine].concat()), ExitCode::SUCCESS);
    let seen = report(out.path(), "burst");
    assert_eq!((figure(&seen, "requests"), figure(&seen, "ok")), (4.0, 4.0));
    // One request at a time fits an instance, and none of them has ended before the last one was there.
    assert_eq!((figure(&seen, "starts"), figure(&seen, "starts_failed")), (4.0, 0.0));
    assert!(figure(&seen, "p50_ms") >= figure(&seen, "p50_ready_ms").min(500.0), "{}", seen["figures"]);
    assert!(figure(&seen, "origin_bytes") > 0.0);
    assert_eq!(seen["is_complete"], true);

    let trace = out.path().join("trace.csv");
    std::fs::write(&trace, "time_s,rps\n0,40\n1,80\n2,0\n").unwrap();
    let replay =
        ["replay", trace.to_str().unwrap(), "--scale-rate", "0.25", "--scale-time", "0.5", "--zipf", "0"];
    let several = ["--functions", "2", "--image", &reference, "--concurrency", "20", "--fail-if", "ok > 0"];
    assert_eq!(drive(&cluster, out.path(), &[&replay[..], &several].concat()), ExitCode::from(3));
    let seen = report(out.path(), "replay");
    // A quarter of 120 requests in half of the time.
    assert_eq!((figure(&seen, "requests"), figure(&seen, "ok")), (15.0, 15.0));
    let functions: Vec<_> = seen["by_function"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(functions, ["default/loaded-1", "default/loaded-2"]);
    let text = std::fs::read_to_string(out.path().join("replay.json")).unwrap();
    assert!(!text.contains(&cluster.api.token), "no token in what is written");
}

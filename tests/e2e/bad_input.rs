//! What is wrong gets a clear answer, and what was there before goes on.

use crate::support::*;
use faasnet_loadtest::rig::{Cluster, process::Service};
use std::{fs, path::Path, process::Command, time::Duration};

/// Runs a command that must fail, and gives what it complained about.
fn complaint(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

/// Starts an agent that must give up by itself; what it printed.
fn refused_agent(cluster: &Cluster, host: &str, name: &str, token: &str) -> String {
    let data = tempfile::tempdir().unwrap();
    let mut command = cluster.agent_command(host, name, token).unwrap();
    let mut agent = Service::start("refused", command.arg("--data").arg(data.path()), data.path()).unwrap();
    let status =
        faasnet_loadtest::rig::wait_until("the agent to give up", Duration::from_secs(30), || agent.ended());
    assert!(!status.unwrap().success());
    fs::read_to_string(&agent.log).unwrap()
}

fn settled(cluster: &Cluster, function: &str) -> serde_json::Value {
    let id = cluster.api.start(function, 1).unwrap().remove(0);
    cluster.api.settled(&id, READY).unwrap()
}

/// The text with another letter at that place.
fn altered(text: &str, place: usize) -> String {
    let other = if &text[place..=place] == "a" { "b" } else { "a" };
    format!("{}{other}{}", &text[..place], &text[place + 1..])
}

#[test]
fn agents_that_may_not_join_are_told_why_and_disturb_nobody() {
    let cluster = Cluster::up(spec(2)).unwrap();
    let token = cluster.cli(&["vm", "join-token"]).unwrap();

    let log = refused_agent(&cluster, "vm-2", "vm-1", token.trim());
    assert!(log.contains("another VM has this name"), "{log}");

    // A token is the hash of the manager's authority and a secret behind it; and one that is neither.
    let token = token.trim();
    for wrong in [altered(token, 10), altered(token, token.len() - 10), "nonsense".to_owned()] {
        let log = refused_agent(&cluster, "vm-2", "vm-3", &wrong);
        assert!(log.contains("join token"), "{wrong}: {log}");
    }

    let vms = cluster.vms().unwrap();
    assert_eq!(vms.keys().collect::<Vec<_>>(), ["vm-1", "vm-2"]);
    assert!(vms.values().all(|vm| vm["state"] == "up"), "{vms:?}");
}

#[test]
fn containers_that_fail_end_their_start_with_the_reason() {
    let mut spec = spec(1);
    spec.settings.insert("SCHEDULER__READY_DEADLINE_MS".to_owned(), "5000".to_owned());
    let (cluster, reference) = cluster_with_python(spec);
    let deploy = |name: &str, more: &[&str]| {
        let arguments = [&["function", "deploy", name, "--image", &reference], more].concat();
        cluster.cli(&arguments).unwrap();
    };

    deploy("leaves", &["--env", "EXIT_AT_START=7"]);
    let start = settled(&cluster, "leaves");
    assert_eq!((text(&start, "state"), &start["reason"]["kind"]), ("ended", &"exited".into()), "{start}");
    assert_eq!(start["reason"]["detail"]["code"], 7, "{start}");

    deploy("silent", &["--env", "NEVER_ANSWER=1"]);
    let start = settled(&cluster, "silent");
    assert_eq!((text(&start, "state"), &start["reason"]["kind"]), ("ended", &"not_ready".into()), "{start}");

    deploy("python", &["--memory", "64"]);
    let start = start_ready(&cluster, "python", 1).remove(0);
    let log = cluster.cli(&["logs", text(&start, "id")]).unwrap();
    assert!(log.contains("listening"), "{log:?}");
    complaint(cluster.command("manager").unwrap().args([
        "invoke",
        "python",
        "/eat?mb=512",
        "--on",
        text(&start, "id"),
    ]));
    let path = format!("/v1/starts/{}", text(&start, "id"));
    let ended = faasnet_loadtest::rig::wait_until("the container to run out of memory", READY, || {
        let seen = cluster.api.get(&path)?;
        Ok((seen["state"] == "ended").then_some(seen))
    });
    let ended = ended.unwrap();
    assert_eq!(ended["reason"]["detail"], "out_of_memory", "{ended}");
}

#[test]
fn images_that_cannot_be_had_fail_their_deployment_and_no_other() {
    let (cluster, reference) = cluster_with_python(spec(1));
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let registry = cluster.registry.name();
    let nobody_listens = "10.77.0.1:1/library/python:latest".to_owned();
    for (image, named) in [
        (format!("{registry}/library/unknown:latest"), "library/unknown"),
        (format!("{registry}/library/python:unknown"), "unknown"),
        (format!("{registry}/library/python@sha256:{}", "0".repeat(64)), "0000"),
        (nobody_listens, "10.77.0.1:1"),
        ("not a reference".to_owned(), "does not name an image"),
        ("oci:/nowhere".to_owned(), "layout_roots"),
    ] {
        let mut command = cluster.command("manager").unwrap();
        let text = complaint(command.args(["function", "deploy", "broken", "--image", &image]));
        assert!(text.contains(named), "{image}: {text}");
    }
    let start = start_ready(&cluster, "python", 1).remove(0);
    assert!(invoke(&cluster, "python", "/", &start).contains("hostname"));
}

#[test]
fn a_layer_that_is_cut_off_in_the_registry_is_named() {
    let (cluster, reference) = cluster_with_python(spec(1));
    let layer = python().manifest().unwrap()["layers"][0]["digest"].as_str().unwrap().to_owned();
    cut_off(&cluster.registry.blob_file(&layer));
    let mut command = cluster.command("manager").unwrap();
    let text = complaint(command.args(["function", "deploy", "cut", "--image", &reference]));
    assert!(text.contains(&layer[..19]), "the layer is named: {text}");
}

fn cut_off(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::File::options().write(true).open(file).unwrap().set_len(length / 2).unwrap();
}

//! Scenario files and what a burst under costs comes to: `faasnet_loadtest::simulate`.

use faasnet_loadtest::simulate::{
    Costs, Quantiles, ScenarioFile,
    figure::{Burst, Run},
};
use std::path::Path;

/// A case of a scenario of this repository on other VMs.
fn burst(file: &str, name: &str, vms: usize, starts: u32) -> Burst {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(file);
    let file = ScenarioFile::read(&path).expect("the file of this repository is sound");
    let costs = Costs::read(&file.costs).expect("the file of this repository is sound");
    let mut case = file.cases.iter().find(|case| case.name == name).expect("a case").clone();
    (case.vms, case.starts) = (vms, starts);
    file.burst(&case, &costs)
}

fn play(name: &str, vms: usize) -> Run {
    burst("headline.toml", name, vms, (vms * 5 / 2) as u32).play()
}

#[test]
fn a_packed_hot_set_is_faster_than_a_pushed_one_and_that_than_none() {
    let [packed, pushed, unknown] = ["packed", "pushed", "unknown"].map(|hot| {
        let run = play(&format!("one function, {hot}"), 12);
        assert_eq!((run.failed, run.starts.len()), (0, 30), "{hot}");
        let phases = run.last().expect("30 starts").phases();
        let together: f64 = phases.iter().map(|(_, ms)| ms).sum();
        assert!((together - run.last_ms().expect("all")).abs() < 0.1, "{phases:?}");
        assert!(run.bytes.origin < run.image_bytes, "the origin is read once at most");
        run.last_ms().expect("all")
    });
    assert!(packed < pushed && pushed < unknown, "{packed} {pushed} {unknown}");
}

#[test]
fn one_seed_is_one_run() {
    let runs =
        [0, 1].map(|_| serde_json::to_value(play("25 functions, packed", 10).starts).expect("plain data"));
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn clients_that_are_refused_for_now_ask_again_and_get_what_they_want() {
    let mut burst = burst("control-plane.toml", "10,000 starts", 20, 60);
    let limits = &mut burst.model.limits.scheduler;
    (limits.starts_per_request_max, limits.starts_waiting_max) = (15, 40);
    let run = burst.play();
    assert_eq!((run.failed, run.starts.len()), (0, 60), "{:?} {:?}", run.refused, run.ended);
    assert!(run.asked_again > 0);
}

#[test]
fn a_run_ends_when_nothing_is_left_to_do_and_tells_who_was_refused_and_why() {
    let mut burst = burst("control-plane.toml", "10,000 starts", 20, 60);
    let limits = &mut burst.model.limits.scheduler;
    (limits.starts_per_request_max, limits.instances_per_function_max) = (20, 40);
    let run = burst.play();
    assert_eq!((run.failed, run.starts.len(), run.asked_again), (20, 40, 0));
    let (reason, starts) = run.refused.first_key_value().expect("a reason");
    assert!(reason.contains("max_instances") && *starts == 20, "{:?}", run.refused);
    assert!(run.end_ms < 10_000.0, "it goes on for {} ms", run.end_ms);
}

#[test]
fn a_manager_that_sends_orders_for_longer_than_a_lease_hears_heartbeats_meanwhile() {
    let mut burst = burst("headline.toml", "one function, packed", 20, 50);
    burst.model.costs.manager.order_ms = Quantiles::One(120.0);
    let run = burst.play();
    assert!(run.starts.last().expect("starts").ordered_ms > 5000.0, "all orders take longer than a lease");
    assert_eq!((run.failed, run.starts.len()), (0, 50), "{:?}", run.ended);
}

#[test]
fn files_that_make_no_sense_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/headline.toml"));
    let text = text.expect("the file of this repository");
    for (from, to, says) in [
        ("vms = 1000", "vms = 0", "100000 VMs"),
        ("cores = 2", "cores = 0", "cores"),
        ("packed_blocks = 80", "packed_blocks = 8000", "more blocks than the image has"),
        ("hot = \"packed\"", "hot = \"warm\"", "unknown variant"),
        ("seed = 1", "sead = 1", "unknown field"),
        ("[network]", "[manager]\nlease_ms = 900\n[network]", "a lease is longer"),
    ] {
        let path = folder.path().join("scenario.toml");
        std::fs::write(&path, text.replace(from, to)).expect("written");
        let error = format!("{:#}", ScenarioFile::read(&path).expect_err(to));
        assert!(error.contains(says) && error.contains("scenario.toml"), "{error}");
    }
    let missing = ScenarioFile::read(&folder.path().join("none.toml")).expect_err("there is none");
    assert!(format!("{missing:#}").contains("none.toml"), "{missing:#}");
}

//! Scenario files and what a burst under costs comes to: `faasnet_loadtest::simulate`.

use faasnet_loadtest::simulate::{Costs, ScenarioFile, figure::Run};
use std::path::Path;

fn headline() -> ScenarioFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/headline.toml");
    ScenarioFile::read(&path).expect("the file of this repository is sound")
}

/// A case of the headline scenario on fewer VMs.
fn play(name: &str, vms: usize) -> Run {
    let file = headline();
    let costs = Costs::read(&file.costs).expect("the file of this repository is sound");
    let mut case = file.cases.iter().find(|case| case.name == name).expect("a case").clone();
    (case.vms, case.starts) = (vms, (vms * 5 / 2) as u32);
    file.burst(&case, &costs).play()
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
    ] {
        let path = folder.path().join("scenario.toml");
        std::fs::write(&path, text.replace(from, to)).expect("written");
        let error = format!("{:#}", ScenarioFile::read(&path).expect_err(to));
        assert!(error.contains(says) && error.contains("scenario.toml"), "{error}");
    }
    let missing = ScenarioFile::read(&folder.path().join("none.toml")).expect_err("there is none");
    assert!(format!("{missing:#}").contains("none.toml"), "{missing:#}");
}

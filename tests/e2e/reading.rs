//! Instances that only read, for beds of many VMs.

use crate::support::*;
use faasnet_loadtest::{reading, rig::wait_until};
use std::path::Path;

#[test]
fn instances_that_only_read_start_answer_and_end() {
    let mut spec = spec_of_single_instances(3);
    let program = Path::new(program()).with_file_name(reading::PROGRAM);
    assert!(program.exists(), "build it: cargo build -p faasnet-loadtest");
    spec.settings.insert("HOLDER__RUNTIME".into(), program.display().to_string());
    let (cluster, reference) = cluster_with_python(spec);
    cluster.cli(&["function", "deploy", "python", "--image", &reference]).unwrap();
    let starts = start_ready(&cluster, "python", 3);
    let answers: Vec<String> = starts.iter().map(|start| invoke(&cluster, "python", "/", start)).collect();
    let read: u64 = answers[0].split(' ').nth(3).unwrap().parse().unwrap();
    assert!(read > 1_000_000, "{}", answers[0]);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let moved: u64 = resting_vms(&cluster).values().map(|vm| stored_bytes(vm).iter().sum::<u64>()).sum();
    assert!(moved > read / 4, "what is read comes block by block: {moved} for {read}");

    for start in &starts {
        let id = text(start, "id");
        cluster.cli(&["stop", id]).unwrap();
        wait_until("the instance to end", READY, || {
            let seen = cluster.api.get(&format!("/v1/starts/{id}"))?;
            Ok((seen["state"] == "ended").then_some(()))
        })
        .unwrap();
    }
}

//! Faults in the middle of a burst. All cases on more VMs: `faasnet-loadtest chaos`.

use crate::support::*;
use faasnet_loadtest::{
    chaos::{Case, ChaosSpec, run_case},
    rig::{Image, Variant},
};

/// Half of them run when the fault comes: a root, two children, and a child of one of these.
const VMS: usize = 8;

fn promises_hold(case: Case) {
    let image = Image::cached(&cache(), Variant::Ballast).unwrap();
    let spec = ChaosSpec::new(program(), image, VMS);
    let report = run_case(&spec, case, &|text| eprintln!("{text}")).unwrap();
    eprintln!("{report:#?}");
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(report.unready_at_fault > 0, "the fault came before the end of the burst");
}

#[test]
fn a_burst_outlives_the_death_of_the_root() {
    promises_hold(Case::KillRoot);
}

#[test]
fn a_burst_outlives_a_power_cut_of_an_inner_vm() {
    promises_hold(Case::PowerCut);
}

#[test]
fn a_burst_outlives_a_manager_that_is_killed_twice() {
    promises_hold(Case::KillManagerTwice);
}

//! The cores on the simulator's heap of events tell what the real actors tell: `actors/src/testing/levels.rs` plays the
//! same cases, and both compare with the same texts.

#[path = "../../actors/src/testing/sequence.rs"]
mod sequence;

use faasnet::settings::Topology;
use faasnet_loadtest::simulate::{Cluster, ImageModel, MILLISECOND, Model, Reads, SECOND};
use sequence::{Sequence, joined};

/// As `actors/src/testing/cluster.rs` has it: four blocks, of which a container reads all.
fn model(vms: usize) -> Model {
    let image = ImageModel {
        blocks: 4,
        stored_bytes: 4,
        metadata_blocks: 1,
        reads: Reads::Sequential(3),
        ..ImageModel::default()
    };
    let mut model = Model {
        vms,
        memory_bytes: 1 << 30,
        images: vec![image],
        latency: MILLISECOND,
        origin_latency: MILLISECOND,
        mount: MILLISECOND..=MILLISECOND,
        run: MILLISECOND..=MILLISECOND,
        ..Model::without_times()
    };
    model.limits.shape.topology = Topology::Complete;
    model.limits.scheduler.starts_at_once_per_vm = 1;
    model
}

fn case(vms: usize) -> String {
    let mut cluster = Cluster::new(model(vms), 1);
    cluster.watch();
    for _ in 0..2 {
        cluster.start(0, vms as u32);
        cluster.run_until(cluster.now() + 5 * SECOND);
    }
    if vms > 1 {
        let root = joined(&cluster.told()).remove(0);
        cluster.crash(root.trim_start_matches("vm-").parse().expect("a number"));
        cluster.run_until(cluster.now() + 10 * SECOND);
    }
    Sequence::new(&cluster.told()).to_string()
}

#[test]
fn one_vm_tells_what_the_actors_tell() {
    assert_eq!(case(1), include_str!("../../actors/src/testing/levels/1.txt"));
}

#[test]
fn three_vms_tell_what_the_actors_tell() {
    assert_eq!(case(3), include_str!("../../actors/src/testing/levels/3.txt"));
}

#[test]
fn eight_vms_tell_what_the_actors_tell() {
    assert_eq!(case(8), include_str!("../../actors/src/testing/levels/8.txt"));
}

//! The real actors on virtual time: what they tell in small cases is what the simulator's cores tell, and a large
//! cluster gets over all that goes wrong at once.

use super::{
    cluster::{Called, Cluster},
    sequence::{Sequence, joined},
    simulate,
};
use crate::{
    manager::tests::tenant,
    model::{StartState, StartView},
    support::crash,
};
use std::time::Duration;
use tokio::time::sleep;

async fn records(cluster: &Cluster) -> Vec<String> {
    let page = cluster.manager.events.read(1, 10_000, usize::MAX).await.expect("the log is up");
    page.records.iter().map(|record| record.json.to_string()).collect()
}

/// So many starts in one request, until all are ready.
async fn start(cluster: &Cluster, count: usize) {
    let name = "web".parse().expect("name");
    let started = cluster.manager.scheduler.start(tenant(), name, count as u32).await.expect("accepted");
    let called: Vec<Called> = started.into_iter().map(Ok).collect();
    let views = cluster.ends(&called).await;
    assert!(views.iter().all(|view| view.state == StartState::Ready), "{views:?}");
}

/// The cases of `loadtest/tests/levels.rs`: a burst, a second one, and a VM that goes.
async fn case(vms: usize) -> String {
    let cluster = Cluster::new(vms).await;
    cluster.deploy("web", "web:1").await;
    start(&cluster, vms).await;
    start(&cluster, vms).await;
    sleep(Duration::from_secs(3)).await;
    if vms > 1 {
        let root = joined(&records(&cluster).await).remove(0);
        cluster.unplug(&root.parse().expect("a name"));
        sleep(Duration::from_secs(10)).await;
    }
    Sequence::new(&records(&cluster).await).to_string()
}

#[test]
fn one_vm_tells_what_the_simulator_tells() {
    assert_eq!(simulate(case(1)), include_str!("levels/1.txt"));
}

#[test]
fn three_vms_tell_what_the_simulator_tells() {
    assert_eq!(simulate(case(3)), include_str!("levels/3.txt"));
}

#[test]
fn eight_vms_tell_what_the_simulator_tells() {
    assert_eq!(simulate(case(8)), include_str!("levels/8.txt"));
}

/// What became of each start of a burst that was acknowledged, in the order of the calls, and the trees' last epoch.
async fn play_troubles() -> String {
    let mut cluster = Cluster::new(64).await;
    cluster.deploy("web", "web:1").await;
    let mut outcomes = Vec::new();
    // Supervision of an agent's actors, and of the manager's.
    for kind in ["agent_session", "block_store", "vm_node", "function_tree"] {
        crash::arm(kind, "", 3, 1);
        let called = cluster.burst("web", 20).await;
        let views = cluster.ends(&called).await;
        assert_eq!(crash::disarm(), 0, "no {kind} crashed");
        let is_settled = |view: &StartView| view.state == StartState::Ready || view.reason.is_some();
        assert!(views.iter().all(is_settled), "{views:?}");
        outcomes.extend(views.into_iter().map(|view| (view.vm, view.state, view.reason)));
    }
    // A link in the middle of a burst, and the manager in the middle of the next.
    let root = cluster.tree("web").await.expect("a tree").members[0].vm.clone();
    let called = cluster.burst("web", 20).await;
    cluster.cut(&root);
    outcomes.extend(cluster.ends(&called).await.into_iter().map(|view| (view.vm, view.state, view.reason)));
    let called = cluster.burst("web", 20).await;
    cluster.restart_manager().await;
    let views = cluster.ends(&called).await;
    assert!(
        views.iter().all(|view| view.state == StartState::Ready),
        "a manager's end ends no start: {views:?}"
    );
    outcomes.extend(views.into_iter().map(|view| (view.vm, view.state, view.reason)));
    format!("{outcomes:?} {:?}", cluster.tree("web").await.expect("a tree").epoch)
}

#[test]
fn a_cluster_of_64_vms_gets_over_crashed_actors_a_lost_link_and_a_new_manager_each_time_the_same_way() {
    let [once, again] = [0, 1].map(|_| simulate(play_troubles()));
    assert_eq!(once, again);
}

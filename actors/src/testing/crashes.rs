//! Actors of every kind panic in the middle of a burst: what they had in hand is lost, and all comes right.

use super::{
    cluster::{Called, Cluster, vm},
    simulate,
};
use crate::{
    manager::{
        Manager,
        tests::{tenant, world},
    },
    model::StartState,
    scheduler::ControlError,
    support::{ActorView, Observe, crash},
    wire::{control::EndReason, holder::Exit},
    world::{MetadataError, Table},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::sleep;

const VMS: usize = 6;

/// A burst onto a cluster in which another function runs already, and in which the next but `spared` messages
/// to an actor of that kind, whose name has that part, panics.
async fn burst(kind: &'static str, part: &str, spared: u32) -> (Cluster, Vec<Called>) {
    let cluster = Cluster::new(VMS).await;
    cluster.deploy("web", "web:1").await;
    cluster.deploy("api", "api:1").await;
    let web = cluster.burst("web", 2).await;
    cluster.ends(&web).await;
    crash::arm(kind, part, spared, 1);
    let called = cluster.burst("api", 2 * VMS).await;
    (cluster, called)
}

/// Crashes within one burst, the earlier and the later ones of it.
fn each_moment(kind: &'static str, part: fn() -> String, check: impl AsyncFn(Cluster, Vec<Called>)) {
    for spared in [0, 1, 4, 9] {
        simulate(async {
            let (cluster, called) = burst(kind, &part(), spared).await;
            check(cluster, called).await;
            assert!(crash::disarm() == 0 || spared > 0, "nobody crashed");
        });
    }
}

fn anywhere() -> String {
    String::new()
}

fn tree_of(image: &str) -> String {
    crate::manager::tests::digest(image).to_string()
}

/// Every start that was acknowledged becomes ready, and nothing else runs.
async fn all_ready(cluster: Cluster, called: Vec<Called>) {
    let views = cluster.ends(&called).await;
    let failed: Vec<_> = views.iter().filter(|view| view.state != StartState::Ready).collect();
    assert!(failed.is_empty(), "{failed:?}");
    running(&cluster, &called).await;
}

/// Every start that was acknowledged ends, with a reason if it is not ready.
async fn all_end(cluster: Cluster, called: Vec<Called>) {
    let views = cluster.ends(&called).await;
    assert!(views.iter().all(|view| view.state == StartState::Ready || view.reason.is_some()));
    running(&cluster, &called).await;
}

/// The other function still runs, and of this one not more than was acknowledged.
async fn running(cluster: &Cluster, called: &[Called]) {
    sleep(Duration::from_secs(30)).await;
    let name = |name: &str| name.parse().expect("name");
    let ready = |view: crate::model::FunctionView| view.ready as usize;
    let web = cluster.manager.scheduler.function(tenant(), name("web")).await.map(ready);
    assert_eq!(web, Ok(2), "another function is disturbed");
    let api = cluster.manager.scheduler.function(tenant(), name("api")).await.map(ready).expect("known");
    assert!(api <= called.iter().flatten().count(), "{api} run of {called:?}");
}

#[test]
fn a_journal_may_crash_and_starts_that_nobody_was_told_of_do_not_run_after_a_restart() {
    each_moment("journal", anywhere, async |cluster, called| {
        let unknown = ControlError::Metadata(MetadataError::Unknown);
        assert!(called.iter().flatten().count() < called.len(), "the crash concerned somebody");
        assert!(called.iter().filter_map(|call| call.as_ref().err()).all(|error| *error == unknown));
        let (store, manager) = (cluster.store.clone(), cluster.manager.clone());
        all_ready(cluster, called.clone()).await;
        manager.shut_down().await;
        let rows = store.keys(Table::Starts);
        let told: BTreeSet<String> = called.iter().flatten().map(ToString::to_string).collect();
        let of_web = rows.iter().filter(|row| !told.contains(*row)).count();
        assert_eq!(of_web, 2, "{rows:?}");
        drop(Manager::start(world(&store)));
    });
}

#[test]
fn a_scheduler_may_crash_and_finds_again_what_was_acknowledged() {
    each_moment("scheduler", anywhere, async |cluster, called| {
        let interrupted = |error: &ControlError| matches!(error, ControlError::Interrupted { .. });
        assert!(called.iter().filter_map(|call| call.as_ref().err()).all(interrupted));
        // A start whose caller was interrupted may run: it was durable.
        let views = cluster.ends(&called).await;
        assert!(views.iter().all(|view| view.state == StartState::Ready), "{views:?}");
    });
}

#[test]
fn an_instance_that_ends_while_the_scheduler_is_away_is_not_run_again() {
    simulate(async {
        let cluster = Cluster::new(2).await;
        cluster.deploy("api", "api:1").await;
        let called = cluster.burst("api", 2).await;
        cluster.ends(&called).await;
        crash::arm("scheduler", "", 0, 1);
        assert!(cluster.manager.scheduler.vms().await.is_err());
        let ended = called[0].as_ref().expect("accepted");
        cluster.exit(ended);
        sleep(Duration::from_secs(60)).await;
        let view = cluster.manager.scheduler.start_view(tenant(), ended.clone()).await.expect("known");
        assert_eq!((view.state, view.reason), (StartState::Ended, Some(EndReason::Exited(Exit::Code(3)))));
        let api = cluster.manager.scheduler.function(tenant(), "api".parse().expect("name")).await;
        assert_eq!(api.map(|view| (view.ready, view.starting)), Ok((1, 0)));
    });
}

#[test]
fn an_order_to_leave_that_a_forest_lost_is_given_again() {
    simulate(async {
        let cluster = Cluster::new(2).await;
        cluster.deploy("api", "api:1").await;
        let called = cluster.burst("api", 2).await;
        cluster.ends(&called).await;
        sleep(Duration::from_secs(5)).await;
        crash::arm("forest", "", 0, 1);
        let name = "api".parse().expect("name");
        cluster.manager.scheduler.delete_function(tenant(), name).await.expect("deleted");
        sleep(Duration::from_secs(30)).await;
        assert_eq!(crash::disarm(), 0, "the forest crashed");
        let vms = cluster.manager.scheduler.vms().await.expect("up");
        assert!(vms.iter().all(|vm| vm.trees.is_empty()), "{vms:?}");
    });
}

#[test]
fn a_forest_may_crash_and_the_starts_of_its_trees_become_ready() {
    each_moment("forest", anywhere, all_ready);
}

#[test]
fn a_tree_may_crash_and_no_other_tree_notices() {
    each_moment(
        "function_tree",
        || tree_of("api:1"),
        async |cluster, called| {
            let web = cluster.tree("web").await.expect("a tree");
            all_ready(cluster.clone(), called).await;
            let after = cluster.tree("web").await.expect("a tree");
            assert_eq!((web.epoch, web.members.len()), (after.epoch, after.members.len()));
        },
    );
}

#[test]
fn a_fleet_may_crash_and_its_vms_come_back_with_what_they_run() {
    each_moment("fleet", anywhere, all_ready);
}

#[test]
fn a_vm_node_may_crash_and_its_vm_comes_back_with_what_it_runs() {
    each_moment("vm_node", anywhere, all_ready);
    each_moment("vm_node", || vm(1).to_string(), all_ready);
}

#[test]
fn a_session_of_an_agent_may_crash_and_its_news_are_told_in_the_end() {
    each_moment("agent_session", anywhere, all_end);
}

#[test]
fn a_transfer_may_crash_and_goes_on_from_what_is_on_the_disk() {
    each_moment("block_transfer", || tree_of("api:1"), all_ready);
}

#[test]
fn a_block_store_may_crash_even_while_an_image_is_opened() {
    each_moment("block_store", anywhere, all_ready);
}

#[test]
fn an_instance_whose_actor_crashes_ends_with_a_reason() {
    each_moment("instance", anywhere, all_end);
}

/// Calls for starts until the manager gives up.
async fn until_given_up(cluster: &Cluster, functions: &[&str]) {
    for _ in 0..3000 {
        if !cluster.manager.is_up() {
            return;
        }
        for name in functions {
            // Refused as often as not.
            let _called = cluster.burst(name, 1).await;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("the manager does not give up");
}

#[test]
fn actors_of_the_manager_that_crash_again_and_again_end_its_root() {
    for kind in ["journal", "scheduler", "forest", "function_tree", "fleet", "vm_node"] {
        simulate(async {
            let cluster = Cluster::new(VMS).await;
            let functions = ["a", "b", "c", "d", "e"];
            for name in functions {
                cluster.deploy(name, name).await;
            }
            crash::arm(kind, "", 0, u32::MAX);
            until_given_up(&cluster, &functions).await;
            crash::disarm();
        });
    }
}

#[test]
fn a_tree_that_crashes_again_and_again_rests_alone_and_its_starts_are_told_why() {
    simulate(async {
        let cluster = Cluster::new(VMS).await;
        cluster.deploy("web", "web:1").await;
        cluster.deploy("api", "api:1").await;
        let web = cluster.burst("web", 2).await;
        cluster.ends(&web).await;
        crash::arm("function_tree", &tree_of("api:1"), 0, u32::MAX);
        let called = cluster.burst("api", 6).await;
        let views = cluster.ends(&called).await;
        assert!(views.iter().all(|view| view.reason.is_some()), "{views:?}");
        assert!(cluster.manager.is_up());
        let more = cluster.burst("web", 2).await;
        assert!(cluster.ends(&more).await.iter().all(|view| view.state == StartState::Ready));
        crash::disarm();
    });
}

#[test]
fn an_agent_whose_store_or_session_crashes_again_and_again_ends() {
    for kind in ["block_store", "agent_session"] {
        simulate(async {
            let cluster = Cluster::new(1).await;
            cluster.deploy("api", "api:1").await;
            crash::arm(kind, "", 0, u32::MAX);
            let _called = cluster.burst("api", 1).await;
            let agent = &cluster.agents[&vm(1)];
            for _ in 0..1000 {
                sleep(Duration::from_millis(100)).await;
            }
            assert!(!agent.connected());
            crash::disarm();
        });
    }
}

fn find<'a>(view: &'a ActorView, kind: &str) -> Vec<&'a ActorView> {
    let own = (view.kind == kind).then_some(view);
    own.into_iter().chain(view.children.iter().flat_map(|child| find(child, kind))).collect()
}

#[test]
fn every_actor_tells_how_it_is_and_how_often_it_crashed() {
    simulate(async {
        let (cluster, called) = burst("function_tree", &tree_of("api:1"), 1).await;
        cluster.ends(&called).await;
        let ask = || Observe::new(Duration::from_secs(1), 100);
        let view = cluster.manager.observe(ask()).await.expect("up");
        let count = |kind| find(&view, kind).len();
        let counts =
            ["manager", "journal", "scheduler", "forest", "function_tree", "fleet", "vm_node"].map(count);
        assert_eq!(counts, [1, 1, 1, 1, 2, 1, VMS]);
        let generations: Vec<u32> = find(&view, "function_tree").iter().map(|tree| tree.generation).collect();
        assert_eq!(generations.iter().sum::<u32>(), 1);
        assert!(find(&view, "vm_node").iter().all(|node| node.state == "up" && node.mailbox == 0));
        let few = cluster.manager.observe(Observe::new(Duration::from_secs(1), 2)).await.expect("up");
        assert_eq!((find(&few, "vm_node").len(), find(&few, "fleet")[0].children_left_out), (2, VMS - 2));
        let agent = cluster.manager.observe_agent(vm(1), Duration::from_secs(1), 100).await.expect("answers");
        for kind in ["agent", "block_store", "agent_session", "block_transfer", "instance"] {
            assert!(!find(&agent, kind).is_empty(), "{kind}");
        }
        assert_eq!(cluster.manager.observe_agent(vm(99), Duration::from_secs(1), 100).await, None);
    });
}

//! The message flows of ARCHITECTURE.md, as the real actors send them.

use super::{
    cluster::{Called, Cluster},
    simulate,
};
use crate::support::flow::{Recorded, record_flows};
use std::time::Duration;
use tokio::time::sleep;

/// What was recorded, with short names for starts and trees.
fn told(recorded: &Recorded, called: &[Called]) -> Vec<String> {
    let short = |line: String| {
        let mut line = called
            .iter()
            .flatten()
            .zip(1..)
            .fold(line, |line, (start, number)| line.replace(start.as_str(), &format!("start-{number}")));
        if let Some(at) = line.find("acme/sha256:") {
            line.replace_range(at..at + "acme/sha256:".len() + 64, "tree");
        }
        line
    };
    recorded.take().into_iter().map(short).collect()
}

/// Three VMs of one tree, and the names of its root and the root's two children.
async fn tree_of_three() -> (Cluster, [String; 3]) {
    let cluster = Cluster::new(3).await;
    cluster.deploy("api", "api:1").await;
    let called = cluster.burst("api", 3).await;
    cluster.ends(&called).await;
    let tree = cluster.tree("api").await.expect("a tree");
    let names: Vec<String> = tree.members.iter().map(|member| member.vm.to_string()).collect();
    (cluster, names.try_into().expect("three"))
}

#[test]
fn a_join_goes_from_the_api_through_tree_and_node_to_the_instance_and_back() {
    simulate(async {
        let cluster = Cluster::new(1).await;
        cluster.deploy("api", "api:1").await;
        let (recorded, _guard) = record_flows();
        let called = cluster.burst("api", 1).await;
        cluster.ends(&called).await;
        let wanted = [
            "manager -> scheduler: Start api [mailbox permit]",
            "scheduler -> journal: Commit start-1 [commit]",
            "scheduler -> forest: Join start-1 [start waiting]",
            "function_tree -> fleet: Order(Start) start-1 [start waiting]",
            "vm_node -> scheduler: Ordered start-1 []",
            "agent_session -> agent: Start start-1 [order slot]",
            "agent -> block_transfer: Placed tree []",
            "agent -> block_transfer: Attach start-1 [instance]",
            "agent -> block_transfer: MountEnded  []",
            "block_transfer -> instance: Mounted  []",
            "agent -> instance: Running  []",
            "instance -> agent: Ready start-1 [instance]",
            "agent -> agent_session: Ready start-1 []",
            "session -> fleet: Ready start-1 [session slot]",
            "vm_node -> forest: Ready vm-1 [session slot]",
            "vm_node -> scheduler: Ready start-1 [session slot]",
        ];
        assert_eq!(told(&recorded, &called), wanted);
    });
}

#[test]
fn each_start_of_a_burst_takes_the_way_of_a_join() {
    simulate(async {
        let cluster = Cluster::new(6).await;
        cluster.deploy("api", "api:1").await;
        let (recorded, _guard) = record_flows();
        let called = cluster.burst("api", 12).await;
        cluster.ends(&called).await;
        let lines = told(&recorded, &called);
        let wanted = [
            "scheduler -> journal: Commit",
            "scheduler -> forest: Join",
            "function_tree -> fleet: Order(Start)",
            "vm_node -> scheduler: Ordered",
            "agent_session -> agent: Start",
            "agent -> block_transfer: Attach",
            "instance -> agent: Ready",
            "agent -> agent_session: Ready",
            "session -> fleet: Ready",
            "vm_node -> scheduler: Ready",
        ];
        for number in 1..=12 {
            let about = format!(" start-{number} [");
            let hops: Vec<_> = lines.iter().filter_map(|line| Some(line.split_once(&about)?.0)).collect();
            assert_eq!(hops, wanted, "start {number}");
        }
        let requests = lines.iter().filter(|line| line.starts_with("manager -> scheduler: Start"));
        assert_eq!(requests.count(), 12, "and nobody asks for anything else");
    });
}

#[test]
fn a_repair_begins_with_children_that_are_not_served_and_ends_with_their_new_places() {
    simulate(async {
        let (cluster, [root, one, two]) = tree_of_three().await;
        let (recorded, _guard) = record_flows();
        cluster.cut(&root.parse().expect("name"));
        sleep(Duration::from_millis(500)).await;
        let lines = told(&recorded, &[]);
        let of = |part: &str| lines.iter().filter(|line| line.contains(part)).cloned().collect::<Vec<_>>();
        let hops = [
            format!("block_transfer -> agent: UpstreamLost {root} []"),
            format!("agent -> agent_session: UpstreamLost {root} []"),
            format!("session -> fleet: UpstreamLost {root} [session slot]"),
        ];
        let twice: Vec<String> = hops.iter().flat_map(|hop| [hop.clone(), hop.clone()]).collect();
        assert_eq!(of("UpstreamLos")[..6], twice);
        let mut said = of("vm_node -> forest: UpstreamLost");
        said.sort();
        let mut wanted =
            [&one, &two].map(|vm| format!("vm_node -> forest: UpstreamLost {vm} [session slot]"));
        wanted.sort();
        assert_eq!(said, wanted, "all children of a root must say so");
        // Each of the three gets its own, and again when a better helper can be named.
        let mut orders = of("function_tree -> fleet: Order(Place)");
        orders.sort();
        orders.dedup();
        let mut wanted =
            [&root, &one, &two].map(|vm| format!("function_tree -> fleet: Order(Place) {vm} []"));
        wanted.sort();
        assert_eq!(orders, wanted);
        assert!(of("scheduler").is_empty(), "the scheduler has no part in it: {lines:?}");
        let tree = cluster.tree("api").await.expect("a tree");
        assert_eq!(tree.members.last().expect("three").vm.to_string(), root, "it serves nobody any more");
    });
}

#[test]
fn a_vm_that_leaves_is_taken_out_by_its_node_and_the_others_get_new_places() {
    simulate(async {
        let (cluster, [root, one, two]) = tree_of_three().await;
        let (recorded, _guard) = record_flows();
        cluster.unplug(&root.parse().expect("name"));
        sleep(Duration::from_secs(10)).await;
        let lines = told(&recorded, &[]);
        let manager: Vec<_> = lines
            .iter()
            .filter(|line| {
                ["session ->", "vm_node ->", "function_tree ->"].iter().any(|by| line.starts_with(by))
            })
            .filter(|line| !line.contains("Upstream"))
            .collect();
        let mut wanted = vec![
            format!("session -> fleet: Closed {root} []"),
            format!("vm_node -> scheduler: Down {root} []"),
            format!("vm_node -> forest: Gone {root} []"),
        ];
        assert_eq!(manager[..3], wanted.iter().collect::<Vec<_>>());
        wanted = [&one, &two].map(|vm| format!("function_tree -> fleet: Order(Place) {vm} []")).to_vec();
        wanted.sort();
        let mut places = manager[3..5].to_vec();
        places.sort();
        assert_eq!(places, wanted.iter().collect::<Vec<_>>());
        let lease_over = format!("vm_node -> scheduler: LeaseOver {root} []");
        assert!(manager.contains(&&lease_over), "{manager:?}");
    });
}

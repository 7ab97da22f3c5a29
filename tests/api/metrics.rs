//! What Prometheus gets, whether it understands that, and whether dashboard and alerts ask for what there is.

use super::{promtool::promtool, world::World};
use faasnet::metrics::{Agent, AgentParts, agent_page};
use faasnet_actors::{
    event_log::{Happening, News},
    function_tree::{Cause, HoldingNews, SeatNews, SeatPlace, TreeNews},
    id::{Digest, Epoch, VmId},
    model::{StartState, StartView, Timeline},
    support::Snapshot,
    wire::control::{BytesBySource, EndReason},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const ALERTS: &str = include_str!("../../config/alerts.yaml");
const ALERT_TESTS: &str = include_str!("alerts.test.yaml");
const DASHBOARD: &str = include_str!("../../config/grafana-dashboard.json");

/// What each process says of itself.
const SHARED: [&str; 5] = [
    "faasnet_build_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
];

fn tell(world: &World, happening: Happening) {
    world.log.teller.tell(News::of(&"team-a".parse().expect("name"), happening));
}

fn start(state: StartState, ready_us: Option<u64>, reason: Option<EndReason>) -> Happening {
    Happening::Start(Box::new(StartView {
        id: "start-1".parse().expect("id"),
        function: "web".parse().expect("name"),
        accepted_at_ms: None,
        request_id: None,
        vm: None,
        state,
        reason,
        timeline_us: Timeline { waiting: Some(700), ready: ready_us, ..Timeline::default() },
        bytes: BytesBySource::default(),
        stalls: 3,
        stalled_us: 1_500_000,
        longest_stall_us: 0,
        waits: Default::default(),
        worst_stall: None,
    }))
}

fn in_tree(news: TreeNews) -> Happening {
    Happening::of_tree(Digest::from_bytes([1; 32]), news)
}

/// One start from its beginning to its end on the second VM of a tree.
fn tell_a_start(world: &World) {
    for (vm, depth) in [("vm-0", 0), ("vm-1", 1)] {
        let places = vec![SeatPlace { depth, parent: None }];
        let (vm, epoch) = (vm.parse().expect("name"), Epoch::default());
        tell(
            world,
            in_tree(TreeNews::Seat(SeatNews { vm, epoch, ready: false, places, cause: Cause::Joined })),
        );
    }
    tell(world, start(StartState::Starting, None, None));
    let vm: VmId = "vm-1".parse().expect("name");
    let bytes = BytesBySource { parent: 5_000_000, ancestor: 0, origin: 10 };
    let holding = HoldingNews { vm: vm.clone(), blocks_present: 10, blocks_total: 20, bytes };
    tell(world, in_tree(TreeNews::Holding(holding)));
    tell(world, start(StartState::Ready, Some(150_000), None));
    let lost = "vm-0".parse().expect("name");
    tell(world, in_tree(TreeNews::Repair { vm, lost, epoch: Epoch::default() }));
    (0..2).for_each(|_| tell(world, start(StartState::Ended, Some(150_000), Some(EndReason::Idle))));
    world.log.teller.refused(None, "too_many".into());
}

async fn scrape(world: &World) -> String {
    let response = world.request("GET", "/metrics", &world.viewer).send().await.expect("answered");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4");
    response.text().await.expect("text")
}

fn samples(page: &str) -> BTreeMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name, value.parse().expect("a number"))
        })
        .collect()
}

#[actix_web::test]
async fn the_numbers_are_those_of_what_happened() {
    let world = World::new().await;
    tell_a_start(&world);
    let spec = json!({"image": "registry.example/app:1"});
    let put = world.as_admin("PUT", "/v1/functions/app").json(&spec).send().await.expect("answered");
    assert_eq!(put.status(), 200);
    let page = scrape(&world).await;
    let samples = samples(&page);
    for (name, value) in [
        (r#"faasnet_start_phase_seconds_bucket{phase="ready",le="0.1"}"#, 0.0),
        (r#"faasnet_start_phase_seconds_bucket{phase="ready",le="0.2"}"#, 1.0),
        (r#"faasnet_start_phase_seconds_bucket{phase="ready",le="60"}"#, 1.0),
        (r#"faasnet_start_phase_seconds_sum{phase="ready"}"#, 0.15),
        (r#"faasnet_start_phase_seconds_bucket{phase="waiting",le="0.001"}"#, 1.0),
        (r#"faasnet_start_phase_seconds_count{phase="mount"}"#, 0.0),
        (r#"faasnet_starts_ended_total{reason="idle",was_ready="true"}"#, 1.0),
        (r#"faasnet_starts_ended_total{reason="no_room",was_ready="false"}"#, 0.0),
        (r#"faasnet_received_bytes_total{source="parent"}"#, 5_000_000.0),
        (r#"faasnet_received_bytes_total{source="origin"}"#, 10.0),
        ("faasnet_stalls_total", 3.0),
        ("faasnet_stall_seconds_total", 1.5),
        (r#"faasnet_tree_changes_total{change="joined"}"#, 2.0),
        ("faasnet_repairs_total", 1.0),
        ("faasnet_trees", 1.0),
        ("faasnet_tree_members", 2.0),
        ("faasnet_tree_height", 1.0),
        (r#"faasnet_refusals_total{code="too_many"}"#, 1.0),
        ("faasnet_events_dropped_total", 0.0),
        ("faasnet_functions", 1.0),
        ("faasnet_instances_ready", 4.0),
        ("faasnet_starts_under_way", 3.0),
        ("faasnet_requests_waiting", 2.0),
        (r#"faasnet_vms{state="lost"}"#, 2.0),
        (r#"faasnet_vms{state="drained"}"#, 0.0),
        (r#"faasnet_queue_length{actor="journal",queue="commits"}"#, 2.0),
        (r#"faasnet_queue_limit{actor="journal",queue="commits"}"#, 9.0),
        (r#"faasnet_queue_fullest_ratio{actor="journal",queue="commits"}"#, 2.0 / 9.0),
        (r#"faasnet_actor_generations{actor="journal"}"#, 1.0),
        ("faasnet_actors_left_out", 7.0),
        ("faasnet_agents_asked", 2.0),
        (r#"faasnet_part_up{part="event_log"}"#, 1.0),
        (r#"faasnet_part_up{part="scheduler"}"#, 1.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} in\n{page}");
    }
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    assert!(samples["process_open_fds"] >= 3.0);
    promtool(&["check", "metrics"], &page);
}

#[actix_web::test]
async fn events_that_could_not_wait_are_said_to_be_missing() {
    let world = World::with_events(vec![], |_| {}, |events| events.waiting_max = 0).await;
    tell_a_start(&world);
    let page = scrape(&world).await;
    let samples = samples(&page);
    // Two members, a start in four tellings, what one holds, a complaint, a refusal.
    assert_eq!(samples["faasnet_events_dropped_total"], 9.0);
    assert_eq!(samples[r#"faasnet_start_phase_seconds_count{phase="ready"}"#], 0.0);
}

#[actix_web::test]
async fn numbers_of_all_tenants_are_not_for_one_of_them() {
    let world = World::new().await;
    let answer = |token: &str| world.request("GET", "/metrics", token).send();
    assert_eq!(answer(&world.team_a).await.expect("answered").status(), 403);
    assert_eq!(answer("fn_wrong").await.expect("answered").status(), 401);
    let page = scrape(&world).await;
    assert!(!page.contains("team-a"), "no name of a tenant is in it");
}

/// The names that an expression has which look like those of our metrics.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("faasnet_") || word.starts_with("process_")).collect()
}

#[actix_web::test]
async fn dashboard_and_alerts_ask_for_what_there_is() {
    let world = World::new().await;
    tell_a_start(&world);
    let page = scrape(&world).await;
    let names = |page| samples(page).into_keys().map(|sample| sample.split('{').next().unwrap_or_default());
    let of_manager: BTreeSet<&str> = names(&page).collect();
    let actors = Snapshot::new("up").queue("instances", 1, 2).into_root("agent");
    let agent = Agent { parts: Some(AgentParts { actors, held: Vec::new() }), ..Agent::default() };
    let agent = agent_page(&agent);
    // They are summed up apart.
    assert!(names(&agent).filter(|name| of_manager.contains(name)).all(|name| SHARED.contains(&name)));
    let there: BTreeSet<&str> = of_manager.iter().copied().chain(names(&agent)).collect();
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let shown: Vec<&str> = targets.map(|target| target["expr"].as_str().expect("an expression")).collect();
    let asked: BTreeSet<&str> = shown.iter().flat_map(|text| metrics_in(text)).collect();
    let unknown: Vec<_> = asked.difference(&there).collect();
    assert!(unknown.is_empty(), "the dashboard shows what nobody says: {unknown:?}");
    let of_alerts = metrics_in(ALERTS);
    let unknown: Vec<_> = of_alerts.difference(&there).collect();
    assert!(unknown.is_empty(), "alerts watch what nobody says: {unknown:?}");
    let families = |names: &BTreeSet<&str>| -> BTreeSet<String> {
        let family = |name: &&str| {
            let name =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            name.to_owned()
        };
        names.iter().map(family).collect()
    };
    let unseen: Vec<_> = families(&of_manager).difference(&families(&asked)).cloned().collect();
    assert!(unseen.is_empty(), "the dashboard does not show {unseen:?}");

    // Expressions of the dashboard are those of rules, with a range in place of what Grafana puts there.
    let rules = shown.iter().enumerate().map(|(number, expression)| {
        let expr = expression.replace("$__rate_interval", "5m");
        json!({"record": format!("panel:{number}"), "expr": expr})
    });
    let rules = json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    let path = world.folder.path().join("dashboard.yaml");
    std::fs::write(&path, rules.to_string()).expect("written");
    promtool(&["check", "rules", path.to_str().expect("text")], "");
}

#[test]
fn each_alert_fires_where_it_should() {
    let folder = tempfile::TempDir::new().expect("folder");
    let (alerts, tests) = (folder.path().join("alerts.yaml"), folder.path().join("tests.yaml"));
    std::fs::write(&alerts, ALERTS).expect("written");
    let text = ALERT_TESTS.replace("[ALERTS]", &format!("[{}]", alerts.display()));
    std::fs::write(&tests, text).expect("written");
    promtool(&["test", "rules", tests.to_str().expect("text")], "");

    // Each is tried both ways.
    let names = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names {
        let tried: Vec<&str> = ALERT_TESTS.split(&format!("alertname: {name}")).skip(1).collect();
        let next = |text: &&str| text.split("alertname:").next().unwrap_or_default().to_owned();
        let fires = tried.iter().map(next).filter(|test| test.contains("exp_labels")).count();
        assert!(fires > 0 && fires < tried.len(), "{name} fires in {fires} of {} tests", tried.len());
    }
}

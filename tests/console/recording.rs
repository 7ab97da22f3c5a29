//! What the simulator's manager tells of a thousand VMs, to be played to the console: views as they were at one moment,
//! and the events since.

use faasnet_loadtest::simulate::{ImageModel, Scenario};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub const VMS: usize = 1000;
/// 2026-01-01, in milliseconds since 1970.
const BEGAN_MS: u64 = 1_767_225_600_000;
/// As many starts as the API gives of a function.
const STARTS_MAX: usize = 500;

pub struct Recording {
    /// Answers of the API by path.
    views: Map<String, Value>,
    /// What a client that has these views is told next.
    events: Vec<Value>,
    /// Two starts and a half for each VM are under way when three VMs of ten vanish; one of the others, fed by another VM.
    pub survivor: String,
}

fn key(event: &Value, field: &str) -> String {
    event["data"][field].as_str().unwrap_or_else(|| panic!("no {field} in {event}")).to_owned()
}

impl Recording {
    pub fn make() -> Self {
        let (report, events) = Scenario::Vanish.record(VMS, ImageModel::default(), 1);
        assert_eq!(report.violation, None);
        let mut events = events.iter().map(|event| {
            let mut event: Value = serde_json::from_str(event).unwrap();
            // The tenant that the console shows at first, and a time that is not the beginning of all clocks.
            if event["tenant"].is_string() {
                event["tenant"] = "default".into();
            }
            event["at_ms"] = (event["at_ms"].as_u64().unwrap() + BEGAN_MS).into();
            event
        });
        let kinds = ["function", "start", "vm", "member", "transfer"];
        let mut latest = kinds.map(|kind| (kind, BTreeMap::new())).into_iter().collect::<BTreeMap<&str, _>>();
        // Until everything has been told of once.
        while latest["vm"].len() < VMS || latest["function"].is_empty() {
            let event = events.next().unwrap();
            let (kind, name) = match event["kind"].as_str().unwrap() {
                "function" => ("function", "name"),
                "start" => ("start", "id"),
                "vm" => ("vm", "id"),
                "member" => ("member", "vm"),
                "transfer" => ("transfer", "vm"),
                other => panic!("{other} before anything goes wrong"),
            };
            latest.entry(kind).or_default().insert(key(&event, name), event["data"].clone());
        }
        let events: Vec<Value> = events.collect();
        let of = |kind: &str| latest[kind].values().cloned().collect::<Vec<Value>>();
        let starts: Vec<Value> = of("start").into_iter().take(STARTS_MAX).collect();
        let views = [
            ("/v1/session", json!({ "name": "admin", "role": "admin", "tenant": null })),
            ("/v1/functions", json!({ "functions": of("function") })),
            ("/v1/functions/web/starts", json!({ "starts": starts })),
            ("/v1/functions/web/tree", tree(&latest["member"], &latest["transfer"])),
            ("/v1/vms", json!({ "vms": of("vm") })),
            ("/v1/actors", actors(latest["vm"].keys())),
        ];
        let mut views: Map<String, Value> =
            views.into_iter().map(|(path, view)| (path.to_owned(), view)).collect();
        for start in of("start") {
            views.insert(format!("/v1/starts/{}", start["id"].as_str().unwrap()), start);
        }
        let is_gone =
            |vm: &str| events.iter().any(|event| event["kind"] == "member_left" && key(event, "vm") == vm);
        let is_fed = |member: &Value| member["places"][0]["parent"].is_string();
        let survivors = latest["member"].iter().filter(|(vm, member)| is_fed(member) && !is_gone(vm));
        let survivor = survivors.map(|(vm, _)| vm.clone()).next_back().unwrap();
        Self { views, events, survivor }
    }

    /// The script that plays it, so many events a second.
    pub fn script(&self, rate: u32) -> String {
        let feed = json!({ "views": self.views, "events": self.events, "rate": rate });
        // A text to parse is quicker than a program that large.
        let feed = Value::String(feed.to_string());
        format!("window.feed = JSON.parse({feed});\n{}", include_str!("feed.js"))
    }
}

/// As the API shows it, from what was told of its members.
fn tree(members: &BTreeMap<String, Value>, held: &BTreeMap<String, Value>) -> Value {
    let mut order: Vec<(u64, &String)> =
        members.iter().map(|(vm, member)| (member["places"][0]["depth"].as_u64().unwrap(), vm)).collect();
    order.sort();
    let first = &members[order[0].1];
    let view = |(place, (_, vm)): (usize, &(u64, &String))| {
        let (member, held) = (&members[*vm], &held.get(*vm).cloned().unwrap_or_default());
        let number = |field: &str| held[field].as_u64().unwrap_or_default();
        json!({
            "vm": vm, "place": place, "parent": member["places"][0]["parent"], "children": [],
            "ready": member["ready"], "blocks_present": number("blocks_present"), "blocks_total": number("blocks_total"),
        })
    };
    let height = order.last().map(|(depth, _)| *depth);
    let members: Vec<Value> = order.iter().enumerate().map(view).collect();
    json!({ "image": first["image"], "epoch": first["epoch"], "height": height, "members": members })
}

/// The simulator has cores and no actors: these are as the manager would have them for the same VMs.
fn actors<'a>(vms: impl Iterator<Item = &'a String>) -> Value {
    const SHOWN: usize = 200;
    let actor = |kind: &str, name: &str, children: Vec<Value>| {
        json!({
            "kind": kind, "name": name, "generation": 0, "crashes": 0, "mailbox": 0, "state": "up", "thread": "",
            "queues": [{ "name": "orders", "length": 2, "limit": 16 }], "children": children, "children_left_out": 0,
        })
    };
    let nodes: Vec<Value> = vms.take(SHOWN).map(|vm| actor("vm_node", vm, vec![])).collect();
    let mut fleet = actor("fleet", "fleet", nodes);
    fleet["children_left_out"] = (VMS - SHOWN).into();
    let forest = actor("forest", "forest", vec![actor("function_tree", "acme/web", vec![])]);
    json!({ "actors": [actor("manager", "manager", vec![actor("scheduler", "scheduler", vec![]), forest, fleet])] })
}

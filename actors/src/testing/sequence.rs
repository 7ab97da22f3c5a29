//! What the event log of a cluster tells of each start and each member of a tree, in its order.
//!
//! The same text comes from the real actors (`levels.rs`) and from the simulator (`loadtest/tests/levels.rs`, which
//! includes this file). Only what is told of one thing has an order that must be the same: two VMs that start at once
//! may be ready in either order, and how long anything takes differs. Left out are therefore times, what is told from
//! time to time (functions, VMs, blocks that are held), ids of starts, which are random, and the manager's term. Which VM is
//! chosen is random, too: VMs are named by the order in which they joined the tree.

use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// VMs in the order in which they joined the tree.
pub fn joined(records: &[String]) -> Vec<String> {
    let events =
        records.iter().map(|record| serde_json::from_str::<Value>(record).expect("an event is JSON"));
    let of_joins = events.filter(|event| event["kind"] == "member" && event["data"]["cause"] == "joined");
    let mut joins: Vec<(u64, String)> = of_joins
        .map(|event| {
            let vm = event["data"]["vm"].as_str().unwrap_or_default().to_owned();
            (epoch(&event["data"]).as_u64().unwrap_or_default(), vm)
        })
        .collect();
    joins.sort();
    joins.into_iter().map(|(_, vm)| vm).collect()
}

/// Lines for each start, by its VM and its place among those there, and for each member.
#[derive(Debug, PartialEq, Eq)]
pub struct Sequence(BTreeMap<String, Vec<String>>);

impl Sequence {
    /// `records` are events as subscribers get them.
    pub fn new(records: &[String]) -> Self {
        let order = joined(records);
        let vm = |name: &str| match order.iter().position(|joined| joined == name) {
            Some(place) => format!("vm {}", place + 1),
            None => "a vm outside".to_owned(),
        };
        let events: Vec<Value> =
            records.iter().map(|record| serde_json::from_str(record).expect("an event is JSON")).collect();
        let name = |value: &Value| value.as_str().map_or_else(|| "nobody".to_owned(), &vm);
        // A start has its VM only from the second event on.
        let mut keys: BTreeMap<&str, String> = BTreeMap::new();
        let mut on_vm: BTreeMap<String, usize> = BTreeMap::new();
        for data in events.iter().filter(|event| event["kind"] == "start").map(|event| &event["data"]) {
            let id = data["id"].as_str().expect("a start has an id");
            if !data["vm"].is_null() && !keys.contains_key(id) {
                let host = name(&data["vm"]);
                let number = on_vm.entry(host.clone()).or_default();
                *number += 1;
                keys.insert(id, format!("start {number} on {host}"));
            }
        }
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in &events {
            let data = &event["data"];
            let (key, line) = match event["kind"].as_str() {
                Some("start") => {
                    let id = data["id"].as_str().expect("a start has an id");
                    let Some(key) = keys.get(id) else { continue };
                    (key.clone(), of_start(data))
                }
                Some("member") => {
                    let places = data["places"].as_array().expect("a member has places");
                    let place =
                        |place: &Value| format!("{} below {}", place["depth"], name(&place["parent"]));
                    let places: Vec<String> = places.iter().map(place).collect();
                    let (cause, ready) = (data["cause"].as_str().unwrap_or_default(), &data["ready"]);
                    let line =
                        format!("{cause}, ready {ready}, {}, epoch {}", places.join(", "), epoch(data));
                    (format!("member {}", name(&data["vm"])), line)
                }
                Some("member_left") => {
                    (format!("member {}", name(&data["vm"])), format!("left, epoch {}", epoch(data)))
                }
                _ => continue,
            };
            let lines = lines.entry(key).or_default();
            // Bytes and stalls are told between phases, as often as there is time.
            if lines.last() != Some(&line) {
                lines.push(line);
            }
        }
        Self(lines)
    }
}

fn epoch(data: &Value) -> &Value {
    &data["epoch"]["counter"]
}

fn of_start(data: &Value) -> String {
    let phases = data["timeline_us"].as_object().expect("a start has a timeline");
    // In the order in which they follow each other, and not in that of the alphabet.
    let known = ["waiting", "placing", "connecting", "index", "metadata", "whole", "mount", "run", "probe"];
    let done: Vec<&str> = known
        .into_iter()
        .filter(|phase| phases.get(*phase).is_some_and(|length| !length.is_null()))
        .collect();
    let state = data["state"].as_str().unwrap_or_default();
    let reason = if data["reason"].is_null() { String::new() } else { format!(" ({})", data["reason"]) };
    format!("{state}{reason} after {}", if done.is_empty() { "nothing".to_owned() } else { done.join(", ") })
}

impl fmt::Display for Sequence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, lines) in &self.0 {
            writeln!(out, "{key}")?;
            lines.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        }
        out.write_str("")
    }
}

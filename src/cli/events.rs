//! `faasnet events`: what happens, as it happens.

use super::{
    Context, Failure,
    output::{Output, duration, printable, size},
    stream::{Event, Followed, Item, until_interrupted},
};
use clap::Args;
use faasnet_actors::id::{FunctionName, VmId};
use jiff::Timestamp;
use serde_json::Value;
use std::{convert::Infallible, process::ExitCode};

#[derive(Debug, Args)]
pub struct Events {
    /// Only of this function: its starts, its instances, and the tree of its image
    #[arg(long, value_name = "NAME")]
    function: Option<FunctionName>,
    /// Only of this VM
    #[arg(long, value_name = "VM")]
    vm: Option<VmId>,
    /// Only of these kinds, with commas between them: function, start, vm, member, transfer, repair, refused, audit ...
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// Begin behind this number; 0 shows all that is kept
    #[arg(long, value_name = "N")]
    since: Option<u64>,
}

impl Events {
    /// Follows the stream until it is interrupted; comes back when the manager does, and says what was missed.
    pub(super) async fn run(self, context: &mut Context<'_>) -> Result<ExitCode, Failure> {
        until_interrupted(self.follow(context)).await
    }

    async fn follow(self, context: &mut Context<'_>) -> Result<Infallible, Failure> {
        let filter = [
            ("function", self.function.map(|function| function.to_string())),
            ("vm", self.vm.map(|vm| vm.to_string())),
            ("kind", self.kind),
        ];
        let mut events = Followed::open(&context.client, filter, self.since).await?;
        loop {
            while let Some(items) = events.next().await? {
                for (json, item) in items {
                    show(&mut context.output, &json, &item)?;
                }
            }
            events.come_back().await?;
        }
    }
}

fn show(output: &mut Output<'_>, json: &Value, item: &Item) -> Result<(), Failure> {
    let text = match item {
        Item::Hello { .. } => return Ok(()),
        Item::Event(event) => line(event),
        Item::Lost { from, to } => format!("events {from} to {to} are lost"),
        Item::Began { .. } => "another manager began; what happened in between is not known".into(),
    };
    output.line(&json.to_string(), || text)
}

/// One event in one line: when, what, where, and the gist of it.
fn line(event: &Event) -> String {
    let at = Timestamp::from_millisecond(event.at_ms).unwrap_or_default();
    let at = at.strftime("%H:%M:%S%.3f").to_string();
    let vm = event.vm.as_deref().unwrap_or("-");
    let functions = event.functions.join(",");
    let (functions, gist) = (printable(&functions), printable(&gist(event)));
    format!("{at}  {:<11}  {vm:<12}  {functions:<16}  {gist}", printable(&event.kind)).trim_end().to_owned()
}

fn gist(event: &Event) -> String {
    let data = &event.data;
    let text = |name: &str| data[name].as_str().unwrap_or("-").to_owned();
    let number = |name: &str| data[name].as_u64().unwrap_or(0);
    match event.kind.as_str() {
        "start" => {
            let ready = data["timeline_us"]["ready"].as_u64();
            let ready = ready.map_or_else(String::new, |ready| format!(" after {}", duration(ready)));
            format!("{} {}{ready}", text("id"), text("state"))
        }
        "function" => {
            let image = data["image_state"]["state"].as_str().unwrap_or("-");
            let [ready, starting, waiting] = ["ready", "starting", "waiting"].map(number);
            format!("image {image}, {ready} ready, {starting} starting, {waiting} requests wait")
        }
        "vm" => {
            let (state, instances) = (text("state"), data["instances"].as_array().map_or(0, Vec::len));
            format!("{state}, {instances} instances, {} used", size(number("memory_used_bytes")))
        }
        "member" => {
            let places = data["places"].as_array().map(Vec::as_slice).unwrap_or_default();
            let parent = |place: &Value| place["parent"].as_str().unwrap_or("the origin").to_owned();
            format!("{}, fed by {}", text("cause"), places.iter().map(parent).collect::<Vec<_>>().join(", "))
        }
        "member_left" => "left the tree".into(),
        "transfer" => {
            let bytes =
                ["parent", "ancestor", "origin"].map(|from| data["bytes"][from].as_u64().unwrap_or(0));
            let [parent, ancestor, origin] = bytes.map(size);
            let (present, total) = (number("blocks_present"), number("blocks_total"));
            format!("{present}/{total} blocks; {parent} parent, {ancestor} others, {origin} origin")
        }
        "repair" => format!("is not served by {}", text("lost")),
        "refused" => format!("{} answers: {}", number("count"), text("code")),
        "audit" => format!("{} {} {}: {}", text("who"), text("method"), text("path"), number("status")),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line_of(event: Value) -> String {
        let Ok(Item::Event(event)) = serde_json::from_value(event) else { panic!("no event") };
        line(&event)
    }

    #[test]
    fn an_event_is_one_line_that_cannot_move_the_cursor() {
        let event = json!({
            "type": "event", "number": 5, "at_ms": 1_700_000_000_123_i64, "kind": "member", "tenant": "acme",
            "functions": ["web"], "vm": "vm-2",
            "data": {"cause": "moved", "places": [{"depth": 1, "parent": "vm-1\u{1b}[2J"}, {"depth": 0, "parent": null}]},
        });
        let text = line_of(event);
        let expected = "22:13:20.123  member       vm-2          web               moved, fed by vm-1\u{fffd}[2J, the origin";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_a_later_release_tells_is_shown_without_its_gist() {
        let event = json!({
            "type": "event", "number": 5, "at_ms": 0, "kind": "weather", "vm": null, "data": {"sun": true},
        });
        assert_eq!(line_of(event), "00:00:00.000  weather      -");
    }
}

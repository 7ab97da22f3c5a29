//! The page and the tables of one load.

use super::{
    figures::{Bin, Outcome, ready_ms, ready_times},
    threshold::FIGURES,
    watch::{Look, SeenStart},
};
use crate::{
    load::Summary,
    report::{Axis, Page, Plot, Series, Table},
};
use std::collections::{BTreeMap, BTreeSet};

const MB: f64 = 1e6;
/// Rows of a table by function: the most popular ones.
const ROWS_MAX: usize = 50;

/// Figures in the order in which they are explained.
pub fn figures(outcome: &Outcome) -> Table {
    let mut table = Table::new(["figure", "value", "what it is"]);
    for (name, what) in FIGURES {
        let value = outcome.figures.get(name).map_or("-".to_owned(), |value| number(*value));
        table.push([name, &value, what]);
    }
    table
}

fn number(value: f64) -> String {
    match value {
        whole if whole.fract() == 0.0 => format!("{whole}"),
        small if small.abs() < 10.0 => format!("{small:.3}"),
        usual => format!("{usual:.1}"),
    }
}

/// What became of requests, by tenant and function.
pub fn by_function(outcome: &Outcome) -> Table {
    let header = [
        "function", "requests", "ok", "refused", "errors", "not sent", "p50 ms", "p90 ms", "p99 ms", "max ms",
    ];
    let mut table = Table::new(header);
    let mut rows: Vec<(&String, &Summary)> = outcome.by_function.iter().collect();
    rows.sort_by_key(|(_, summary)| std::cmp::Reverse(summary.requests));
    let all = ("all".to_owned(), outcome.summary.clone());
    let shown = rows.into_iter().take(ROWS_MAX);
    for (name, summary) in std::iter::once((&all.0, &all.1)).chain(shown) {
        let counts = [summary.requests, summary.ok, summary.refused, summary.errors(), summary.not_sent];
        let latencies = [summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.max_ms];
        let cells =
            counts.map(|count| count.to_string()).into_iter().chain(latencies.map(|ms| format!("{ms:.1}")));
        table.push(std::iter::once(name.clone()).chain(cells));
    }
    table
}

/// Kinds of answers and failures.
pub fn outcomes(summary: &Summary) -> Table {
    let mut table = Table::new(["what became of requests", "count"]);
    for (status, count) in &summary.by_status {
        table.push([format!("status {status}"), count.to_string()]);
    }
    for (kind, count) in &summary.failed {
        table.push([kind.clone(), count.to_string()]);
    }
    let rest = [
        ("no answer within the deadline", summary.timed_out),
        ("not sent: too many were under way", summary.not_sent),
        ("given up when the load was stopped", summary.cut_off),
    ];
    for (kind, count) in rest.into_iter().filter(|(_, count)| *count > 0) {
        table.push([kind.to_owned(), count.to_string()]);
    }
    table
}

pub fn page(title: &str, outcome: &Outcome) -> Page {
    let mut page = Page::new(title);
    page.command(&outcome.command);
    if !outcome.is_complete {
        page.text("The load was stopped before its end; this is what was measured until then.");
    }
    page.text(format!(
        "Latencies count from when a request was to be sent. The generator itself was at most {:.1} ms late.",
        outcome.sent_late_max_ms
    ));
    page.section("Figures").table(figures(outcome));
    page.section("Requests").table(by_function(outcome)).table(outcomes(&outcome.summary));
    page.plot(arrivals_and_answers(outcome)).plot(latencies(outcome));
    let starts = &outcome.watched.starts;
    if !starts.is_empty() {
        page.section("Starts");
        if outcome.watched.starts_truncated {
            page.text("A function had more starts than the API lists: the oldest are missing here.");
        }
        page.plot(time_to_ready(starts)).plot(phases(starts)).plot(ready_over_time(outcome));
    }
    let looks = &outcome.watched.looks;
    if looks.iter().any(|look| !look.received.is_empty()) {
        page.section("Blocks and trees").plot(bytes_by_source(starts)).plot(received_by_vm(looks));
        page.plot(tree_height(looks));
    }
    if looks.iter().any(|look| !look.links.is_empty()) {
        page.section("Links").plot(link_use(looks)).plot(links_over_time(looks));
    }
    page
}

fn arrivals_and_answers(outcome: &Outcome) -> Plot {
    let bin_s = outcome.bin_s;
    let rate = |count: fn(&Bin) -> usize| {
        outcome.over_time.iter().map(move |bin| (bin.at_s, count(bin) as f64 / bin_s)).collect::<Vec<_>>()
    };
    let plot = Plot::new("Arrivals and answers", Axis::linear("s"), Axis::linear("1/s"))
        .with(Series::step("arrivals", rate(|bin| bin.arrivals)))
        .with(Series::step("answered with success", rate(|bin| bin.ok)))
        .note(format!("counted in pieces of {bin_s:.2} s"));
    let has = |count: fn(&Bin) -> usize| outcome.over_time.iter().any(|bin| count(bin) > 0);
    let plot = match has(|bin| bin.refused) {
        true => plot.with(Series::step("refused", rate(|bin| bin.refused))),
        false => plot,
    };
    match has(|bin| bin.other) {
        true => plot.with(Series::step("failed, or not sent", rate(|bin| bin.other))),
        false => plot,
    }
}

fn latencies(outcome: &Outcome) -> Plot {
    let curve = |value: fn(&Bin) -> f64| {
        let served = outcome.over_time.iter().filter(|bin| bin.max_ms > 0.0);
        served.map(move |bin| (bin.at_s, value(bin))).collect::<Vec<_>>()
    };
    Plot::new("Latency, by when the request was to be sent", Axis::linear("s"), Axis::log("ms"))
        .with(Series::points("half of them within", curve(|bin| bin.p50_ms)))
        .with(Series::points("the longest", curve(|bin| bin.max_ms)))
}

fn time_to_ready(starts: &[SeenStart]) -> Plot {
    let ready = starts.iter().filter_map(|start| ready_ms(&start.view));
    Plot::new(
        "Time to ready",
        Axis::linear("ms, from acceptance"),
        Axis::linear("part of the starts").to(1.0),
    )
    .with(Series::cdf("ready", ready))
}

/// One bar for each start, the quickest first.
fn phases(starts: &[SeenStart]) -> Plot {
    let mut sorted: Vec<_> = starts.iter().filter(|start| start.view.timeline_us.ready.is_some()).collect();
    sorted.sort_by_key(|start| start.view.timeline_us.ready);
    let mut plot = Plot::new(
        "Phases of each start, the quickest first",
        Axis::linear("start").from(-0.5),
        Axis::linear("ms"),
    );
    let phases = |start: &SeenStart| {
        let timeline = start.view.timeline_us;
        [
            ("waiting for a VM", timeline.waiting),
            ("placing", timeline.placing),
            ("connecting", timeline.connecting),
            ("index", timeline.index),
            ("metadata", timeline.metadata.map(|us| us + timeline.whole.unwrap_or_default())),
            ("mount", timeline.mount),
            ("run", timeline.run),
            ("probe", timeline.probe),
        ]
    };
    let Some(first) = sorted.first() else { return plot };
    for (number, (name, _)) in phases(first).into_iter().enumerate() {
        let height = |start: &SeenStart| phases(start)[number].1.unwrap_or_default() as f64 / 1000.0;
        let bars = sorted.iter().enumerate().map(|(place, start)| (place as f64, height(start)));
        plot = plot.with(Series::stack(name, bars));
    }
    plot
}

fn ready_over_time(outcome: &Outcome) -> Plot {
    let times = ready_times(&outcome.watched);
    let all = times.iter().enumerate().map(|(place, time)| (*time, (place + 1) as f64));
    let mut per_s: BTreeMap<u64, u64> = BTreeMap::new();
    times.iter().for_each(|time| *per_s.entry(*time as u64).or_default() += 1);
    let last = per_s.keys().next_back().map_or(0, |last| last + 2);
    let rate =
        (0..last).map(|second| (second as f64, per_s.get(&second).copied().unwrap_or_default() as f64));
    Plot::new("Starts that are ready", Axis::linear("s"), Axis::linear("starts"))
        .with(Series::step("all", all))
        .with(Series::step("per second", rate))
        .note(format!(
            "as exact as the looks at the system are close: {:.2} s at most",
            looks_apart_s(outcome)
        ))
}

fn looks_apart_s(outcome: &Outcome) -> f64 {
    let pairs = outcome.watched.looks.windows(2);
    pairs.map(|pair| pair[1].at_s - pair[0].at_s).fold(0.0, f64::max)
}

/// Of the starts, one bar for each VM.
fn bytes_by_source(starts: &[SeenStart]) -> Plot {
    let mut by_vm: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for start in starts {
        let Some(vm) = &start.view.vm else { continue };
        let bytes = start.view.bytes;
        let sums = by_vm.entry(vm.to_string()).or_default();
        for (sum, more) in sums.iter_mut().zip([bytes.parent, bytes.ancestor, bytes.origin]) {
            *sum = sum.saturating_add(more);
        }
    }
    let names = in_natural_order(by_vm.keys());
    let plot =
        Plot::new("Bytes by source, of the starts", Axis::names("VM", names.clone()), Axis::linear("MB"));
    ["parent", "another VM of the tree", "origin"].into_iter().enumerate().fold(
        plot,
        |plot, (source, name)| {
            let bars =
                names.iter().enumerate().map(|(place, vm)| (place as f64, by_vm[vm][source] as f64 / MB));
            plot.with(Series::stack(name, bars))
        },
    )
}

fn received_by_vm(looks: &[Look]) -> Plot {
    let total = |source: fn(&faasnet_actors::wire::control::BytesBySource) -> u64| {
        let sum = move |look: &Look| look.received.values().map(source).sum::<u64>() as f64 / MB;
        looks.iter().map(|look| (look.at_s, sum(look))).collect::<Vec<_>>()
    };
    Plot::new("Received of blocks, all VMs together", Axis::linear("s"), Axis::linear("MB"))
        .with(Series::line("from parents", total(|bytes| bytes.parent)))
        .with(Series::line("from other VMs of the tree", total(|bytes| bytes.ancestor)))
        .with(Series::line("from the origin", total(|bytes| bytes.origin)))
        .note("as heartbeats say, since the agents run")
}

fn tree_height(looks: &[Look]) -> Plot {
    let height = looks.iter().map(|look| (look.at_s, f64::from(look.tree_height)));
    let members = looks.iter().map(|look| (look.at_s, look.members as f64));
    Plot::new("Trees", Axis::linear("s"), Axis::linear("edges; VMs"))
        .with(Series::step("height of the highest", height))
        .with(Series::step("VMs in trees", members))
}

/// What each link carried from the first look to the last.
fn link_use(looks: &[Look]) -> Plot {
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        return Plot::new("Use of links", Axis::linear("host"), Axis::linear("MB"));
    };
    let names = in_natural_order(last.links.keys());
    let carried = |of: fn(&crate::bed::Counters) -> u64| {
        let bytes = |look: &Look, host: &String| look.links.get(host).map_or(0, of);
        let megabytes = |host| bytes(last, host).saturating_sub(bytes(first, host)) as f64 / MB;
        names.iter().enumerate().map(|(place, host)| (place as f64, megabytes(host))).collect::<Vec<_>>()
    };
    Plot::new("What each link carried", Axis::names("host", names.clone()), Axis::linear("MB"))
        .with(Series::points("sent", carried(|counters| counters.sent_bytes)))
        .with(Series::points("received", carried(|counters| counters.received_bytes)))
}

fn links_over_time(looks: &[Look]) -> Plot {
    let is_vm = |host: &str| !matches!(host, "registry" | "manager");
    let hosts: BTreeSet<&String> = looks.iter().flat_map(|look| look.links.keys()).collect();
    let rates = |host: &str, of: fn(&crate::bed::Counters) -> u64| {
        let bytes = |look: &Look| look.links.get(host).map_or(0, of);
        let rate = |pair: &[Look]| {
            let seconds = (pair[1].at_s - pair[0].at_s).max(f64::MIN_POSITIVE);
            (pair[1].at_s, bytes(&pair[1]).saturating_sub(bytes(&pair[0])) as f64 / MB / seconds)
        };
        looks.windows(2).map(rate).collect::<Vec<_>>()
    };
    let of_vms = |of: fn(&crate::bed::Counters) -> u64, fold: fn(&[f64]) -> f64| {
        let curves: Vec<_> = hosts.iter().filter(|host| is_vm(host)).map(|host| rates(host, of)).collect();
        let times = looks.iter().skip(1).map(|look| look.at_s).enumerate();
        let values = |place: usize| curves.iter().map(|curve| curve[place].1).collect::<Vec<_>>();
        times.map(|(place, at)| (at, fold(&values(place)))).collect::<Vec<_>>()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    Plot::new("Links over time", Axis::linear("s"), Axis::linear("MB/s"))
        .with(Series::step("VMs receive, on average", of_vms(|counters| counters.received_bytes, mean)))
        .with(Series::step("the VM that receives most", of_vms(|counters| counters.received_bytes, most)))
        .with(Series::step("the VM that sends most", of_vms(|counters| counters.sent_bytes, most)))
        .with(Series::step("the registry sends", rates("registry", |counters| counters.sent_bytes)))
        .with(Series::step("the manager sends", rates("manager", |counters| counters.sent_bytes)))
}

/// vm-2 before vm-10.
fn in_natural_order<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = names.cloned().collect();
    let key = |name: &String| {
        let digits = name.len() - name.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
        let (stem, number) = name.split_at(name.len() - digits);
        (stem.to_owned(), number.parse::<u64>().unwrap_or_default())
    };
    names.sort_by_key(key);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let names = ["vm-10", "vm-2", "registry", "vm-1"].map(str::to_owned);
        assert_eq!(in_natural_order(names.iter()), ["registry", "vm-1", "vm-2", "vm-10"]);
    }
}

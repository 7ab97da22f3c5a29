//! The page of a manager.

use super::{Page, actors, build, by_source, process, seconds};
use faasnet_actors::{
    event_log::{Durations, Ending, Totals},
    explain::Phase,
    model::{Counts, VmState},
    support::ActorView,
    wire::control::EndReason,
};

/// What the parts of a manager say; none of one that does not answer.
pub struct Manager {
    /// What has happened, of the event log.
    pub totals: Option<Totals>,
    /// What there is, of the scheduler.
    pub counts: Option<Counts>,
    pub actors: Option<ActorView>,
    /// Of a bounded number of agents.
    pub agents: Option<Vec<ActorView>>,
}

pub fn page(Manager { totals, counts, actors, agents }: &Manager) -> String {
    let mut page = Page::default();
    build(&mut page);
    let help =
        "Whether that part of the manager gave its numbers; without them those of it are missing here.";
    let mut parts = page.gauges("faasnet_part_up", help);
    for (part, is_up) in [
        ("event_log", totals.is_some()),
        ("scheduler", counts.is_some()),
        ("actors", actors.is_some()),
        ("agents", agents.is_some()),
    ] {
        parts.add(&[("part", part)], f64::from(u8::from(is_up)));
    }
    drop(parts);
    totals.iter().for_each(|totals| write_totals(&mut page, totals));
    counts.iter().for_each(|counts| write_counts(&mut page, counts));
    let agents = agents.as_deref().unwrap_or_default();
    let help = "Agents whose actors are in the sums of actors here, at most manager.children_shown_max.";
    page.gauge("faasnet_agents_asked", help, agents.len() as f64);
    let manager = actors.as_ref();
    let limit = "manager.children_shown_max";
    actors::write(&mut page, actors::Of { prefix: "faasnet_", limit, manager, agents });
    process::write(&mut page);
    page.text()
}

fn write_totals(page: &mut Page, totals: &Totals) {
    starts(page, totals);
    let help = "Stored bytes of blocks that VMs received.";
    by_source(page, "faasnet_received_bytes_total", help, totals.bytes);

    let help = "Changes of function trees: members that joined, left, or got another parent.";
    let mut changes = page.counters("faasnet_tree_changes_total", help);
    for (change, count) in [("joined", totals.joined), ("left", totals.left), ("moved", totals.moved)] {
        changes.add(&[("change", change)], count as f64);
    }
    drop(changes);
    let help = "Complaints of VMs that an upstream does not serve them.";
    page.counter("faasnet_repairs_total", help, totals.repairs as f64);
    page.gauge("faasnet_trees", "Function trees with members.", totals.trees as f64);
    page.gauge("faasnet_tree_members", "Members of all function trees.", totals.members as f64);
    let help = "Edges on the longest way to a root in any function tree.";
    page.gauge("faasnet_tree_height", help, f64::from(totals.height));

    let help = "Requests to the API and to functions that were refused because a limit was reached.";
    let mut refused = page.counters("faasnet_refusals_total", help);
    totals.refused.iter().for_each(|(code, count)| refused.add(&[("code", code)], *count as f64));
    drop(refused);
    let help = "Events that are not counted here, because more were told than could wait for the log.";
    page.counter("faasnet_events_dropped_total", help, totals.dropped as f64);
    let help = "Starts and tree members that were forgotten to make room; what is told of them later may count again.";
    page.counter("faasnet_events_forgotten_total", help, totals.forgotten as f64);
}

fn starts(page: &mut Page, totals: &Totals) {
    let help =
        "Phases of starts that became ready; \"ready\" is the whole, from acceptance to the first answer.";
    let mut phases = page.histograms("faasnet_start_phase_seconds", help);
    // Those of which there are none yet too: a rate is seen from the second sample on.
    let none = Durations::default();
    for phase in Phase::ALL {
        phases.add_durations(&[("phase", phase.name())], totals.phases.get(&phase).unwrap_or(&none));
    }
    phases.add_durations(&[("phase", "ready")], &totals.ready);
    drop(phases);
    let help = "Starts and instances that have ended, by reason, and whether they had been ready.";
    let mut ended = page.counters("faasnet_starts_ended_total", help);
    for reason in EndReason::NAMES {
        for (text, was_ready) in [("true", true), ("false", false)] {
            let count = totals.ended.get(&Ending { reason, was_ready }).copied().unwrap_or(0);
            ended.add(&[("reason", reason), ("was_ready", text)], count as f64);
        }
    }
    drop(ended);
    let help = "Reads of containers that waited for a block before the start was ready.";
    page.counter("faasnet_stalls_total", help, totals.stalls as f64);
    let help = "How long those reads waited, in seconds.";
    page.counter("faasnet_stall_seconds_total", help, seconds(totals.stalled_us));
}

fn write_counts(page: &mut Page, counts: &Counts) {
    page.gauge("faasnet_functions", "Functions of all tenants.", counts.functions as f64);
    page.gauge("faasnet_instances_ready", "Instances that take requests.", counts.ready as f64);
    page.gauge("faasnet_starts_under_way", "Starts that are not ready yet.", counts.starting as f64);
    page.gauge("faasnet_requests_waiting", "Requests that wait for an instance.", counts.waiting as f64);
    let mut vms = page.gauges("faasnet_vms", "VMs by their state.");
    // All of them, so that what falls to zero is seen to do so.
    let states = [
        ("up", VmState::Up),
        ("lost", VmState::Lost),
        ("draining", VmState::Draining),
        ("drained", VmState::Drained),
    ];
    for (name, state) in states {
        vms.add(&[("state", name)], counts.vms.get(&state).copied().unwrap_or(0) as f64);
    }
}

//! Thousands of starts at once on a thousand VMs that hold nothing: the scenario of `scenarios/headline.toml`.

use super::Run;
use crate::{
    paper::{
        costs,
        figure::{Figure, shown},
    },
    report::{Axis, Plot, Series, Table},
    simulate::Hot,
};
use std::collections::BTreeMap;

/// Of VMs and starts, in a quick run.
const QUICK: usize = 20;

/// The bursts that the goals are about, under the costs that were measured.
pub fn headline(run: &Run) -> anyhow::Result<Figure> {
    let (mut scenario, measured) = costs::headline()?;
    if run.quick {
        scenario.image.read_blocks /= QUICK as u32;
        scenario.image.packed_blocks /= QUICK as u32;
    }
    let started = Axis::linear("part of the starts that are ready").from(0.0).to(1.0);
    let mut plot = Plot::new("Ready, packed hot set", Axis::linear("s").from(0.0), started);
    let mut table =
        Table::new(["case", "starts", "VMs", "median, s", "last, s", "goal, s", "", "cores used"]);
    let mut phases = Table::new(["of the last start, ms", "phases in order"]);
    let (mut values, mut missed) = (BTreeMap::new(), false);
    for case in &scenario.cases {
        let mut case = case.clone();
        if run.quick {
            (case.vms, case.starts) = (case.vms / QUICK, case.starts / QUICK as u32);
        }
        run.tell(&format!("{}: {} starts on {} VMs", case.name, case.starts, case.vms));
        let mut burst = scenario.burst(&case, &measured);
        burst.seed = run.seed;
        let played = burst.play();
        anyhow::ensure!(
            played.failed == 0,
            "{}: {} of {} starts were never ready",
            case.name,
            played.failed,
            case.starts
        );
        let at = |share| played.quantile(share).map_or(f64::NAN, |ms| ms / 1000.0);
        let (median, last) = (at(0.5), at(1.0));
        let goal = case.goal_ms.map(|ms| ms / 1000.0);
        let verdict = match goal {
            None => "",
            Some(_) if run.quick => "a smaller case",
            Some(goal) if last <= goal => "reached",
            Some(_) => "missed",
        };
        missed |= verdict == "missed";
        table.push([
            case.name.clone(),
            case.starts.to_string(),
            case.vms.to_string(),
            shown(median),
            shown(last),
            goal.map(shown).unwrap_or_default(),
            verdict.into(),
            format!("{:.0} %", 100.0 * played.cpu_mean),
        ]);
        if let Some(last) = played.last() {
            let all = last.phases();
            let texts: Vec<String> = all.iter().map(|(name, ms)| format!("{name} {ms:.0}")).collect();
            phases.push([case.name.clone(), texts.join(", ")]);
        }
        if case.hot == Hot::Packed {
            plot = plot.with(Series::cdf(
                case.name.clone(),
                played.starts.iter().map(|start| start.answered_ms / 1000.0),
            ));
        }
        values.insert(case.name.clone(), (median, last, goal, verdict));
    }
    let mut figure = Figure::new("headline", "The goals: starts at once on 1,000 VMs that hold nothing").text(
        "scenarios/headline.toml under costs/measured.toml: an image of 428 MB, VMs of 2 cores and 1 Gbit/s, 0.5 ms round trip, from the \
         call of the API to the last answer of a probe, TLS and the manager's CPU included. The paper's FaaSNet takes 8.3 s for 2,500 \
         starts, DADI claims 4 s for 10,000. Goals are for the packed hot set.",
    );
    if run.quick {
        figure = figure.text(format!(
            "A quick run: VMs, starts and reads are a {QUICK}th of those that the goals are for, so that it says nothing of them."
        ));
    }
    if missed {
        figure = figure.text(
            "A goal is missed. The second table says where the time of the last start goes; the share of the cores says how much of it \
             the VMs' own work is, which no way of bringing images takes away.",
        );
    }
    Ok(figure.plot(plot).table(table).table(phases).value("median_s_last_s_goal_s", values))
}

//! Thousands of starts at once on a thousand VMs that hold nothing.

use super::Run;
use crate::{
    paper::{
        figure::{Figure, quantile, shown, sorted},
        image::Image,
        systems::{System, model, seconds},
    },
    report::{Axis, Plot, Series, Table},
    simulate::{Cluster, Hot, Nanos, SECOND},
};
use std::collections::BTreeMap;

/// Seconds in which the last start must be ready: the paper's FaaSNet takes 8.3 s for 2,500, DADI 4 s for 10,000.
const GOALS: [(usize, f64); 2] = [(2_500, 1.0), (10_000, 1.5)];
const VMS: usize = 1_000;
const PATIENCE: Nanos = 600 * SECOND;

/// The bursts that the goals are about, under the costs that were measured.
pub fn headline(run: &Run) -> anyhow::Result<Figure> {
    let vms = if run.quick { VMS / 20 } else { VMS };
    let image = Image::thousand_vms();
    let mut table =
        Table::new(["starts", "functions", "hot set", "first, s", "median, s", "last, s", "goal, s", ""]);
    let (mut values, mut missed) = (BTreeMap::new(), false);
    let started = Axis::linear("containers ready").from(0.0);
    let mut plot = Plot::new("Containers ready, packed hot set", Axis::linear("s").from(0.0), started);
    for (starts, goal) in GOALS {
        let starts = if run.quick { starts / 20 } else { starts };
        for functions in [1, 25] {
            for (hot, name) in [(Hot::Unknown, "unknown"), (Hot::Pushed, "pushed"), (Hot::Packed, "packed")] {
                run.tell(&format!("{starts} starts on {vms} VMs, {functions} functions, hot set {name}"));
                let images = vec![&image; functions];
                let mut model = model(System::Ours, run.costs, &images, vms, starts.div_ceil(vms) + 1);
                model.images.iter_mut().for_each(|image| image.hot = hot);
                let mut cluster = Cluster::new(model, run.seed);
                let begin = cluster.now();
                (0..functions).for_each(|function| cluster.start(function, (starts / functions) as u32));
                cluster.run_until_ready(starts, begin + PATIENCE);
                let times = sorted(cluster.ready().into_iter().map(|(_, ready)| seconds(ready - begin)));
                anyhow::ensure!(
                    times.len() == starts,
                    "only {} of {starts} starts were ever ready",
                    times.len()
                );
                let last = times[starts - 1];
                let counts = hot == Hot::Packed;
                let verdict = match (counts, last <= goal) {
                    (false, _) => "",
                    (true, true) => "reached",
                    (true, false) => "missed",
                };
                missed |= counts && last > goal;
                let median = quantile(&times, 0.5);
                table.push([
                    starts.to_string(),
                    functions.to_string(),
                    name.into(),
                    shown(times[0]),
                    shown(median),
                    shown(last),
                    if counts { shown(goal) } else { String::new() },
                    verdict.into(),
                ]);
                values.insert(
                    format!("{starts} starts, {functions} functions, {name}"),
                    [times[0], median, last],
                );
                if counts {
                    let steps = times.iter().zip(1..).step_by(starts.div_ceil(500));
                    let steps = steps.map(|(at, count)| (*at, f64::from(count)));
                    plot = plot.with(Series::step(format!("{starts} starts, {functions} functions"), steps));
                }
            }
        }
    }
    let run_s = seconds(*run.costs.run_ns.start()) + seconds(*run.costs.run_ns.end());
    let of_cpu = |starts: usize| starts as f64 / VMS as f64 * run_s / 2.0 / run.costs.cores;
    let mut figure = Figure::new("headline", "The goals: starts at once on 1,000 VMs of 2 cores and 1 Gbit/s that hold nothing")
        .text(
            "An image of 428 MB, 0.5 ms round trip, from the call to the last answer of a probe, under our measured costs. Goals are for the \
             packed hot set.",
        );
    if missed {
        figure = figure.text(format!(
            "Where the time goes: a container's own work is {:.2} s of one core; 2.5 on two cores take {:.2} s and ten {:.2} s if nothing else \
             took any time, which no way of bringing images changes.",
            run_s / 2.0,
            of_cpu(2_500).max(run_s / 2.0),
            of_cpu(10_000)
        ));
    }
    Ok(figure.plot(plot).table(table).value("first_median_last_s", values))
}

//! Figures 14 to 17: many starts of one function at the same moment.

use super::Run;
use crate::{
    paper::{
        data,
        figure::{Compared, Figure, from_paper, mean, mean_of, quantile, sorted, where_time_goes},
        image::Image,
        systems::{PATIENCE, System, Times, burst, model, seconds},
    },
    report::{Axis, Plot, Series},
    simulate::figure::{Burst, TRAFFIC},
};
use std::collections::BTreeMap;

const SYSTEMS: [System; 7] = [
    System::Baseline,
    System::Kraken { origins: 1 },
    System::Kraken { origins: 5 },
    System::OnDemand,
    System::Dadi,
    System::Published,
    System::Ours,
];

type Bursts = BTreeMap<(System, usize), Vec<Times>>;

fn totals(times: &[Times]) -> Vec<f64> {
    sorted(times.iter().map(|times| times.total))
}

/// Scaling, stages and start times come from the same bursts.
pub fn scaling(run: &Run) -> anyhow::Result<Vec<Figure>> {
    let sizes: &[usize] = if run.quick { &[8, 16] } else { &[8, 16, 32, 64, 128] };
    let image = run.image(Image::pystan());
    let mut bursts = Bursts::new();
    for system in SYSTEMS {
        for size in sizes {
            run.tell(&format!("{system}, {size} VMs"));
            bursts.insert((system, *size), burst(system, run.costs, &image, *size, *size, run.seed)?);
        }
    }
    Ok(vec![figure_14(run, &bursts, sizes)?, figure_15(run, &bursts, sizes)?])
}

fn figure_14(run: &Run, bursts: &Bursts, sizes: &[usize]) -> anyhow::Result<Figure> {
    let points = data::fig14a_scaling()?;
    let (mut compared, mut values) = (Vec::new(), BTreeMap::new());
    let plot = |title: &str, systems: &[System]| -> anyhow::Result<Plot> {
        let mut plot = Plot::new(
            title,
            Axis::log("containers started at once"),
            Axis::linear("time to ready, s").from(0.0),
        );
        for system in systems {
            let means = sizes.iter().map(|size| (*size as f64, mean(&totals(&bursts[&(*system, *size)]))));
            plot = plot.with(Series::line(system.to_string(), means));
            if let Some(name) = system.in_paper().filter(|_| run.is_paper) {
                let drawn = points.points(&[("system", name)], "n_containers", "total_s")?;
                plot = plot.with(from_paper(system, drawn));
            }
        }
        Ok(plot)
    };
    for system in SYSTEMS {
        for size in sizes {
            let here = mean(&totals(&bursts[&(system, *size)]));
            values.insert(format!("{system}, {size}"), here);
            if let Some(name) = system.in_paper().filter(|_| run.is_paper) {
                let count = size.to_string();
                let paper = points.value(&[("n_containers", &count), ("system", name)], "total_s")?;
                compared.push(Compared::new(format!("{system}, N = {size}"), paper, here));
            }
        }
    }
    let whole = [System::Baseline, System::Kraken { origins: 1 }, System::Kraken { origins: 5 }];
    let blocks = [System::OnDemand, System::Dadi, System::Published, System::Ours];
    let mut figure = run
        .figure("14", "Figure 14: N containers at once, one on each VM, an image of 758 MB")
        .text(
            "Mean time from the request until the container is ready. Images of 758 MB as the text says (728.1 MB in figure 20, \
             728 in section 4.6); 224 blocks are read, 117 MB (figure 20c).",
        )
        .plot(plot("Whole images: mean time to ready", &whole)?)
        .plot(plot("Blocks: mean time to ready", &blocks)?)
        .compared("s", &compared)
        .value("mean_s", values);
    let largest = sizes.last().copied().unwrap_or_default();
    let (plots, stages) = stages(run, bursts, largest)?;
    figure.plots.extend(plots);
    figure = figure.compared("%", &stages);
    if run.is_paper {
        figure.texts.push(
            "Stages (14b): lazy reads wait for the registry's requests while the container reads, so that the first stage is the \
             manifest and local work only; the paper counts 14 s of such waiting to the pull at N = 128. FaaSNet's download of the \
             description is what comes before the mount here, from the call of the API on."
                .into(),
        );
    }
    if run.is_paper {
        figure.texts.push(
            "Where it deviates: lazy reads of few VMs are faster here, for the paper's take about 38 ms a block at N = 8, and its \
             FaaSNet, whose root reads from the same registry, no more than 14. Kraken pays nothing here for tracker, announcements \
             and disks, and does not grow. DADI's root only manages joins here; its later VMs find the blocks at their parents, where \
             in the paper starts get slower, too."
                .into(),
        );
    }
    let rows = SYSTEMS.map(|system| (format!("{system}, N = {largest}"), &bursts[&(system, largest)][..]));
    Ok(figure.table(where_time_goes(rows)))
}

/// A stage of figure 14(b): as it is called there, and the phases here that it is made of.
type Stage = (&'static str, &'static [&'static str], &'static [&'static str]);

const STAGES: [Stage; 3] = [
    (
        "pull, or description of a block image",
        &["pull", "tar_download"],
        &["pull", "accepted", "ordered", "connected", "index", "metadata"],
    ),
    ("load and mount", &["image_load", "image_inspect"], &["mounted"]),
    ("start, with its reads", &["start"], &["start", "running", "answered"]),
];

/// The share of each stage in a start on so many VMs: bars of ours and of the paper's.
fn stages(run: &Run, bursts: &Bursts, size: usize) -> anyhow::Result<(Vec<Plot>, Vec<Compared>)> {
    let points = data::fig14b_stages()?;
    let plot = |whose: &str| {
        let axis = Axis::names("system", SYSTEMS.map(|system| system.to_string()));
        let share = Axis::linear("% of the time to ready").from(0.0).to(100.0);
        Plot::new(format!("Stages of a start, N = {size}, {whose}"), axis, share)
    };
    let (mut here, mut there, mut compared) = (plot("here"), plot("the paper"), Vec::new());
    for (stage, papers, phases) in STAGES {
        let (mut shares, mut drawn) = (Vec::new(), Vec::new());
        for (place, system) in (0..).zip(SYSTEMS) {
            let (times, place) = (&bursts[&(system, size)], f64::from(place));
            let share =
                100.0 * mean_of(times, |times| times.of_phases(phases)) / mean_of(times, |times| times.total);
            shares.push((place, share));
            let Some(name) = system.in_paper().filter(|_| run.is_paper) else { continue };
            let count = size.to_string();
            let of = |stage: &&str| {
                points.value(&[("n_containers", &count), ("system", name), ("stage", stage)], "share_pct")
            };
            // A system has some of the names.
            let paper: f64 = papers.iter().filter_map(|stage| of(stage).ok()).sum();
            if paper > 0.0 {
                drawn.push((place, paper));
                compared.push(Compared::new(format!("{system}, {stage}"), paper, share));
            }
        }
        here = here.with(Series::stack(stage, shares));
        there = there.with(Series::stack(stage, drawn));
    }
    Ok((std::iter::once(here).chain(run.is_paper.then_some(there)).collect(), compared))
}

fn figure_15(run: &Run, bursts: &Bursts, sizes: &[usize]) -> anyhow::Result<Figure> {
    let points = data::fig15_start_times()?;
    let largest = sizes.last().copied().unwrap_or_default();
    let (mut compared, mut values) = (Vec::new(), BTreeMap::new());
    let plot = |title: &str, systems: &[System]| -> anyhow::Result<Plot> {
        let started = Axis::linear("containers started").from(0.0);
        let mut plot = Plot::new(title, Axis::linear("time since the request, s").from(0.0), started);
        for system in systems {
            let times = totals(&bursts[&(*system, largest)]);
            let started = times.iter().zip(1..).map(|(at, count)| (*at, f64::from(count)));
            plot = plot.with(Series::step(system.to_string(), started));
            if let Some(name) = system.in_paper().filter(|_| run.is_paper) {
                let drawn = points.points(&[("system", name)], "time_s", "rank")?;
                // Fewer VMs than the paper's in a quick run.
                let scale = largest as f64 / 128.0;
                let drawn = drawn.into_iter().step_by(3).map(|(at, rank)| (at, rank * scale));
                plot = plot.with(from_paper(system, drawn));
            }
        }
        Ok(plot)
    };
    for system in SYSTEMS {
        let times = totals(&bursts[&(system, largest)]);
        let here = [("first", times[0]), ("median", quantile(&times, 0.5)), ("last", times[times.len() - 1])];
        values.insert(system.to_string(), here);
        let Some(name) = system.in_paper().filter(|_| run.is_paper && largest == 128) else { continue };
        let drawn = points.points(&[("system", name)], "rank", "time_s")?;
        let drawn = sorted(drawn.into_iter().map(|(_, at)| at));
        let paper = [drawn[0], quantile(&drawn, 0.5), drawn[drawn.len() - 1]];
        for ((what, here), paper) in here.into_iter().zip(paper) {
            compared.push(Compared::new(format!("{system}, {what}"), paper, here));
        }
    }
    let last = |times: &'_ [Times]| times.iter().max_by(|a, b| a.total.total_cmp(&b.total)).cloned();
    let lasts = SYSTEMS.map(|system| (system, last(&bursts[&(system, largest)])));
    let lasts = lasts.iter().map(|(system, last)| (format!("{system}, the last"), last.as_slice()));
    let whole = [System::Baseline, System::Kraken { origins: 1 }, System::Kraken { origins: 5 }];
    let blocks = [System::OnDemand, System::Dadi, System::Published, System::Ours];
    Ok(run
        .figure("15", &format!("Figure 15: when each of {largest} containers has started"))
        .text(
            "The bursts of figure 14. Where the text swaps the spans of on-demand and DADI+P2P (16.4 and 19 s), and gives the baseline \
             a mean of 83.3 s where the figure ends at 74.6 s, the figure is compared with. The paper's points are stretched to 128 \
             containers. All VMs are alike here and read the same blocks in the same order, behind the first of them, so that they are \
             ready together; the paper's spread over seconds.",
        )
        .plot(plot("Whole images", &whole)?)
        .plot(plot("Blocks", &blocks)?)
        .compared("s", &compared)
        .table(where_time_goes(lasts))
        .value("start_times_s", values))
}

/// Intervals in which traffic is counted that make one point: half a second, about as in the paper's figure, or less where all
/// is over sooner.
const INTERVALS: usize = 5;
const POINTS: usize = 8;

/// Traffic of one interior VM.
pub fn figure_16(run: &Run) -> anyhow::Result<Figure> {
    let vms = if run.quick { 16 } else { 128 };
    let image = run.image(Image::pystan());
    let mut figure = run.figure("16", &format!("Figure 16: traffic of one interior VM, N = {vms}")).text(
        "The VM that has sent most; rates over half a second, or a tenth where all is over soon. The clock of the paper's figure begins about 13.5 s before its burst.",
    );
    let mut values = BTreeMap::new();
    let drawn = |column| -> anyhow::Result<Vec<(f64, f64)>> {
        let points = data::fig16_bandwidth()?.points(&[], "t_s", column)?;
        Ok(points.into_iter().map(|(at, rate)| (at - 13.5, rate)).filter(|(at, _)| *at >= 0.0).collect())
    };
    for system in [System::Published, System::Ours] {
        run.tell(&format!("{system}, {vms} VMs"));
        let model = model(system, run.costs, &[&image], vms, 1);
        let played = Burst { model, starts: vms as u32, seed: run.seed, patience: PATIENCE }.play();
        let sent = |vm: &usize| -> u64 { played.traffic[*vm].iter().map(|(_, out)| *out).sum() };
        let Some(vm) = (0..vms).max_by_key(sent) else { continue };
        let traffic = &played.traffic[vm];
        let intervals = (traffic.len() / POINTS).clamp(1, INTERVALS);
        let step = seconds(TRAFFIC) * intervals as f64;
        let rate = |of: fn(&(u64, u64)) -> u64| -> Vec<(f64, f64)> {
            let steps = traffic.chunks(intervals).zip(0..);
            let rate = |(chunk, number): (&[(u64, u64)], u32)| {
                let bytes: u64 = chunk.iter().map(of).sum();
                (f64::from(number) * step, bytes as f64 / 1e6 / step)
            };
            let rates: Vec<(f64, f64)> = steps.map(rate).collect();
            let end = rates.len() as f64 * step;
            rates.into_iter().chain([(end, 0.0)]).collect()
        };
        let (inward, outward) = (rate(|(received, _)| *received), rate(|(_, sent)| *sent));
        let mut plot = Plot::new(
            system.to_string(),
            Axis::linear("time since the request, s").from(0.0),
            Axis::linear("MB/s").from(0.0),
        )
        .with(Series::step("in", inward.clone()))
        .with(Series::step("out", outward.clone()));
        let total = |points: &[(f64, f64)]| points.iter().map(|(_, rate)| rate * step).sum::<f64>();
        let peak = |points: &[(f64, f64)]| points.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let here = [total(&inward), total(&outward), peak(&inward), peak(&outward)];
        values.insert(system.to_string(), here);
        if run.is_paper && system == System::Published {
            plot = plot.with(from_paper("in", drawn("in_mb_s")?)).with(from_paper("out", drawn("out_mb_s")?));
            let names = ["in, MB", "out, MB", "peak in, MB/s", "peak out, MB/s"];
            let paper = [55.6, 104.7, 15.8, 30.1];
            let rows = names.into_iter().zip(paper).zip(here);
            let rows: Vec<Compared> =
                rows.map(|((what, paper), here)| Compared::new(what, paper, here)).collect();
            figure = figure.compared("MB or MB/s", &rows);
        }
        figure = figure.plot(plot);
    }
    Ok(figure.value("in_mb_out_mb_peak_in_peak_out", values))
}

/// 2,500 functions on 1,000 VMs.
pub fn figure_17(run: &Run) -> anyhow::Result<Figure> {
    let vms = if run.quick { 40 } else { 1000 };
    let starts = vms * 5 / 2;
    let image = run.image(Image::thousand_vms());
    let title = format!("Figure 17: {starts} starts on {vms} VMs, an image of 428 MB");
    let started = Axis::linear("containers started").from(0.0);
    let mut plot =
        Plot::new("Containers ready", Axis::linear("time since the request, s").from(0.0), started);
    let (mut compared, mut values) = (Vec::new(), BTreeMap::new());
    let mut phases = Vec::new();
    let drawn = data::fig17_thousand_vms()?.points(&[], "time_s", "fraction_of_plotted")?;
    for system in [System::Published, System::Ours, System::Baseline] {
        run.tell(&format!("{system}, {vms} VMs"));
        let played = burst(system, run.costs, &image, vms, starts, run.seed)?;
        let times = totals(&played);
        let steps = times.iter().zip(1..).map(|(at, count)| (*at, f64::from(count)));
        if system != System::Baseline {
            plot = plot.with(Series::step(system.to_string(), steps));
        }
        let here = [("first", times[0]), ("median", quantile(&times, 0.5)), ("last", times[starts - 1])];
        values.insert(system.to_string(), here);
        if system == System::Published && run.is_paper {
            let points = drawn.iter().step_by(4).map(|(at, part)| (*at, part * starts as f64));
            plot = plot.with(from_paper(system, points));
            let at = |part| data::interpolate(&drawn.iter().map(|(x, y)| (*y, *x)).collect::<Vec<_>>(), part);
            for ((what, here), part) in here.into_iter().zip([0.0, 0.5, 1.0]) {
                compared.push(Compared::new(format!("{system}, {what}"), at(part), here));
            }
        }
        phases.push((system.to_string(), played));
    }
    let pull = values.get(&System::Baseline.to_string()).map_or(0.0, |times| times[2].1);
    Ok(run
        .figure("17", &title)
        .text(format!(
            "The curve of the figure ends at 2,437.5 containers where the text has 2,500; its points are stretched to {starts}. The \
             last whole-image pull of the same burst would be over after {pull:.1} s. FaaSNet's starts are ready together here although \
             orders go out over seconds: whoever comes later finds the blocks near and catches up with the first reader."
        ))
        .plot(plot)
        .compared("s", &compared)
        .table(where_time_goes(phases.iter().map(|(name, times)| (name.clone(), &times[..]))))
        .value("start_times_s", values))
}

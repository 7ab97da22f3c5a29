//! Figures 18 to 20: many functions on one VM, code packages, and the size of blocks.

use super::Run;
use crate::{
    paper::{
        data,
        figure::{Compared, Figure, from_paper, mean_of, quantile, shown, sorted, where_time_goes},
        image::Image,
        systems::{PATIENCE, System, Times, burst, dadi, model, play},
    },
    report::{Axis, Plot, Series, Table},
    rivals::Rival,
    simulate::{ContainerCosts, Quantiles},
};
use std::collections::BTreeMap;

const FUNCTIONS: usize = 8;
/// As the paper's boxes, from so many runs.
const SEEDS: u64 = 10;

/// One start of each of so many functions, each with an image of its own.
fn together(run: &Run, system: System, vms: usize, functions: usize, seed: u64) -> Vec<Times> {
    let image = run.image(Image::placement());
    if system == System::Dadi {
        let mut tree = dadi(run.costs, &image, vms, functions, seed);
        (0..functions).for_each(|function| {
            tree.start_of(function, function % vms);
        });
        tree.run_until(PATIENCE);
        return tree.starts().iter().filter_map(Times::of_rival).collect();
    }
    let images: Vec<&Image> = vec![&image; functions];
    play(model(system, run.costs, &images, vms, functions.div_ceil(vms)), functions, seed)
}

/// Eight functions on four, two and one VMs.
pub fn figure_18(run: &Run) -> anyhow::Result<Figure> {
    let points = data::fig18_placement()?;
    let seeds = if run.quick { 2 } else { SEEDS };
    let (mut compared, mut values, mut phases) = (Vec::new(), BTreeMap::new(), Vec::new());
    let axis = Axis::linear("functions on each VM").from(0.0).to(10.0);
    let mut plot = Plot::new(
        "Eight functions, in percent of one function on one VM (median)",
        axis,
        Axis::linear("% of one alone").from(80.0),
    );
    for system in [System::Dadi, System::Published, System::Ours] {
        run.tell(&system.to_string());
        let together = |vms, functions| -> Vec<Times> {
            (0..seeds).flat_map(|seed| together(run, system, vms, functions, run.seed + seed)).collect()
        };
        let single = together(1, 1);
        let alone = quantile(&sorted(single.iter().map(|times| times.total)), 0.5);
        phases.push((format!("{system}, alone"), single));
        let mut medians = Vec::new();
        for per_vm in [2, 4, 8] {
            let times = together(FUNCTIONS / per_vm, FUNCTIONS);
            let percent = sorted(times.iter().map(|times| 100.0 * times.total / alone));
            let here = [0.25, 0.5, 0.75].map(|part| quantile(&percent, part));
            medians.push((per_vm as f64, here[1]));
            let name = format!("{system}, {per_vm} on a VM");
            values.insert(name.clone(), here);
            phases.push((name, times));
            if let Some(name) = system.in_paper().filter(|_| run.is_paper) {
                let count = per_vm.to_string();
                let paper = points.value(&[("functions_per_vm", &count), ("system", name)], "median_pct")?;
                compared.push(Compared::new(format!("{system}, {per_vm} on a VM, median"), paper, here[1]));
            }
        }
        plot = plot.with(Series::line(system.to_string(), medians));
        if let Some(name) = system.in_paper().filter(|_| run.is_paper) {
            let drawn = points.points(&[("system", name)], "functions_per_vm", "median_pct")?;
            plot = plot.with(from_paper(system, drawn));
        }
    }
    Ok(run
        .figure("18", "Figure 18: eight functions on 4, 2 and 1 VMs, an image of 75.4 MB each")
        .text(
            "What a start reads of this image is not in the paper: 24.1 %, as of image b of figure 20. Each function has a tree of its \
             own; DADI's root serves all of them, and how many of them share a VM makes no difference to it here, because cores of the \
             paper's VMs are never short.",
        )
        .plot(plot)
        .compared("%", &compared)
        .table(where_time_goes(phases.iter().map(|(name, times)| (name.clone(), &times[..]))))
        .value("quartiles_percent", values))
}

/// Seconds of a function without code: 1.36 s, from either format.
const HELLO_S: f64 = 1.36;
/// Bytes of a zip that a VM brings into place in a second, and what both large functions need themselves: the line through the
/// zips of the video and the AI function, which has no points left.
const ZIP_RATE: f64 = (219.0 - 27.0) * 1e6 / (15.62 - 4.91);
/// Of the package's blocks, read before the function is ready: as of image c of figure 20.
const READ_SHARE: f64 = 0.161;

/// Code packages as zips and as blocks.
pub fn figure_19(run: &Run) -> anyhow::Result<Figure> {
    let points = data::fig19_code()?;
    let (mut compared, mut values, mut phases) = (Vec::new(), BTreeMap::new(), Vec::new());
    let names = ["helloworld", "video", "ai"];
    let axis = || Axis::names("function", names);
    let mut series: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (place, name) in names.into_iter().enumerate() {
        run.tell(name);
        let package = |format| points.value(&[("function", name), ("format", format)], "package_mb");
        let latency = |format| points.value(&[("function", name), ("format", format)], "latency_s");
        let zip = package("zip")? * 1e6;
        let unpacking = zip / if run.is_paper { ZIP_RATE } else { run.costs.unpack_rate };
        let own = if name == "helloworld" { HELLO_S } else { 4.91 - 27e6 / ZIP_RATE };
        let blocks = Image::code(package("io_efficient")?, READ_SHARE);
        // The same in both formats, with container and all.
        let mut costs = run.costs.clone();
        costs.ours.container =
            ContainerCosts { run_wait_ms: Quantiles::One(own * 1000.0), ..ContainerCosts::default() };
        let start = |system| burst(system, &costs, &blocks, 1, 1, run.seed);
        let zip = Times {
            total: own + unpacking,
            phases: vec![("brought into place", unpacking), ("function", own)],
            stalled: None,
        };
        let starts =
            [("zip", vec![zip]), ("blocks", start(System::Published)?), ("ours", start(System::Ours)?)];
        let here = starts.each_ref().map(|(format, times)| (*format, mean_of(times, |times| times.total)));
        for (format, seconds) in here {
            series.entry(format).or_default().push((place as f64, seconds));
        }
        phases.extend(starts.map(|(format, times)| (format!("{name}, {format}"), times)));
        values.insert(name, here);
        if run.is_paper {
            compared.push(Compared::new(format!("{name}, zip"), latency("zip")?, here[0].1));
            compared.push(Compared::new(format!("{name}, blocks"), latency("io_efficient")?, here[1].1));
        }
    }
    let mut plot = Plot::new("Time to ready on one VM", axis(), Axis::linear("time to ready, s").from(0.0));
    for (format, points) in series {
        plot = plot.with(Series::points(format, points));
    }
    if run.is_paper {
        for (format, label) in [("zip", "zip"), ("io_efficient", "blocks")] {
            let drawn = names.into_iter().zip(0..).map(|(name, place)| {
                let of = [("function", name), ("format", format)];
                points.value(&of, "latency_s").map(|latency| (f64::from(place), latency))
            });
            plot = plot.with(from_paper(label, drawn.collect::<Result<Vec<_>, _>>()?));
        }
    }
    Ok(run
        .figure("19", "Figure 19: code packages, as zips and as blocks")
        .text(format!(
            "The two large zips lie on a line by construction ({:.0} MB/s, and {:.2} s of the function itself); blocks are a prediction, \
             with the share of a package that is read taken from image c of figure 20 (16.1 %), which the paper does not give for \
             packages. Sizes of helloworld as in the figure (8 and 10 KB), not as in the text (11 KB).",
            ZIP_RATE / 1e6,
            4.91 - 27e6 / ZIP_RATE
        ))
        .plot(plot)
        .compared("s", &compared)
        .table(where_time_goes(phases.iter().map(|(name, times)| (name.clone(), &times[..]))))
        .value("seconds", values))
}

/// Megabytes.
struct Reading {
    name: &'static str,
    image: f64,
    actual: f64,
    at_512: f64,
}

/// Bytes that blocks of a size make of what is read, if it lies in that many pieces anywhere.
fn touched(reading: &Reading, pieces: f64, block: f64) -> f64 {
    let blocks = (reading.image / block).ceil();
    // A piece lies in one block, and in one more for each block's length that it has.
    let of_piece = 1.0 + reading.actual / pieces / block;
    blocks * (1.0 - (1.0 - (of_piece / blocks).min(1.0)).powf(pieces)) * block
}

/// The number of pieces with which blocks of 512 KiB come to what the figure has.
fn pieces(reading: &Reading) -> f64 {
    let (mut low, mut high) = (1.0, 1e6);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if touched(reading, middle, 0.524_288) < reading.at_512 { low = middle } else { high = middle }
    }
    low
}

/// Bytes fetched by the size of blocks.
pub fn figure_20(run: &Run) -> anyhow::Result<Figure> {
    let points = data::fig20_block_size()?;
    let value = |image: &str, quantity: &str| points.value(&[("image", image), ("quantity", quantity)], "mb");
    let (mut compared, mut values) = (Vec::new(), BTreeMap::new());
    let sizes = [256, 512, 1024];
    let mut plot = Plot::new(
        "Megabytes fetched before a start is ready",
        Axis::linear("KB of a block").from(0.0).to(1100.0),
        Axis::linear("MB").from(0.0),
    );
    let mut table =
        Table::new(["image", "read, MB", "pieces", "packed, MB of 512 KiB blocks", "times what is read"]);
    for name in ["a", "b", "c"] {
        let quantity = |size| format!("read_{size}kb_blocks");
        let reading = Reading {
            name,
            image: value(name, "total_image")?,
            actual: value(name, "actual_read")?,
            at_512: value(name, &quantity(512))?,
        };
        let pieces = pieces(&reading);
        let here = sizes.map(|size| touched(&reading, pieces, f64::from(size) * 1024.0 / 1e6));
        let drawn = sizes.map(|size| value(name, &quantity(size)));
        let mut paper = Vec::new();
        for ((size, here), drawn) in sizes.into_iter().zip(here).zip(drawn) {
            let drawn = drawn?;
            paper.push((f64::from(size), drawn));
            if size != 512 {
                compared.push(Compared::new(format!("image {name}, {size} KB"), drawn, here));
            }
        }
        let packed = (reading.actual / 0.524_288).ceil() * 0.524_288;
        table.push([
            reading.name.into(),
            shown(reading.actual),
            format!("{pieces:.0}"),
            shown(packed),
            shown(packed / reading.actual),
        ]);
        values.insert(name, (pieces, packed));
        plot = plot
            .with(Series::line(format!("image {name}"), sizes.into_iter().map(f64::from).zip(here)))
            .with(from_paper(format!("image {name}"), paper));
    }
    Ok(run
        .figure("20", "Figure 20: bytes fetched by the size of blocks")
        .text(
            "The images are not public. What is read of each is taken to lie in pieces of one length at random places; how many is fitted \
             at 512 KB, the other sizes are predictions. Packed, the same bytes fill blocks of any size: the table. The figure's image c \
             has 728.1 MB, as section 4.6 says, not 758.",
        )
        .plot(plot)
        .compared("MB", &compared)
        .table(table)
        .value("pieces_and_packed_mb", values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_touches_its_blocks_and_one_more() {
        let reading = Reading { name: "", image: 1000.0, actual: 10.0, at_512: 0.0 };
        assert!((touched(&reading, 1.0, 1.0) - 11.0).abs() < 1e-9);
    }

    #[test]
    fn the_pieces_that_are_found_touch_what_the_figure_has() {
        let reading = Reading { name: "", image: 195.3, actual: 28.8, at_512: 112.2 };
        assert!((touched(&reading, pieces(&reading), 0.524_288) - 112.2).abs() < 0.1);
    }
}

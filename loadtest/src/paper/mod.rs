//! `faasnet-loadtest paper`: the experiments of the FaaSNet paper again, beside its own points.

mod costs;
pub mod data;
mod figure;
mod figures;
mod image;
mod requests;
mod systems;

use crate::report::{Page, Table};
use anyhow::Context;
use clap::Args;
use costs::Costs;
use figure::Figure;
use figures::{EXPERIMENTS, Run};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// Reruns the experiments of the FaaSNet paper in simulation
#[derive(Debug, Args)]
pub struct Paper {
    /// Folder for the report: a page of HTML, JSON, and each plot as SVG
    #[arg(long, default_value = "target/paper")]
    out: PathBuf,
    /// Fewer and smaller experiments, to see that all works
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Paper {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        // Before minutes of work.
        let drawings = self.out.join("plots");
        fs::create_dir_all(&drawings).with_context(|| format!("create the folder {}", drawings.display()))?;
        let begun = Instant::now();
        let progress = |what: &str| eprintln!("{:>6.1} s  {what}", begun.elapsed().as_secs_f64());
        let paper = Costs::paper();
        let measured = costs::measured()?;
        let run = |costs, is_paper| Run {
            costs,
            is_paper,
            quick: self.quick,
            seed: self.seed,
            progress: &progress,
        };
        let headline = figures::headline(&run(&measured, false))?;
        let mut figures = Vec::new();
        for (costs, is_paper) in [(&paper, true), (&measured, false)] {
            for (name, experiment) in EXPERIMENTS {
                // Of images, and the same on all VMs.
                if name == "figure 20" && !is_paper {
                    continue;
                }
                progress(&format!("{name}, {}", costs.name));
                figures.extend(experiment(&run(costs, is_paper))?);
            }
        }
        let mut page = Page::new("The experiments of the FaaSNet paper, in simulation");
        page.text(
            "Ours and FaaSNet as published run the cores of this repository on virtual time; other systems are models on the same links \
             and VMs. Points are read from the figures of the paper (USENIX ATC 2021), lines are computed here.",
        );
        page.command(format!(
            "faasnet-loadtest paper --seed {}{}",
            self.seed,
            if self.quick { " --quick" } else { "" }
        ));
        add(&mut page, &headline);
        page.section("Costs");
        page.text(paper.explanation());
        page.table(costs_table(&[&paper, &measured]));
        figures.iter().for_each(|figure| add(&mut page, figure));
        let all = || std::iter::once(&headline).chain(&figures);
        for figure in all() {
            write_plots(&drawings, figure)?;
        }
        let values: serde_json::Map<_, _> =
            all().map(|figure| (figure.name.clone(), figure.json())).collect();
        let values = json!({ "seed": self.seed, "quick": self.quick, "costs": [&paper, &measured], "figures": values });
        let written = page.write(&self.out, "paper", &values)?;
        headline.tables.iter().for_each(|table| println!("{table}"));
        headline.texts.iter().for_each(|text| println!("{text}"));
        println!("{written}");
        Ok(ExitCode::SUCCESS)
    }
}

fn add(page: &mut Page, figure: &Figure) {
    page.section(&figure.title);
    figure.texts.iter().for_each(|text| {
        page.text(text);
    });
    figure.plots.iter().for_each(|plot| {
        page.plot(plot.clone());
    });
    figure.tables.iter().for_each(|table| {
        page.table(table.clone());
    });
}

fn write_plots(folder: &Path, figure: &Figure) -> anyhow::Result<()> {
    for (plot, number) in figure.plots.iter().zip(1..) {
        let path = folder.join(format!("{}-{number}.svg", figure.name));
        fs::write(&path, plot.svg()?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// A row for each cost that the JSON has.
fn costs_table(all: &[&Costs]) -> Table {
    let mut table = Table::new(std::iter::once("cost").chain(all.iter().map(|costs| costs.name)));
    let values: Vec<Value> = all.iter().map(|costs| json!(costs)).collect();
    let Some(first) = values.first().and_then(|value| value.as_object()) else { return table };
    for name in first.keys().filter(|name| *name != "name") {
        let (shown, unit) = match name.strip_suffix("_ns") {
            Some(time) => (format!("{time}, ms"), 1e6),
            None if name.ends_with("rate") || name == "link" => (format!("{name}, MB/s"), 1e6),
            None => (name.clone(), 1.0),
        };
        let number =
            |value: &Value| value.as_f64().map_or_else(String::new, |value| (value / unit).to_string());
        let cell = |value: &Value| match &value[name] {
            Value::Object(ends) => format!("{} to {}", number(&ends["start"]), number(&ends["end"])),
            other => number(other),
        };
        table.push(std::iter::once(shown.replace('_', " ")).chain(values.iter().map(cell)));
    }
    table
}

//! The experiments, one after the other.

mod bursts;
mod headline;
mod packages;
mod traces;

use super::{costs::Costs, figure::Figure, image::Image};
pub use headline::headline;

/// How experiments are run.
pub struct Run<'a> {
    pub costs: &'a Costs,
    /// Whether the paper's points can be compared with.
    pub is_paper: bool,
    /// Fewer and smaller experiments.
    pub quick: bool,
    pub seed: u64,
    /// Told what is done next.
    pub progress: &'a dyn Fn(&str),
}

impl Run<'_> {
    fn tell(&self, what: &str) {
        (self.progress)(what);
    }

    fn image(&self, image: Image) -> Image {
        if self.quick { image.with_fewer_reads() } else { image }
    }

    fn figure(&self, number: &str, title: &str) -> Figure {
        let kind = if self.is_paper { "paper" } else { "measured" };
        Figure::new(&format!("figure-{number}-{kind}"), &format!("{title}: {}", self.costs.name))
    }
}

type Experiment = fn(&Run) -> anyhow::Result<Vec<Figure>>;

/// In the order of the paper.
pub const EXPERIMENTS: [(&str, Experiment); 7] = [
    ("figures 11 to 13", traces::tests),
    ("figures 14 and 15", bursts::scaling),
    ("figure 16", |run| Ok(vec![bursts::figure_16(run)?])),
    ("figure 17", |run| Ok(vec![bursts::figure_17(run)?])),
    ("figure 18", |run| Ok(vec![packages::figure_18(run)?])),
    ("figure 19", |run| Ok(vec![packages::figure_19(run)?])),
    ("figure 20", |run| Ok(vec![packages::figure_20(run)?])),
];

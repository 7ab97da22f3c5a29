//! What one figure of the report holds.

use super::systems::Times;
use crate::report::{Plot, Series, Table};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;

/// One figure of the paper, run again.
pub struct Figure {
    /// As files are called.
    pub name: String,
    pub title: String,
    /// What was run, and how the paper was read.
    pub texts: Vec<String>,
    pub plots: Vec<Plot>,
    pub tables: Vec<Table>,
    pub compared: Vec<Compared>,
    /// What else programs read of it.
    pub values: Value,
}

impl Figure {
    pub fn new(name: &str, title: &str) -> Self {
        Self {
            name: name.into(),
            title: title.into(),
            texts: Vec::new(),
            plots: Vec::new(),
            tables: Vec::new(),
            compared: Vec::new(),
            values: json!({}),
        }
    }

    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.texts.push(text.into());
        self
    }

    #[must_use]
    pub fn plot(mut self, plot: Plot) -> Self {
        self.plots.push(plot);
        self
    }

    #[must_use]
    pub fn table(mut self, table: Table) -> Self {
        self.tables.push(table);
        self
    }

    #[must_use]
    pub fn value(mut self, name: &str, value: impl Serialize) -> Self {
        self.values[name] = json!(value);
        self
    }

    /// All of it that programs read.
    pub fn json(&self) -> Value {
        json!({ "title": self.title, "texts": self.texts, "compared": self.compared, "values": self.values })
    }

    /// What came out beside the paper's points; nothing to compare is no table.
    #[must_use]
    pub fn compared(mut self, unit: &str, points: &[Compared]) -> Self {
        if points.is_empty() {
            return self;
        }
        let paper = format!("the paper, {unit}");
        let here = format!("here, {unit}");
        let mut table = Table::new(["", &paper, &here, "deviation"]);
        for Compared { what, paper, here, .. } in points {
            let deviation = format!("{:+.0} %", 100.0 * (here / paper - 1.0));
            table.push([what.clone(), shown(*paper), shown(*here), deviation]);
        }
        self.compared.extend(points.iter().cloned());
        self.table(table)
    }
}

/// A number of the paper and ours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    pub what: String,
    pub paper: f64,
    pub here: f64,
    pub deviation_percent: f64,
}

impl Compared {
    pub fn new(what: impl Into<String>, paper: f64, here: f64) -> Self {
        Self { what: what.into(), paper, here, deviation_percent: 100.0 * (here / paper - 1.0) }
    }
}

/// The paper's points of what the plot has a series of that name for.
pub fn from_paper(name: impl fmt::Display, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
    Series::points(format!("{name}, the paper"), points).like(name.to_string())
}

/// Where the time of starts goes on average: phases in order, in seconds.
pub fn where_time_goes<'a>(rows: impl IntoIterator<Item = (String, &'a [Times])>) -> Table {
    let mut table =
        Table::new(["where the time goes", "mean, s", "phases in order, s", "waited for blocks, s"]);
    for (name, times) in rows {
        let Some(first) = times.first() else { continue };
        let of = |phase: &str| mean_of(times, |times| times.of_phases(&[phase]));
        // Those that take no time to speak of are left out.
        let phases =
            first.phases.iter().map(|(phase, _)| (phase, of(phase))).filter(|(_, mean)| *mean >= 0.005);
        let phases: Vec<String> = phases.map(|(phase, mean)| format!("{phase} {}", shown(mean))).collect();
        let stalled = first.stalled.map(|_| mean_of(times, |times| times.stalled.unwrap_or_default()));
        let total = mean_of(times, |times| times.total);
        table.push([name, shown(total), phases.join(", "), stalled.map(shown).unwrap_or_default()]);
    }
    table
}

pub fn mean_of(times: &[Times], of: impl Fn(&Times) -> f64) -> f64 {
    mean(&times.iter().map(of).collect::<Vec<_>>())
}

/// Three significant places for small numbers.
pub fn shown(value: f64) -> String {
    let places = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.places$}")
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of sorted values: that below or at which such a part of them is.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

pub fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_of_the_papers_value() {
        let compared = Compared::new("", 4.0, 5.0);
        assert!((compared.deviation_percent - 25.0).abs() < 1e-9);
    }

    #[test]
    fn phases_are_averaged_by_their_names() {
        let times = |pull, start| Times {
            total: pull + start,
            phases: vec![("pull", pull), ("start", start)],
            stalled: None,
        };
        let table =
            where_time_goes([("a".into(), &[times(1.0, 2.0), times(3.0, 4.0)][..]), ("b".into(), &[])]);
        let text = table.to_string();
        assert!(text.contains("pull 2.00, start 3.00") && text.contains("5.00"), "{text}");
    }

    #[test]
    fn quantiles_are_values_that_are_there() {
        let values = sorted([4.0, 1.0, 3.0, 2.0]);
        assert_eq!([0.0, 0.5, 0.75, 1.0].map(|part| quantile(&values, part)), [1.0, 2.0, 3.0, 4.0]);
    }
}

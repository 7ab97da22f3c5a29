//! An axis: its label, its scale, and where its ticks stand.

use std::ops::Range;

/// Ticks that an axis gets about.
const TICKS: f64 = 7.0;
/// Of a logarithmic axis: the most decades that also get ticks at 2 and 5.
const DENSE_DECADES: f64 = 2.0;
/// Decades that a logarithmic axis shows at most: what is smaller is left out.
const DECADES_MAX: f64 = 12.0;

#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub(super) label: String,
    scale: Scale,
    /// Ends of the axis; what a side leaves open the points decide.
    from: Option<f64>,
    to: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Scale {
    Linear,
    /// Values must be above 0; others are left out of the plot.
    Log,
    /// Position n, from 0 on, has the nth name.
    Names(Vec<String>),
}

impl Axis {
    /// From 0, or from the least value when that is below.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear, from: None, to: None }
    }

    pub fn log(label: impl Into<String>) -> Self {
        Self { scale: Scale::Log, ..Self::linear(label) }
    }

    /// Things beside each other, at 0, 1, 2 and so on.
    pub fn names<T: Into<String>>(label: impl Into<String>, names: impl IntoIterator<Item = T>) -> Self {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let last = names.len().max(1) as f64 - 1.0;
        Self { scale: Scale::Names(names), from: Some(-0.5), to: Some(last + 0.5), ..Self::linear(label) }
    }

    /// Begins at this value.
    #[must_use]
    pub fn from(self, value: f64) -> Self {
        Self { from: Some(value), ..self }
    }

    /// Ends at this value.
    #[must_use]
    pub fn to(self, value: f64) -> Self {
        Self { to: Some(value), ..self }
    }

    /// Where a value lies on paper, if this axis can show it.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = match self.scale {
            Scale::Log => value.log10(),
            Scale::Linear | Scale::Names(_) => value,
        };
        place.is_finite().then_some(place)
    }

    /// Where the axis begins and ends on paper; never empty.
    pub(super) fn range(&self, values: impl Iterator<Item = f64>) -> Range<f64> {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for place in values.filter_map(|value| self.place(value)) {
            (least, most) = (least.min(place), most.max(place));
        }
        if least > most {
            (least, most) = (0.0, 1.0);
        }
        let margin = match self.scale {
            Scale::Log => {
                least = least.max(most - DECADES_MAX);
                0.05
            }
            Scale::Linear | Scale::Names(_) => {
                least = least.min(0.0);
                (most - least) * 0.05
            }
        };
        let end = |value: Option<f64>| value.and_then(|value| self.place(value));
        let below = if least < 0.0 || self.scale == Scale::Log { margin } else { 0.0 };
        let from = end(self.from).unwrap_or(least - below);
        let to = end(self.to).unwrap_or(most + margin);
        if to > from { from..to } else { from..from + 1.0 }
    }

    /// Places on paper.
    pub(super) fn ticks(&self, range: &Range<f64>) -> Vec<f64> {
        match &self.scale {
            Scale::Linear => multiples(range, nice_step((range.end - range.start) / TICKS)),
            Scale::Log => {
                let decades = range.end - range.start;
                let factors: &[f64] = if decades <= DENSE_DECADES { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let step = (decades / TICKS).ceil().max(1.0);
                let whole = multiples(&(range.start.floor()..range.end), step);
                let ticks = whole.iter().flat_map(|decade| factors.iter().map(move |f| decade + f.log10()));
                let ticks: Vec<f64> = ticks.filter(|tick| range.contains(tick)).collect();
                if ticks.len() > 1 {
                    return ticks;
                }
                // Too short for decades: as on a linear axis.
                let [least, most] = [range.start, range.end].map(|place| 10f64.powf(place));
                let ticks = multiples(&(least..most), nice_step((most - least) / TICKS));
                ticks.into_iter().map(f64::log10).collect()
            }
            Scale::Names(names) => {
                let step = (names.len() as f64 / (3.0 * TICKS)).ceil().max(1.0) as usize;
                (0..names.len()).step_by(step).map(|place| place as f64).collect()
            }
        }
    }

    /// What stands at a tick.
    pub(super) fn text(&self, place: f64) -> String {
        match &self.scale {
            Scale::Linear => number(place),
            Scale::Log => number(10f64.powf(place)),
            Scale::Names(names) => names.get(place.round() as usize).cloned().unwrap_or_default(),
        }
    }
}

/// The next of 1, 2, 5, 10, 20 and so on.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|nice| nice * power >= step * 0.999);
    nice.unwrap_or(10.0) * power
}

fn multiples(range: &Range<f64>, step: f64) -> Vec<f64> {
    let (first, last) = ((range.start / step).ceil(), (range.end / step + 1e-9).floor());
    (0..=(last - first).max(0.0) as usize).map(|number| (first + number as f64) * step).collect()
}

/// As few digits as tell one tick from the next.
fn number(value: f64) -> String {
    let rounded = format!("{value:.3e}").parse().unwrap_or(value);
    match rounded {
        0.0 => "0".into(),
        large if large.abs() >= 1e6 || large.abs() < 1e-3 => format!("{large:e}"),
        usual => format!("{usual}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis, values: &[f64]) -> Vec<String> {
        let range = axis.range(values.iter().copied());
        axis.ticks(&range).into_iter().map(|tick| axis.text(tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers_from_zero() {
        assert_eq!(texts(&Axis::linear("s"), &[3.0, 97.0]), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(
            texts(&Axis::linear("s"), &[0.013]),
            ["0", "0.002", "0.004", "0.006", "0.008", "0.01", "0.012"]
        );
        assert_eq!(texts(&Axis::linear("s").from(10.0).to(12.0), &[]), ["10", "10.5", "11", "11.5", "12"]);
    }

    #[test]
    fn a_logarithmic_axis_has_decades_and_leaves_out_what_it_cannot_show() {
        assert_eq!(texts(&Axis::log("s"), &[0.0, -1.0, 0.5, 7.0]), ["0.5", "1", "2", "5"]);
        assert_eq!(texts(&Axis::log("s"), &[1.0, 1e5]), ["1", "10", "100", "1000", "10000", "100000"]);
        assert_eq!(
            texts(&Axis::log("s"), &[2650.0, 2700.0]),
            ["2400", "2500", "2600", "2700", "2800", "2900", "3000"]
        );
        assert_eq!(Axis::log("s").place(0.0), None);
    }

    #[test]
    fn nothing_to_show_and_equal_values_still_make_an_axis() {
        for axis in [Axis::linear("x"), Axis::log("x"), Axis::names("x", ["a"])] {
            for values in
                [&[][..], &[5.0], &[f64::NAN, f64::INFINITY], &[0.0], &[-3.0, -3.0], &[1e-300, 1e300]]
            {
                let range = axis.range(values.iter().copied());
                assert!(range.end > range.start, "{axis:?} {values:?}");
                assert!(axis.ticks(&range).len() < 50, "{axis:?} {values:?}");
            }
        }
    }

    #[test]
    fn names_stand_at_their_places() {
        let axis = Axis::names("VM", ["a", "b", "c"]);
        assert_eq!(texts(&axis, &[]), ["a", "b", "c"]);
        let many = Axis::names("VM", (0..200).map(|vm| vm.to_string()));
        assert!(texts(&many, &[]).len() <= 21);
    }
}

//! A plot and how it is drawn.

use super::{Axis, page::escaped};
use anyhow::anyhow;
use plotters::{
    backend::SVGBackend,
    chart::ChartBuilder,
    coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    drawing::IntoDrawingArea,
    element::{Circle, Rectangle},
    series::LineSeries,
    style::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle},
};
use std::ops::Range;

const SIZE: (u32, u32) = (960, 380);
/// Text and frame are drawn in it, and then take the colour of the page's text, which may be light or dark.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_AS_DRAWN: &str = "#010203";
/// Of middle lightness, so that they can be read on white and on black, and told apart by colour-blind people.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x2f, 0x8f, 0xd8),
    RGBColor(0xe0, 0x7b, 0x1a),
    RGBColor(0x1f, 0xa1, 0x87),
    RGBColor(0xd3, 0x5d, 0xa5),
    RGBColor(0x8d, 0x7b, 0xd9),
    RGBColor(0xb3, 0x9b, 0x12),
    RGBColor(0xd9, 0x4f, 0x4f),
    RGBColor(0x8a, 0x8a, 0x8a),
];
/// Points of a distribution: more are not seen.
const CDF_POINTS_MAX: usize = 1000;

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Line,
    /// Keeps a value until the next one.
    Step,
    Points,
    /// Bars, each upon those of the series before it at the same place.
    Stack,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    name: String,
    mark: Mark,
    points: Vec<(f64, f64)>,
    like: Option<String>,
}

impl Series {
    pub fn new(name: impl Into<String>, mark: Mark, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), mark, points: points.into_iter().collect(), like: None }
    }

    pub fn line(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(name, Mark::Line, points)
    }

    pub fn step(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(name, Mark::Step, points)
    }

    pub fn points(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(name, Mark::Points, points)
    }

    pub fn stack(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(name, Mark::Stack, points)
    }

    /// For each value the part of all that is not above it.
    pub fn cdf(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (count, stride) = (values.len(), values.len().div_ceil(CDF_POINTS_MAX).max(1));
        let is_shown = |place: usize| place.is_multiple_of(stride) || place + 1 == count;
        let shown = values.iter().enumerate().filter(|(place, _)| is_shown(*place));
        let points = shown.map(|(place, value)| (*value, (place + 1) as f64 / count as f64));
        let first = values.first().map(|least| (*least, 0.0));
        Self::step(name, first.into_iter().chain(points))
    }

    /// In the colour of that series of the plot, which comes before it: the same thing from elsewhere. Its points are hollow.
    #[must_use]
    pub fn like(self, name: impl Into<String>) -> Self {
        Self { like: Some(name.into()), ..self }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
    note: String,
}

impl Plot {
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, series: Vec::new(), note: String::new() }
    }

    #[must_use]
    pub fn with(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// A sentence below the plot.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// Title, legend, drawing and note.
    pub(super) fn html(&self, out: &mut String) -> anyhow::Result<()> {
        out.push_str(&format!(
            "<figure>\n<figcaption>{}</figcaption>\n<p class=\"legend\">",
            escaped(&self.title)
        ));
        for (Series { name, mark, like, .. }, colour) in self.series.iter().zip(self.colours()) {
            let RGBColor(red, green, blue) = colour;
            let class = format!("{mark:?}").to_lowercase();
            let property = if like.is_some() { "border:2px solid" } else { "background:" };
            let style = format!("{property} rgb({red},{green},{blue})");
            out.push_str(&format!(
                "<span><i class=\"{class}\" style=\"{style}\"></i>{}</span>\n",
                escaped(name)
            ));
        }
        out.push_str("</p>\n");
        out.push_str(&self.svg()?);
        if !self.note.is_empty() {
            out.push_str(&format!("<p class=\"note\">{}</p>\n", escaped(&self.note)));
        }
        out.push_str("</figure>\n");
        Ok(())
    }

    /// The drawing alone, without a legend.
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| anyhow!("draw the plot {:?}: {error}", self.title))?;
        let text = text.replace(INK_AS_DRAWN, "currentColor");
        let label = format!("<svg role=\"img\" aria-label=\"{}\" ", escaped(&self.title));
        Ok(text.replacen("<svg ", &label, 1))
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let (bars, colours) = (self.bars(), self.colours());
        let points = || {
            self.series.iter().filter(|series| series.mark != Mark::Stack).flat_map(|series| &series.points)
        };
        let ends = || bars.iter().flat_map(|bar| [(bar.x, bar.from), (bar.x, bar.to)]);
        let all = || points().copied().chain(ends());
        let (across, up) =
            (self.x.range(all().map(|point| point.0)), self.y.range(all().map(|point| point.1)));
        let (columns, rows) = (self.x.ticks(&across), self.y.ticks(&up));
        let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(52)
            .y_label_area_size(84)
            .build_cartesian_2d(
                Span { range: across, ticks: columns },
                Span { range: up.clone(), ticks: rows },
            )?;
        let style = |size: u32| TextStyle::from(("sans-serif", size).into_font()).color(&INK);
        chart
            .configure_mesh()
            .bold_line_style(INK.mix(0.15))
            .light_line_style(INK.mix(0.0))
            .axis_style(INK.mix(0.6))
            .label_style(style(16))
            .axis_desc_style(style(17))
            .x_desc(&self.x.label)
            .y_desc(&self.y.label)
            .x_label_formatter(&|place| self.x.text(*place))
            .y_label_formatter(&|place| self.y.text(*place))
            .draw()?;
        let width = bar_width(&bars);
        let rectangles = bars.iter().filter_map(|bar| {
            let floor = self.y.place(bar.from).unwrap_or(up.start).max(up.start);
            let corners = [(bar.x - width / 2.0, floor), (bar.x + width / 2.0, self.y.place(bar.to)?)];
            Some(Rectangle::new(corners, colours[bar.series].filled()))
        });
        chart.draw_series(rectangles)?;
        for (series, colour) in self.series.iter().zip(colours) {
            let style = ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: 2 };
            match series.mark {
                Mark::Line => chart.draw_series(LineSeries::new(self.places(&series.points), style))?,
                Mark::Step => {
                    let corners = steps(self.places(&series.points));
                    chart.draw_series(LineSeries::new(corners, style))?
                }
                Mark::Points => {
                    let dots = self.places(&series.points).into_iter();
                    let (radius, style) = match series.like {
                        Some(_) => (4, style),
                        None => (3, colour.mix(0.8).filled()),
                    };
                    chart.draw_series(dots.map(|place| Circle::new(place, radius, style)))?
                }
                Mark::Stack => continue,
            };
        }
        root.present()?;
        Ok(())
    }

    fn places(&self, points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        points.iter().filter_map(|&(x, y)| Some((self.x.place(x)?, self.y.place(y)?))).collect()
    }

    /// Of each series its own, or that of the one which it is like.
    fn colours(&self) -> Vec<RGBColor> {
        let (mut own, mut colours) = (COLOURS.into_iter().cycle(), Vec::new());
        for series in &self.series {
            let is_like = |before: &Series| series.like.as_ref() == Some(&before.name);
            let like = self.series[..colours.len()].iter().position(is_like);
            colours.extend(like.map(|place| colours[place]).or_else(|| own.next()));
        }
        colours
    }

    fn bars(&self) -> Vec<Bar> {
        let mut bars: Vec<Bar> = Vec::new();
        for (series, Series { points, .. }) in
            self.series.iter().enumerate().filter(|(_, series)| series.mark == Mark::Stack)
        {
            for &(at, height) in points {
                let Some(x) = self.x.place(at).filter(|_| height.is_finite()) else { continue };
                let below = bars.iter().rev().find(|bar| bar.x == x && bar.series < series);
                let from = below.map_or(0.0, |bar| bar.to);
                bars.push(Bar { series, x, from, to: from + height });
            }
        }
        bars
    }
}

/// A range on paper, with ticks that the axis has chosen.
struct Span {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Span {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let part = (value - self.range.start) / (self.range.end - self.range.start);
        // Beyond the frame by less than a frame: outside it is cut off anyway, and numbers stay small.
        first + (f64::from(last - first) * part.clamp(-1.0, 2.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

struct Bar {
    series: usize,
    x: f64,
    from: f64,
    to: f64,
}

/// Most of what the nearest two leave each other.
fn bar_width(bars: &[Bar]) -> f64 {
    let mut places: Vec<f64> = bars.iter().map(|bar| bar.x).collect();
    places.sort_by(f64::total_cmp);
    let distances = places.windows(2).map(|pair| pair[1] - pair[0]).filter(|distance| *distance > 0.0);
    let nearest = distances.fold(f64::INFINITY, f64::min);
    0.8 * if nearest.is_finite() { nearest } else { 1.0 }
}

/// A point for each corner.
fn steps(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let mut corners = Vec::with_capacity(points.len() * 2);
    let mut level = None;
    for (x, y) in points {
        corners.extend(level.map(|level| (x, level)));
        corners.push((x, y));
        level = Some(y);
    }
    corners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_the_part_that_is_not_above() {
        let series = Series::cdf("ready", [3.0, 1.0, f64::NAN, 2.0, 2.0]);
        assert_eq!(series.points, [(1.0, 0.0), (1.0, 0.25), (2.0, 0.5), (2.0, 0.75), (3.0, 1.0)]);
        let many = Series::cdf("ready", (0..100_000).map(f64::from));
        assert!(many.points.len() < 1100 && many.points.last() == Some(&(99_999.0, 1.0)));
    }

    #[test]
    fn bars_stand_upon_those_before() {
        let plot = Plot::new("bytes", Axis::names("VM", ["a", "b"]), Axis::linear("MB"))
            .with(Series::stack("origin", [(0.0, 3.0), (1.0, 1.0)]))
            .with(Series::stack("parent", [(0.0, 4.0), (1.0, 5.0)]))
            .with(Series::stack("cache", [(1.0, 2.0)]));
        let bars: Vec<_> = plot.bars().iter().map(|bar| (bar.series, bar.x, bar.from, bar.to)).collect();
        assert_eq!(
            bars,
            [
                (0, 0.0, 0.0, 3.0),
                (0, 1.0, 0.0, 1.0),
                (1, 0.0, 3.0, 7.0),
                (1, 1.0, 1.0, 6.0),
                (2, 1.0, 6.0, 8.0)
            ]
        );
    }

    #[test]
    fn a_series_has_the_colour_of_the_one_that_it_is_like_and_takes_none_from_the_others() {
        let series = |name: &str| Series::points(name, [(1.0, 2.0)]);
        let plot = Plot::new("t", Axis::linear("x"), Axis::linear("y"))
            .with(series("a"))
            .with(series("a, the paper").like("a"))
            .with(series("b"))
            .with(series("c, the paper").like("c"));
        assert_eq!(plot.colours(), [COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[2]]);
        let mut html = String::new();
        plot.html(&mut html).unwrap();
        assert_eq!(html.matches("border:2px solid").count(), 2, "{html}");
    }

    #[test]
    fn every_mark_is_drawn_on_every_axis_whatever_the_numbers() {
        let strange = [(0.0, 0.0), (f64::NAN, 1.0), (1.0, f64::INFINITY), (-2.0, -3.0), (1e-300, 1e300)];
        for x in [Axis::linear("x"), Axis::log("x"), Axis::names("x", ["a", "b"])] {
            for y in [Axis::linear("y"), Axis::log("y")] {
                for points in [&strange[..], &[(1.0, 2.0), (2.0, 5.0)], &[]] {
                    let marks = [Mark::Line, Mark::Step, Mark::Points, Mark::Stack];
                    let plot = marks.into_iter().fold(Plot::new("t", x.clone(), y.clone()), |plot, mark| {
                        plot.with(Series::new(format!("{mark:?}"), mark, points.iter().copied()))
                    });
                    let svg = plot.svg().unwrap();
                    assert!(svg.starts_with("<svg role=") && svg.trim_end().ends_with("</svg>"), "{svg}");
                }
            }
        }
    }

    #[test]
    fn text_takes_the_colour_of_the_page_and_markup_in_it_stays_text() {
        let plot = Plot::new("a <b> \"c\"", Axis::linear("<i>x</i>"), Axis::linear("y"))
            .with(Series::line("<script>", [(0.0, 1.0), (1.0, 2.0)]))
            .note("<u>");
        let mut html = String::new();
        plot.html(&mut html).unwrap();
        assert!(html.contains("currentColor") && !html.contains(INK_AS_DRAWN), "{html}");
        for markup in ["<b>", "<i>x", "<script>", "<u>"] {
            assert!(!html.contains(markup), "{markup} in {html}");
        }
    }
}

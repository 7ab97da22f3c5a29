//! What people read: aligned tables, sizes, durations. What programs read: the API's JSON as it came.

use super::{
    failure::Failure,
    screen::{self, Screen},
};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use std::io::Write;

pub struct Output<'a> {
    out: &'a mut (dyn Write + Send),
    json: bool,
}

impl<'a> Output<'a> {
    pub fn new(out: &'a mut (dyn Write + Send), json: bool) -> Self {
        Self { out, json }
    }

    /// Prints an answer of the API: as it is, or as `human` draws it.
    pub fn answer<T: DeserializeOwned>(
        &mut self,
        body: &[u8],
        human: impl FnOnce(T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            self.bytes(body)?;
            return self.bytes(b"\n");
        }
        self.bytes(human(parse(body)?).as_bytes())
    }

    /// Prints one of many: as it came, or as `human` draws it.
    pub fn line(&mut self, json: &str, human: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = if self.json { json.to_owned() } else { human() };
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Prints what is seen now of something that is watched: one JSON object a line, or as `human` draws it in
    /// the place of what was seen before.
    pub fn frame(
        &mut self,
        screen: &mut Screen,
        json: &str,
        human: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.json {
            return self.line(json, String::new);
        }
        self.bytes(screen.frame(&human(), screen::terminal()).as_bytes())
    }

    /// For answers without content: a line for people, nothing for programs.
    pub fn done(&mut self, line: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { self.bytes(format!("{line}\n").as_bytes()) }
    }

    /// Writes bytes as they are, at once.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes)?;
        Ok(self.out.flush()?)
    }
}

pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::Answer(error.to_string()))
}

/// Draws rows below a heading, columns aligned.
pub fn table<const COLUMNS: usize>(heading: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> String {
    let mut lines = vec![heading.map(str::to_owned)];
    lines.extend(rows.into_iter().map(|row| row.map(|cell| printable(&cell))));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Draws pairs of a name and a value, one a line.
pub fn pairs(pairs: Vec<(&str, String)>) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}  {}\n", printable(value))).collect()
}

/// Takes the power over the terminal out of texts that come from tenants.
pub fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// The nodes of trees in the order in which they are drawn, each with what stands before it.
pub fn branches<'a, T>(
    roots: Vec<&'a T>,
    mut children: impl FnMut(&'a T) -> Vec<&'a T>,
) -> Vec<(String, &'a T)> {
    let mut lines = Vec::new();
    // With the indentation of its children; the next one is at the end.
    let mut waiting: Vec<_> =
        roots.into_iter().rev().map(|root| (root, String::new(), String::new())).collect();
    while let Some((node, branch, indentation)) = waiting.pop() {
        lines.push((branch, node));
        let below = children(node);
        let last = below.len().saturating_sub(1);
        for (place, child) in below.into_iter().enumerate().rev() {
            let (turn, further) =
                if place == last { ("└── ", "    ") } else { ("├── ", "│   ") };
            waiting.push((child, format!("{indentation}{turn}"), format!("{indentation}{further}")));
        }
    }
    lines
}

/// A size in binary units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A bar on the error output, if that is a terminal.
pub fn progress(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    ProgressBar::new(length).with_style(style)
}

/// A Unix time, in UTC.
pub fn moment(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.unwrap_or_default().strftime("%F %T").to_string()
}

/// A duration given in microseconds.
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A bar of `width` characters, of which `done` of `total` are filled. Full only when all is there.
pub fn bar(done: u64, total: u64, width: usize) -> String {
    let share = (done.min(total) as u128 * width as u128).checked_div(total.into()).unwrap_or(0) as usize;
    format!("{}{}", "█".repeat(share), "░".repeat(width - share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let text =
            table(["NAME", "STATE"], vec![["a-long-name".into(), "up".into()], ["b".into(), "".into()]]);
        assert_eq!(text, "NAME         STATE\na-long-name  up\nb\n");
    }

    #[test]
    fn a_tenants_text_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }

    #[test]
    fn units_fit_the_size() {
        let sizes = [0, 1023, 1024, 1536 << 10].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]);
        let durations = [7, 1_500, 252_000, 12_340_000].map(duration);
        assert_eq!(durations, ["7 µs", "1.5 ms", "252.0 ms", "12.34 s"]);
    }

    #[test]
    fn a_bar_is_full_only_at_the_end() {
        assert_eq!(bar(99, 100, 4), "███░");
        assert_eq!(bar(100, 100, 4), "████");
        assert_eq!(bar(0, 0, 2), "░░");
    }
}

//! A page of HTML that needs nothing but itself.

use super::{Plot, Table};
use anyhow::Context;
use serde::Serialize;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Light and dark as the reader's machine is.
const STYLE: &str = "\
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;background:Canvas;color:CanvasText}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem}
figure{margin:1.5rem 0}figcaption{font-weight:600}
svg{width:100%;height:auto}
.legend{margin:.2rem 0;font-size:.9rem}.legend span{margin-right:1.2rem;white-space:nowrap}
.legend i{display:inline-block;box-sizing:border-box;width:1.4rem;height:.2rem;vertical-align:middle;margin-right:.4rem}
.legend i.points{width:.6rem;height:.6rem;border-radius:50%}.legend i.stack{width:.8rem;height:.8rem}
.note{font-size:.9rem;opacity:.8;margin:.2rem 0}
.scroll{overflow-x:auto;margin:1.2rem 0}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.15rem .8rem .15rem 0;text-align:left;border-bottom:1px solid color-mix(in srgb,CanvasText 20%,Canvas)}
td:first-child{white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums}
pre{white-space:pre-wrap;overflow-wrap:anywhere}
";

#[derive(Debug, Clone)]
enum Piece {
    Section(String),
    Text(String),
    Command(String),
    Table(Table),
    Plot(Plot),
}

/// A report for people; what is added comes below what was.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    pieces: Vec<Piece>,
}

/// Where a report lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub html: PathBuf,
    pub json: PathBuf,
}

impl Page {
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), pieces: Vec::new() }
    }

    pub fn section(&mut self, heading: impl Into<String>) -> &mut Self {
        self.add(Piece::Section(heading.into()))
    }

    /// A paragraph.
    pub fn text(&mut self, text: impl Into<String>) -> &mut Self {
        self.add(Piece::Text(text.into()))
    }

    /// How the figures were made, to be typed again.
    pub fn command(&mut self, command: impl Into<String>) -> &mut Self {
        self.add(Piece::Command(command.into()))
    }

    pub fn table(&mut self, table: Table) -> &mut Self {
        self.add(Piece::Table(table))
    }

    pub fn plot(&mut self, plot: Plot) -> &mut Self {
        self.add(Piece::Plot(plot))
    }

    fn add(&mut self, piece: Piece) -> &mut Self {
        self.pieces.push(piece);
        self
    }

    pub fn html(&self) -> anyhow::Result<String> {
        let title = escaped(&self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n<h1>{title}</h1>\n"
        );
        for piece in &self.pieces {
            match piece {
                Piece::Section(heading) => out.push_str(&format!("<h2>{}</h2>\n", escaped(heading))),
                Piece::Text(text) => out.push_str(&format!("<p>{}</p>\n", escaped(text))),
                Piece::Command(command) => {
                    out.push_str(&format!("<pre><code>{}</code></pre>\n", escaped(command)));
                }
                Piece::Table(table) => {
                    out.push_str("<div class=\"scroll\"><table>\n");
                    table.html(&mut out);
                    out.push_str("</table></div>\n");
                }
                Piece::Plot(plot) => plot.html(&mut out)?,
            }
        }
        out.push_str("</html>\n");
        Ok(out)
    }

    /// Writes `NAME.html` and, with the figures, `NAME.json` into a folder, which is made.
    pub fn write(&self, folder: &Path, name: &str, figures: &impl Serialize) -> anyhow::Result<Written> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let file = |ending: &str| folder.join(format!("{name}.{ending}"));
        let written = Written { html: file("html"), json: file("json") };
        let save = |path: &Path, text: String| {
            fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        save(&written.html, self.html()?)?;
        save(&written.json, serde_json::to_string_pretty(figures)? + "\n")?;
        Ok(written)
    }
}

impl fmt::Display for Written {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "report: {} (figures: {})", self.html.display(), self.json.display())
    }
}

/// Text that HTML takes as text, also inside quotation marks.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Axis, Series};

    #[test]
    fn a_page_needs_no_network_and_keeps_its_order() {
        let mut page = Page::new("A & B");
        page.section("first").text("1 < 2").command("faasnet-loadtest x --y 'z'");
        page.table(Table::new(["a"]).row(["1"]));
        page.plot(Plot::new("p", Axis::linear("x"), Axis::linear("y")).with(Series::line("s", [(0.0, 1.0)])));
        let html = page.html().unwrap();
        let order = ["A &amp; B", "first", "1 &lt; 2", "--y &#39;z&#39;", "<table>", "<svg"];
        let places: Vec<_> =
            order.map(|part| html.find(part).unwrap_or_else(|| panic!("no {part}"))).to_vec();
        assert!(places.is_sorted(), "{places:?}");
        let links: Vec<_> = html.match_indices("http").map(|(place, _)| &html[place..place + 26]).collect();
        assert_eq!(links, ["http://www.w3.org/2000/svg"], "the name of SVG, which nobody loads");
    }

    #[test]
    fn page_and_figures_are_written_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a/b");
        let written = Page::new("t").write(&inside, "burst", &serde_json::json!({ "p99_ms": 3.5 })).unwrap();
        assert!(fs::read_to_string(&written.html).unwrap().contains("<h1>t</h1>"));
        let figures: serde_json::Value = serde_json::from_slice(&fs::read(&written.json).unwrap()).unwrap();
        assert_eq!(figures["p99_ms"], 3.5);
        assert!(written.to_string().contains("burst.json"));
    }
}

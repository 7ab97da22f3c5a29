//! A table, aligned for a terminal or as HTML.

use super::page::escaped;
use std::fmt;

/// Cells are text; a column whose cells all begin like numbers is aligned to the right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// With one more row. Cells that the header does not have are dropped, missing ones are empty.
    #[must_use]
    pub fn row<T: Into<String>>(mut self, cells: impl IntoIterator<Item = T>) -> Self {
        self.push(cells);
        self
    }

    pub fn push<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        row.resize(self.header.len(), String::new());
        self.rows.push(row);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For each column whether its cells are numbers, as far as there are any.
    fn is_numeric(&self, column: usize) -> bool {
        let begins_like_a_number = |cell: &str| {
            matches!(cell, "" | "-")
                || cell.trim_start_matches(['-', '+', '<', '>']).starts_with(|c: char| c.is_ascii_digit())
        };
        self.rows.iter().all(|row| begins_like_a_number(&row[column]))
    }

    pub(super) fn html(&self, out: &mut String) {
        let class = |column| if self.is_numeric(column) { " class=\"number\"" } else { "" };
        let mut line = |tag: &str, cells: &[String]| {
            out.push_str("<tr>");
            for (column, cell) in cells.iter().enumerate() {
                out.push_str(&format!("<{tag}{}>{}</{tag}>", class(column), escaped(cell)));
            }
            out.push_str("</tr>\n");
        };
        line("th", &self.header);
        self.rows.iter().for_each(|row| line("td", row));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| lines().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
        let columns: Vec<_> =
            (0..self.header.len()).map(|column| (width(column), self.is_numeric(column))).collect();
        for cells in lines() {
            let mut line = String::new();
            for (cell, (width, is_numeric)) in cells.iter().zip(&columns) {
                match is_numeric {
                    true => line.push_str(&format!("{cell:>width$}  ")),
                    false => line.push_str(&format!("{cell:<width$}  ")),
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new(["what", "ms"]).row(["p50", "9.5"]).row(["slowest <b>", "1200.0"]).row(["none"])
    }

    #[test]
    fn numbers_stand_right_and_words_left() {
        let text = table().to_string();
        assert_eq!(text, "what             ms\np50             9.5\nslowest <b>  1200.0\nnone\n");
    }

    #[test]
    fn what_comes_from_outside_stays_text() {
        let mut html = String::new();
        table().html(&mut html);
        assert!(html.contains("<td>slowest &lt;b&gt;</td><td class=\"number\">1200.0</td>"), "{html}");
    }
}

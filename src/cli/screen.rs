//! A text that is drawn again and again at one place of the terminal, or below each other without one.

use console::Term;
use std::env;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub rows: usize,
    pub columns: usize,
}

/// Where the text that was drawn last is.
#[derive(Debug, Default)]
pub struct Screen {
    /// Characters of each of its lines, while it may be drawn over.
    drawn: Vec<usize>,
    /// Something was drawn before.
    is_used: bool,
}

impl Screen {
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves what was drawn where it is: something else was written below it.
    pub fn leave(&mut self) {
        self.drawn.clear();
    }

    /// The bytes that put `text` in the place of what was drawn last, cut to what the terminal shows; without a
    /// terminal all of it, below an empty line. `text` has no control characters but the ends of its lines.
    pub fn frame(&mut self, text: &str, terminal: Option<Size>) -> String {
        let is_first = !std::mem::replace(&mut self.is_used, true);
        let Some(size) = terminal else {
            return if is_first { text.to_owned() } else { format!("\n{text}") };
        };
        let (lines, left_out) = fitting(text, size);
        // By the width of now: a terminal that was resized has wrapped its lines anew.
        let above: usize = self.drawn.iter().map(|&length| rows(length, size)).sum();
        let mut frame = if above > 0 { format!("\u{1b}[{above}A\r\u{1b}[J") } else { String::new() };
        let last = (left_out > 0).then(|| format!("... and {left_out} more"));
        self.drawn.clear();
        for line in lines.into_iter().chain(last.as_deref()) {
            self.drawn.push(line.chars().count());
            frame += line;
            frame.push('\n');
        }
        frame
    }
}

/// Rows that a line of so many characters takes.
fn rows(length: usize, size: Size) -> usize {
    length.div_ceil(size.columns.max(1)).max(1)
}

/// The first lines that the terminal shows above the row of the cursor, and how many are left out.
fn fitting(text: &str, size: Size) -> (Vec<&str>, usize) {
    let lines: Vec<&str> = text.lines().collect();
    let all: usize = lines.iter().map(|line| rows(line.chars().count(), size)).sum();
    let free = size.rows.saturating_sub(1);
    if all <= free {
        return (lines, 0);
    }
    // One row says that there is more.
    let mut left = free.saturating_sub(1);
    let fits = |line: &&&str| {
        let rest = left.checked_sub(rows(line.chars().count(), size));
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let shown: Vec<&str> = lines.iter().take_while(fits).copied().collect();
    let left_out = lines.len() - shown.len();
    (shown, left_out)
}

/// The size of the terminal that results go to, if they do and it can move its cursor.
pub fn terminal() -> Option<Size> {
    let is_dumb = env::var_os("TERM").is_none_or(|name| name == "dumb");
    let (rows, columns) = Term::stdout().size_checked().filter(|_| !is_dumb)?;
    Some(Size { rows: rows.into(), columns: columns.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Option<Size> = Some(Size { rows: 4, columns: 10 });

    #[test]
    fn a_text_is_drawn_over_the_one_before() {
        let mut screen = Screen::new();
        assert_eq!(screen.frame("a\nb\n", SMALL), "a\nb\n");
        assert_eq!(screen.frame("c\n", SMALL), "\u{1b}[2A\r\u{1b}[Jc\n");
        screen.leave();
        assert_eq!(screen.frame("d\n", SMALL), "d\n", "below what others wrote");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut screen = Screen::new();
        assert_eq!(screen.frame("1\n2\n3\n", SMALL), "1\n2\n3\n");
        let frame = screen.frame("1\n2\n3\n4\n5\n", SMALL);
        assert_eq!(frame, "\u{1b}[3A\r\u{1b}[J1\n2\n... and 3 more\n");
        let tiny = Some(Size { rows: 0, columns: 0 });
        assert_eq!(Screen::new().frame("1\n2\n", tiny), "... and 2 more\n");
    }

    #[test]
    fn long_lines_take_the_rows_that_they_wrap_to() {
        let mut screen = Screen::new();
        let long = "x".repeat(21);
        assert_eq!(screen.frame(&format!("{long}\n"), SMALL), format!("{long}\n"));
        let frame = screen.frame(&format!("{long}\nb\n"), SMALL);
        assert_eq!(frame, "\u{1b}[3A\r\u{1b}[J... and 2 more\n");
        // Fourteen characters, and a terminal that was made wider.
        let wide = Some(Size { rows: 9, columns: 20 });
        assert_eq!(screen.frame("b\n", wide), "\u{1b}[1A\r\u{1b}[Jb\n");
    }

    #[test]
    fn without_a_terminal_texts_are_below_each_other() {
        let mut screen = Screen::new();
        assert_eq!(screen.frame("a\n", None), "a\n");
        assert_eq!(screen.frame("b\n", None), "\nb\n");
    }
}

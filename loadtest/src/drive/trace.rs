//! Recorded request rates: a file of lines `TIME,RATE` below a header, or one of those in this program.

use crate::load::{Piece, Rates};
use anyhow::{Context, bail, ensure};
use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
    time::Duration,
};

/// Longest file that is read: a day of seconds has 1 MiB.
const BYTES_MAX: u64 = 64 << 20;
const ROWS_MAX: usize = 1_000_000;
/// A day, and a little: longer ones are no traces of ours.
const SECONDS_MAX: f64 = 100_000.0;
/// A point holds its rate for a second; from one that is further from the next the rate goes straight there.
const HOLDS_S: f64 = 1.0;

const TIMES: [&str; 2] = ["seconds_from_start", "time_s"];
const RATES: [&str; 2] = ["requests_per_second", "rps"];

/// In the program, by name; where they are from says `loadtest/data/README.md`.
const KNOWN: [(&str, &str); 5] = [
    ("iot", include_str!("../../data/workloads/iot_fig2.csv")),
    ("gaming", include_str!("../../data/workloads/gaming_fig2.csv")),
    ("video", include_str!("../../data/workloads/video_fig2.csv")),
    ("iot-test", include_str!("../../data/workloads/iot_test_fig11.csv")),
    ("synthetic", include_str!("../../data/workloads/synthetic_test_fig12.csv")),
];

/// The names of what needs no file.
pub fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(name, _)| *name)
}

/// One of the program's own, or the file of that path.
pub fn load(name: &str) -> anyhow::Result<Rates> {
    if let Some((_, text)) = KNOWN.iter().find(|(known, _)| *known == name) {
        return parse(text).with_context(|| format!("read the trace {name}"));
    }
    let names = || known().collect::<Vec<_>>().join(", ");
    let mut file = File::open(Path::new(name))
        .with_context(|| format!("open the trace {name}; it is a file, or one of {}", names()))?;
    let mut text = String::new();
    file.by_ref().take(BYTES_MAX).read_to_string(&mut text).with_context(|| format!("read {name}"))?;
    let is_whole = file.stream_position().is_ok_and(|position| position < BYTES_MAX);
    ensure!(is_whole, "the trace {name} has more than {} MiB", BYTES_MAX >> 20);
    parse(&text).with_context(|| format!("read the trace {name}"))
}

/// The rates of a trace, from the time of its first row on.
pub fn parse(text: &str) -> anyhow::Result<Rates> {
    let mut lines = text.lines().enumerate().map(|(place, line)| (place + 1, line.trim()));
    let (_, header) = lines.next().context("line 1: a header is missing, such as time_s,rps")?;
    let columns: Vec<&str> = header.trim_start_matches('\u{feff}').split(',').map(str::trim).collect();
    let place = |names: [&str; 2]| {
        let found = columns.iter().position(|column| names.contains(column));
        found.with_context(|| format!("line 1: no column is named {}", names.join(" or ")))
    };
    let (time_place, rate_place) = (place(TIMES)?, place(RATES)?);
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let cells: Vec<&str> = line.split(',').collect();
        let what = || format!("line {number}");
        let time = cell(&cells, time_place, columns[time_place]).with_context(what)?;
        let rate = cell(&cells, rate_place, columns[rate_place]).with_context(what)?;
        ensure!(time <= SECONDS_MAX, "line {number}: {time} s is longer than the {SECONDS_MAX} s of a trace");
        if let Some((before, _)) = points.last() {
            ensure!(time > *before, "line {number}: the time goes from {before} s to {time} s; it must grow");
        }
        ensure!(points.len() < ROWS_MAX, "line {number}: a trace has at most {ROWS_MAX} rows");
        points.push((time, rate));
    }
    let Some((last, rate)) = points.last().copied() else { bail!("it has no rows") };
    let pieces = points.windows(2).map(|pair| {
        let [(from, rate), (to, next)] = [pair[0], pair[1]];
        let holds = to - from <= HOLDS_S;
        Piece { from: rate, to: if holds { rate } else { next }, length: Duration::from_secs_f64(to - from) }
    });
    // The last point has no next one; in a grid of seconds it counts like the others.
    let is_grid = points.len() < 2 || points[points.len() - 2].0 >= last - HOLDS_S;
    let end = is_grid.then_some(Piece { from: rate, to: rate, length: Duration::from_secs_f64(HOLDS_S) });
    Ok(Rates(pieces.chain(end).collect()))
}

/// 0 or more.
fn cell(cells: &[&str], place: usize, column: &str) -> anyhow::Result<f64> {
    let text = cells.get(place).with_context(|| format!("there is no {column}"))?.trim();
    let number: f64 =
        text.parse().ok().with_context(|| format!("{column} is {text:?}, which is no number"))?;
    ensure!(number.is_finite() && number >= 0.0, "{column} is {text}; it must be 0 or more");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traces_of_the_program_have_the_published_lengths_and_means() {
        // Rows and means as their source's description has them.
        for (name, seconds, mean) in [("gaming", 7200, 216.5), ("iot", 7200, 748.0), ("video", 7200, 664.9)] {
            let rates = load(name).unwrap();
            assert_eq!(rates.length(), Duration::from_secs(seconds), "{name}");
            let measured = rates.requests() / seconds as f64;
            assert!((measured - mean).abs() < 0.1, "{name}: {measured}");
        }
        let test = load("iot-test").unwrap();
        assert_eq!(test.length().as_secs(), 3392);
        let peak = test.0.iter().map(|piece| piece.from).fold(0.0, f64::max);
        assert_eq!(peak, 439.0);
        // Rows of one second: requests are the sum of the rates.
        let synthetic = load("synthetic").unwrap();
        let burst: f64 = synthetic.0[661..663].iter().map(|piece| piece.from).sum();
        assert_eq!((synthetic.length().as_secs(), burst), (1440, 120.0));
        assert!(known().all(|name| load(name).is_ok()));
    }

    #[test]
    fn near_points_hold_their_rate_and_far_ones_are_joined() {
        let rates = parse("rps,time_s\r\n10,5\r\n20,6\r\n40,16\r\n").unwrap();
        let pieces: Vec<_> =
            rates.0.iter().map(|piece| (piece.from, piece.to, piece.length.as_secs())).collect();
        assert_eq!(pieces, [(10.0, 10.0, 1), (20.0, 40.0, 10)]);
        assert_eq!(parse("time_s,rps\n0,3\n").unwrap().requests(), 3.0);
    }

    #[test]
    fn what_cannot_be_read_is_said_with_line_and_reason() {
        for (text, line, reason) in [
            ("", "line 1", "header is missing"),
            ("time,load\n1,2\n", "line 1", "seconds_from_start or time_s"),
            ("time_s,load\n1,2\n", "line 1", "requests_per_second or rps"),
            ("time_s,rps\n1,2\n2\n", "line 3", "there is no rps"),
            ("time_s,rps\n1,2\n\n2,many\n", "line 4", "\"many\", which is no number"),
            ("time_s,rps\n1,-2\n", "line 2", "must be 0 or more"),
            ("time_s,rps\n1,NaN\n", "line 2", "must be 0 or more"),
            ("time_s,rps\n1,1e999\n", "line 2", "must be 0 or more"),
            ("time_s,rps\n3,1\n2,1\n", "line 3", "it must grow"),
            ("time_s,rps\n1e9,1\n", "line 2", "longer than"),
            ("time_s,rps\n", "", "no rows"),
        ] {
            let said = format!("{:#}", parse(text).unwrap_err());
            assert!(said.contains(line) && said.contains(reason), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_file_that_is_no_text_or_not_there_is_named_with_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.csv");
        let name = path.to_str().unwrap();
        let said = format!("{:#}", load(name).unwrap_err());
        assert!(said.contains(name) && said.contains("iot, gaming, video"), "{said}");
        std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
        assert!(format!("{:#}", load(name).unwrap_err()).contains(name));
        std::fs::write(&path, "time_s,rps\n0,5\n1,6\n").unwrap();
        assert_eq!(load(name).unwrap().requests(), 11.0);
    }
}

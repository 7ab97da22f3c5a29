//! The paper's own numbers, as they were read from its figures (`loadtest/data/paper/README.md`).

use thiserror::Error;

/// A file of comma-separated values with one line of names.
pub struct Table {
    file: String,
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DataError {
    #[error("{file} is empty: its first line must name the columns")]
    Empty { file: String },
    #[error("{file}, line {line}: {found} values where the first line names {expected} columns")]
    Ragged { file: String, line: usize, found: usize, expected: usize },
    #[error("{file} has no column {column:?}; it has {names}")]
    NoColumn { file: String, column: String, names: String },
    #[error("{file}, line {line}: {value:?} in column {column:?} is not a number")]
    NotANumber { file: String, line: usize, column: String, value: String },
    #[error("{file} has no row in which {wanted}")]
    NoRow { file: String, wanted: String },
}

macro_rules! files {
    ($($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        $($(#[$doc])* pub fn $name() -> Result<Table, DataError> {
            Table::read($path, include_str!(concat!("../../data/", $path)))
        })*
        #[cfg(test)]
        const ALL: &[fn() -> Result<Table, DataError>] = &[$($name),*];
    };
}

files! {
    /// `trace`, `system`, `provision_s`, `cdf`.
    fig13_provisioning = "paper/figures/fig13_provisioning_cdf.csv";
    /// `n_containers`, `system`, `pull_s`, `start_s`, `total_s`.
    fig14a_scaling = "paper/figures/fig14a_scaling.csv";
    /// `n_containers`, `system`, `stage`, `share_pct`.
    fig14b_stages = "paper/figures/fig14b_stage_share.csv";
    /// `system`, `rank`, `time_s`.
    fig15_start_times = "paper/figures/fig15_start_times.csv";
    /// `t_s`, `in_mb_s`, `out_mb_s`.
    fig16_bandwidth = "paper/figures/fig16_bandwidth.csv";
    /// `time_s`, `containers_started`, `fraction_of_plotted`.
    fig17_thousand_vms = "paper/figures/fig17_1000vm.csv";
    /// `functions_per_vm`, `system`, whiskers and quartiles in percent.
    fig18_placement = "paper/figures/fig18_placement_box.csv";
    /// `function`, `format`, `latency_s`, `package_mb`.
    fig19_code = "paper/figures/fig19_code_package.csv";
    /// `image`, `quantity`, `mb`, `pct_of_image`.
    fig20_block_size = "paper/figures/fig20_block_size.csv";
    /// `time_s`, `rps`, `read`: the requests of the IoT test.
    iot_requests = "workloads/iot_test_fig11.csv";
    /// `time_s`, `rps`, and the lowest and highest response of each system.
    iot_responses = "paper/workloads/iot_test_fig11_envelope.csv";
    /// `time_s`, `rps`, `read`: the requests of the synthetic test.
    synthetic_requests = "workloads/synthetic_test_fig12.csv";
    /// As `iot_responses`.
    synthetic_responses = "paper/workloads/synthetic_test_fig12_envelope.csv";
    /// `time_s`, `tree_height_levels`: corners of a step curve.
    synthetic_height = "paper/workloads/synthetic_tree_height_fig12.csv";
}

impl Table {
    pub fn read(file: &str, text: &str) -> Result<Self, DataError> {
        let split = |line: &str| line.split(',').map(|value| value.trim().to_owned()).collect::<Vec<_>>();
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (_, first) = lines.next().ok_or_else(|| DataError::Empty { file: file.into() })?;
        let names = split(first);
        let mut rows = Vec::new();
        for (number, line) in lines {
            let row = split(line);
            if row.len() != names.len() {
                let (found, expected) = (row.len(), names.len());
                return Err(DataError::Ragged { file: file.into(), line: number + 1, found, expected });
            }
            rows.push(row);
        }
        Ok(Self { file: file.into(), names, rows })
    }

    fn column(&self, column: &str) -> Result<usize, DataError> {
        let place = self.names.iter().position(|name| name == column);
        place.ok_or_else(|| DataError::NoColumn {
            file: self.file.clone(),
            column: column.into(),
            names: self.names.join(", "),
        })
    }

    fn number(&self, row: usize, column: &str) -> Result<f64, DataError> {
        let value = &self.rows[row][self.column(column)?];
        let number = value.parse::<f64>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| DataError::NotANumber {
            file: self.file.clone(),
            line: row + 2,
            column: column.into(),
            value: value.clone(),
        })
    }

    /// Rows in which those columns have those values; at least one.
    fn rows_where(&self, wanted: &[(&str, &str)]) -> Result<Vec<usize>, DataError> {
        let mut rows: Vec<usize> = (0..self.rows.len()).collect();
        for (column, value) in wanted {
            let place = self.column(column)?;
            rows.retain(|row| self.rows[*row][place] == *value);
        }
        if rows.is_empty() {
            let wanted: Vec<String> =
                wanted.iter().map(|(column, value)| format!("{column} is {value}")).collect();
            return Err(DataError::NoRow { file: self.file.clone(), wanted: wanted.join(" and ") });
        }
        Ok(rows)
    }

    /// Two columns of the rows in which others have those values.
    pub fn points(&self, wanted: &[(&str, &str)], x: &str, y: &str) -> Result<Vec<(f64, f64)>, DataError> {
        let rows = self.rows_where(wanted)?;
        rows.into_iter().map(|row| Ok((self.number(row, x)?, self.number(row, y)?))).collect()
    }

    /// The value of one row.
    pub fn value(&self, wanted: &[(&str, &str)], column: &str) -> Result<f64, DataError> {
        self.number(self.rows_where(wanted)?[0], column)
    }
}

/// The value of a curve at `x`, straight between its points, level outside of them.
pub fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|(at, _)| *at <= x);
    match (after.checked_sub(1).and_then(|before| points.get(before)), points.get(after)) {
        (Some(&(x0, y0)), Some(&(x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
        (Some(&(_, y)), None) | (None, Some(&(_, y))) => y,
        (None, None) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_table_of_values() {
        for read in ALL {
            let table = read().expect("the file is well-formed");
            assert!(table.rows.len() > 1, "{} has rows", table.file);
        }
    }

    #[test]
    fn what_the_text_of_the_paper_says_of_figure_14_is_in_its_points() {
        let table = fig14a_scaling().expect("the file is well-formed");
        let total = |system: &str| {
            table.value(&[("n_containers", "128"), ("system", system)], "total_s").expect("a bar is there")
        };
        let times_faster = |system: &str| (total(system) / total("faasnet") * 10.0).round() / 10.0;
        let ratios = ["baseline", "kraken", "ondemand", "dadi_p2p"].map(times_faster);
        assert_eq!(ratios, [13.4, 16.3, 5.0, 2.8]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_line() {
        let error = |text: &str| Table::read("a.csv", text).err().map(|error| error.to_string());
        let empty = "a.csv is empty: its first line must name the columns";
        assert_eq!(error("").as_deref(), Some(empty));
        let ragged = "a.csv, line 3: 1 values where the first line names 2 columns";
        assert_eq!(error("x,y\n1,2\n3\n").as_deref(), Some(ragged));
        let table = Table::read("a.csv", "x,y\n1,2\n3,many\n").expect("two columns");
        let said = |points: Result<Vec<(f64, f64)>, DataError>| points.err().map(|error| error.to_string());
        let not_a_number = r#"a.csv, line 3: "many" in column "y" is not a number"#;
        assert_eq!(said(table.points(&[], "x", "y")).as_deref(), Some(not_a_number));
        let no_column = r#"a.csv has no column "z"; it has x, y"#;
        assert_eq!(said(table.points(&[], "x", "z")).as_deref(), Some(no_column));
        let no_row = "a.csv has no row in which x is 7";
        assert_eq!(said(table.points(&[("x", "7")], "x", "y")).as_deref(), Some(no_row));
    }

    #[test]
    fn between_two_points_a_curve_is_straight() {
        let points = [(0.0, 0.0), (10.0, 20.0)];
        assert_eq!([-1.0, 5.0, 11.0].map(|x| interpolate(&points, x)), [0.0, 10.0, 20.0]);
    }
}

//! `--fail-if "p99_ready_ms > 900"`: what a measurement must not be.

use anyhow::Context;
use std::{collections::BTreeMap, fmt, str::FromStr};

/// What can be compared, with what it is. Percentiles are of latencies from when requests were to be sent.
pub const FIGURES: [(&str, &str); 24] = [
    ("requests", "requests of the load"),
    ("ok", "answered with success"),
    ("refused", "answered 429 or 503"),
    ("errors", "answered otherwise, or not at all"),
    ("timed_out", "not answered within the deadline"),
    ("not_sent", "not sent, because too many were under way"),
    ("without_retry_after", "refused without saying when to come back"),
    ("error_share", "errors, as a part of the requests"),
    ("refused_share", "refusals, as a part of the requests"),
    ("p50_ms", "of answers"),
    ("p90_ms", "of answers"),
    ("p99_ms", "of answers"),
    ("p999_ms", "of answers"),
    ("max_ms", "of answers"),
    ("starts", "instances that were started"),
    ("starts_failed", "starts that ended without being ready"),
    ("starts_per_s", "starts that became ready, in the busiest second"),
    ("p50_ready_ms", "of starts, from acceptance to ready"),
    ("p90_ready_ms", "of starts, from acceptance to ready"),
    ("p99_ready_ms", "of starts, from acceptance to ready"),
    ("max_ready_ms", "of starts, from acceptance to ready"),
    ("origin_bytes", "read from the origin by the starts"),
    ("peer_bytes", "read from other VMs by the starts"),
    ("tree_height_max", "edges on the longest way from a root"),
];

/// By name. What was not measured is missing.
pub type Figures = BTreeMap<&'static str, f64>;

#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    figure: &'static str,
    relation: Relation,
    limit: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Above,
    AtLeast,
    Below,
    AtMost,
    Equal,
    Unequal,
}

const RELATIONS: [(&str, Relation); 6] = [
    (">=", Relation::AtLeast),
    ("<=", Relation::AtMost),
    ("==", Relation::Equal),
    ("!=", Relation::Unequal),
    (">", Relation::Above),
    ("<", Relation::Below),
];

impl Threshold {
    /// Why the measurement fails, if it does. A figure that was not measured fails: nobody would notice
    /// otherwise that nothing is watched.
    pub fn violated(&self, figures: &Figures) -> Option<String> {
        let Some(&value) = figures.get(self.figure) else {
            return Some(format!("{self}: {} was not measured", self.figure));
        };
        let is_so = match self.relation {
            Relation::Above => value > self.limit,
            Relation::AtLeast => value >= self.limit,
            Relation::Below => value < self.limit,
            Relation::AtMost => value <= self.limit,
            Relation::Equal => value == self.limit,
            Relation::Unequal => value != self.limit,
        };
        is_so.then(|| format!("{self}: it is {value}"))
    }
}

impl FromStr for Threshold {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let find = |(sign, relation): &(&'static str, Relation)| {
            text.split_once(sign).map(|(left, right)| (left.trim(), *relation, right.trim()))
        };
        let (name, relation, limit) = RELATIONS.iter().find_map(find).with_context(|| {
            format!("{text:?}: write it like \"p99_ready_ms > 900\", with >, >=, <, <=, == or !=")
        })?;
        let known = || FIGURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let (figure, _) = FIGURES
            .iter()
            .find(|(known, _)| *known == name)
            .with_context(|| format!("{name:?} is not measured; there are {}", known()))?;
        let limit: f64 = limit
            .parse()
            .ok()
            .filter(|limit: &f64| limit.is_finite())
            .with_context(|| format!("{limit:?}, to which {name} is compared, is no number"))?;
        Ok(Self { figure, relation, limit })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign =
            RELATIONS.iter().find(|(_, relation)| *relation == self.relation).map_or("", |(sign, _)| *sign);
        write!(out, "{} {sign} {}", self.figure, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violated(text: &str, figures: &[(&'static str, f64)]) -> Option<String> {
        text.parse::<Threshold>().unwrap().violated(&figures.iter().copied().collect())
    }

    #[test]
    fn a_threshold_is_violated_when_what_it_says_is_so() {
        let p99 = [("p99_ready_ms", 900.0)];
        for (text, is_violated) in [
            ("p99_ready_ms > 900", false),
            ("p99_ready_ms>899.5", true),
            (" p99_ready_ms >= 900 ", true),
            ("p99_ready_ms < 900", false),
            ("p99_ready_ms <= 9e2", true),
            ("p99_ready_ms == 900", true),
            ("p99_ready_ms != 900", false),
        ] {
            assert_eq!(violated(text, &p99).is_some(), is_violated, "{text}");
        }
        assert_eq!(violated("p99_ready_ms>10", &p99).unwrap(), "p99_ready_ms > 10: it is 900");
    }

    #[test]
    fn what_was_not_measured_is_never_passed() {
        let said = violated("p99_ready_ms > 900", &[("requests", 5.0)]).unwrap();
        assert!(said.contains("p99_ready_ms was not measured"), "{said}");
    }

    #[test]
    fn what_is_no_threshold_is_said_with_what_would_be_one() {
        for (text, said) in [
            ("p99_ready_ms", "write it like"),
            ("", "write it like"),
            ("p99 > 5", "there are requests, ok, refused"),
            ("p99_ms > fast", "\"fast\", to which p99_ms is compared, is no number"),
            ("p99_ms > ", "is no number"),
            ("p99_ms > inf", "is no number"),
            ("p99_ms = 3", "write it like"),
            ("> 5", "there are requests"),
        ] {
            let complaint = format!("{:#}", text.parse::<Threshold>().unwrap_err());
            assert!(complaint.contains(said), "{text:?}: {complaint}");
        }
    }
}

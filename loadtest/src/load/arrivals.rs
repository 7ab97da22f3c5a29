//! When requests arrive: pure, from a seed, the same for the same.
//!
//! A load is a rate over time, in straight pieces. The nth request comes when the area below the rate has
//! grown by n: so counts and spacing are exact whatever the rate does. With random spacing the area
//! between two requests is exponential instead, which makes them a Poisson process of that rate.

use anyhow::{Context, ensure};
use rand::{Rng, RngExt};
use std::time::Duration;

/// Requests of one load: what is kept of each must fit into memory.
pub const REQUESTS_MAX: usize = 2_000_000;
/// Requests a second: what one generator sends at all.
pub const RATE_MAX: f64 = 100_000.0;
pub const LENGTH_MAX: Duration = Duration::from_secs(24 * 3600);

/// A time in which the rate goes from one value to another in a straight line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Piece {
    /// Requests a second.
    pub from: f64,
    pub to: f64,
    pub length: Duration,
}

impl Piece {
    /// Requests that belong to it.
    fn area(&self) -> f64 {
        (self.from + self.to) / 2.0 * self.length.as_secs_f64()
    }

    /// After how many seconds the area has grown so far.
    fn after(&self, area: f64) -> f64 {
        let slope = (self.to - self.from) / self.length.as_secs_f64().max(f64::MIN_POSITIVE);
        // Of `from * t + slope / 2 * t^2 = area`, in the form that is exact for a slope of about 0 as well.
        let root = (self.from * self.from + 2.0 * slope * area).max(0.0).sqrt();
        let seconds = 2.0 * area / (self.from + root).max(f64::MIN_POSITIVE);
        seconds.clamp(0.0, self.length.as_secs_f64())
    }
}

/// A rate over time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates(pub Vec<Piece>);

impl Rates {
    pub fn length(&self) -> Duration {
        self.0.iter().map(|piece| piece.length).sum()
    }

    pub fn requests(&self) -> f64 {
        self.0.iter().map(Piece::area).sum()
    }

    /// So many times the rate, over so many times the length.
    #[must_use]
    pub fn scaled(mut self, rate: f64, time: f64) -> Self {
        for piece in &mut self.0 {
            piece.from *= rate;
            piece.to *= rate;
            piece.length = piece.length.mul_f64(time);
        }
        self
    }

    /// Refuses what no generator on one machine sends.
    pub fn check(&self) -> anyhow::Result<()> {
        let rates = self.0.iter().flat_map(|piece| [piece.from, piece.to]);
        for rate in rates {
            ensure!(rate.is_finite() && rate >= 0.0, "a rate is 0 or more requests a second, not {rate}");
            ensure!(
                rate <= RATE_MAX,
                "{rate} requests a second are more than the {RATE_MAX} that are sent at most"
            );
        }
        let (length, requests) = (self.length(), self.requests());
        ensure!(length <= LENGTH_MAX, "{length:?} is longer than {LENGTH_MAX:?}");
        ensure!(
            requests <= REQUESTS_MAX as f64,
            "these are {requests:.0} requests; at most {REQUESTS_MAX} are sent: lower the rate or shorten the time"
        );
        ensure!(requests >= 1.0, "these are no requests: raise the rate or lengthen the time");
        Ok(())
    }

    /// When each request is to be sent.
    pub fn arrivals(&self, spacing: Spacing, random: &mut impl Rng) -> Vec<Duration> {
        match spacing {
            Spacing::Even => self.even(),
            Spacing::Poisson => {
                let mut area = || -(1.0 - random.random::<f64>()).ln();
                self.spaced(area(), area)
            }
        }
    }

    /// The first at once.
    pub fn even(&self) -> Vec<Duration> {
        self.spaced(0.0, || 1.0)
    }

    /// With so much area before the first request, and so much after each.
    fn spaced(&self, first: f64, mut area_after: impl FnMut() -> f64) -> Vec<Duration> {
        let (mut arrivals, mut begin, mut before, mut next) = (Vec::new(), Duration::ZERO, 0.0, first);
        for piece in &self.0 {
            let area = piece.area();
            while next < before + area && arrivals.len() < REQUESTS_MAX {
                arrivals.push(begin + Duration::from_secs_f64(piece.after(next - before)));
                next += area_after();
            }
            before += area;
            begin += piece.length;
        }
        arrivals
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Spacing {
    /// As regular as the rate is.
    Even,
    /// Independent of each other, as of many callers who do not know each other.
    Poisson,
}

/// Which of `count` things is wanted, the nth in proportion to 1 / n^exponent. With an exponent of 0 all
/// are wanted alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Zipf {
    /// Sums of the weights up to each, in parts of all.
    sums: Vec<f64>,
}

impl Zipf {
    pub fn new(count: usize, exponent: f64) -> anyhow::Result<Self> {
        ensure!(
            exponent.is_finite() && (0.0..=10.0).contains(&exponent),
            "use an exponent of 0 to 10, not {exponent}"
        );
        let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let mut sums: Vec<f64> = sums.collect();
        let all = *sums.last().context("there is nothing to choose from")?;
        sums.iter_mut().for_each(|sum| *sum /= all);
        Ok(Self { sums })
    }

    pub fn choose(&self, random: &mut impl Rng) -> usize {
        let drawn = random.random::<f64>();
        self.sums.partition_point(|sum| *sum <= drawn).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    fn piece(from: f64, to: f64, seconds: u64) -> Piece {
        Piece { from, to, length: Duration::from_secs(seconds) }
    }

    fn random() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    fn even(pieces: &[Piece]) -> Vec<f64> {
        let arrivals = Rates(pieces.to_vec()).arrivals(Spacing::Even, &mut random());
        arrivals.iter().map(|at| (at.as_secs_f64() * 1000.0).round() / 1000.0).collect()
    }

    #[test]
    fn even_requests_are_as_many_and_as_far_apart_as_the_rate_says() {
        assert_eq!(even(&[piece(2.0, 2.0, 1), piece(1.0, 1.0, 2)]), [0.0, 0.5, 1.0, 2.0]);
        assert_eq!(even(&[piece(0.0, 0.0, 10), piece(4.0, 4.0, 1)]), [10.0, 10.25, 10.5, 10.75]);
        // Below a straight line from 0 to 2 a second there are t^2 / 2 after t seconds.
        assert_eq!(even(&[piece(0.0, 2.0, 2)]), [0.0, 1.414]);
        assert_eq!(even(&[piece(2.0, 0.0, 2)]), [0.0, 0.586]);
        let ramp = even(&[piece(0.0, 100.0, 100)]);
        assert_eq!(ramp.len(), 5000);
        assert!(ramp.is_sorted() && ramp.last().is_some_and(|last| (99.9..100.0).contains(last)));
    }

    #[test]
    fn random_requests_have_the_rate_and_do_not_know_each_other() {
        let rates = Rates(vec![piece(100.0, 100.0, 100)]);
        let arrivals = rates.arrivals(Spacing::Poisson, &mut random());
        // Six standard deviations of 10,000 expected.
        assert!((9400..=10_600).contains(&arrivals.len()), "{}", arrivals.len());
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let longer = gaps.iter().filter(|gap| **gap > 0.01).count() as f64 / gaps.len() as f64;
        // exp(-1) of exponential gaps are longer than their mean.
        assert!((longer - 0.368).abs() < 0.03, "{longer}");
        assert_eq!(
            arrivals,
            rates.arrivals(Spacing::Poisson, &mut random()),
            "the same seed, the same arrivals"
        );
        assert_ne!(arrivals, rates.arrivals(Spacing::Poisson, &mut StdRng::seed_from_u64(8)));
    }

    #[test]
    fn scaling_the_rate_scales_the_count_and_scaling_the_time_the_length() {
        let rates = Rates(vec![piece(10.0, 30.0, 20), piece(5.0, 5.0, 10)]);
        let scaled = rates.clone().scaled(0.5, 0.1);
        assert_eq!((rates.requests(), scaled.requests()), (450.0, 22.5));
        assert_eq!(scaled.length(), Duration::from_secs(3));
        assert_eq!(scaled.arrivals(Spacing::Even, &mut random()).len(), 23);
    }

    #[test]
    fn what_nobody_can_send_is_refused_with_the_limit() {
        let complaint = |pieces: &[Piece]| Rates(pieces.to_vec()).check().unwrap_err().to_string();
        assert!(complaint(&[piece(1.0, 2e5, 1)]).contains("100000"));
        assert!(complaint(&[piece(-1.0, 1.0, 1)]).contains("-1"));
        assert!(complaint(&[piece(f64::NAN, 1.0, 1)]).contains("NaN"));
        assert!(complaint(&[piece(1.0, 1.0, 100_000)]).contains("86400s"));
        assert!(complaint(&[piece(1e5, 1e5, 1000)]).contains("100000000 requests"));
        assert!(complaint(&[piece(0.0, 0.0, 60)]).contains("no requests"));
        assert!(complaint(&[]).contains("no requests"));
        Rates(vec![piece(1.0, 1.0, 1)]).check().unwrap();
    }

    #[test]
    fn shares_follow_zipf() {
        let (zipf, mut random) = (Zipf::new(4, 1.0).unwrap(), random());
        let mut counts = [0.0; 4];
        const DRAWN: usize = 100_000;
        (0..DRAWN).for_each(|_| counts[zipf.choose(&mut random)] += 1.0 / DRAWN as f64);
        // 1, 1/2, 1/3 and 1/4 of 25/12.
        for (share, expected) in counts.iter().zip([0.48, 0.24, 0.16, 0.12]) {
            assert!((share - expected).abs() < 0.01, "{counts:?}");
        }
        let alike = Zipf::new(2, 0.0).unwrap();
        assert_eq!(alike.sums, [0.5, 1.0]);
        assert!(Zipf::new(0, 1.0).is_err() && Zipf::new(3, -1.0).is_err() && Zipf::new(3, f64::NAN).is_err());
    }
}

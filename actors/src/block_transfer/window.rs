//! How much one upstream is asked for at once: twice what its connection carries during the delay of an answer.
//!
//! As in BBR (Cardwell et al., 2016) rate and delay are measured apart, because they cannot be seen at the same
//! time: the rate while much is asked for (the highest of the last rounds), the delay while little is (the
//! shortest answer of the last seconds; when there was none for so long, little is asked for until there is one,
//! unless the window is at its least and needs no delay).
//! Half of the window is on its way, and half waits at the upstream, so that its line does not fall idle. Too
//! much costs little, since what waits there is only numbers and is overtaken by demands; too little costs speed.

use crate::image::BLOCK_BYTES;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Rounds for which a rate counts. A round is the time in which what was in flight at its beginning arrives.
const RATE_ROUNDS: u64 = 10;

/// How long a delay counts, as in BBR.
const DELAY_LIFE: Duration = Duration::from_secs(10);

/// Windows ask for this many times what is on its way.
const GAIN: u64 = 2;

/// Blocks in flight while the delay is measured.
fn probes(blocks_min: usize) -> usize {
    blocks_min.div_ceil(4)
}

/// A block that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    at: Instant,
    bytes: u64,
    /// What had been delivered by then, and when the last of it.
    delivered: u64,
    delivered_at: Instant,
    /// Less was in flight than the window allowed: the rate was not the connection's.
    is_idle: bool,
    /// So little was in flight that nothing waited at the upstream.
    is_probe: bool,
}

/// Measures one connection.
#[derive(Debug, Default)]
pub(super) struct Window {
    in_flight_bytes: u64,
    in_flight_blocks: usize,
    delivered: u64,
    delivered_at: Option<Instant>,
    round: u64,
    /// The round ends when this much is delivered.
    round_end: u64,
    /// The highest rates of the last rounds in bytes a second, falling.
    rates: VecDeque<(u64, u64)>,
    /// The shortest delay, and when it was measured.
    delay: Option<(Duration, Instant)>,
}

impl Window {
    /// Bytes to have in flight, once something was measured.
    fn target(&self) -> Option<u64> {
        let (&(_, rate), (delay, _)) = (self.rates.front()?, self.delay?);
        let carried = u128::from(rate) * delay.as_nanos() / 1_000_000_000;
        Some(GAIN * u64::try_from(carried).unwrap_or(u64::MAX / GAIN))
    }

    fn is_delay_old(&self, now: Instant) -> bool {
        self.delay.is_some_and(|(_, at)| now.duration_since(at) >= DELAY_LIFE)
    }

    /// Asking for little costs nothing on a line of one's own. It does where requests side by side share a line
    /// with those of others, at the origin: while this VM asks for little, the others get its share.
    fn is_probing(&self, blocks_min: usize, now: Instant) -> bool {
        let least = blocks_min as u64 * u64::from(BLOCK_BYTES);
        self.is_delay_old(now) && self.target().is_some_and(|target| target > least)
    }

    /// Whether another block may be asked for. `blocks_min` may be in flight, but for a moment in which the
    /// delay is measured.
    pub fn has_room(&self, blocks_min: usize, now: Instant) -> bool {
        if self.is_probing(blocks_min, now) {
            return self.in_flight_blocks < probes(blocks_min);
        }
        self.in_flight_blocks < blocks_min
            || self.target().is_some_and(|target| self.in_flight_bytes < target)
    }

    pub fn ask(&mut self, bytes: u64, blocks_min: usize, now: Instant) -> Asked {
        let is_idle = self.target().is_some_and(|target| 2 * self.in_flight_bytes < target);
        let delivered_at = match self.delivered_at {
            Some(at) if self.in_flight_blocks > 0 => at,
            _ => now,
        };
        let is_probe = self.in_flight_blocks < probes(blocks_min);
        self.delivered_at = Some(delivered_at);
        self.in_flight_bytes += bytes;
        self.in_flight_blocks += 1;
        Asked { at: now, bytes, delivered: self.delivered, delivered_at, is_idle, is_probe }
    }

    /// The block has arrived.
    pub fn arrived(&mut self, asked: &Asked, now: Instant) {
        self.forget(asked);
        self.delivered += asked.bytes;
        self.delivered_at = Some(now);
        if asked.delivered >= self.round_end {
            self.round += 1;
            self.round_end = self.delivered;
        }
        let nanos = now.duration_since(asked.delivered_at).as_nanos().max(1);
        let rate = u128::from(self.delivered - asked.delivered) * 1_000_000_000 / nanos;
        self.rated(u64::try_from(rate).unwrap_or(u64::MAX), asked.is_idle);
        let delay = now.duration_since(asked.at);
        let is_shorter = self.delay.is_none_or(|(shortest, _)| delay <= shortest);
        if is_shorter || (asked.is_probe && self.is_delay_old(now)) {
            self.delay = Some((delay, now));
        }
    }

    /// The block will not come.
    pub fn forget(&mut self, asked: &Asked) {
        self.in_flight_bytes -= asked.bytes;
        self.in_flight_blocks -= 1;
    }

    fn rated(&mut self, rate: u64, is_idle: bool) {
        let highest = self.rates.front().map_or(0, |(_, rate)| *rate);
        if is_idle && rate <= highest {
            return;
        }
        while self.rates.back().is_some_and(|(_, lower)| *lower <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((self.round, rate));
        while self.rates.front().is_some_and(|(round, _)| round + RATE_ROUNDS < self.round) {
            self.rates.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures::ms, *};
    use std::collections::BTreeMap;

    const MIN: usize = 8;
    const MAX: usize = 256;
    const BLOCK: u64 = BLOCK_BYTES as u64;

    /// An upstream that has every block: a line of some rate, an answer's way of some length.
    struct Pipe {
        window: Window,
        now: Instant,
        bytes_per_second: u64,
        delay: Duration,
        line_free_at: Instant,
        in_flight: BTreeMap<(Instant, u64), Asked>,
        asked: u64,
        most: usize,
        fewest: usize,
    }

    impl Pipe {
        fn new(bytes_per_second: u64, delay: Duration) -> Self {
            let now = Instant::now();
            Self {
                window: Window::default(),
                now,
                bytes_per_second,
                delay,
                line_free_at: now,
                in_flight: BTreeMap::new(),
                asked: 0,
                most: 0,
                fewest: 0,
            }
        }

        /// Asks for as much as the window allows for so long; returns bytes a second.
        fn run(&mut self, length: Duration) -> f64 {
            let (begin, before) = (self.now, self.window.delivered);
            (self.most, self.fewest) = (0, MAX);
            while self.now < begin + length {
                while self.in_flight.len() < MAX && self.window.has_room(MIN, self.now) {
                    let asked = self.window.ask(BLOCK, MIN, self.now);
                    let sent = Duration::from_nanos(BLOCK * 1_000_000_000 / self.bytes_per_second);
                    self.line_free_at = self.line_free_at.max(self.now + self.delay / 2) + sent;
                    self.asked += 1;
                    self.in_flight.insert((self.line_free_at + self.delay / 2, self.asked), asked);
                }
                self.most = self.most.max(self.in_flight.len());
                self.fewest = self.fewest.min(self.in_flight.len());
                let ((at, _), asked) = self.in_flight.pop_first().expect("some are always in flight");
                self.now = at;
                self.window.arrived(&asked, at);
            }
            (self.window.delivered - before) as f64 / (self.now - begin).as_secs_f64()
        }
    }

    #[test]
    fn a_long_fast_line_is_filled_within_a_second_and_stays_so() {
        let line = 1_250_000_000; // 10 Gbit/s
        let mut pipe = Pipe::new(line, ms(40));
        pipe.run(ms(1000));
        let rate = pipe.run(ms(40_000));
        assert!(rate > 0.97 * line as f64, "{rate} of {line}");
        let mut fixed = Pipe::new(line, ms(40));
        fixed.window.delay = Some((Duration::ZERO, fixed.now + ms(3_600_000)));
        let rate = fixed.run(ms(1000));
        assert!(rate < 0.1 * line as f64, "the least window would give {rate}");
    }

    #[test]
    fn a_window_does_not_creep_up_while_it_is_full() {
        let (line, delay) = (125_000_000, ms(100)); // 1 Gbit/s; 24 blocks are on their way
        let mut pipe = Pipe::new(line, delay);
        for _ in 0..10 {
            let rate = pipe.run(ms(10_000));
            assert!(rate > 0.95 * line as f64, "{rate}");
            assert!(pipe.most <= 64, "{} blocks in flight", pipe.most);
        }
    }

    #[test]
    fn a_short_line_is_asked_for_little() {
        let line = 125_000_000;
        let mut pipe = Pipe::new(line, Duration::from_micros(200));
        let rate = pipe.run(ms(60_000));
        assert!(rate > 0.99 * line as f64, "{rate}");
        assert!(pipe.most <= MIN + 2, "{} blocks in flight", pipe.most);
    }

    #[test]
    fn a_line_that_becomes_slow_is_asked_for_less_and_one_that_becomes_fast_again_for_more() {
        let mut pipe = Pipe::new(125_000_000, ms(100));
        pipe.run(ms(5000));
        let many = pipe.most;
        pipe.bytes_per_second /= 20;
        pipe.run(ms(60_000));
        pipe.run(ms(5000));
        assert!(pipe.most < many / 2, "{} after {many}", pipe.most);
        pipe.bytes_per_second *= 20;
        pipe.run(ms(5000));
        let rate = pipe.run(ms(5000));
        assert!(rate > 0.95 * 125e6, "{rate}");
    }

    #[test]
    fn a_window_at_its_least_is_not_emptied() {
        let mut pipe = Pipe::new(6_250_000, Duration::from_millis(1)); // 50 Mbit/s
        for _ in 0..30 {
            pipe.run(ms(1000));
            assert!(pipe.fewest + 1 >= MIN, "{} blocks in flight", pipe.fewest);
        }
    }

    #[test]
    fn what_does_not_come_is_counted_no_more() {
        let (mut window, now) = (Window::default(), Instant::now());
        let asked: Vec<Asked> = (0..MIN).map(|_| window.ask(BLOCK, MIN, now)).collect();
        assert!(!window.has_room(MIN, now));
        window.forget(&asked[0]);
        assert!(window.has_room(MIN, now));
    }
}

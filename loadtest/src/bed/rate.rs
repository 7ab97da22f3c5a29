//! The rate of a link, and the token bucket that makes it.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The largest segment that TCP leaves to be cut by the interface, with the headers of its frames.
const SEGMENT_BYTES: u64 = 68 * 1024;

/// Bits per second of a link, each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rate(u64);

impl Rate {
    pub const fn mbit(mbit_per_s: u64) -> Self {
        Self(mbit_per_s * 1_000_000)
    }

    pub const fn bits_per_s(self) -> u64 {
        self.0
    }

    pub const fn bytes_per_s(self) -> u64 {
        self.0 / 8
    }

    /// What may pass at once after a pause. Four milliseconds, the timer tick of a 250 Hz kernel, because
    /// a busy machine serves the bucket no more often; at low rates ten full frames. Between them one segment as
    /// TCP hands it down, if that takes no more than 20 ms: the bucket cuts larger ones into frames, and each of
    /// those wakes its receiver.
    pub fn burst_bytes(self) -> u64 {
        let segment = SEGMENT_BYTES.min(self.bytes_per_s() / 50);
        (self.bytes_per_s() / 250).max(segment).max(10 * 1514)
    }

    /// What waits before packets are dropped: 50 ms, the buffer of a usual switch port; at low rates two
    /// segments as TCP hands them down, without which nothing large would pass.
    pub fn queue_bytes(self) -> u64 {
        self.burst_bytes() + (self.bytes_per_s() / 20).max(2 * SEGMENT_BYTES)
    }
}

/// `1gbit`, `100mbit`, `512kbit`: as tc writes them.
impl FromStr for Rate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let factor = match unit {
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => anyhow::bail!("{text:?} is no rate; write it like 1gbit, 100mbit or 512kbit"),
        };
        let rate = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
        rate.filter(|bits| (8_000..=1_000_000_000_000).contains(bits))
            .map(Self)
            .with_context(|| format!("{text:?} is outside 8kbit to 1000gbit"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_tc_writes_them() {
        assert_eq!("1gbit".parse::<Rate>().unwrap(), Rate::mbit(1000));
        assert_eq!("100mbit".parse::<Rate>().unwrap(), Rate::mbit(100));
        for wrong in ["", "1", "gbit", "1 gbit", "-1mbit", "1kbit", "99999999999999999999gbit"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bucket_holds_whole_frames_at_every_rate() {
        for rate in ["8kbit", "1mbit", "1gbit", "100gbit"] {
            let rate = rate.parse::<Rate>().unwrap();
            assert!(rate.burst_bytes() >= 1514 && rate.queue_bytes() > rate.burst_bytes() + 65536);
        }
    }
}

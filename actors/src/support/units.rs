//! Durations as they travel and are shown: whole numbers of a unit, the largest one for what is too long.

use std::time::Duration;

pub fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

pub fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

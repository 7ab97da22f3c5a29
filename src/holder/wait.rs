//! Waiting for descriptors with a limit.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// Whether the descriptor became readable, or was closed by the other side, within that time. For a
/// process descriptor that is its end.
pub fn readable(descriptor: &impl AsFd, within: Option<Duration>) -> bool {
    any_readable(&[descriptor.as_fd()], within)[0]
}

/// For each descriptor whether it is readable; all `false` when the time passed first. Without a
/// time it waits for as long as it takes.
pub fn any_readable(descriptors: &[std::os::fd::BorrowedFd<'_>], within: Option<Duration>) -> Vec<bool> {
    let deadline = within.map(|within| Instant::now() + within);
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN)).collect();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut polled, left.as_ref()) {
            Err(Errno::INTR) => {}
            // Only for want of memory or for a wrong call: the caller sees "not readable in time".
            Err(_) => return vec![false; polled.len()],
            Ok(_) => return polled.iter().map(|polled| !polled.revents().is_empty()).collect(),
        }
    }
}

//! The whole way on real parts: a registry, a manager and agents as processes, each on a host of its own
//! of a test bed, and real containers. Needs root and the packages that `./check` installs.

#![allow(clippy::unwrap_used, reason = "clippy knows test functions, but not the helpers beside them")]

mod agent_replace;
mod agent_restart;
mod bad_input;
mod burst;
mod chaos;
mod code;
mod corruption;
mod drive;
mod eviction;
mod hot_set;
mod listing;
mod manager_restart;
mod overload;
mod preheat;
mod prometheus;
mod reading;
mod request;
mod sample;
mod shapes;
mod support;
mod why_slow;

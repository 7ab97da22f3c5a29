//! The holder as a process, driven over its socket by a test in the place of the agent. Needs root,
//! `runc`, `mkfs.erofs` and a static busybox.

mod code;
mod containers;
mod limits;
mod process;
mod reads;
mod recording;
mod support;

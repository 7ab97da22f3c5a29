//! The experiments of the FaaSNet paper again, beside its own points.

pub mod data;

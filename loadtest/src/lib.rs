//! Load tests and the test bed they run on: real network namespaces with shaped links, and a simulator.

pub mod bed;
pub mod chaos;
pub mod compare;
pub mod distribute;
pub mod drive;
mod guard;
pub mod hotset;
pub mod load;
pub mod overload;
pub mod paper;
pub mod reading;
pub mod report;
pub mod rig;
pub mod rivals;
pub mod simulate;
pub mod warm;

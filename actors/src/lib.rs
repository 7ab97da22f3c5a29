//! The actors of FaaSNet, their pure cores, their messages and the wire types.
//!
//! Nothing in here opens a socket or a file: the world is reached through the traits of [`world`].

pub mod block_transfer;
pub mod id;
pub mod image;
pub mod model;
pub mod scheduler;
pub mod wire;
pub mod world;

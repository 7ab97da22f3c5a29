//! The actors of FaaSNet, their pure cores, their messages and the wire types.
//!
//! Nothing in here opens a socket or a file: the world is reached through the traits of [`world`].

pub mod block_transfer;
pub mod function_tree;
pub mod id;
pub mod image;
pub mod journal;
pub mod model;
pub mod ring;
pub mod scheduler;
pub mod support;
pub mod tree;
pub mod vm_node;
pub mod wire;
pub mod world;

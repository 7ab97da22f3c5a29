//! The actors of FaaSNet, their pure cores, their messages and the wire types.
//!
//! Nothing in here opens a socket or a file: the world is reached through the traits of [`world`] and
//! [`agent::world`].

pub mod agent;
pub mod agent_session;
pub mod block_store;
pub mod block_transfer;
pub mod event_log;
pub mod explain;
pub mod function_tree;
pub mod id;
pub mod image;
pub mod instance;
pub mod journal;
pub mod manager;
pub mod model;
pub mod profile;
pub mod profiles;
pub mod resources;
pub mod ring;
pub mod scheduler;
pub mod support;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod vm_node;
pub mod wire;
pub mod world;

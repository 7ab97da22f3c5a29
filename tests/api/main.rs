//! The API, the gateway and the client verbs over real sockets. Behind them stands a small control
//! plane that holds what a test puts into it.

mod bodies;
mod cli;
mod code;
mod control;
mod events;
mod follow;
mod gateway;
mod instances;
mod log;
#[cfg(feature = "etcd")]
mod metadata;
mod metrics;
mod openapi;
mod packages;
#[path = "../support/promtool.rs"]
mod promtool;
mod routes;
mod session;
mod world;

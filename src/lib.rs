//! FaaSNet: the process. Command line, settings, HTTP, and the adapters that touch the world.

pub mod agent;
pub mod cli;
pub mod code;
#[doc(hidden)]
pub mod fuzzing;
pub mod holder;
pub mod http;
pub mod image;
pub mod manager;
pub mod metadata;
pub mod metrics;
pub mod net;
pub mod origin;
pub mod registry;
pub mod sample;
pub mod settings;
pub mod tokens;
pub mod up;

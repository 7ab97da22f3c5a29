//! FaaSNet: the process. Command line, settings, HTTP, and the adapters that touch the world.

pub mod net;
pub mod image;
pub mod origin;
pub mod registry;
pub mod holder;
pub mod http;
pub mod metadata;
pub mod sample;
pub mod settings;
pub mod tokens;

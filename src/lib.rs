//! FaaSNet: the process. Command line, settings, HTTP, and the adapters that touch the world.

pub mod net;
pub mod settings;

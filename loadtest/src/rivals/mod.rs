//! Other ways to bring images to VMs, on one model of links, cores, disks and a registry: simple, but fair.
//!
//! They do not run our cores, so they need no messages between them: flows that share resources max-min fairly
//! ([`flows`]), a clock and a seed ([`fleet`]). A seed is a history.
//!
//! - [`Pull`]: the whole image from the registry, as `docker pull` and `docker run`.
//! - [`Tree`] with [`Source::Registry`]: blocks from the registry as they are read.
//! - [`Tree`] with [`Source::Tree`]: DADI with P2P.
//! - [`Kraken`]: pieces of layers from each other, with one or more origins.

mod fleet;
pub mod flows;
mod kraken;
mod pull;
#[cfg(test)]
mod tests;
mod tree;

pub use fleet::{Image, Local, Registry, Rival, Setup, Started, burst};
pub use kraken::Kraken;
pub use pull::Pull;
pub use tree::{Source, Tree};

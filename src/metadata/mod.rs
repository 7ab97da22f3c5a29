//! Metadata stores: adapters of [`faasnet_actors::world::Metadata`]. One today, an embedded file; what
//! every adapter must hold to is in the tests of this module.

mod redb;
#[cfg(test)]
mod tests;

pub use redb::RedbMetadata;

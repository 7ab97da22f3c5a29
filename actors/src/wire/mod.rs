//! What travels between processes: one file for each pair of speakers, and the frame they share.
//!
//! Wire types are separate from actor messages. All are MessagePack maps with named fields, so that
//! a field can be added; block bytes travel behind the map, never inside it.

pub mod control;
pub mod frame;
pub mod handover;
pub mod holder;
pub mod peer;
pub mod request;

/// Spoken by both sides of every connection; a different number is refused with a clear error.
pub const PROTOCOL_VERSION: u32 = 1;

//! The converter: an OCI image becomes a block image (one EROFS file system, cut into blocks that are
//! compressed and hashed one by one), published as an OCI artifact.
//!
//! Everything in here blocks and belongs on a blocking thread. Whatever a source hands over is hostile
//! until its digest, its size and its limits were checked.

mod accounts;
pub mod artifact;
pub mod blocks;
pub mod convert;
pub mod erofs;
pub mod inspect;
mod layer;
pub mod manifest;
pub(crate) mod merge;
pub(crate) mod packing;
mod passes;
pub mod progress;
pub mod publish;
pub mod resolve;
pub(crate) mod runtime;
pub mod source;
mod spool;
pub(crate) mod tar;
pub mod tree;
mod xattr;
pub mod zip;

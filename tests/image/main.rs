//! The converter on real parts: layers made by GNU tar, umoci and by hand; results mounted by the
//! kernel, checked by `fsck.erofs`, and compared with references that others unpacked.

#![allow(clippy::unwrap_used, reason = "in helpers of tests, too, a panic is a failed test")]

mod archive;
mod bad;
mod layers;
mod mounted;
mod oci;
mod published;
mod random;
mod roundtrip;
mod trouble;

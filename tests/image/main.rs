//! The converter on real parts: layers made by GNU tar, umoci and by hand; results mounted by the
//! kernel, checked by `fsck.erofs`, and compared with references that others unpacked.

mod mounted;
mod oci;
mod roundtrip;

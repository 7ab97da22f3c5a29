//! Connections between processes: who is who (CA, certificates), TLS, frames, capabilities.
//!
//! Every connection is TLS 1.3 with both sides authenticated by certificates of the manager's own
//! CA; only a join is made without a certificate of the VM, against the CA's hash in the join token.
//! ALPN says what a connection is for, so that control, blocks and requests never wait behind one
//! another.

pub mod accept;
pub mod capability;
pub mod framed;
pub mod identity;
pub mod tls;

/// What a connection is for: the ALPN protocol that both sides agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// A VM asks the manager for its certificate.
    Join,
    /// A VM's session with the manager.
    Control,
    /// A child reads a block image from another VM.
    Blocks,
    /// The manager forwards requests to an instance.
    Request,
}

impl Purpose {
    pub const ALL: [Self; 4] = [Self::Join, Self::Control, Self::Blocks, Self::Request];

    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Join => b"faasnet-join/1",
            Self::Control => b"faasnet-control/1",
            Self::Blocks => b"faasnet-blocks/1",
            Self::Request => b"faasnet-request/1",
        }
    }

    pub fn from_alpn(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.alpn() == alpn)
    }
}

//! What actors need of the world, as traits. The process brings adapters, tests bring small ones.

use crate::image::BlockImage;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::{ops::Range, time::Duration};

/// Which part of a block image is read from the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Index,
    Blob,
}

/// The registry, folder or store that holds block images.
pub trait Origin: Send + Sync {
    /// Reads exactly that range of bytes. Nothing is verified here; the caller does.
    fn read(
        &self,
        image: &BlockImage,
        part: Part,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Bytes, OriginError>>;
}

/// Why the origin did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("the origin has no such object: {0}")]
    NotFound(String),
    #[error("the origin refuses the credentials: {0}")]
    Unauthorized(String),
    #[error("the origin asks to come back later")]
    Busy { retry_after: Option<Duration> },
    #[error("the origin gave {got} bytes instead of {wanted}")]
    Truncated { got: u64, wanted: u64 },
    #[error("the origin cannot be used: {0}")]
    Failed(String),
}

impl OriginError {
    /// Whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotFound(_) | Self::Unauthorized(_) => false,
            Self::Busy { .. } | Self::Truncated { .. } | Self::Failed(_) => true,
        }
    }
}

//! A source image in a registry.

use super::{BlobRef, Document, Source, SourceError};
use crate::registry::{BlobStream, BlockingClient, Manifest, Reference, RegistryError};
use bytes::{Buf, Bytes};
use faasnet_actors::id::Digest;
use std::io::{self, Read};

/// An image that a reference names. Manifests are bounded by `image.manifest_bytes_max`.
pub struct RegistrySource {
    client: BlockingClient,
    reference: Reference,
    manifest_bytes_max: u64,
}

impl RegistrySource {
    pub fn new(client: BlockingClient, reference: Reference, manifest_bytes_max: u64) -> Self {
        Self { client, reference, manifest_bytes_max }
    }

    fn document(&self, reference: &Reference) -> Result<Document, SourceError> {
        let read = self.client.wait(|client| client.manifest(reference, self.manifest_bytes_max));
        let Manifest { media_type, bytes, digest } = read.map_err(|error| self.error(error))?;
        Ok(Document { media_type, bytes: bytes.into(), digest })
    }

    fn error(&self, error: RegistryError) -> SourceError {
        to_source(&self.reference.to_string(), error)
    }
}

impl Source for RegistrySource {
    fn root(&self) -> Result<Document, SourceError> {
        self.document(&self.reference)
    }

    fn manifest(&self, digest: Digest) -> Result<Document, SourceError> {
        self.document(&Reference { digest: Some(digest), ..self.reference.clone() })
    }

    fn blob(&self, blob: &BlobRef) -> Result<Box<dyn Read + Send>, SourceError> {
        let stream = self.client.wait(|client| {
            std::future::ready(client.blob(&self.reference.repository, blob.digest, blob.size))
        });
        let (client, image) = (self.client.clone(), self.reference.to_string());
        let mut reader = BlobReader { client, image, stream, piece: Bytes::new() };
        // The first piece at once, so that a missing blob is an error here and not of the reader.
        reader.advance().map_err(|error| self.error(error))?;
        Ok(Box::new(reader))
    }
}

/// A blob as it arrives; holds one piece of the connection's buffer.
struct BlobReader {
    client: BlockingClient,
    image: String,
    stream: BlobStream,
    piece: Bytes,
}

impl BlobReader {
    fn advance(&mut self) -> Result<(), RegistryError> {
        self.piece = self.client.wait(|_| self.stream.next())?.unwrap_or_default();
        Ok(())
    }
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.piece.is_empty() {
            self.advance().map_err(|error| io::Error::other(to_source(&self.image, error)))?;
        }
        let count = out.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

/// What the user is told of a failed read of `image`.
fn to_source(image: &str, error: RegistryError) -> SourceError {
    let reason = error.to_string();
    match error {
        RegistryError::NotFound { what } => SourceError::NotFound { what },
        RegistryError::Unauthorized { what, .. } => SourceError::Unauthorized { what },
        RegistryError::Busy { retry_after, .. } => {
            SourceError::RateLimited { what: image.to_owned(), retry_after }
        }
        RegistryError::CutShort { what, got, wanted } => {
            SourceError::Truncated { what, expected: wanted, got }
        }
        RegistryError::WrongDigest { what, wanted, got } => {
            SourceError::WrongDigest { what, expected: wanted, got }
        }
        RegistryError::TooLarge { what, bytes_max } => {
            SourceError::TooLarge { what, limit: bytes_max, setting: "image.manifest_bytes_max" }
        }
        RegistryError::Surplus { .. }
        | RegistryError::RangeIgnored { .. }
        | RegistryError::Protocol { .. }
        | RegistryError::Reference { .. } => SourceError::Invalid { what: image.to_owned(), reason },
        RegistryError::Tls { .. }
        | RegistryError::PlainHttp { .. }
        | RegistryError::Credentials { .. }
        | RegistryError::Redirects { .. }
        | RegistryError::Setup(_) => SourceError::Unusable { what: image.to_owned(), reason },
        RegistryError::Unreachable { .. }
        | RegistryError::Slow { .. }
        | RegistryError::Status { .. }
        | RegistryError::Local(_) => SourceError::Unavailable { what: image.to_owned(), reason },
    }
}

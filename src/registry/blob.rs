//! Reading blobs: a range at once, or the whole as a stream that resumes where it was cut.

use super::{RegistryClient, RegistryError, Repository, auth::Access};
use bytes::{Bytes, BytesMut};
use faasnet_actors::id::Digest;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_RANGE, HeaderValue, RANGE},
};
use std::{ops::Range, time::Duration};
use tokio::time::Instant;

/// What a registry that ignores ranges may send before the wanted bytes, in bytes. More is not worth
/// reading: it would be sent again for each range.
const SKIPPED_BYTES_MAX: u64 = 1 << 20;

/// A range that was read, or what had arrived of it.
#[derive(Debug)]
pub struct RangeAnswer {
    pub result: Result<Bytes, RegistryError>,
    /// Bytes of the body that arrived, of use or not.
    pub body_bytes: u64,
}

impl RegistryClient {
    /// Reads exactly that range of a blob, in one attempt.
    ///
    /// The whole answer must arrive within `origin.read_ms`. A registry that answers with the whole blob
    /// is read from the start if the range is near it, and refused otherwise.
    pub async fn blob_range(&self, repository: &Repository, blob: Digest, range: Range<u64>) -> RangeAnswer {
        let mut body_bytes = 0;
        let deadline = Instant::now() + self.transport().answer_deadline;
        let result = self.read_range(repository, blob, range, deadline, &mut body_bytes).await;
        RangeAnswer { result, body_bytes }
    }

    async fn read_range(
        &self,
        repository: &Repository,
        blob: Digest,
        range: Range<u64>,
        deadline: Instant,
        body_bytes: &mut u64,
    ) -> Result<Bytes, RegistryError> {
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let mut response = self.open_range(repository, blob, range.start, Some(range.end)).await?;
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            _ => range.start,
        };
        let mut bytes = BytesMut::with_capacity(usize::try_from(wanted).unwrap_or_default());
        while (bytes.len() as u64) < wanted {
            let cut_short =
                || RegistryError::CutShort { what: name(repository, blob), got: bytes.len() as u64, wanted };
            let piece = tokio::time::timeout_at(deadline, response.chunk()).await;
            let piece = piece.ok().and_then(Result::ok).flatten().ok_or_else(cut_short)?;
            *body_bytes += piece.len() as u64;
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let rest = &piece[skipped as usize..];
            let missing = wanted - bytes.len() as u64;
            // Never more than was asked for, whatever the other side sends.
            bytes.extend_from_slice(&rest[..rest.len().min(missing as usize)]);
        }
        // Seeing the end lets the connection be used again; a surplus is counted and left.
        if response.status() == StatusCode::PARTIAL_CONTENT
            && let Ok(Ok(Some(surplus))) = tokio::time::timeout_at(deadline, response.chunk()).await
        {
            *body_bytes += surplus.len() as u64;
        }
        Ok(bytes.freeze())
    }

    /// Asks for the bytes from `start` (to `end`). The answer is 206 with that range, or 200 when that
    /// is near enough to the start of the blob.
    async fn open_range(
        &self,
        repository: &Repository,
        blob: Digest,
        start: u64,
        end: Option<u64>,
    ) -> Result<Response, RegistryError> {
        let what = name(repository, blob);
        let mut call = self.call(repository, Method::GET, &format!("blobs/{blob}"), what.clone())?;
        let last = end.map(|end| (end - 1).to_string()).unwrap_or_default();
        if start > 0 || end.is_some() {
            let value = HeaderValue::from_str(&format!("bytes={start}-{last}"));
            call.headers.insert(RANGE, value.expect("digits make a header"));
        }
        let response = self.send(&call, repository, Access::Pull).await?;
        let registry = repository.registry().to_owned();
        match response.status() {
            StatusCode::PARTIAL_CONTENT if is_range(&response, start, end) => Ok(response),
            StatusCode::OK if start <= SKIPPED_BYTES_MAX => Ok(response),
            StatusCode::OK => Err(RegistryError::RangeIgnored { registry, what }),
            _ => Err(RegistryError::Protocol {
                registry,
                reason: format!("another range of {what} was asked for"),
            }),
        }
    }

    /// Streams a whole blob of that size. Nothing is verified; the stream ends after `size` bytes, and a
    /// blob of another size is an error.
    pub fn blob(&self, repository: &Repository, blob: Digest, size: u64) -> BlobStream {
        BlobStream {
            client: self.clone(),
            repository: repository.clone(),
            blob,
            size,
            position: 0,
            open: None,
        }
    }

    /// Whether the repository has the blob.
    pub async fn has_blob(&self, repository: &Repository, blob: Digest) -> Result<bool, RegistryError> {
        let attempt = |_| async move {
            let what = name(repository, blob);
            let call = self.call(repository, Method::HEAD, &format!("blobs/{blob}"), what)?;
            match self.send(&call, repository, Access::Push).await {
                Ok(_) => Ok(true),
                Err(RegistryError::NotFound { .. }) => Ok(false),
                Err(other) => Err(other),
            }
        };
        self.0.retry.run(attempt).await
    }
}

/// A blob that arrives piece by piece. A stream that is cut short is asked for again from there on; the
/// attempts are those of the settings, counted anew when bytes arrived in between.
#[derive(Debug)]
pub struct BlobStream {
    client: RegistryClient,
    repository: Repository,
    blob: Digest,
    size: u64,
    position: u64,
    open: Option<Response>,
}

impl BlobStream {
    /// The next piece; `None` after the last byte. Each piece must arrive within `origin.read_ms`.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.position == self.size {
            return self.finish().await;
        }
        let client = self.client.clone();
        let mut attempts = client.0.retry.attempts();
        loop {
            match self.piece().await {
                Ok(piece) => {
                    self.position += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(error) => {
                    self.open = None;
                    attempts.wait_after(error).await?;
                }
            }
        }
    }

    async fn piece(&mut self) -> Result<Bytes, RegistryError> {
        let cut_short = RegistryError::CutShort {
            what: name(&self.repository, self.blob),
            got: self.position,
            wanted: self.size,
        };
        let response = match &mut self.open {
            Some(response) => response,
            None => {
                let response =
                    self.client.open_range(&self.repository, self.blob, self.position, None).await?;
                // From the middle, the whole blob is of no use.
                if self.position > 0 && response.status() == StatusCode::OK {
                    let (registry, what) =
                        (self.repository.registry().to_owned(), name(&self.repository, self.blob));
                    return Err(RegistryError::RangeIgnored { registry, what });
                }
                self.open.insert(response)
            }
        };
        let deadline = self.client.transport().answer_deadline;
        let piece = next_piece(response, deadline).await.ok_or(cut_short)?;
        if piece.len() as u64 > self.size - self.position {
            return Err(self.surplus());
        }
        Ok(piece)
    }

    async fn finish(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Some(mut response) = self.open.take() else { return Ok(None) };
        match next_piece(&mut response, self.client.transport().answer_deadline).await {
            Some(_) => Err(self.surplus()),
            None => Ok(None),
        }
    }

    fn surplus(&self) -> RegistryError {
        RegistryError::Surplus { what: name(&self.repository, self.blob), size: self.size }
    }
}

/// The next piece with something in it; `None` at the end, whatever the reason for it.
async fn next_piece(response: &mut Response, deadline: Duration) -> Option<Bytes> {
    let until = Instant::now() + deadline;
    loop {
        let piece = tokio::time::timeout_at(until, response.chunk()).await;
        let piece = piece.ok().and_then(Result::ok).flatten()?;
        if !piece.is_empty() {
            return Some(piece);
        }
    }
}

fn is_range(response: &Response, start: u64, end: Option<u64>) -> bool {
    let text = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some((range, _total)) =
        text.and_then(|text| text.strip_prefix("bytes ")).and_then(|text| text.split_once('/'))
    else {
        return false;
    };
    let Some((first, last)) = range.split_once('-') else { return false };
    let is_last = |last: u64| end.is_none_or(|end| last + 1 == end);
    first.parse() == Ok(start) && last.parse().is_ok_and(|last: u64| last < u64::MAX && is_last(last))
}

fn name(repository: &Repository, blob: Digest) -> String {
    format!("{repository}@{blob}")
}

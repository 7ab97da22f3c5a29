//! What a request sends, kept so that it can be sent again: nothing, a few bytes, or a file.

use bytes::Bytes;
use futures::{Stream, stream};
use reqwest::{Body, RequestBuilder, header::CONTENT_LENGTH};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes of a file read and handed on at once.
const PIECE_BYTES: u64 = 256 * 1024;

/// A body. Copies share the bytes or the open file, and the count of what was sent.
#[derive(Debug, Clone)]
pub struct Content {
    kind: Kind,
    sent: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
enum Kind {
    Empty,
    Bytes(Bytes),
    /// Read by position, so that it may be sent more than once.
    File(Arc<File>, u64),
}

impl Content {
    pub fn empty() -> Self {
        Self::new(Kind::Empty)
    }

    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::new(Kind::Bytes(bytes.into()))
    }

    /// The first `len` bytes of a file. A shorter file is an error when it is sent.
    pub fn file(file: Arc<File>, len: u64) -> Self {
        Self::new(Kind::File(file, len))
    }

    fn new(kind: Kind) -> Self {
        Self { kind, sent: Arc::default() }
    }

    pub fn len(&self) -> u64 {
        match &self.kind {
            Kind::Empty => 0,
            Kind::Bytes(bytes) => bytes.len() as u64,
            Kind::File(_, len) => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a file handed to the connection by the present attempt.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn attach(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.kind {
            Kind::Empty => request,
            Kind::Bytes(bytes) => request.body(bytes.clone()),
            Kind::File(file, len) => {
                let body = Body::wrap_stream(pieces(Arc::clone(file), *len, Arc::clone(&self.sent)));
                request.header(CONTENT_LENGTH, *len).body(body)
            }
        }
    }
}

fn pieces(file: Arc<File>, len: u64, sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(0, move |offset| {
        let (file, sent) = (Arc::clone(&file), Arc::clone(&sent));
        async move {
            sent.store(offset, Ordering::Relaxed);
            if offset == len {
                return Ok(None);
            }
            let piece_bytes = PIECE_BYTES.min(len - offset);
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; piece_bytes as usize];
                file.read_exact_at(&mut piece, offset).map(|()| Bytes::from(piece))
            });
            let piece = read.await.map_err(io::Error::other)??;
            Ok(Some((piece, offset + piece_bytes)))
        }
    })
}

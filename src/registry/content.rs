//! What a request sends, kept so that it can be sent again: nothing, a few bytes, or a file.

use bytes::Bytes;
use futures::{Stream, stream};
use reqwest::{Body, RequestBuilder, header::CONTENT_LENGTH};
use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

/// Bytes of a file read and handed on at once.
const PIECE_BYTES: u64 = 256 * 1024;

/// A body. Copies share the bytes or the open file.
#[derive(Debug, Clone)]
pub enum Content {
    Empty,
    Bytes(Bytes),
    /// The first so many bytes of a file, read by position, so that it may be sent more than once.
    File(Arc<File>, u64),
}

impl Content {
    pub fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn attach(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Empty => request,
            Self::Bytes(bytes) => request.body(bytes.clone()),
            Self::File(file, len) => {
                let body = Body::wrap_stream(pieces(Arc::clone(file), *len));
                request.header(CONTENT_LENGTH, *len).body(body)
            }
        }
    }
}

fn pieces(file: Arc<File>, len: u64) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(0, move |offset| {
        let file = Arc::clone(&file);
        async move {
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

//! Frames over any byte stream, with limits and deadlines.

use bytes::{Buf, Bytes, BytesMut};
use faasnet_actors::wire::frame::{self, Frame, FrameError, FrameLimits};
use serde::{Serialize, de::DeserializeOwned};
use std::{io, marker::PhantomData, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("nothing came within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("the other side closed the connection")]
    Closed,
}

/// Reads frames with headers of one type.
pub struct FrameReader<R, T> {
    stream: R,
    buffer: BytesMut,
    limits: FrameLimits,
    received: u64,
    header: PhantomData<fn() -> T>,
}

/// Room asked for at once when the length of the next frame is not known yet.
const READ_BYTES: usize = 64 * 1024;

impl<R: AsyncRead + Unpin, T: DeserializeOwned> FrameReader<R, T> {
    pub fn new(stream: R, limits: FrameLimits) -> Self {
        Self { stream, buffer: BytesMut::new(), limits, received: 0, header: PhantomData }
    }

    /// The next frame; `None` after a clean end. May be dropped while it waits without losing bytes.
    pub async fn next(&mut self) -> Result<Option<Frame<T>>, ReadError> {
        loop {
            let missing = match frame::decode(&mut self.buffer, self.limits)? {
                Ok(frame) => return Ok(Some(frame)),
                Err(whole) => whole - self.buffer.len(),
            };
            self.buffer.reserve(missing.max(READ_BYTES));
            let count = self.stream.read_buf(&mut self.buffer).await?;
            self.received += count as u64;
            if count == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }

    /// Bytes that have come, those of frames that are not whole yet included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// A frame that is already here, without waiting.
    pub fn ready(&mut self) -> Result<Option<Frame<T>>, ReadError> {
        Ok(frame::decode(&mut self.buffer, self.limits)?.ok())
    }

    /// The next frame within a deadline; the end of the stream is an error.
    pub async fn expect(&mut self, deadline: Duration) -> Result<Frame<T>, ReadError> {
        let next = tokio::time::timeout(deadline, self.next()).await;
        next.map_err(|_| ReadError::Deadline(deadline))??.ok_or(ReadError::Closed)
    }

    /// Goes on with headers of another type, keeping what was read ahead.
    pub fn retype<U: DeserializeOwned>(self) -> FrameReader<R, U> {
        let Self { stream, buffer, limits, received, header: _ } = self;
        FrameReader { stream, buffer, limits, received, header: PhantomData }
    }

    /// Gives back the stream and the bytes that were read beyond the last frame.
    pub fn into_parts(self) -> (R, Bytes) {
        (self.stream, self.buffer.freeze())
    }
}

/// Writes one frame. Header and body go out together, so that the header is no packet of its own, and without
/// a copy into one buffer.
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    header: &T,
    body: &[u8],
) -> io::Result<()> {
    let head = frame::encode_head(header, body.len()).map_err(io::Error::other)?;
    stream.write_all_buf(&mut head.chain(body)).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { header_bytes_max: 1000, body_bytes_max: 1 << 20 };

    #[tokio::test]
    async fn frames_cross_a_narrow_pipe() {
        let (mut near, far) = tokio::io::duplex(1000);
        let body = vec![7; 300_000];
        let sender = tokio::spawn(async move {
            for number in 0..3_u32 {
                write(&mut near, &number, &vec![7; 300_000]).await.expect("written");
            }
        });
        let mut reader = FrameReader::<_, u32>::new(far, LIMITS);
        for number in 0..3 {
            let frame = reader.next().await.expect("a frame").expect("not the end");
            assert_eq!((frame.header, &frame.body[..]), (number, &body[..]));
        }
        sender.await.expect("sent");
        assert!(reader.next().await.expect("a clean end").is_none());
    }

    #[tokio::test]
    async fn a_cut_frame_is_an_error() {
        let (mut near, far) = tokio::io::duplex(1000);
        near.write_all(&frame::encode_head(&1_u32, 10).expect("encodes")).await.expect("written");
        drop(near);
        assert!(matches!(FrameReader::<_, u32>::new(far, LIMITS).next().await, Err(ReadError::Io(_))));
    }
}

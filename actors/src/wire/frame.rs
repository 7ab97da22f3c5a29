//! The frame: two little-endian `u32` lengths, a MessagePack header, a raw body.
//!
//! ```text
//! +------------+----------+----------------------+------------------+
//! | header_len | body_len | header (MessagePack) | body (raw bytes) |
//! +------------+----------+----------------------+------------------+
//! ```

use bytes::{Buf, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Largest lengths a reader accepts. What is longer ends the connection before it is read.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    pub header_bytes_max: u32,
    pub body_bytes_max: u32,
}

/// A header and the raw bytes behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<T> {
    pub header: T,
    pub body: Bytes,
}

impl<T> Frame<T> {
    pub fn bare(header: T) -> Self {
        Self { header, body: Bytes::new() }
    }
}

/// Why bytes from the other side are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame is longer than the limit of {limit} bytes: {length}")]
    TooLong { length: u32, limit: u32 },
    #[error("a frame's header is not understood")]
    Header(#[from] rmp_serde::decode::Error),
}

/// Bytes in front of every header.
pub const PREFIX_BYTES: usize = 8;

/// Encodes prefix and header; the body is sent behind them without a copy.
pub fn encode_head<T: Serialize>(header: &T, body_len: usize) -> Result<Bytes, rmp_serde::encode::Error> {
    let header = rmp_serde::to_vec_named(header)?;
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + header.len());
    out.extend_from_slice(&u32::try_from(header.len()).expect("headers are far below 4 GiB").to_le_bytes());
    out.extend_from_slice(&u32::try_from(body_len).expect("bodies are far below 4 GiB").to_le_bytes());
    out.extend_from_slice(&header);
    Ok(out.freeze())
}

/// Takes the next whole frame out of `buffer`, or says how many bytes must be there first.
pub fn decode<T: DeserializeOwned>(
    buffer: &mut BytesMut,
    limits: FrameLimits,
) -> Result<Result<Frame<T>, usize>, FrameError> {
    if buffer.len() < PREFIX_BYTES {
        return Ok(Err(PREFIX_BYTES));
    }
    let length_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|place| buffer[at + place]));
    let (header_len, body_len) = (length_at(0), length_at(4));
    for (length, limit) in [(header_len, limits.header_bytes_max), (body_len, limits.body_bytes_max)] {
        if length > limit {
            return Err(FrameError::TooLong { length, limit });
        }
    }
    let whole = PREFIX_BYTES + header_len as usize + body_len as usize;
    if buffer.len() < whole {
        return Ok(Err(whole));
    }
    buffer.advance(PREFIX_BYTES);
    let header = rmp_serde::from_slice(&buffer.split_to(header_len as usize))?;
    let body = buffer.split_to(body_len as usize).freeze();
    Ok(Ok(Frame { header, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { header_bytes_max: 100, body_bytes_max: 1000 };

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut all = BytesMut::new();
        for number in 0..3_u32 {
            let body = vec![number as u8; 300];
            all.extend_from_slice(&encode_head(&number, body.len()).expect("encodes"));
            all.extend_from_slice(&body);
        }
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for byte in all {
            buffer.extend_from_slice(&[byte]);
            if let Ok(frame) = decode::<u32>(&mut buffer, LIMITS).expect("valid") {
                assert_eq!(frame.body, vec![frame.header as u8; 300]);
                seen.push(frame.header);
            }
        }
        assert_eq!(seen, [0, 1, 2]);
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_before_it_is_there() {
        let mut buffer = BytesMut::from(&encode_head(&1_u32, 1001).expect("encodes")[..]);
        assert!(matches!(
            decode::<u32>(&mut buffer, LIMITS),
            Err(FrameError::TooLong { length: 1001, limit: 1000 })
        ));
        let mut buffer = BytesMut::from(&[255; 8][..]);
        assert!(matches!(decode::<u32>(&mut buffer, LIMITS), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_header_that_is_something_else_is_an_error() {
        let mut buffer = BytesMut::from(&encode_head(&"text", 0).expect("encodes")[..]);
        assert!(matches!(decode::<u32>(&mut buffer, LIMITS), Err(FrameError::Header(_))));
    }
}

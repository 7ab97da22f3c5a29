//! The 512 bytes before each entry.

use super::{TarError, Time, until_nul};
use std::ops::Range;

/// Places of fields, from POSIX.1-2017 (`pax`) and GNU tar's `tar.h`.
mod field {
    use std::ops::Range;

    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const UID: Range<usize> = 108..116;
    pub const GID: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const MTIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const KIND: usize = 156;
    pub const TARGET: Range<usize> = 157..257;
    pub const MAGIC: Range<usize> = 257..263;
    pub const DEVICE_MAJOR: Range<usize> = 329..337;
    pub const DEVICE_MINOR: Range<usize> = 337..345;
    pub const PREFIX: Range<usize> = 345..500;
}

/// A header whose checksum is right.
pub struct Header {
    bytes: [u8; 512],
}

impl Header {
    pub fn parse(bytes: [u8; 512]) -> Result<Self, TarError> {
        let is_checksum = |place: usize| field::CHECKSUM.contains(&place);
        let counted = |place: usize| if is_checksum(place) { b' ' } else { bytes[place] };
        let unsigned: i64 = (0..512).map(|place| i64::from(counted(place))).sum();
        // Some old programs added signed bytes.
        let signed: i64 = (0..512).map(|place| i64::from(counted(place) as i8)).sum();
        let header = Self { bytes };
        let stated = header.number(field::CHECKSUM, "checksum")?;
        if stated == unsigned || stated == signed { Ok(header) } else { Err(TarError::Checksum) }
    }

    pub fn kind(&self) -> u8 {
        self.bytes[field::KIND]
    }

    pub fn path(&self) -> Vec<u8> {
        let name = self.text(field::NAME);
        let prefix = self.text(field::PREFIX);
        // GNU keeps other things where ustar has the prefix.
        if &self.bytes[field::MAGIC] != b"ustar\0" || prefix.is_empty() {
            return name;
        }
        [prefix, name].join(&b'/')
    }

    pub fn target(&self) -> Vec<u8> {
        self.text(field::TARGET)
    }

    pub fn size(&self) -> Result<u64, TarError> {
        // Half the range, so that padding never overflows.
        let size = self.unsigned(field::SIZE, "size")?;
        if size <= u64::MAX / 4 { Ok(size) } else { Err(TarError::Number("size")) }
    }

    pub fn mode(&self) -> Result<u64, TarError> {
        self.unsigned(field::MODE, "mode")
    }

    pub fn uid(&self) -> Result<u64, TarError> {
        self.unsigned(field::UID, "uid")
    }

    pub fn gid(&self) -> Result<u64, TarError> {
        self.unsigned(field::GID, "gid")
    }

    pub fn mtime(&self) -> Result<Time, TarError> {
        self.number(field::MTIME, "mtime").map(|seconds| Time { seconds, nanos: 0 })
    }

    pub fn device_major(&self) -> Result<u64, TarError> {
        self.unsigned(field::DEVICE_MAJOR, "devmajor")
    }

    pub fn device_minor(&self) -> Result<u64, TarError> {
        self.unsigned(field::DEVICE_MINOR, "devminor")
    }

    pub fn bytes(&self) -> &[u8; 512] {
        &self.bytes
    }

    fn text(&self, range: Range<usize>) -> Vec<u8> {
        until_nul(self.bytes[range].to_vec())
    }

    fn unsigned(&self, range: Range<usize>, what: &'static str) -> Result<u64, TarError> {
        u64::try_from(self.number(range, what)?).map_err(|_| TarError::Number(what))
    }

    fn number(&self, range: Range<usize>, what: &'static str) -> Result<i64, TarError> {
        parse_number(&self.bytes[range]).ok_or(TarError::Number(what))
    }
}

/// A number in octal digits, or, when the first bit is set, in two's complement of base 256 (GNU).
pub fn parse_number(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = if negative { i128::from(first) - 256 } else { i128::from(first & 0x7f) };
        let fold = |value: i128, byte: &u8| value.checked_mul(256).map(|value| value + i128::from(*byte));
        return bytes[1..].iter().try_fold(start, fold).and_then(|value| i64::try_from(value).ok());
    }
    let is_filling = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = bytes.iter().position(|byte| !is_filling(byte)).unwrap_or(bytes.len());
    let digits = &bytes[start..];
    let end = digits.iter().position(is_filling).unwrap_or(digits.len());
    if !digits[end..].iter().all(is_filling) {
        return None;
    }
    let fold = |value: i64, byte: &u8| match byte {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + i64::from(byte - b'0')),
        _ => None,
    };
    digits[..end].iter().try_fold(0, fold)
}

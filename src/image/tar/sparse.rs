//! Maps of sparse files: which parts of a file the archive holds.

use super::{TarError, header::Header, header::parse_number, pax::decimal, read_up_to};
use std::io::Read;

/// A part of a file that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub bytes: u64,
}

/// Most parts of one file: a map of 16 MiB in memory.
const EXTENTS_MAX: usize = 1 << 20;

/// Parts follow each other without overlap, lie within the file, and are as long as the stored data.
pub fn check(extents: &[Extent], size: u64, stored: u64) -> Result<(), TarError> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for extent in extents {
        if extent.offset < end {
            return Err(TarError::Sparse);
        }
        end = extent.offset.checked_add(extent.bytes).ok_or(TarError::Sparse)?;
        sum = sum.checked_add(extent.bytes).ok_or(TarError::Sparse)?;
    }
    if end <= size && sum == stored { Ok(()) } else { Err(TarError::Sparse) }
}

/// GNU's old format: four parts in the header, then blocks of 21 more while a flag says so.
pub fn gnu_map(header: &Header, archive: &mut impl Read) -> Result<(Vec<Extent>, u64), TarError> {
    let bytes = header.bytes();
    let size = number(&bytes[483..495])?;
    let mut extents = Vec::new();
    push_parts(&bytes[386..482], &mut extents)?;
    let mut more = bytes[482] != 0;
    while more {
        let mut block = [0; 512];
        if read_up_to(archive, &mut block)? < block.len() {
            return Err(TarError::Truncated);
        }
        push_parts(&block[..504], &mut extents)?;
        more = block[504] != 0;
        if extents.len() > EXTENTS_MAX {
            return Err(TarError::TooLong("map of a sparse file"));
        }
    }
    Ok((extents, size))
}

fn push_parts(bytes: &[u8], extents: &mut Vec<Extent>) -> Result<(), TarError> {
    for part in bytes.chunks_exact(24) {
        if part[0] == 0 {
            break;
        }
        extents.push(Extent { offset: number(&part[..12])?, bytes: number(&part[12..])? });
    }
    Ok(())
}

fn number(bytes: &[u8]) -> Result<u64, TarError> {
    parse_number(bytes).and_then(|value| u64::try_from(value).ok()).ok_or(TarError::Sparse)
}

/// GNU's format 1.0: decimal numbers, a line each, in blocks of 512 bytes before the data. Returns the
/// map and the bytes read.
pub fn leading_map(data: &mut impl Read) -> Result<(Vec<Extent>, u64), TarError> {
    let mut lines = Lines { data, block: [0; 512], place: 512, read: 0 };
    let count = usize::try_from(lines.next_number()?).map_err(|_| TarError::Sparse)?;
    if count > EXTENTS_MAX {
        return Err(TarError::TooLong("map of a sparse file"));
    }
    let mut extents = Vec::new();
    for _ in 0..count {
        extents.push(Extent { offset: lines.next_number()?, bytes: lines.next_number()? });
    }
    Ok((extents, lines.read))
}

struct Lines<'a, R> {
    data: &'a mut R,
    block: [u8; 512],
    place: usize,
    read: u64,
}

impl<R: Read> Lines<'_, R> {
    fn next_number(&mut self) -> Result<u64, TarError> {
        let mut digits = Vec::new();
        loop {
            if self.place == self.block.len() {
                if read_up_to(self.data, &mut self.block)? < self.block.len() {
                    return Err(TarError::Sparse);
                }
                (self.place, self.read) = (0, self.read + 512);
            }
            let byte = self.block[self.place];
            self.place += 1;
            // No number is longer than the largest of 64 bits.
            match byte {
                b'\n' => return decimal(&digits).ok_or(TarError::Sparse),
                _ if digits.len() == 20 => return Err(TarError::Sparse),
                _ => digits.push(byte),
            }
        }
    }
}

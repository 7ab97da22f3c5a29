//! Blocks worth fetching before they are read.

use crate::id::BlockId;
use std::collections::VecDeque;

/// Readers that are followed at once; the one that was silent longest is forgotten.
const READERS_MAX: usize = 16;

struct Reader {
    expected: BlockId,
    window: u32,
}

/// Follows readers that go through the image in order. Only misses are seen here, so a reader is
/// expected again right behind what was fetched ahead for it; the window then doubles.
pub(super) struct ReadAhead {
    window_max: u32,
    readers: VecDeque<Reader>,
}

impl ReadAhead {
    pub fn new(window_max: u32) -> Self {
        Self { window_max, readers: VecDeque::new() }
    }

    /// Blocks to fetch because this one is read.
    pub fn next(&mut self, block: BlockId) -> impl Iterator<Item = BlockId> + use<> {
        let known = self.readers.iter().position(|reader| reader.expected == block);
        let window = match known.and_then(|place| self.readers.remove(place)) {
            Some(reader) => (reader.window * 2).clamp(1, self.window_max.max(1)).min(self.window_max),
            None => 0,
        };
        if self.readers.len() == READERS_MAX {
            self.readers.pop_front();
        }
        let first = block.0.saturating_add(1);
        let end = first.saturating_add(window);
        self.readers.push_back(Reader { expected: BlockId(end), window });
        (first..end).map(BlockId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(reader: &mut ReadAhead, block: u32) -> Vec<u32> {
        reader.next(BlockId(block)).map(|block| block.0).collect()
    }

    #[test]
    fn the_window_doubles_for_a_reader_in_order() {
        let mut reader = ReadAhead::new(4);
        assert_eq!(ahead(&mut reader, 10), Vec::<u32>::new());
        assert_eq!(ahead(&mut reader, 11), [12]);
        assert_eq!(ahead(&mut reader, 13), [14, 15]);
        assert_eq!(ahead(&mut reader, 16), [17, 18, 19, 20]);
        assert_eq!(ahead(&mut reader, 21), [22, 23, 24, 25]);
    }

    #[test]
    fn readers_at_random_places_fetch_nothing_ahead() {
        let mut reader = ReadAhead::new(8);
        for block in [5, 90, 3, 70, 41] {
            assert_eq!(ahead(&mut reader, block), Vec::<u32>::new());
        }
    }

    #[test]
    fn read_ahead_can_be_switched_off() {
        let mut reader = ReadAhead::new(0);
        assert_eq!(ahead(&mut reader, 1), Vec::<u32>::new());
        assert_eq!(ahead(&mut reader, 2), Vec::<u32>::new());
    }
}

//! What is read of an image until its first instance is ready: ranges of the plain file in the order of
//! first use. Pure.

use faasnet_actors::wire::holder::PlainRange;
use std::collections::BTreeMap;

/// Each byte is in one range. A read that goes on where a range ends makes that range longer, so that
/// readers that go through several files at once do not make a range of each of their reads.
pub struct Recording {
    ranges_max: usize,
    /// By their place: where each ends, and the how-manieth it is.
    ranges: BTreeMap<u64, (u64, usize)>,
    /// Whether some reads are missing, because there were too many ranges.
    is_cut: bool,
}

impl Recording {
    pub fn new(ranges_max: usize) -> Self {
        Self { ranges_max, ranges: BTreeMap::new(), is_cut: false }
    }

    pub fn read(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let before = self.ranges.range(..=at).next_back().map(|(start, (end, _))| (*start, *end));
            if let Some((_, known_to)) = before.filter(|(_, known_to)| *known_to > at) {
                at = known_to;
                continue;
            }
            let next = self.ranges.range(at..).next().map_or(u64::MAX, |(start, _)| *start);
            let to = end.min(next);
            match before.filter(|(_, known_to)| *known_to == at) {
                Some((start, _)) => {
                    self.ranges.entry(start).and_modify(|range| range.0 = to);
                }
                None if self.ranges.len() < self.ranges_max => {
                    let number = self.ranges.len();
                    self.ranges.insert(at, (to, number));
                }
                None => self.is_cut = true,
            }
            at = to;
        }
    }

    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// In the order of first use.
    pub fn ranges(&self) -> Vec<PlainRange> {
        let mut ranges: Vec<_> = self
            .ranges
            .iter()
            .map(|(start, (end, number))| (*number, PlainRange(*start, end - start)))
            .collect();
        ranges.sort_unstable_by_key(|(number, _)| *number);
        ranges.into_iter().map(|(_, range)| range).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(ranges_max: usize, reads: &[(u64, u64)]) -> (Vec<(u64, u64)>, bool) {
        let mut recording = Recording::new(ranges_max);
        for (offset, length) in reads {
            recording.read(*offset, *length);
        }
        (recording.ranges().into_iter().map(|range| (range.0, range.1)).collect(), recording.is_cut())
    }

    #[test]
    fn ranges_stand_in_the_order_of_first_use_and_grow_at_their_end() {
        let reads = [(800, 10), (100, 50), (810, 5), (150, 50), (100, 100)];
        assert_eq!(recorded(9, &reads), (vec![(800, 15), (100, 100)], false));
    }

    #[test]
    fn no_byte_is_in_two_ranges() {
        let reads = [(100, 10), (120, 10), (90, 60), (0, 0), (95, 3)];
        assert_eq!(recorded(9, &reads), (vec![(100, 20), (120, 30), (90, 10)], false));
    }

    #[test]
    fn beyond_the_limit_no_new_range_is_begun() {
        let reads = [(0, 10), (20, 10), (40, 10), (30, 5), (10, 5)];
        assert_eq!(recorded(2, &reads), (vec![(0, 15), (20, 15)], true));
    }

    proptest::proptest! {
        #[test]
        fn every_byte_that_was_read_is_in_exactly_one_range(
            reads in proptest::collection::vec((0_u64..200, 0_u64..40), 0..40)
        ) {
            let mut bytes = [0; 240];
            for (offset, length) in recorded(usize::MAX, &reads).0 {
                assert!(length > 0);
                (offset..offset + length).for_each(|byte| bytes[byte as usize] += 1);
            }
            for byte in 0..240 {
                let was_read = reads.iter().any(|(offset, length)| (*offset..offset + length).contains(&byte));
                assert_eq!(bytes[byte as usize], u8::from(was_read), "byte {byte}");
            }
        }
    }
}

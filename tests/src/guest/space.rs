//! Who uses which part of guest RAM.
//!
//! Hands out ranges with random gaps between them, hopping from region to region, so that no device passes a
//! test because buffers happened to be neighbours or to lie in one region.

use std::collections::BTreeMap;

use crate::random::Random;

/// Longest gap before a range. Odd lengths occur, so buffers are not aligned unless asked.
const MAX_GAP_BYTES: u64 = 200;

/// Free and used ranges of some regions.
#[derive(Debug)]
pub(super) struct Space {
    /// (start, end, where the next search begins)
    regions: Vec<(u64, u64, u64)>,
    /// start -> end of each range that is in use
    live: BTreeMap<u64, u64>,
    turn: usize,
    random: Random,
}

impl Space {
    /// Room in the regions (start, length).
    pub(super) fn new(regions: impl IntoIterator<Item = (u64, u64)>) -> Space {
        let regions = regions.into_iter().map(|(start, bytes)| (start, start + bytes, start)).collect();
        Space { regions, live: BTreeMap::new(), turn: 0, random: Random::from_env() }
    }

    /// A range of `bytes` whose start is a multiple of `align`; `None` when there is no room.
    pub(super) fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let tries = (self.live.len() + 3) * self.regions.len();
        (0..tries).find_map(|_| self.attempt(bytes.max(1), align))
    }

    /// One look at one region. What does not succeed moves that region's search on.
    fn attempt(&mut self, bytes: u64, align: u64) -> Option<u64> {
        self.turn = (self.turn + 1) % self.regions.len();
        let gap = self.random.below(MAX_GAP_BYTES);
        let (start, end, next) = self.regions.get_mut(self.turn)?;
        let from = (*next + gap).next_multiple_of(align);
        let to = from + bytes;
        if to > *end {
            *next = *start;
            return None;
        }
        if let Some((_, &taken)) = self.live.range(..to).next_back().filter(|(_, taken)| **taken > from) {
            *next = taken;
            return None;
        }
        *next = to;
        self.live.insert(from, to);
        Some(from)
    }

    /// Claims exactly `start..start + bytes`; `false` when a part of it is in use.
    pub(super) fn claim(&mut self, start: u64, bytes: u64) -> bool {
        let end = start + bytes;
        let free = self.live.range(..end).next_back().is_none_or(|(_, taken)| *taken <= start);
        if free {
            self.live.insert(start, end);
        }
        free
    }

    /// Gives back the range that begins at `start`; `false` when there is none.
    pub(super) fn give_back(&mut self, start: u64) -> bool {
        self.live.remove(&start).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_come_back() {
        let mut space = Space::new([(0x1000, 0x4000), (0x10_0000, 0x4000)]);
        let mut random = Random::new(7);
        let mut held: Vec<(u64, u64)> = Vec::new();
        for _ in 0..10_000 {
            let bytes = 1 + random.below(300);
            match space.take(bytes, 1 << random.below(5)) {
                Some(start) => {
                    assert!(held.iter().all(|(s, b)| start + bytes <= *s || s + b <= start));
                    held.push((start, bytes));
                }
                None => assert!(held.len() > 20, "full with {} ranges", held.len()),
            }
            if held.len() > 40 {
                let (start, _) = held.swap_remove(usize::try_from(random.below(40)).unwrap());
                assert!(space.give_back(start));
            }
        }
    }

    #[test]
    fn neighbours_in_time_are_in_different_regions() {
        let mut space = Space::new([(0, 0x10000), (0x100_0000, 0x10000)]);
        let (a, b) = (space.take(16, 1).unwrap(), space.take(16, 1).unwrap());
        assert_ne!(a < 0x100_0000, b < 0x100_0000);
    }

    #[test]
    fn a_claimed_range_is_not_handed_out() {
        let mut space = Space::new([(0, 0x1000)]);
        assert!(space.claim(0x200, 0x100));
        assert!(!space.claim(0x2ff, 1));
        assert!(space.claim(0x300, 1));
        assert!(space.take(0xd00, 1).is_none());
    }
}

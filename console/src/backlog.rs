//! Bytes of the guest that nobody takes at the moment: the newest ones, up to a bound.
//!
//! In: bytes, from guest memory. Out: the same bytes in order, to be written to whoever reads next. Over the
//! bound the oldest are dropped, and the number of them is returned to be counted. The room is taken once.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::VecDeque;
use std::io::IoSlice;

use backends::memory::Segment;

/// What is copied out of guest memory at once.
const PIECE_BYTES: usize = 4096;

/// A bounded queue of bytes.
#[derive(Debug)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Backlog {
    /// An empty one that never holds more than `capacity` bytes.
    pub fn new(capacity: usize) -> Backlog {
        Backlog { bytes: VecDeque::with_capacity(capacity), capacity }
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// No byte is in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends guest memory; of all bytes then held, at most `limit` of the newest stay. Returns the bytes
    /// dropped. A segment that is too large for the bound is not even looked at where it would be dropped.
    pub fn store(&mut self, segment: &Segment, limit: usize) -> u64 {
        let limit = limit.min(self.capacity);
        let mut rest = *segment;
        let hopeless = rest.take_front(rest.len().saturating_sub(limit)).len();
        let mut dropped = u64::try_from(hopeless).unwrap_or(u64::MAX);
        let mut piece = [0; PIECE_BYTES];
        while !rest.is_empty() {
            let count = rest.take_front(PIECE_BYTES).copy_to(&mut piece);
            dropped = dropped.saturating_add(self.push(piece.get(..count).unwrap_or_default(), limit));
        }
        dropped
    }

    /// Appends `bytes` and drops the oldest over `limit`; their number.
    fn push(&mut self, bytes: &[u8], limit: usize) -> u64 {
        let held = self.bytes.len();
        let over = held.saturating_add(bytes.len()).saturating_sub(limit);
        self.consume(over);
        self.bytes.extend(bytes.get(over.saturating_sub(held)..).unwrap_or_default());
        u64::try_from(over).unwrap_or(u64::MAX)
    }

    /// All of it, oldest first, for one vectored write.
    pub fn slices(&self) -> [IoSlice<'_>; 2] {
        let (front, back) = self.bytes.as_slices();
        [IoSlice::new(front), IoSlice::new(back)]
    }

    /// Forgets the oldest `count` bytes: somebody has them, or nobody ever will.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(backlog: &Backlog) -> Vec<u8> {
        backlog.slices().iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn what_is_over_the_limit_goes_oldest_first_and_is_counted() {
        let mut backlog = Backlog::new(8);
        assert_eq!(backlog.push(b"abcdef", 8), 0);
        assert_eq!(backlog.push(b"ghij", 8), 2);
        assert_eq!(all(&backlog), b"cdefghij");
        assert_eq!(backlog.push(b"k", 4), 5);
        assert_eq!(all(&backlog), b"hijk");
        assert_eq!(backlog.push(b"lmnopqrstu", 8), 6);
        assert_eq!(all(&backlog), b"nopqrstu");
    }

    #[test]
    fn order_survives_wrapping_around() {
        let mut backlog = Backlog::new(8);
        for round in 0..100_u8 {
            backlog.push(&[round; 3], 8);
            backlog.consume(1);
            assert!(all(&backlog).is_sorted(), "{:?}", all(&backlog));
        }
        assert_eq!(backlog.len(), 7);
    }

    #[test]
    fn the_room_never_grows() {
        let mut backlog = Backlog::new(64);
        let room = backlog.bytes.capacity();
        for _ in 0..100 {
            backlog.push(&[1; 64], 64);
        }
        assert_eq!(backlog.bytes.capacity(), room);
    }
}

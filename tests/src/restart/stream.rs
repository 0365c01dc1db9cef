//! Bytes that say where they belong, and readers that notice what is missing, changed or there twice.
//!
//! [`Frames`] reads what a guest wrote in chains: each chain is a frame with its number, and only the chain that was
//! in hand at a kill may come again, from its start. [`Bytes`] reads what a guest received: only the chunk that was
//! delivered last before a kill may come again.

use crate::random::Random;

/// Begins a frame and stands nowhere else.
const MARK: u8 = 0xff;
/// Mark, nine digits of the number, three of the length; each has seven bits.
const HEADER: usize = 13;

/// Chain `number`, `len` bytes long.
///
/// # Panics
/// `len` is less than the header.
pub(super) fn frame(number: u64, len: usize) -> Vec<u8> {
    assert!(len >= HEADER, "a frame has at least {HEADER} bytes");
    let mut bytes = vec![MARK];
    bytes.extend((0..9).map(|digit| seven_bits(number >> (7 * digit))));
    bytes.extend((0..3).map(|digit| seven_bits(len as u64 >> (7 * digit))));
    bytes.extend(Random::new(number).bytes(len - HEADER).iter().map(|byte| byte & 0x7f));
    bytes
}

fn seven_bits(value: u64) -> u8 {
    u8::try_from(value & 0x7f).unwrap_or(0)
}

fn number(digits: &[u8]) -> u64 {
    digits.iter().rev().fold(0, |value, digit| value << 7 | u64::from(*digit))
}

/// Reads frames, each of which must come once and in order.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Frames that came.
    pub(super) next: u64,
    /// Frames of which some or all bytes came again.
    pub(super) repeated: u64,
    /// Repeats that may still come.
    allowed: u64,
    partial: Vec<u8>,
}

impl Frames {
    /// Somebody was killed: one frame may come again.
    pub(super) fn allow_one(&mut self) {
        self.allowed += 1;
    }

    /// All is read that was sent: what was not repeated by now must not be.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.allowed = 0;
        if self.partial.is_empty() { Ok(()) } else { Err(format!("frame {} is not whole", self.next)) }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        for byte in bytes {
            if *byte == MARK && !self.partial.is_empty() {
                self.partial.clear();
                self.repeat("it was begun again in the middle")?;
            } else if *byte != MARK && self.partial.is_empty() {
                return Err(format!("byte {byte:#04x} between frames, before {}", self.next));
            }
            self.partial.push(*byte);
            if self.partial.len() >= HEADER && self.partial.len() as u64 == number(&self.partial[10..HEADER])
            {
                self.complete()?;
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), String> {
        let bytes = std::mem::take(&mut self.partial);
        let came = number(&bytes[1..10]);
        if bytes != frame(came, bytes.len()) {
            return Err(format!("frame {came} has wrong bytes"));
        }
        match self.next.checked_sub(came) {
            Some(0) => self.next += 1,
            Some(1) => self.repeat("it came again")?,
            _ => return Err(format!("frame {came} came where {} belongs", self.next)),
        }
        Ok(())
    }

    fn repeat(&mut self, how: &str) -> Result<(), String> {
        self.repeated += 1;
        match self.allowed.checked_sub(1) {
            Some(left) => self.allowed = left,
            None => {
                return Err(format!(
                    "frame before {}: {how}, more often than somebody was killed",
                    self.next
                ));
            }
        }
        Ok(())
    }
}

/// The bytes of a stream from `from` on.
pub(super) fn bytes(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(byte).collect()
}

fn byte(at: u64) -> u8 {
    let word = Random::new(at / 8).next_u64().to_le_bytes();
    word[usize::try_from(at % 8).unwrap_or(0)]
}

/// Where a reader may be: short chunks can fit at two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    at: u64,
    /// Where the chunk before began.
    before: u64,
    repeated: u64,
    allowed: u64,
}

/// Reads a stream in chunks, each of which must go on where the one before ended.
#[derive(Debug)]
pub(super) struct Bytes {
    places: Vec<Place>,
}

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes { places: vec![Place { at: 0, before: 0, repeated: 0, allowed: 0 }] }
    }
}

impl Bytes {
    /// How far it has read.
    pub(super) fn at(&self) -> u64 {
        self.places.first().map_or(0, |place| place.at)
    }

    /// Chunks that came again.
    pub(super) fn repeated(&self) -> u64 {
        self.places.first().map_or(0, |place| place.repeated)
    }

    /// Somebody was killed: the last chunk may come again.
    pub(super) fn allow_one(&mut self) {
        self.places.iter_mut().for_each(|place| place.allowed += 1);
    }

    /// All is read that was sent, up to `end`.
    pub(super) fn settle(&mut self, end: u64) -> Result<(), String> {
        self.places.retain(|place| place.at == end);
        self.places.truncate(1);
        self.places.iter_mut().for_each(|place| place.allowed = 0);
        if self.places.is_empty() { Err(format!("the stream does not end at {end}")) } else { Ok(()) }
    }

    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(), String> {
        let was = self.at();
        let fits = |at: u64| bytes(at, chunk.len()) == chunk;
        let ahead = chunk.len() as u64;
        let mut places = Vec::new();
        for place in &self.places {
            if fits(place.at) {
                places.push(Place { at: place.at + ahead, before: place.at, ..*place });
            }
            if place.allowed > 0 && fits(place.before) {
                let (repeated, allowed) = (place.repeated + 1, place.allowed - 1);
                places.push(Place { at: place.before + ahead, repeated, allowed, ..*place });
            }
        }
        self.places = places;
        if self.places.is_empty() {
            let found = (0..was + 8192).find(|at| chunk.len() >= 8 && fits(*at));
            return Err(format!("{ahead} bytes that do not go on at {was}; they are those at {found:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_in_order_are_right_however_they_are_cut() {
        let all: Vec<u8> = (0..200).flat_map(|n| frame(n, 13 + usize::try_from(n).unwrap())).collect();
        let mut frames = Frames::default();
        all.chunks(7).for_each(|part| frames.feed(part).unwrap());
        assert_eq!((frames.next, frames.repeated, frames.settle()), (200, 0, Ok(())));
    }

    #[test]
    fn one_frame_may_come_again_for_each_kill() {
        let (first, second) = (frame(0, 20), frame(1, 30));
        for said_before in [&second[..5], &second[..]] {
            let mut frames = Frames::default();
            frames.feed(&[&first, said_before].concat()).unwrap();
            frames.allow_one();
            frames.feed(&second).unwrap();
            assert_eq!((frames.next, frames.repeated), (2, 1));
            assert!(frames.feed(&second).is_err(), "once more than allowed");
        }
    }

    #[test]
    fn frames_lost_changed_or_older_are_found() {
        let mut changed = frame(1, 20);
        changed[15] ^= 1;
        for wrong in [frame(2, 20), changed, b"x".to_vec()] {
            let mut frames = Frames::default();
            frames.allow_one();
            frames.feed(&frame(0, 20)).unwrap();
            assert!(frames.feed(&wrong).is_err(), "{wrong:x?}");
        }
    }

    #[test]
    fn the_last_chunk_may_come_again_after_a_kill_and_only_then() {
        let mut stream = Bytes::default();
        stream.feed(&bytes(0, 100)).unwrap();
        stream.feed(&bytes(100, 50)).unwrap();
        stream.allow_one();
        stream.feed(&bytes(100, 70)).unwrap();
        stream.feed(&bytes(170, 1)).unwrap();
        assert_eq!((stream.at(), stream.repeated(), stream.settle(171)), (171, 1, Ok(())));
        assert!(stream.feed(&bytes(100, 70)).is_err());
    }
}

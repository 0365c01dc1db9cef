//! Bodies of the fuzz targets: plain functions over bytes, which fuzzers call with bytes of their own and a stable
//! test with the committed ones (`tests/fuzz/corpus`).
//!
//! ```text
//! session        messages as they are on the wire, against a host that records
//! memory         tables, regions added and removed, ranges looked up
//! split, packed  a driver's writes to a ring of its own, chains taken and given back
//! play           what the two rings have in common; walk, shadow: what must come of it, found another way
//! inflight       any content of an in-flight region, under any ring
//! volfile        any text of a graph of volumes
//! seeds          an input for each message and each hostile case, to begin from
//! ```
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Each body compares the code under
//! test with a slower one that shares nothing with it, and ends by asking for something well formed, which must be
//! done.

pub mod inflight;
mod inflight_seeds;
pub mod memory;
pub mod packed;
mod play;
pub mod seeds;
pub mod session;
mod shadow;
pub mod split;
pub mod volfile;
mod walk;

/// A body: it panics where a promise is broken.
pub type Body = fn(&[u8]);

/// Each target by its name.
pub const TARGETS: [(&str, Body); 6] = [
    ("session", session::session),
    ("memory", memory::memory),
    ("split", split::split),
    ("packed", packed::packed),
    ("inflight", inflight::inflight),
    ("volfile", volfile::volfile),
];

/// What is left of an input; past its end there are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As many of `count` bytes as there are.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        front
    }

    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// One of `choices`.
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// A number near one of `landmarks`.
    fn near(&mut self, landmarks: &[u64]) -> u64 {
        let mark = self.pick(landmarks);
        let step = i16::from_le_bytes(self.u16().to_le_bytes());
        mark.wrapping_add_signed(step.into())
    }
}

/// The position-dependent byte that memory is filled with, so that a wrong place shows by its contents.
fn pattern(place: u64) -> u8 {
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).to_le_bytes()[0]
}

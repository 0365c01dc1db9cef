//! Memory of a worker's own for data on their way: as many buffers as there are calls, up to a bound.
//!
//! In: a call, whose data a buffer takes the place of. Out: the call with its own data again. Promises: one buffer at
//! least, so that whoever waits for one gets it; the buffer that was used last is used first, while caches have it; a
//! buffer's address is another in the sets of caches than its neighbours'. Refuses nothing: without a buffer, [`None`].

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use std::io;

use backends::memory::Segment;
use backends::memory::own::Buffer;

use crate::call::Call;

/// Bytes of a buffer: what the host does at once without loss, and few enough for the second cache.
pub const PIECE_BYTES: usize = 128 << 10;
/// One page more, so that the starts of buffers differ in more than what all sets of a cache have in common.
const BUFFER_BYTES: usize = PIECE_BYTES + 4096;

#[derive(Debug)]
struct Place {
    buffer: Buffer,
    /// Of the call that the buffer is with, its own data; otherwise empty.
    data: Vec<Segment>,
}

/// The buffers.
#[derive(Debug)]
pub struct Bounce {
    places: Vec<Place>,
    free: Vec<usize>,
    most: usize,
}

impl Bounce {
    /// At most so many.
    ///
    /// # Errors
    /// There is no memory for one.
    pub fn new(most: usize) -> io::Result<Bounce> {
        let mut bounce = Bounce { places: Vec::new(), free: Vec::new(), most };
        let first = bounce.grow()?;
        bounce.free.push(first);
        Ok(bounce)
    }

    fn grow(&mut self) -> io::Result<usize> {
        self.places.push(Place { buffer: Buffer::new(BUFFER_BYTES)?, data: Vec::new() });
        Ok(self.places.len().saturating_sub(1))
    }

    /// A buffer that nobody uses.
    #[inline]
    pub fn take(&mut self) -> Option<usize> {
        match self.free.pop() {
            None if self.places.len() < self.most => self.grow().ok(),
            free => free,
        }
    }

    /// Nobody uses it any more.
    #[inline]
    pub fn give_back(&mut self, buffer: usize) {
        self.free.push(buffer);
    }

    /// The first bytes of a buffer that is in no call.
    #[inline]
    pub fn bytes(&mut self, buffer: usize, bytes: u64) -> &mut [u8] {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let place = self.places.get_mut(buffer);
        place.and_then(|place| place.buffer.bytes_mut().get_mut(..bytes)).unwrap_or_default()
    }

    /// Makes a buffer's first bytes the data of a call.
    #[inline]
    pub fn lend(&mut self, buffer: usize, bytes: u64, call: &mut Call) {
        if let Some(Place { buffer, data }) = self.places.get_mut(buffer) {
            data.push(buffer.segment(usize::try_from(bytes).unwrap_or(usize::MAX)));
            call.swap_data(data);
        }
    }

    /// Gives the call its own data again.
    #[inline]
    pub fn end_loan(&mut self, buffer: usize, call: &mut Call) {
        if let Some(Place { data, .. }) = self.places.get_mut(buffer) {
            call.swap_data(data);
            data.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use backends::engine::Buffers;

    use super::*;
    use crate::call::Pool;
    use crate::op::Op;

    #[test]
    fn the_last_one_used_is_the_next_and_there_are_no_more_than_said() {
        let mut bounce = Bounce::new(2).unwrap();
        let (one, other) = (bounce.take().unwrap(), bounce.take().unwrap());
        assert_eq!(bounce.take(), None);
        bounce.give_back(one);
        bounce.give_back(other);
        assert_eq!((bounce.take(), bounce.take(), bounce.take()), (Some(other), Some(one), None));
    }

    #[test]
    fn a_call_has_the_buffer_and_then_its_own_data() {
        let (mut bounce, mut pool) = (Bounce::new(1).unwrap(), Pool::default());
        let own = Buffer::new(4096).unwrap();
        let mut call = pool.piece(0, Op::Read { offset: 0, bytes: 512 }, [own.segment(512)]);
        own.segment(512).copy_from(b"own");
        let buffer = bounce.take().unwrap();
        bounce.bytes(buffer, 512).fill(b'x');
        bounce.lend(buffer, 512, &mut call);
        assert_eq!(
            (call.segments().len(), call.data()[0].len(), call.data()[0].read(0)),
            (1, 512, Some(*b"xxx"))
        );
        bounce.end_loan(buffer, &mut call);
        assert_eq!((call.data().len(), call.data()[0].read(0)), (1, Some(*b"own")));
        pool.end(call);
    }
}

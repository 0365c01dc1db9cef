//! From an outcome to what the driver finds: status, data, a true length.
//!
//! In: a [`Pending`], the request as it waits for its I/O. Out: the request, given back. Promises: all room that the
//! driver gave is written before a request completes, with zeros where there is no data, so that the length in the used
//! ring is true and ends with the status byte even when a read failed (virtio 1.3 §2.7.8.2).

use backends::memory::Segment;
use backends::memory::own::fill_with_zeros;
use backends::queue::{Queue, Request};

use crate::op::{Op, OpKind};
use crate::wire::Status;

/// A request with the place for its answer.
#[derive(Debug)]
pub struct Pending {
    /// The request; of its buffers, what is left is room.
    pub request: Request,
    /// The status byte.
    pub status: Segment,
    /// All bytes the driver lets us write.
    pub room: u64,
}

impl Pending {
    /// What the operation works on.
    pub fn data(&self, op: Op) -> &[Segment] {
        match op.kind() {
            OpKind::Read => self.request.writable(),
            OpKind::Write => self.request.readable(),
            OpKind::Flush | OpKind::Discard | OpKind::Zeroes | OpKind::SecureErase | OpKind::Extents => &[],
        }
    }

    /// Gives it back: all of the operation was done.
    pub fn done(mut self, queue: &mut Queue, op: Op) {
        if let Op::Read { bytes, .. } = op {
            self.request.skip_writable(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        if let Op::Read { bytes, .. } | Op::Write { bytes, .. } = op {
            queue.count_bytes(bytes);
        }
        self.answer(queue, Status::Ok);
    }

    /// Gives it back with this status.
    pub fn answer(self, queue: &mut Queue, status: Status) {
        self.request.writable().iter().copied().for_each(fill_with_zeros);
        self.status.copy_from(&[status as u8]);
        // A chain has no more than the device takes.
        queue.complete(self.request, u32::try_from(self.room).unwrap_or(u32::MAX));
    }
}

//! A call on its way through the graph.
//!
//! In: an operation with its data, from the device ([`Pool::request`]) or from a layer ([`Pool::piece`]). It goes down
//! from volume to volume and comes up again with its outcome. A layer that wants to find something again when the call
//! comes up pushes a word on the way down and pops it on the way up, as a function does with its frame.
//! Promises: a call is a word that moves by value, its insides are used again, so that calls cost no allocation; one of
//! the device's carries the request that waits for it, which cannot be dropped by accident.
//! Data are [`Segment`]s of guest memory, or of buffers of a layer's own while it keeps the guest's aside
//! ([`Call::swap_data`]): nothing in here reads or writes them.

use backends::engine::{Buffers, Room};
use backends::memory::Segment;

use crate::answer::Pending;
use crate::op::{Extent, Op, OpKind};

/// Segments for which a call that is over keeps room.
const USUAL_SEGMENTS: usize = 256;
/// Calls of which the insides are kept: more than are in flight on a usual queue.
const USUAL_CALLS: usize = 1024;

/// An operation on its way.
#[derive(Debug)]
#[must_use = "a call must come up again"]
pub struct Call(Box<Inner>);

#[derive(Debug, Default)]
struct Inner {
    op: Op,
    queue: u16,
    data: Vec<Segment>,
    words: Vec<u64>,
    extent: Option<Extent>,
    pending: Option<Pending>,
    /// The volume whose engine operation this is now.
    leaf: u16,
    transfer: Transfer,
}

/// How far a leaf has come with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes that are done.
    pub done: u64,
    /// Answers without progress.
    pub repeats: u8,
    /// A durable write for which there was no room is tried again, without being durable.
    pub again: bool,
    /// The second of two ways to the bytes is in use.
    pub detour: bool,
    /// What the file system was asked to do about the range.
    pub room: Option<Room>,
}

impl Buffers for Call {
    fn segments(&self) -> &[Segment] {
        &self.0.data
    }
}

impl Call {
    /// What is to be done.
    pub fn op(&self) -> Op {
        self.0.op
    }

    /// Which kind of operation.
    pub fn kind(&self) -> OpKind {
        self.0.op.kind()
    }

    /// Makes it another operation for those below.
    pub fn set_op(&mut self, op: Op) {
        self.0.op = op;
    }

    /// The queue that waits for it.
    pub fn queue(&self) -> u16 {
        self.0.queue
    }

    /// What is to be filled or stored.
    pub fn data(&self) -> &[Segment] {
        &self.0.data
    }

    /// Exchanges the data with what the caller has, down with a buffer of its own, up with what was there before.
    pub fn swap_data(&mut self, other: &mut Vec<Segment>) {
        std::mem::swap(&mut self.0.data, other);
    }

    /// Works on this from now on. A layer does that to calls of its own, or has kept what was there before.
    pub fn set_data(&mut self, data: impl IntoIterator<Item = Segment>) {
        self.0.data.clear();
        self.0.data.extend(data);
    }

    /// Remembers a word until the call comes up. For each push there is one [`Call::pop`] of the same layer.
    pub fn push(&mut self, word: u64) {
        self.0.words.push(word);
    }

    /// The word that the same layer pushed.
    pub fn pop(&mut self) -> u64 {
        self.0.words.pop().unwrap_or(0)
    }

    /// The answer to [`Op::Extents`].
    pub fn extent(&self) -> Option<Extent> {
        self.0.extent
    }

    /// Answers [`Op::Extents`].
    pub fn set_extent(&mut self, extent: Extent) {
        self.0.extent = Some(extent);
    }

    /// The request that waits for it; a layer's own call has none.
    pub fn pending(&self) -> Option<&Pending> {
        self.0.pending.as_ref()
    }

    /// The same, to be changed.
    pub fn pending_mut(&mut self) -> Option<&mut Pending> {
        self.0.pending.as_mut()
    }

    /// How far its leaf has come.
    pub fn transfer(&mut self) -> &mut Transfer {
        &mut self.0.transfer
    }

    /// The first `bytes` of the data are done.
    pub fn advance(&mut self, bytes: usize) {
        let (mut left, mut whole) = (bytes, 0);
        for segment in &mut self.0.data {
            left = left.saturating_sub(segment.take_front(left).len());
            if !segment.is_empty() {
                break;
            }
            whole += 1;
        }
        self.0.data.drain(..whole);
    }

    pub(crate) fn leaf(&self) -> u16 {
        self.0.leaf
    }

    pub(crate) fn set_leaf(&mut self, volume: u16) {
        self.0.leaf = volume;
    }
}

/// Insides of calls, to be used again. Each worker has its own.
#[derive(Debug, Default)]
pub struct Pool {
    // They are handed out as they are.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Inner>>,
}

impl Pool {
    /// A call of the device's, for a request.
    #[inline]
    pub fn request(&mut self, queue: u16, op: Op, pending: Pending) -> Call {
        let mut call = self.call(queue, op);
        call.0.data.extend_from_slice(pending.data(op));
        call.0.pending = Some(pending);
        call
    }

    /// A call of a layer's own.
    pub fn piece(&mut self, queue: u16, op: Op, data: impl IntoIterator<Item = Segment>) -> Call {
        let mut call = self.call(queue, op);
        call.0.data.extend(data);
        call
    }

    #[inline]
    fn call(&mut self, queue: u16, op: Op) -> Call {
        let mut inner = self.spare.pop().unwrap_or_default();
        (inner.op, inner.queue) = (op, queue);
        Call(inner)
    }

    /// A call is over; the request of one that has one, to be answered.
    pub fn end(&mut self, Call(mut inner): Call) -> Option<Pending> {
        let pending = inner.pending.take();
        if self.spare.len() < USUAL_CALLS {
            inner.data.clear();
            inner.data.shrink_to(USUAL_SEGMENTS);
            inner.words.clear();
            (inner.extent, inner.transfer) = (None, Transfer::default());
            self.spare.push(inner);
        }
        pending
    }
}

//! Chains of the transmit queue on their way to the host: taken from the ring, not yet written.
//!
//! In: the queue. Out: the segments of the first chain for one vectored write, and after the write that chain, shown
//! to the driver at once if it is over. A chain that was written in part stays in front. One at a time, so that a
//! daemon that dies between the write and the used ring makes the next one repeat that chain and no other.
//! Promises: no byte twice, none left out; what is in hand is less than [`BATCH_BYTES`] and one chain more.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::VecDeque;

use backends::memory::Segment;
use backends::queue::{Queue, Request};

/// Chains are taken until they have this many bytes together: enough to make the system call cheap, little
/// enough to be kept when the queue stops.
pub const BATCH_BYTES: usize = 32 * 1024;
/// Most bytes of one write or read, however large the guest's buffers are: a reader that keeps up, or a file,
/// would otherwise hold the worker for gigabytes.
pub const WINDOW_BYTES: usize = 256 * 1024;
/// Most segments of one write (the kernel's UIO_MAXIOV).
const WINDOW_SEGMENTS: usize = 1024;

/// Chains in hand.
#[derive(Debug, Default)]
pub struct Outgoing {
    chains: VecDeque<Held>,
    /// Bytes of all of them that were not written.
    left: usize,
    window: Vec<Segment>,
}

#[derive(Debug)]
struct Held {
    request: Request,
    left: usize,
}

impl Outgoing {
    /// Nothing is in hand.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Takes chains from the ring until there is enough for a write. One without a readable byte is malformed.
    pub fn gather(&mut self, queue: &mut Queue) {
        while self.left < BATCH_BYTES
            && let Some(request) = queue.next()
        {
            match usize::try_from(request.readable_bytes()).unwrap_or(usize::MAX) {
                0 => queue.abandon(request),
                bytes => {
                    self.left = self.left.saturating_add(bytes);
                    self.chains.push_back(Held { request, left: bytes });
                }
            }
        }
    }

    /// What the next write is to write.
    pub fn window(&mut self) -> &[Segment] {
        fill_window(
            &mut self.window,
            self.chains.front().into_iter().flat_map(|held| held.request.readable()),
        );
        &self.window
    }

    /// `count` bytes of the window were written: completes the chain if it is over.
    pub fn advance(&mut self, count: usize, queue: &mut Queue) {
        self.left = self.left.saturating_sub(count);
        queue.count_bytes(u64::try_from(count).unwrap_or(u64::MAX));
        if let Some(first) = self.chains.front_mut() {
            first.request.skip_readable(count);
            first.left = first.left.saturating_sub(count);
        }
        if let Some(done) = self.chains.pop_front_if(|first| first.left == 0) {
            queue.complete(done.request, 0);
            queue.flush();
        }
    }

    /// Hands every byte that was not written to `keep`, in order, and completes all chains.
    pub fn give_up(&mut self, queue: &mut Queue, mut keep: impl FnMut(&Segment)) {
        queue.count_bytes(u64::try_from(self.left).unwrap_or(u64::MAX));
        self.left = 0;
        for Held { request, .. } in self.chains.drain(..) {
            request.readable().iter().for_each(&mut keep);
            queue.complete(request, 0);
        }
    }
}

/// Lists segments, from the first, up to the bounds of one call.
pub fn fill_window<'a>(window: &mut Vec<Segment>, segments: impl IntoIterator<Item = &'a Segment>) {
    window.clear();
    let mut room = WINDOW_BYTES;
    for segment in segments.into_iter().take(WINDOW_SEGMENTS) {
        let part = { *segment }.take_front(room);
        room = room.saturating_sub(part.len());
        window.push(part);
        if room == 0 {
            break;
        }
    }
}

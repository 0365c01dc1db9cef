//! The entropy device (virtio 1.3 §5.4): fills what the guest asks for with random bytes.
//!
//! In: requests whose writable part is to be filled; readable descriptors mean nothing here and are passed
//! over (§5.4.6.1). Out: at least one byte and at most [`MAX_REQUEST_BYTES`] a request, drawn from the source
//! straight into guest memory; with a limit, requests over it wait in the ring. It has no features of its own and no configuration space.
//! Refuses nothing but a request without a writable byte, which goes back empty.

#![forbid(unsafe_code)]

pub mod config;
pub mod source;

use std::convert::Infallible;
use std::time::Instant;

use backends::device::{Device, Handler, Io, Queues, Timer, Turn};
use backends::failpoint;
use backends::limit::{Limit, Throttle};
use backends::queue::{Queue, Request};
use rustix::io::Errno;
use source::Source;

/// Most bytes that one request gets. A driver may ask for gigabytes in one chain: this bounds how long it keeps
/// the worker from others, and the answer may always be shorter (§5.4.6.2).
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The device.
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    source: Source,
    limit: Option<Limit>,
}

impl Rng {
    /// A device that draws from `source`, no more than `limit`.
    pub fn new(source: Source, limit: Option<Limit>) -> Rng {
        Rng { source, limit }
    }
}

impl Device for Rng {
    type Handler = Filler;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// However much is asked for, little is given.
    fn max_chain_bytes(&self) -> u64 {
        u64::MAX
    }

    fn handler(&self) -> std::io::Result<Filler> {
        Ok(Filler { source: self.source, throttle: Throttle::new(self.limit, Instant::now()) })
    }
}

/// Serves the queue.
#[derive(Debug)]
pub struct Filler {
    source: Source,
    throttle: Throttle,
}

impl Handler for Filler {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Infallible>) -> Turn {
        let now = Instant::now();
        loop {
            if let Some(at) = self.throttle.closed_until(now) {
                io.arm(Timer(queue.index()), at);
                return Turn::Blocked;
            }
            let Some(request) = queue.next() else { return Turn::Drained };
            let filled = self.fill(&request);
            self.throttle.charge(u64::from(filled), now);
            failpoint::reach("rng.filled");
            match filled {
                0 => queue.abandon(request),
                written => {
                    queue.count_bytes(u64::from(written));
                    queue.complete(request, written);
                }
            }
        }
    }

    fn expired(&mut self, timer: Timer, queues: &mut Queues, _: &mut Io<'_, Infallible>) {
        if let Some(queue) = queues.get(timer.0) {
            queue.wake();
        }
    }

    fn complete(&mut self, _: &mut Queue, op: Infallible, _: Result<u32, Errno>, _: &mut Io<'_, Infallible>) {
        match op {}
    }
}

impl Filler {
    /// Fills the request; the bytes that were filled, always at its front.
    fn fill(&self, request: &Request) -> u32 {
        let mut written = 0;
        let mut room = MAX_REQUEST_BYTES;
        for segment in request.writable() {
            let part = segment.clone().take_front(room);
            let drawn = self.source.fill(&part).unwrap_or(0);
            written += drawn;
            room = room.saturating_sub(drawn as usize);
            if room == 0 || (drawn as usize) < part.len() {
                break;
            }
        }
        written
    }
}

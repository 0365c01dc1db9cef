//! The entropy device (virtio 1.3 §5.4): fills what the guest asks for with random bytes.
//!
//! In: requests whose writable part is to be filled; readable descriptors mean nothing here and are passed
//! over (§5.4.6.1). Out: at least one byte and at most [`MAX_REQUEST_BYTES`] a request, drawn from the source
//! straight into guest memory; with a limit, which an operator may change, requests over it wait in the ring. It has no
//! features of its own and no configuration space.
//! Refuses nothing but a request without a writable byte, which goes back empty.

#![forbid(unsafe_code)]

pub mod config;
pub mod source;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use backends::control::metrics::Exposition;
use backends::control::{Change, ChangeError};
use backends::device::{self, Device, Handler, Io, Queues, Timer, Turn};
use backends::engine::Interest;
use backends::failpoint;
use backends::limit::{Limit, LiveLimit, LiveThrottle};
use backends::queue::{Queue, Request};
use rustix::io::Errno;
use serde_json::{Map, Value, json};
use source::Source;

/// Most bytes that one request gets. A driver may ask for gigabytes in one chain: this bounds how long it keeps
/// the worker from others, and the answer may always be shorter (§5.4.6.2).
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Under which name the worker watches for another limit.
const LIMIT: device::Source = device::Source(0);
/// The only queue.
const QUEUE: u16 = 0;

/// The device.
#[derive(Debug)]
pub struct Rng {
    source: Source,
    limit: Arc<LiveLimit>,
}

impl Rng {
    /// A device that draws from `source`, no more than `limit`.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(source: Source, limit: Option<Limit>) -> io::Result<Rng> {
        Ok(Rng { source, limit: Arc::new(LiveLimit::new(limit)?) })
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

    fn settings(&self) -> Map<String, Value> {
        let limit = json!({ "limit": self.limit.get().map(|limit| limit.to_json()) });
        limit.as_object().cloned().unwrap_or_default()
    }

    fn change(&self, change: &Change<'_>) -> Result<(), ChangeError> {
        change.only(&["limit"])?;
        if let Some(limit) = change.object("limit")? {
            self.limit.set(limit.as_ref().map(Limit::from_change).transpose()?);
        }
        Ok(())
    }

    fn metrics(&self, text: &mut Exposition) {
        self.limit.metrics(text);
    }

    fn handler(&self) -> io::Result<Filler> {
        let (source, limit) = (self.source, Arc::clone(&self.limit));
        Ok(Filler { source, throttle: LiveThrottle::new(&limit, Instant::now()), limit })
    }
}

/// Serves the queue.
#[derive(Debug)]
pub struct Filler {
    source: Source,
    limit: Arc<LiveLimit>,
    throttle: LiveThrottle,
}

impl Handler for Filler {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Infallible>) -> Turn {
        let now = Instant::now();
        loop {
            let throttle = self.throttle.at(&self.limit, now);
            if let Some(at) = throttle.closed_until(now) {
                self.limit.waits();
                io.arm(Timer(queue.index()), at);
                return Turn::Blocked;
            }
            let Some(request) = queue.next() else { return Turn::Drained };
            let filled = fill(self.source, &request);
            throttle.charge(u64::from(filled), now);
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

    fn start(&mut self, io: &mut Io<'_, Infallible>) -> io::Result<()> {
        io.watch(self.limit.bell(), Interest::Read, LIMIT)
    }

    /// The limit is another: the ring need not wait as long as the one before said.
    fn ready(&mut self, _: device::Source, queues: &mut Queues, io: &mut Io<'_, Infallible>) {
        self.limit.heard();
        io.disarm(Timer(QUEUE));
        queues.get(QUEUE).into_iter().for_each(Queue::wake);
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

/// Fills the request; the bytes that were filled, always at its front.
fn fill(source: Source, request: &Request) -> u32 {
    let mut written = 0;
    let mut room = MAX_REQUEST_BYTES;
    for segment in request.writable() {
        let part = segment.clone().take_front(room);
        let drawn = source.fill(&part).unwrap_or(0);
        written += drawn;
        room = room.saturating_sub(drawn as usize);
        if room == 0 || (drawn as usize) < part.len() {
            break;
        }
    }
    written
}

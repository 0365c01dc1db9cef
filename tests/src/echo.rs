//! A device that answers each request with its own bytes, as far as they fit, and in an order of its own.
//!
//! What it does with a request is chosen by a sequence that depends on a seed: answer it at once, after an
//! operation of the host, or keep it until the ring is drained and then answer in any order. So both ways of an
//! engine, completions out of order, and batches of every size come up on rings of every kind.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use backends::device::{Device, Handler, Io, Turn};
use backends::engine::{Buffers, Op};
use backends::memory::Segment;
use backends::queue::{Queue, Request};
use rustix::io::Errno;

use crate::guest::memory::{Backing, memfd};
use crate::random::Random;

/// The device.
#[derive(Debug)]
pub struct Echo {
    file: Arc<File>,
    seed: u64,
    in_order: bool,
}

impl Echo {
    /// One whose choices follow from `seed`, and that offers to answer in order if asked.
    pub fn new(seed: u64, in_order: bool) -> Echo {
        Echo { file: Arc::new(memfd(4096, Backing::Sealed)), seed, in_order }
    }
}

impl Device for Echo {
    type Handler = EchoHandler;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn in_order(&self) -> bool {
        self.in_order
    }

    fn handler(&self) -> std::io::Result<EchoHandler> {
        Ok(EchoHandler { file: Arc::clone(&self.file), random: Random::new(self.seed), kept: Vec::new() })
    }
}

/// The device's worker.
#[derive(Debug)]
pub struct EchoHandler {
    file: Arc<File>,
    random: Random,
    kept: Vec<Request>,
}

/// A request that waits for the host.
#[derive(Debug)]
pub struct Waiting(Request);

impl Buffers for Waiting {
    fn segments(&self) -> &[Segment] {
        &[]
    }
}

impl EchoHandler {
    fn answer_kept(&mut self, queue: &mut Queue) {
        self.random.shuffle(&mut self.kept);
        self.kept.drain(..).for_each(|request| answer(queue, request));
    }
}

/// Copies what is readable to where it may be written.
fn answer(queue: &mut Queue, mut request: Request) {
    let mut bytes = Vec::new();
    for segment in request.readable() {
        let start = bytes.len();
        bytes.resize(start + segment.len(), 0);
        segment.copy_to(&mut bytes[start..]);
    }
    let room = usize::try_from(request.writable_bytes()).unwrap_or(usize::MAX);
    bytes.truncate(room);
    let written = request.write_front(&bytes).map_or(0, |()| bytes.len());
    queue.complete(request, u32::try_from(written).unwrap_or(0));
}

impl Handler for EchoHandler {
    type Op = Waiting;

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Waiting>) -> Turn {
        while let Some(request) = queue.next() {
            match self.random.below(3) {
                0 => answer(queue, request),
                1 => io.submit(queue.index(), self.file.as_raw_fd(), Op::Sync, Waiting(request)),
                _ => self.kept.push(request),
            }
        }
        self.answer_kept(queue);
        Turn::Drained
    }

    fn complete(&mut self, queue: &mut Queue, op: Waiting, _: Result<u32, Errno>, _: &mut Io<'_, Waiting>) {
        answer(queue, op.0);
    }
}

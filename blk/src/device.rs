//! The block device: takes requests from queues, hands their data to storage, answers them.
//!
//! In: requests of the driver. Out: the same requests with data, status and true lengths. The mode of the
//! write cache is decided here and nowhere else: a driver that acknowledged VIRTIO_BLK_F_FLUSH flushes when
//! it wants writes durable; for any other, each write is followed by a sync before it completes (virtio 1.3
//! §5.2.6.2). A flush covers all writes that were completed before it was made available.
//!
//! Promises: all room that the driver gave is written before a request completes, with zeros where there is
//! no data, so that the length in the used ring is true and ends with the status byte even when a read failed.
//! Refuses: a request without header or status byte, which goes back empty; what [`crate::request`] refuses.

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

use std::sync::Arc;

use backends::device::{Device, Handler, Io, Turn};
use backends::engine::{Buffers, Op};
use backends::failpoint;
use backends::log::{self, Class};
use backends::memory::Segment;
use backends::queue::{Queue, Request};
use rustix::io::Errno;
use serde_json::{Map, Value};

use crate::request::{Command, Limits, Parsed, parse};
use crate::storage::{Host, Job, Owner, Step, Storage};
use crate::wire::{Config, ID_BYTES, Status, driver_flushes, feature_name, features};
/// Longest chain: what one request can make a worker touch before anybody else gets a turn.
const MAX_REQUEST_BYTES: u64 = 1 << 30;
/// What room without data is filled with, in pieces of this size.
const ZEROS: [u8; 4096] = [0; 4096];

/// A disk with this storage behind it.
#[derive(Debug)]
pub struct Blk<S> {
    storage: Arc<S>,
    queues: u16,
    id: [u8; ID_BYTES],
}

impl<S: Storage> Blk<S> {
    /// A disk of `queues` request queues; of the serial number the first 20 bytes count.
    pub fn new(storage: S, queues: u16, serial: &str) -> Blk<S> {
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(serial.bytes()).for_each(|(to, byte)| *to = byte);
        Blk { storage: Arc::new(storage), queues, id }
    }
}

impl<S: Storage> Device for Blk<S> {
    type Handler = Worker<S>;

    fn features(&self) -> u64 {
        features(self.storage.is_read_only())
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn config(&self) -> Vec<u8> {
        let (size_bytes, block_bytes) = (self.storage.size_bytes(), self.storage.block_bytes());
        Config { size_bytes, block_bytes, queues: self.queues }.to_bytes().to_vec()
    }

    fn feature_name(&self, bit: u32) -> Option<&'static str> {
        feature_name(bit)
    }

    fn state(&self) -> Map<String, Value> {
        let (storage, id) = (&self.storage, self.id.split(|byte| *byte == 0).next().unwrap_or_default());
        let members: [(&str, Value); 4] = [
            ("size_bytes", storage.size_bytes().into()),
            ("block_bytes", storage.block_bytes().into()),
            ("read_only", storage.is_read_only().into()),
            ("serial", String::from_utf8_lossy(id).into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }

    /// More than any driver sends at once; refused as a whole, since a failed request has its room filled.
    fn max_chain_bytes(&self) -> u64 {
        MAX_REQUEST_BYTES
    }

    /// One slow request would hold the whole ring.
    fn in_order(&self) -> bool {
        false
    }

    fn workers(&self) -> usize {
        std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(self.queues.into()))
    }

    fn handler(&self) -> std::io::Result<Worker<S>> {
        Ok(Worker { storage: Arc::clone(&self.storage), id: self.id })
    }
}

/// What a worker thread knows of the disk.
#[derive(Debug)]
pub struct Worker<S> {
    storage: Arc<S>,
    id: [u8; ID_BYTES],
}

/// A request whose data is on its way.
#[derive(Debug)]
pub struct Pending {
    request: Request,
    answer: Answer,
    direction: Direction,
}

/// Where a request's answer goes.
#[derive(Clone, Copy, Debug)]
struct Answer {
    status: Segment,
    /// Bytes of data, counted when they have been carried.
    data: u64,
    /// All bytes the driver lets us write.
    room: u64,
}

/// Which part of the chain is the data.
#[derive(Clone, Copy, Debug)]
enum Direction {
    ToGuest,
    ToStorage,
    None,
}

impl Buffers for Pending {
    fn segments(&self) -> &[Segment] {
        match self.direction {
            Direction::ToGuest => self.request.writable(),
            Direction::ToStorage => self.request.readable(),
            Direction::None => &[],
        }
    }
}

impl Owner for Pending {
    fn advance(&mut self, bytes: usize) {
        match self.direction {
            Direction::ToGuest => self.request.skip_writable(bytes),
            Direction::ToStorage => self.request.skip_readable(bytes),
            Direction::None => {}
        }
    }
}

/// The engine as storage sees it, for requests of one queue.
struct Lane<'a, 'b> {
    queue: &'a Queue,
    io: &'a mut Io<'b, Job<Pending>>,
}

impl Host<Pending> for Lane<'_, '_> {
    fn submit(&mut self, fd: std::os::fd::RawFd, job: Job<Pending>) {
        self.io.submit(self.queue, fd, job.op(), job);
        failpoint::reach("blk.submitted");
    }
}

impl<S: Storage> Handler for Worker<S> {
    type Op = Job<Pending>;
    const CANCELLED: Option<fn(Job<Pending>) -> Request> = Some(|job| job.into_owner().request);

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Job<Pending>>) -> Turn {
        let limits = self.limits();
        while let Some(mut request) = queue.next() {
            match parse(&mut request, limits) {
                Some(parsed) => self.serve(queue, request, parsed, io),
                None => queue.abandon(request),
            }
        }
        Turn::Drained
    }

    fn poisoned(&mut self, queue: &mut Queue, mut request: Request) {
        match parse(&mut request, self.limits()) {
            Some(Parsed { status, room, .. }) => {
                answer(queue, request, Answer { status, data: 0, room }, Status::IoErr);
            }
            None => queue.abandon(request),
        }
    }

    fn complete(
        &mut self,
        queue: &mut Queue,
        job: Job<Pending>,
        result: Result<u32, Errno>,
        io: &mut Io<'_, Job<Pending>>,
    ) {
        let step = self.storage.proceed(job, result, &mut Lane { queue, io });
        self.follow(queue, step, io);
    }
}

impl<S: Storage> Worker<S> {
    fn limits(&self) -> Limits {
        Limits { size_bytes: self.storage.size_bytes(), read_only: self.storage.is_read_only() }
    }

    /// Answers a request or begins its I/O.
    fn serve(
        &mut self,
        queue: &mut Queue,
        mut request: Request,
        parsed: Parsed,
        io: &mut Io<'_, Job<Pending>>,
    ) {
        let Parsed { status, room, command } = parsed;
        let (op, data, direction) = match command {
            Ok(Command::Read { offset, bytes }) => (Op::Read { offset }, bytes, Direction::ToGuest),
            Ok(Command::Write { offset, bytes }) => {
                (Op::Write { offset, durable: false }, bytes, Direction::ToStorage)
            }
            Ok(Command::Flush) => (Op::Sync, 0, Direction::None),
            Ok(Command::GetId) => {
                // The room was checked when the request was parsed.
                let _ = request.write_front(&self.id);
                return answer(queue, request, Answer { status, data: 0, room }, Status::Ok);
            }
            Err(refused) => return answer(queue, request, Answer { status, data: 0, room }, refused),
        };
        let place = Answer { status, data, room };
        if op != Op::Sync && data == 0 {
            return answer(queue, request, place, Status::Ok);
        }
        self.start(queue, Pending { request, answer: place, direction }, op, io);
    }

    fn start(&mut self, queue: &mut Queue, pending: Pending, op: Op, io: &mut Io<'_, Job<Pending>>) {
        let bytes = if op == Op::Sync { 0 } else { pending.answer.data };
        let step = self.storage.start(Job::new(pending, op, bytes), &mut Lane { queue, io });
        self.follow(queue, step, io);
    }

    /// What comes after a step: for a write through the cache its sync, otherwise the answer.
    fn follow(&mut self, queue: &mut Queue, step: Step<Pending>, io: &mut Io<'_, Job<Pending>>) {
        let Step::Done(pending, op, outcome) = step else { return };
        failpoint::reach("blk.done");
        if outcome.is_ok() && matches!(op, Op::Write { .. }) && !driver_flushes(queue.features()) {
            return self.start(queue, pending, Op::Sync, io);
        }
        let status = outcome.map_or_else(|errno| self.failed(op, errno), |()| Status::Ok);
        answer(queue, pending.request, pending.answer, status);
    }

    /// The status for a host error, which is logged now and then.
    fn failed(&mut self, op: Op, errno: Errno) -> Status {
        log::line!(warn, Class::HostIo, ?op, %errno, "Host I/O failed; the guest is told");
        Status::IoErr
    }
}

/// Completes a request whose data is where it belongs, as far as there was any.
fn answer(queue: &mut Queue, request: Request, answer: Answer, status: Status) {
    let Answer { status: place, data, room } = answer;
    if status == Status::Ok {
        queue.count_bytes(data);
    }
    request.writable().iter().copied().for_each(fill_with_zeros);
    place.copy_from(&[status as u8]);
    // A chain has at most `MAX_REQUEST_BYTES`.
    queue.complete(request, u32::try_from(room).unwrap_or(u32::MAX));
}

fn fill_with_zeros(mut segment: Segment) {
    while !segment.is_empty() {
        segment.take_front(ZEROS.len()).copy_from(&ZEROS);
    }
}

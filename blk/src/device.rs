//! The block device: takes requests from queues, sends them through the graph as calls, answers them.
//!
//! In: requests of the driver. Out: the same requests with data, status and true lengths. Where [`crate::cache`] says
//! that a write must be durable when it completes, it is so by itself if the graph keeps that, or by a flush after it. A
//! flush covers all writes that were completed before it was made available. A request of several ranges is several calls,
//! one after the other; the first that fails ends it.
//!
//! Promises: a request is answered when its call is over, and only then; one that is cancelled because its queue is
//! suspended stays in flight for whoever serves the ring next.
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

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use backends::control::metrics::Exposition;
use backends::control::{self, Answer, Change, ChangeError, Route};
use backends::device::{Announcer, Device, Handler, Io, Queues, Source, Timer, Turn};
use backends::engine::{self, Interest};
use backends::failpoint;
use backends::kept::Kept;
use backends::log::{self, Class};
use backends::queue::{Queue, Request};
use rustix::io::Errno;
use serde_json::{Map, Value};

use crate::answer::Pending;
use crate::cache::Cache;
use crate::call::Call;
use crate::graph::change::{self, Changes};
use crate::graph::gate::{Gate, News, Place};
use crate::graph::live::Live;
use crate::graph::tree::Outside;
use crate::graph::volfile::MAX_VOLUMES;
use crate::graph::{Graph, Outcome, Release, Tree};
use crate::growth::Growth;
use crate::offer;
use crate::op::{Keeps, Op};
use crate::request::{Command, Fate, Parsed, next_range, parse};
use crate::uevents;
use crate::wire::{self, ID_BYTES, MAX_REQUEST_BYTES, Status};

/// Goes off at once, for calls that were over while another queue had its turn: the number after those of volumes, since
/// timers stand in a table.
const LATE: Timer = Timer(64);
const _: () = assert!(MAX_VOLUMES <= 64);

/// Something was said about block devices.
const UEVENTS: Source = Source(0);
/// The gate was closed or opened.
const GATE: Source = Source(1);

/// A disk that is made of this graph.
#[derive(Debug)]
pub struct Blk {
    gate: Arc<Gate>,
    changes: Changes,
    cache: Arc<Cache>,
    queues: u16,
    id: [u8; ID_BYTES],
    growth: Arc<Growth>,
}

impl Blk {
    /// A disk of `queues` request queues; of the serial number the first 20 bytes count. Changes of the graph are kept
    /// for the next worker.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(live: Live, kept: &Kept, queues: u16, serial: &str) -> io::Result<Blk> {
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(serial.bytes()).for_each(|(to, byte)| *to = byte);
        let gate = Arc::new(Gate::new(live)?);
        let changes = Changes::new(Arc::clone(&gate), kept.clone());
        Ok(Blk { gate, changes, cache: Arc::new(Cache::kept(kept)), queues, id, growth: Arc::default() })
    }

    fn graph(&self) -> Arc<Graph> {
        Arc::clone(self.gate.live().graph())
    }

    /// Block devices that it is made of tell on this socket that they have changed.
    pub fn hearing(self, uevents: Option<OwnedFd>) -> Blk {
        Blk { growth: Arc::new(Growth::new(uevents)), ..self }
    }
}

impl Device for Blk {
    type Handler = Worker;

    fn features(&self) -> u64 {
        offer::features(&self.graph().disk())
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn config(&self) -> Vec<u8> {
        // A block device tells workers when it has grown, and there may be none yet.
        let graph = self.graph();
        self.growth.look(&graph);
        offer::config(&graph.disk(), self.queues, self.cache.keeps_back()).to_vec()
    }

    /// The mode of the cache, and nothing else. A driver that wants no cache any more finds all that it has written
    /// durable.
    fn set_config(&self, offset: usize, data: &[u8]) -> bool {
        let write_back = match data {
            [mode @ (0 | 1)] if offset == offer::WRITEBACK => *mode == 1,
            _ => return false,
        };
        let before = self.cache.save();
        self.cache.choose(write_back);
        // A worker that follows another is told again what it knows: nothing was kept back since it was chosen.
        let is_known = self.cache.save() == before;
        let durable = write_back || is_known || self.graph().make_durable().is_ok();
        durable || !self.cache.load(before)
    }

    fn attach(&self, announcer: Announcer) {
        self.growth.attach(announcer);
    }

    fn settings(&self) -> Map<String, Value> {
        Growth::settings(&self.graph())
    }

    fn change(&self, change: &Change<'_>) -> Result<(), ChangeError> {
        self.growth.change(&self.graph(), change)
    }

    fn negotiated(&self, features: u64) {
        self.cache.negotiated(features);
    }

    fn reset(&self) {
        self.cache.reset();
    }

    fn save(&self) -> Vec<u8> {
        vec![self.cache.save()]
    }

    fn load(&self, state: &[u8]) -> bool {
        match state {
            [] => true,
            [mode] => self.cache.load(*mode),
            _ => false,
        }
    }

    fn feature_name(&self, bit: u32) -> Option<&'static str> {
        offer::feature_name(bit)
    }

    fn state(&self) -> Map<String, Value> {
        let (disk, id) = (self.graph().disk(), self.id.split(|byte| *byte == 0).next().unwrap_or_default());
        let members: [(&str, Value); 5] = [
            ("size_bytes", disk.size_bytes.into()),
            ("block_bytes", disk.block_bytes.into()),
            ("read_only", disk.read_only.into()),
            ("write_back", self.cache.keeps_back().into()),
            ("serial", String::from_utf8_lossy(id).into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }

    fn routes(&self) -> &'static [Route] {
        &change::ROUTES
    }

    fn call(&self, call: control::Call) -> Answer {
        self.changes.call(call)
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.changes.bell())
    }

    fn rung(&self, now: Instant) -> Option<Instant> {
        self.changes.rung(now)
    }

    fn metrics(&self, text: &mut Exposition) {
        self.changes.count(text);
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

    fn handler(&self) -> std::io::Result<Worker> {
        let (place, live) = self.gate.enter()?;
        let (graph, tree) = (Arc::clone(live.graph()), Tree::of(live.graph())?);
        let (keeps, cache) = (graph.disk(), Arc::clone(&self.cache));
        let growth = Arc::clone(&self.growth);
        Ok(Worker {
            graph,
            tree,
            keeps,
            place,
            next: None,
            calls: 0,
            cache,
            growth,
            uevents: None,
            id: self.id,
            late: Vec::new(),
        })
    }
}

/// What a worker thread knows of the disk.
#[derive(Debug)]
pub struct Worker {
    graph: Arc<Graph>,
    tree: Tree,
    /// What the disk keeps, as of this turn.
    keeps: Keeps,
    place: Place,
    /// The gate is closed, and this is for the graph that may be the next one.
    next: Option<Tree>,
    /// That are under way.
    calls: usize,
    cache: Arc<Cache>,
    growth: Arc<Growth>,
    /// Where block devices tell that they have changed: one worker listens.
    uevents: Option<OwnedFd>,
    id: [u8; ID_BYTES],
    /// Calls that were over in the turn of another queue.
    late: Vec<(Call, Outcome)>,
}

/// The engine as the graph sees it.
struct Port<'a, 'b>(&'a mut Io<'b, Call>);

impl Outside for Port<'_, '_> {
    fn submit(&mut self, queue: u16, fd: RawFd, op: engine::Op, call: Call) {
        self.0.submit(queue, fd, op, call);
        failpoint::reach("blk.submitted");
    }

    fn arm(&mut self, volume: u16, at: Instant) {
        self.0.arm(Timer(volume), at);
    }

    fn disarm(&mut self, volume: u16) {
        self.0.disarm(Timer(volume));
    }
}

impl Handler for Worker {
    type Op = Call;
    const CANCELS: bool = true;

    fn start(&mut self, io: &mut Io<'_, Call>) -> std::io::Result<()> {
        self.uevents = self.growth.take_uevents();
        self.uevents.iter().try_for_each(|socket| io.watch(socket.as_fd(), Interest::Read, UEVENTS))?;
        io.watch(self.place.bell(), Interest::Read, GATE)
    }

    fn ready(&mut self, source: Source, queues: &mut Queues, io: &mut Io<'_, Call>) {
        match source {
            GATE => match self.place.news() {
                Some(News::Close(next)) => self.close(&next, queues, io),
                Some(News::Open(live)) => self.open(live.graph(), queues, io),
                None => self.rung(queues, io),
            },
            _ if self.uevents.as_ref().is_some_and(uevents::heard) => self.growth.look(&self.graph),
            _ => {}
        }
    }

    fn woke(&mut self) {
        self.tree.woke();
    }

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Call>) -> Turn {
        self.tree.start(queue.index());
        self.keeps.size_bytes = self.graph.size_bytes();
        loop {
            // What a worker before this one had taken goes on: a queue that stops waits for nothing else.
            if self.place.is_closed() && !queue.has_replays() {
                return Turn::Blocked;
            }
            let Some(mut request) = queue.next() else { return Turn::Drained };
            match parse(&mut request, &self.keeps) {
                Some(parsed) => self.serve(queue, request, parsed, io),
                None => queue.abandon(request),
            }
        }
    }

    fn poisoned(&mut self, queue: &mut Queue, mut request: Request) {
        match parse(&mut request, &self.keeps) {
            Some(Parsed { status, room, .. }) => {
                Pending { request, status, room }.answer(queue, Status::IoErr);
            }
            None => queue.abandon(request),
        }
    }

    fn complete(&mut self, queue: &mut Queue, call: Call, answer: Result<u32, Errno>, io: &mut Io<'_, Call>) {
        self.tree.answered(call, answer, &mut Port(io));
        self.settle(queue, io);
        self.drained();
    }

    fn complete_alone(
        &mut self,
        call: Call,
        answer: Result<u32, Errno>,
        queues: &mut Queues,
        io: &mut Io<'_, Call>,
    ) {
        self.tree.answered(call, answer, &mut Port(io));
        self.settle_all(queues, io);
    }

    fn expired(&mut self, timer: Timer, queues: &mut Queues, io: &mut Io<'_, Call>) {
        if timer != LATE {
            self.tree.expired(timer.0, &mut Port(io));
        }
        self.settle_all(queues, io);
        self.drained();
    }

    fn quiesce(&mut self, queue: &mut Queue, io: &mut Io<'_, Call>) {
        let how = if queue.is_suspended() { Release::Cancel } else { Release::Go };
        self.tree.stop(queue.index(), how, &mut Port(io));
        self.settle(queue, io);
        self.drained();
    }
}

impl Worker {
    /// The gate closes: what is held goes on, nothing new is taken.
    fn close(&mut self, next: &Live, queues: &mut Queues, io: &mut Io<'_, Call>) {
        match Tree::of(next.graph()) {
            Ok(tree) => self.next = Some(tree),
            Err(error) => return self.place.refuse(&error),
        }
        for index in queues.running() {
            self.tree.stop(index, Release::Go, &mut Port(io));
        }
        self.settle_all(queues, io);
        self.drained();
    }

    /// A volume was told something: its layer looks.
    fn rung(&mut self, queues: &mut Queues, io: &mut Io<'_, Call>) {
        self.tree.rung(&mut Port(io));
        self.settle_all(queues, io);
        self.drained();
    }

    /// Tells the gate that nothing is under way any more, if it waits for that.
    #[inline]
    fn drained(&self) {
        if self.next.is_some() {
            self.place.waits_for(self.calls);
        }
    }

    /// The gate opens, to this graph.
    fn open(&mut self, graph: &Arc<Graph>, queues: &mut Queues, io: &mut Io<'_, Call>) {
        let next = self.next.take();
        if let Some(tree) = next.filter(|_| !Arc::ptr_eq(&self.graph, graph)) {
            debug_assert_eq!(self.calls, 0, "the gate opens when all have drained");
            self.graph.volumes().for_each(|(volume, _)| io.disarm(Timer(volume)));
            (self.tree, self.graph, self.keeps) = (tree, Arc::clone(graph), graph.disk());
        }
        for index in queues.running() {
            if let Some(queue) = queues.get(index) {
                queue.wake();
            }
        }
    }

    /// Answers a request or begins its call.
    fn serve(&mut self, queue: &mut Queue, mut request: Request, parsed: Parsed, io: &mut Io<'_, Call>) {
        let Parsed { status, room, command } = parsed;
        let op = match command {
            Ok(Command::Read { offset, bytes }) => Op::Read { offset, bytes },
            Ok(Command::Write { offset, bytes }) => {
                Op::Write { offset, bytes, fua: self.keeps.fua && self.writes_through(queue) }
            }
            Ok(Command::Flush) => Op::Flush,
            Ok(Command::GetId) => return told(queue, request, parsed, &self.id),
            Ok(Command::GetLifetime) => {
                let lifetime = wire::lifetime(self.keeps.lifetime.unwrap_or_default());
                return told(queue, request, parsed, &lifetime);
            }
            Ok(Command::Ranges(fate)) => match next_op(fate, &mut request, &self.keeps) {
                Some(Ok(op)) => op,
                Some(Err(refused)) => return Pending { request, status, room }.answer(queue, refused),
                None => return Pending { request, status, room }.answer(queue, Status::Ok),
            },
            Err(refused) => return Pending { request, status, room }.answer(queue, refused),
        };
        let pending = Pending { request, status, room };
        if let Some((_, 0)) = op.range() {
            return pending.answer(queue, Status::Ok);
        }
        self.calls = self.calls.saturating_add(1);
        let call = self.tree.pool().request(queue.index(), op, pending);
        self.tree.begin(call, &mut Port(io));
        self.settle(queue, io);
    }

    /// Answers what is over of this queue.
    #[inline]
    fn settle(&mut self, queue: &mut Queue, io: &mut Io<'_, Call>) {
        while let Some((call, outcome)) = self.tree.finished() {
            if call.queue() == queue.index() {
                self.follow(queue, call, outcome, io);
            } else {
                self.late.push((call, outcome));
                io.arm(LATE, Instant::now());
            }
        }
    }

    /// Answers what is over of any queue.
    fn settle_all(&mut self, queues: &mut Queues, io: &mut Io<'_, Call>) {
        while let Some((call, outcome)) = self.late.pop().or_else(|| self.tree.finished()) {
            // A queue stays until nothing of it is in flight, so it is there.
            if let Some(queue) = queues.get(call.queue()) {
                self.follow(queue, call, outcome, io);
            }
        }
    }

    fn writes_through(&self, queue: &Queue) -> bool {
        self.cache.writes_through(queue.features())
    }

    /// What a request still needs when an operation of it went well.
    fn next(&self, call: &mut Call, queue: &Queue) -> Option<Result<Op, Status>> {
        let fate = match call.op() {
            Op::Read { .. } | Op::Write { fua: true, .. } | Op::Flush | Op::Extents { .. } => return None,
            Op::Write { fua: false, .. } => None,
            Op::Discard { .. } => Some(Fate::Discard),
            Op::Zeroes { .. } => Some(Fate::Zeroes),
            Op::SecureErase { .. } => Some(Fate::SecureErase),
        };
        let request = &mut call.pending_mut()?.request;
        let range = fate.and_then(|fate| next_op(fate, request, &self.keeps));
        // Of what was discarded there is nothing to keep.
        let flush = fate != Some(Fate::Discard) && self.writes_through(queue);
        range.or_else(|| flush.then_some(Ok(Op::Flush)))
    }

    /// What comes after a call: the next range, a flush for what must be durable and is not by itself, or the answer.
    fn follow(&mut self, queue: &mut Queue, mut call: Call, outcome: Outcome, io: &mut Io<'_, Call>) {
        failpoint::reach("blk.done");
        let op = call.op();
        let next = outcome.ok().and_then(|()| self.next(&mut call, queue));
        if let Some(Ok(next)) = next
            && !queue.is_suspended()
        {
            call.set_op(next);
            return self.tree.begin(call, &mut Port(io));
        }
        let Some(pending) = self.tree.pool().end(call) else { return };
        self.calls = self.calls.saturating_sub(1);
        match (outcome, next) {
            // Whoever serves the ring next does all of it again.
            (Ok(()), Some(Ok(_))) => queue.keep(pending.request),
            (Ok(()), Some(Err(status))) => pending.answer(queue, status),
            (Ok(()), None) => pending.done(queue, op),
            (Err(Errno::CANCELED), _) if queue.is_suspended() => queue.keep(pending.request),
            (Err(errno), _) => pending.answer(queue, failed(op, errno)),
        }
    }
}

/// Answers with these bytes; that there is room was seen when the request was parsed.
fn told(queue: &mut Queue, mut request: Request, Parsed { status, room, .. }: Parsed, bytes: &[u8]) {
    let _ = request.write_front(bytes);
    Pending { request, status, room }.answer(queue, Status::Ok);
}

/// The next range that is not empty.
fn next_op(fate: Fate, request: &mut Request, keeps: &Keeps) -> Option<Result<Op, Status>> {
    let mut ranges = std::iter::from_fn(|| next_range(fate, request, keeps));
    ranges.find(|range| !matches!(range.map(|op| op.range()), Ok(Some((_, 0)))))
}

/// The status for an error, which is logged now and then.
fn failed(op: Op, errno: Errno) -> Status {
    log::line!(warn, Class::HostIo, ?op, %errno, "Host I/O failed; the guest is told");
    match errno {
        Errno::OPNOTSUPP => Status::Unsupported,
        _ => Status::IoErr,
    }
}

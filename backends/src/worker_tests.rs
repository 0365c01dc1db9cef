use std::convert::Infallible;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::*;
use crate::device::Turn;
use crate::engine::{Buffers, Op};
use crate::inflight::{Part, Region};
use crate::memory::Segment;
use crate::memory::own::Buffer;
use crate::notify::Signal;
use crate::queue::{QueueSetup, Request};
use crate::ring::{Descriptor, Ring};
use crate::stats::QueueStats;
use crate::testing::Guest;

/// Longer than any wait that ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// Completes at once; its queue 0 asks for a turn in every turn, so its worker never sleeps.
struct Restless;

impl Device for Restless {
    type Handler = Restless;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<Restless> {
        Ok(Restless)
    }
}

impl Handler for Restless {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, _: &mut Io<'_, Infallible>) -> Turn {
        while let Some(request) = queue.next() {
            queue.complete(request, 8);
        }
        if queue.index() == 0 {
            queue.wake();
        }
        Turn::Drained
    }

    fn complete(
        &mut self,
        _: &mut Queue,
        op: Infallible,
        _: Result<u32, rustix::io::Errno>,
        _: &mut Io<'_, Infallible>,
    ) {
        match op {}
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// A guest whose ring of 8 is served as queue `index`, with some requests in it, and never kicked.
fn served<D: Device>(workers: &mut Workers<D>, index: u16, requests: u16) -> Guest {
    served_with(workers, index, requests, Signal::default())
}

fn served_with<D: Device>(workers: &mut Workers<D>, index: u16, requests: u16, call: Signal) -> Guest {
    let guest = Guest::new(8, false);
    (0..8).for_each(|head| {
        guest.descriptor(head, 0x2_0000, 8, Descriptor::WRITE, 0);
        guest.available(head, head);
    });
    guest.available_index(requests);
    workers.start(queue(&guest, index, call, None), Arc::new(event())).unwrap();
    guest
}

fn queue(guest: &Guest, index: u16, call: Signal, inflight: Option<Part>) -> Queue {
    let setup = QueueSetup {
        index,
        features: 0,
        max_chain_bytes: 1 << 20,
        call,
        error: Signal::default(),
        stats: QueueStats::default(),
        log: None,
        inflight,
    };
    Queue::new(Ring::Split(guest.ring(0)), Arc::clone(&guest.memory), setup)
}

fn reaches(guest: &Guest, used: u16) -> bool {
    let until = Instant::now() + PATIENCE;
    while guest.used_index() != used && Instant::now() < until {
        std::thread::yield_now();
    }
    guest.used_index() == used
}

#[test]
fn a_driver_that_is_asked_not_to_notify_is_looked_after_beside_a_busy_one() {
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        let mut workers = Workers::new(Arc::new(Restless), engine, CpuList::default()).unwrap();
        let _busy = served(&mut workers, 0, 0);
        let quiet = served(&mut workers, 1, 0);
        for index in 1..=8 {
            quiet.available_index(index);
            assert!(reaches(&quiet, index), "request {index} is not served");
        }
        assert_eq!(quiet.used_flags(), 1, "a worker that never sleeps needs no notification");
        assert_eq!(workers.stop(1, Stop::Drain, || true), Some(8));
    }
}

#[test]
fn a_driver_is_asked_to_notify_when_its_worker_sleeps() {
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        let mut workers = Workers::new(Arc::new(Restless), engine, CpuList::default()).unwrap();
        let quiet = served(&mut workers, 1, 1);
        assert!(reaches(&quiet, 1));
        let until = Instant::now() + PATIENCE;
        while quiet.used_flags() != 0 {
            assert!(Instant::now() < until, "it is never asked");
            std::thread::yield_now();
        }
        assert_eq!(workers.stop(1, Stop::Drain, || true), Some(1));
    }
}

/// The other side shares the eventfd: it fills it and makes it block after we made sure that it does not.
#[test]
fn f19_a_worker_that_is_kept_in_a_write_is_freed_to_stop() {
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        let mut workers = Workers::new(Arc::new(Restless), engine, CpuList::default()).unwrap();
        let full = event();
        let call = Signal::new(Some(full.try_clone().unwrap()));
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&full, rustix::fs::OFlags::empty()).unwrap();
        let guest = served_with(&mut workers, 1, 1, call);
        assert!(reaches(&guest, 1));
        let until = Instant::now() + PATIENCE;
        assert_eq!(workers.stop(1, Stop::Drain, || Instant::now() < until), Some(1), "{engine:?}");
    }
}

/// Breaks the first time it is used.
#[derive(Clone, Default)]
struct Brittle(Arc<std::sync::atomic::AtomicBool>);

impl Device for Brittle {
    type Handler = Brittle;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<Brittle> {
        Ok(self.clone())
    }
}

impl Handler for Brittle {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Infallible>) -> Turn {
        assert!(self.0.swap(true, std::sync::atomic::Ordering::Relaxed), "it breaks, as this test wants");
        Restless.process(queue, io)
    }

    fn complete(
        &mut self,
        _: &mut Queue,
        op: Infallible,
        _: Result<u32, rustix::io::Errno>,
        _: &mut Io<'_, Infallible>,
    ) {
        match op {}
    }
}

#[test]
fn a_worker_that_ended_by_itself_is_replaced() {
    let mut workers =
        Workers::new(Arc::new(Brittle::default()), EngineKind::Auto, CpuList::default()).unwrap();
    let _lost = served(&mut workers, 0, 1);
    let until = Instant::now() + PATIENCE;
    while !workers.threads[0].has_ended() && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(workers.stop(0, Stop::Drain, || true), None, "whoever waits for a broken worker is told");
    let guest = served(&mut workers, 0, 1);
    assert!(reaches(&guest, 1));
}

const PERIOD: Duration = Duration::from_millis(2);

/// Completes requests only when its timer expires, one each time.
#[derive(Clone, Default)]
struct Clockwork(Arc<AtomicU64>);

impl Device for Clockwork {
    type Handler = Clockwork;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<Clockwork> {
        Ok(self.clone())
    }
}

impl Handler for Clockwork {
    type Op = Infallible;

    fn process(&mut self, _: &mut Queue, io: &mut Io<'_, Infallible>) -> Turn {
        io.arm(Timer(3), Instant::now() + PERIOD);
        Turn::Blocked
    }

    fn expired(&mut self, timer: Timer, queues: &mut Queues, io: &mut Io<'_, Infallible>) {
        assert_eq!(timer, Timer(3));
        self.0.fetch_add(1, Ordering::Relaxed);
        let Some(queue) = queues.get(0) else { return };
        queue.begin_turn();
        if let Some(request) = queue.next() {
            queue.complete(request, 8);
            io.arm(Timer(3), Instant::now() + PERIOD);
        }
    }

    fn complete(
        &mut self,
        _: &mut Queue,
        op: Infallible,
        _: Result<u32, rustix::io::Errno>,
        _: &mut Io<'_, Infallible>,
    ) {
        match op {}
    }
}

#[test]
fn a_timer_of_a_handler_expires_once_each_time_it_is_armed() {
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        let device = Clockwork::default();
        let mut workers = Workers::new(Arc::new(device.clone()), engine, CpuList::default()).unwrap();
        let began = Instant::now();
        let guest = served(&mut workers, 0, 8);
        assert!(reaches(&guest, 8), "{engine:?}");
        assert!(began.elapsed() >= PERIOD * 8, "{engine:?}: too soon");
        assert_eq!(workers.stop(0, Stop::Drain, || true), Some(8), "{engine:?}");
        // The one that found nothing armed no other.
        assert!((8..=9).contains(&device.0.load(Ordering::Relaxed)), "{engine:?}");
    }
}

/// A task lets the queue go on, one request after each of its sleeps; it is dropped with its worker.
#[derive(Clone, Default)]
struct Storyteller {
    steps: Arc<AtomicU64>,
    ends: Arc<AtomicU64>,
}

struct End(Arc<AtomicU64>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Device for Storyteller {
    type Handler = Storyteller;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<Storyteller> {
        Ok(self.clone())
    }
}

impl Handler for Storyteller {
    type Op = Infallible;

    fn start(&mut self, io: &mut Io<'_, Infallible>) -> io::Result<()> {
        let (task_io, Storyteller { steps, ends }) = (io.tasks().io(), self.clone());
        let spawner = io.tasks().pool(1, move |()| {
            let (io, steps, end) = (task_io.clone(), Arc::clone(&steps), End(Arc::clone(&ends)));
            async move {
                let _end = end;
                loop {
                    io.sleep(PERIOD).await;
                    steps.fetch_add(1, Ordering::Relaxed);
                    io.tell();
                }
            }
        });
        spawner.spawn(()).map_err(|()| io::Error::other("no slot"))
    }

    fn told(&mut self, queues: &mut Queues, _: &mut Io<'_, Infallible>) {
        let Some(queue) = queues.get(0) else { return };
        queue.begin_turn();
        if let Some(request) = queue.next() {
            queue.complete(request, 8);
        }
    }

    fn process(&mut self, _: &mut Queue, _: &mut Io<'_, Infallible>) -> Turn {
        Turn::Blocked
    }

    fn complete(
        &mut self,
        _: &mut Queue,
        op: Infallible,
        _: Result<u32, rustix::io::Errno>,
        _: &mut Io<'_, Infallible>,
    ) {
        match op {}
    }
}

#[test]
fn a_task_tells_its_handler_and_ends_with_its_worker() {
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        let device = Storyteller::default();
        let mut workers = Workers::new(Arc::new(device.clone()), engine, CpuList::default()).unwrap();
        let guest = served(&mut workers, 0, 8);
        assert!(reaches(&guest, 8), "{engine:?}");
        assert!(device.steps.load(Ordering::Relaxed) >= 8);
        assert_eq!(workers.stop(0, Stop::Drain, || true), Some(8), "{engine:?}");
        assert_eq!(device.ends.load(Ordering::Relaxed), 0, "{engine:?}: it goes on without queues");
        drop(workers);
        assert_eq!(device.ends.load(Ordering::Relaxed), 1, "{engine:?}");
    }
}

/// Fills each request from a pipe, which may have nothing for it.
#[derive(Clone)]
struct Patient(Arc<OwnedFd>);

struct Waiting(Request);

impl Buffers for Waiting {
    fn segments(&self) -> &[Segment] {
        self.0.writable()
    }
}

impl Device for Patient {
    type Handler = Patient;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<Patient> {
        Ok(self.clone())
    }
}

impl Handler for Patient {
    type Op = Waiting;
    const CANCELS: bool = true;

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Waiting>) -> Turn {
        while let Some(request) = queue.next() {
            io.submit(queue.index(), self.0.as_raw_fd(), Op::Read { offset: 0 }, Waiting(request));
        }
        Turn::Drained
    }

    fn complete(
        &mut self,
        queue: &mut Queue,
        op: Waiting,
        result: Result<u32, Errno>,
        _: &mut Io<'_, Waiting>,
    ) {
        match result {
            Err(Errno::CANCELED) if queue.is_suspended() => queue.keep(op.0),
            other => queue.complete(op.0, other.unwrap()),
        }
    }
}

#[test]
fn a_suspended_queue_leaves_in_flight_what_the_host_has_not_done() {
    let (source, sink) = rustix::pipe::pipe().unwrap();
    let mut workers =
        Workers::new(Arc::new(Patient(Arc::new(source))), EngineKind::IoUring, CpuList::default()).unwrap();
    let guest = Guest::new(8, false);
    (0..8).for_each(|head| {
        guest.descriptor(head, 0x2_0000, 8, Descriptor::WRITE, 0);
        guest.available(head, head);
    });
    guest.available_index(3);
    let region = Region::create(1, 8, 1).unwrap();
    let start = |workers: &mut Workers<Patient>| {
        let queue = queue(&guest, 0, Signal::default(), region.part(0, 8, false));
        workers.start(queue, Arc::new(event())).unwrap();
    };
    start(&mut workers);
    rustix::io::write(&sink, &[1; 8]).unwrap();
    assert!(reaches(&guest, 1));
    assert_eq!(
        workers.stop(0, Stop::Suspend, || true),
        Some(3),
        "two are in flight, and nobody waits for them"
    );
    assert_eq!(guest.used_index(), 1);
    start(&mut workers);
    rustix::io::write(&sink, &[2; 16]).unwrap();
    assert!(reaches(&guest, 3), "they are served by the next, from a base that says nothing of them");
    let mut heads = [0, 1, 2].map(|at| guest.used(at).0);
    heads.sort_unstable();
    assert_eq!(heads, [0, 1, 2]);
    assert_eq!(workers.stop(0, Stop::Suspend, || true), Some(3));
}

/// Answers each request at once, and reads from a pipe for itself.
#[derive(Clone)]
struct Reader {
    source: Arc<OwnedFd>,
    alone: Arc<AtomicU64>,
}

struct Own {
    segments: [Segment; 1],
    _buffer: Buffer,
}

impl Buffers for Own {
    fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

impl Device for Reader {
    type Handler = Reader;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<Reader> {
        Ok(self.clone())
    }
}

impl Handler for Reader {
    type Op = Own;

    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Own>) -> Turn {
        while let Some(request) = queue.next() {
            let buffer = Buffer::new(4096).unwrap();
            let own = Own { segments: [buffer.segment(8)], _buffer: buffer };
            io.submit(queue.index(), self.source.as_raw_fd(), Op::Read { offset: 0 }, own);
            queue.complete(request, 0);
        }
        Turn::Drained
    }

    fn complete(&mut self, _: &mut Queue, _: Own, _: Result<u32, Errno>, _: &mut Io<'_, Own>) {
        unreachable!("its queue has gone by then");
    }

    fn complete_alone(
        &mut self,
        _: Own,
        result: Result<u32, Errno>,
        queues: &mut Queues,
        _: &mut Io<'_, Own>,
    ) {
        assert!(queues.get(0).is_none());
        self.alone.fetch_add(result.unwrap().into(), Ordering::Relaxed);
    }
}

#[test]
fn an_operation_that_outlives_its_queue_is_told_of() {
    let (source, sink) = rustix::pipe::pipe().unwrap();
    let device = Reader { source: Arc::new(source), alone: Arc::default() };
    let alone = Arc::clone(&device.alone);
    let mut workers = Workers::new(Arc::new(device), EngineKind::IoUring, CpuList::default()).unwrap();
    let guest = Guest::new(8, false);
    guest.descriptor(0, 0x2_0000, 8, Descriptor::WRITE, 0);
    guest.available(0, 0);
    guest.available_index(1);
    workers.start(queue(&guest, 0, Signal::default(), None), Arc::new(event())).unwrap();
    assert!(reaches(&guest, 1));
    assert_eq!(workers.stop(0, Stop::Drain, || true), Some(1), "no request waits for it");
    rustix::io::write(&sink, &[1; 8]).unwrap();
    let until = Instant::now() + PATIENCE;
    while alone.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < until, "nobody was told");
        std::thread::yield_now();
    }
    assert_eq!(alone.load(Ordering::Relaxed), 8);
}

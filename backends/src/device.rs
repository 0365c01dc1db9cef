//! What a device adds to this library: two small traits.
//!
//! A [`Device`] says what the front-end and the driver are told: features, queues, configuration space. It is
//! shared by all threads and does no I/O. A [`Handler`] serves requests; each worker thread has one of its
//! own, so it needs no locks. `../README.md` builds a daemon from these two.
//!
//! What a handler must not do: block, allocate or log per request, touch guest memory except through the
//! request's segments, open files, or end on anything that a guest, a front-end or a host call answers.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Instant;

use rustix::io::Errno;
use serde_json::{Map, Value};

use crate::control::metrics::Exposition;
use crate::control::{Answer, Call, Change, ChangeError, Route};
use crate::engine::{Buffers, Engine, Interest, Op, Token};
use crate::notify::Signal;
use crate::proto::ProtocolFeatures;
use crate::queue::{Queue, Request};
use crate::task::{Home, Sleeper, Tagged, Tasks};

/// A kind of device, as the other side sees it.
pub trait Device: Send + Sync + 'static {
    /// What serves its requests.
    type Handler: Handler;

    /// Device features beside those every daemon has (virtio 1.3 §5.x.3); ring features are added.
    fn features(&self) -> u64;

    /// Virtqueues.
    fn queues(&self) -> u16;

    /// The configuration space as it is now (virtio 1.3 §5.x.4); at most 256 bytes.
    fn config(&self) -> Vec<u8>;

    /// The driver writes to configuration space. `false` refuses: nothing is writable there.
    fn set_config(&self, offset: usize, data: &[u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// The driver has acknowledged these features.
    fn negotiated(&self, features: u64) {
        let _ = features;
    }

    /// Whether requests may be promised to go back in order (VIRTIO_F_IN_ORDER). It binds every queue: not for a
    /// device where one slow request would hold the others.
    fn in_order(&self) -> bool {
        true
    }

    /// Messages that only some devices have: RARP and MTU.
    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::empty()
    }

    /// Its configuration space may change: call [`Announcer::config_changed`] when it did. Called once, when serving
    /// begins.
    fn attach(&self, announcer: Announcer) {
        let _ = announcer;
    }

    /// The name of one of its own feature bits, as the specification has it.
    fn feature_name(&self, bit: u32) -> Option<&'static str> {
        let _ = bit;
        None
    }

    /// What it tells an operator of itself beside what all daemons do: `device` of `GET /state`.
    fn state(&self) -> Map<String, Value> {
        Map::new()
    }

    /// What an operator can change while it serves, as it is now: members that [`Device::change`] takes.
    fn settings(&self) -> Map<String, Value> {
        Map::new()
    }

    /// Changes some of its settings, all or none of those named. Called by the control thread: it must not wait.
    ///
    /// # Errors
    /// Which of them makes no sense.
    fn change(&self, change: &Change<'_>) -> Result<(), ChangeError> {
        change.only(&[])
    }

    /// What can be asked of it on the control socket, and of no other device.
    fn routes(&self) -> &'static [Route] {
        &[]
    }

    /// Answers a request for one of [`Device::routes`]. Called by the control thread: it must not wait. What takes
    /// longer goes on by [`Device::rung`].
    fn call(&self, call: Call) -> Answer {
        Answer::missing(call.route.path)
    }

    /// Readable when [`Device::rung`] has something to do.
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The control thread passes by: the bell has rung, the moment has come that was named, or anything else happened
    /// there. When it is to come again, whoever rings. It must not wait.
    fn rung(&self, now: Instant) -> Option<Instant> {
        let _ = now;
        None
    }

    /// Numbers of its own for `GET /metrics`.
    fn metrics(&self, text: &mut Exposition) {
        let _ = text;
    }

    /// Back to where it began: the driver resets it, or there is another front-end. No queue is running.
    fn reset(&self) {}

    /// What another daemon needs to go on for this one (DEVICE_STATE); no queue is running.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Goes on with what another daemon saved. `false`: it makes no sense, and nothing has changed.
    fn load(&self, state: &[u8]) -> bool {
        state.is_empty()
    }

    /// NET_SET_MTU; `false` refuses.
    fn set_mtu(&self, mtu_bytes: u16) -> bool {
        let _ = mtu_bytes;
        false
    }

    /// SEND_RARP; `false` refuses.
    fn send_rarp(&self, mac: [u8; 6]) -> bool {
        let _ = mac;
        false
    }

    /// Most bytes of one chain, readable and writable together; longer ones are malformed.
    fn max_chain_bytes(&self) -> u64 {
        u64::from(u32::MAX)
    }

    /// Most worker threads that are of use. Queues are dealt out to them in turn.
    fn workers(&self) -> usize {
        1
    }

    /// The handler of one worker, made in its thread.
    ///
    /// # Errors
    /// The host refuses what the handler needs; the queue is then not started.
    fn handler(&self) -> std::io::Result<Self::Handler>;
}

/// Tells the control thread that the configuration space changed; it tells the front-end.
#[derive(Clone, Debug)]
pub struct Announcer(pub(crate) Signal);

impl Announcer {
    /// The configuration space is another than before. Many changes may be told as one.
    pub fn config_changed(&self) {
        self.0.raise();
    }
}

/// What is left in the ring after [`Handler::process`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing: [`Queue::next`] returned `None`. The driver is asked to notify before the worker sleeps.
    Drained,
    /// Perhaps something, but the handler cannot go on. The driver is not asked to notify; the handler calls
    /// [`Queue::wake`] when it can.
    Blocked,
}

/// Serves the requests of the queues of one worker.
pub trait Handler {
    /// What an operation of the host carries: the request it is for. [`std::convert::Infallible`] for a device
    /// that submits none.
    type Op: Buffers;

    /// The queue may have requests: take them by [`Queue::next`] until there is none, and complete them now or
    /// submit host I/O that carries them. What was completed is published, and the driver interrupted, once
    /// after this returns.
    fn process(&mut self, queue: &mut Queue, io: &mut Io<'_, Self::Op>) -> Turn;

    /// An operation is over, with the bytes it moved or the host's error: complete its request or submit the rest.
    fn complete(
        &mut self,
        queue: &mut Queue,
        op: Self::Op,
        result: Result<u32, Errno>,
        io: &mut Io<'_, Self::Op>,
    );

    /// The same for an operation that no request waited for, and that outlived its queue.
    fn complete_alone(
        &mut self,
        op: Self::Op,
        result: Result<u32, Errno>,
        queues: &mut Queues,
        io: &mut Io<'_, Self::Op>,
    ) {
        let _ = (op, result, queues, io);
    }

    /// Whether operations of a queue that is suspended (GET_VRING_BASE_INFLIGHT) are cancelled. [`Handler::complete`] then
    /// gets them back with [`Errno::CANCELED`], and gives their requests to [`Queue::keep`]: they stay in flight for whoever
    /// serves the ring next. Otherwise they are waited for.
    const CANCELS: bool = false;

    /// The worker has waited: time has passed, and what follows happens at once.
    fn woke(&mut self) {}

    /// Answers, with an error if the device has one to give, a request that has ended this program several times: it
    /// must not be tried again.
    fn poisoned(&mut self, queue: &mut Queue, request: Request) {
        queue.abandon(request);
    }

    /// The worker begins: a place to watch descriptors and to make pools of tasks. Both stay across sessions.
    ///
    /// # Errors
    /// The host refuses; the worker then ends.
    fn start(&mut self, io: &mut Io<'_, Self::Op>) -> std::io::Result<()> {
        let _ = io;
        Ok(())
    }

    /// A watched descriptor became ready. Queues that can go on now are woken by [`Queue::wake`].
    fn ready(&mut self, source: Source, queues: &mut Queues, io: &mut Io<'_, Self::Op>) {
        let _ = (source, queues, io);
    }

    /// A timer has expired, and is not armed any more. Queues that can go on now are woken by [`Queue::wake`].
    fn expired(&mut self, timer: Timer, queues: &mut Queues, io: &mut Io<'_, Self::Op>) {
        let _ = (timer, queues, io);
    }

    /// A task has news ([`crate::task::TaskIo::tell`]). Queues that can go on now are woken by [`Queue::wake`].
    fn told(&mut self, queues: &mut Queues, io: &mut Io<'_, Self::Op>) {
        let _ = (queues, io);
    }

    /// The queue stops: give back every request that is not in an operation, or keep it if the queue is suspended. Those in
    /// operations are waited for.
    fn quiesce(&mut self, queue: &mut Queue, io: &mut Io<'_, Self::Op>) {
        let _ = (queue, io);
    }
}

/// Name that a handler gives to a descriptor it watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub u16);

/// Name that a handler gives to a timer: small numbers, a table is as long as the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer(pub u16);

/// The engine and the tasks of its worker, as a handler sees them.
pub struct Io<'a, T> {
    pub(crate) engine: &'a mut Engine<Tagged<T>>,
    pub(crate) tasks: &'a mut Tasks<T>,
}

impl<T: Buffers> Io<'_, T> {
    /// Begins a file operation for a request of the queue with this number; [`Handler::complete`] gets `owner` back.
    pub fn submit(&mut self, queue: u16, fd: RawFd, op: Op, owner: T) {
        self.engine.submit(fd, op, Tagged { home: Home::Queue(queue), owner });
    }

    /// Calls [`Handler::ready`] each time the descriptor becomes ready, and once if it is.
    ///
    /// # Errors
    /// The descriptor cannot be polled (a regular file).
    pub fn watch(&mut self, fd: BorrowedFd<'_>, interest: Interest, source: Source) -> std::io::Result<()> {
        self.engine.watch(fd, interest, Token(SOURCE_BASE | u32::from(source.0)))
    }

    /// Ends a watch; call it before the descriptor is closed.
    pub fn unwatch(&mut self, fd: BorrowedFd<'_>, source: Source) {
        self.engine.unwatch(fd, Token(SOURCE_BASE | u32::from(source.0)));
    }

    /// Calls [`Handler::expired`] at this moment, once. A timer that is armed already is moved. The clock is the
    /// monotonic one: setting the time of day changes nothing, and the time of a suspended host does not count.
    pub fn arm(&mut self, timer: Timer, at: Instant) {
        self.engine.arm(Sleeper::Handler(timer.0).alarm(), at);
    }

    /// A timer is not wanted any more. It may have expired just before.
    pub fn disarm(&mut self, timer: Timer) {
        self.engine.disarm(Sleeper::Handler(timer.0).alarm());
    }

    /// The tasks of this worker: a place for stories that are longer than a request.
    pub fn tasks(&mut self) -> &mut Tasks<T> {
        self.tasks
    }
}

/// Tokens of handlers; those below are the worker's own.
pub(crate) const SOURCE_BASE: u32 = 1 << 31;

/// The running queues of one worker, by their number in the device.
#[derive(Debug, Default)]
pub struct Queues {
    pub(crate) running: Vec<Option<Queue>>,
}

impl Queues {
    /// The queue with this number, if this worker serves it now.
    pub fn get(&mut self, index: u16) -> Option<&mut Queue> {
        self.running.get_mut(usize::from(index))?.as_mut()
    }

    /// The numbers of all of them.
    pub fn running(&self) -> impl Iterator<Item = u16> + use<> {
        let there: Vec<u16> =
            (0..).zip(&self.running).filter(|(_, queue)| queue.is_some()).map(|(at, _)| at).collect();
        there.into_iter()
    }

    pub(crate) fn any_woken(&self) -> bool {
        self.running.iter().flatten().any(Queue::is_woken)
    }

    pub(crate) fn any_more(&self) -> bool {
        self.running.iter().flatten().any(Queue::has_more)
    }

    /// Asks all drivers to notify. `true`: something came meanwhile.
    pub(crate) fn arm(&mut self) -> bool {
        self.running.iter_mut().flatten().fold(false, |more, queue| queue.arm() | more)
    }

    pub(crate) fn insert(&mut self, queue: Queue) {
        let at = usize::from(queue.index());
        if self.running.len() <= at {
            self.running.resize_with(at.saturating_add(1), || None);
        }
        if let Some(place) = self.running.get_mut(at) {
            *place = Some(queue);
        }
    }

    pub(crate) fn remove(&mut self, index: u16) -> Option<Queue> {
        self.running.get_mut(usize::from(index))?.take()
    }
}

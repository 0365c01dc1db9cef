//! One running virtqueue: requests out of it, completions into it, at most one interrupt a batch.
//!
//! In: a ring, guest memory, the call and error eventfds. Out: [`Request`]s, by three verbs that carry
//! everything: [`Queue::next`] takes a request, [`Queue::complete`] gives it back with what was written,
//! [`Queue::abandon`] gives it back with length 0 because it made no sense. [`Queue::flush`] publishes what
//! was given back, with one store and at most one interrupt; a large batch is published in parts.
//!
//! Where a front-end keeps an in-flight region, each request is marked there while it is out, and what a worker before
//! us had in flight comes out of `next` first ([`crate::inflight`]).
//!
//! Promises: a head is in flight at most once; requests in flight never exceed the queue size; a malformed
//! chain goes back at once and is counted; a broken ring is neither read nor written again, its error eventfd
//! is raised, and requests still in flight finish into memory that stays mapped. Memory outlives requests: a
//! queue dropped with requests in flight leaks its mapping on purpose.
//! Refuses: a head that is made available while it is in flight breaks the ring.

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

mod request;
mod restart;
mod setup;
mod timing;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::chain::{Limits, Malformed};
use crate::failpoint;
use crate::inflight::{Replay, Tracker};
use crate::log::{self, Class};
use crate::memory::Memory;
use crate::notify::Signal;
use crate::order::Order;
use crate::ring::{Ring, RingError, Take, Taken};
use crate::stats::{Batch, Count, QueueStats};
use request::Flight;
pub use request::Request;
pub use setup::{QueueSetup, WriteLog};
use timing::Timing;

/// Requests that one turn takes at most: a ring that is never empty leaves time for the others, and a driver gets some
/// of a long queue back, to work on, while the host has the rest.
const TURN_BUDGET: u16 = 64;
/// Requests given back that wait to be published at most: the driver works on them while we go on with the rest.
/// A whole turn at once would leave each side asleep while the other works.
const MAX_BATCH: u64 = 16;
/// Bytes of requests after which a turn takes no more: a device may have to touch each of them, or the host copy them
/// before the first is given back.
const TURN_BYTES: u64 = 1 << 20;
/// Buffers that a queue's requests in flight may have before no more are taken: what a long queue of long
/// chains could otherwise make us hold is gigabytes.
const MAX_SEGMENTS: usize = 1 << 16;
/// Buffers for which finished chains keep room: a megabyte in pages for as many as are usually in flight at a
/// time, little for the rest.
const USUAL_CHAINS: usize = 256;
const USUAL_SEGMENTS: usize = 256;
const FEW_SEGMENTS: usize = 16;

/// A virtqueue that is being served. It belongs to one thread.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    memory: Arc<Memory>,
    setup: QueueSetup,
    limits: Limits,
    /// By head or buffer id: the driver has not got it back.
    busy: Box<[bool]>,
    /// Ids whose used elements are filled and not published.
    filled: Vec<u16>,
    in_flight: u16,
    /// Buffers of requests in flight.
    segments: usize,
    /// Requests were left in the ring because those in flight have too many buffers.
    saturated: bool,
    /// Where the driver was promised that requests go back in order.
    order: Option<Order>,
    /// Finished requests, with the room their chains grew.
    // They are handed out as they are.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Flight>>,
    broken: Option<RingError>,
    tracker: Option<Tracker>,
    /// Somebody served it before us, as far as the region of what is in flight says.
    known: bool,
    /// What a worker before us had in flight and is not handed out yet.
    replays: VecDeque<Replay>,
    /// They ended that worker, and others before it.
    poisoned: bool,
    /// No new request is taken any more.
    closing: bool,
    /// What is in flight is left to whoever serves the ring next.
    suspended: bool,
    /// Requests that this turn may still take.
    budget: u16,
    /// Bytes that the requests of this turn may still have.
    budget_bytes: u64,
    /// What was given back since the last flush.
    batch: Batch,
    timing: Timing,
    /// Somebody wants the queue processed though its driver did not notify.
    woken: bool,
    /// The ring was empty, and the driver has not been asked to notify yet.
    unarmed: bool,
}

impl Queue {
    /// A queue that starts where its ring stands, or where [`Queue::recover`] finds that it should.
    pub fn new(ring: Ring, memory: Arc<Memory>, setup: QueueSetup) -> Queue {
        let size = ring.size();
        let in_order = setup.features & (1 << virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER) != 0;
        let indirect = setup.features & (1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC) != 0;
        Queue {
            limits: Limits {
                descriptors: size,
                bytes: setup.max_chain_bytes,
                indirect,
                log: setup.log.is_some(),
            },
            ring,
            memory,
            setup,
            busy: vec![false; usize::from(size)].into_boxed_slice(),
            filled: Vec::with_capacity(usize::from(size)),
            in_flight: 0,
            segments: 0,
            saturated: false,
            order: in_order.then(Order::default),
            spare: Vec::new(),
            broken: None,
            tracker: None,
            known: false,
            replays: VecDeque::new(),
            poisoned: false,
            closing: false,
            suspended: false,
            budget: TURN_BUDGET,
            budget_bytes: TURN_BYTES,
            batch: Batch::default(),
            timing: Timing::default(),
            woken: false,
            unarmed: false,
        }
    }

    /// Where it counts.
    pub fn stats(&self) -> &QueueStats {
        &self.setup.stats
    }

    /// Number in the device.
    pub fn index(&self) -> u16 {
        self.setup.index
    }

    /// Features that driver and device agreed on.
    pub fn features(&self) -> u64 {
        self.setup.features
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Takes the next well-formed request; `None` when there is none, the turn is over or the ring is broken.
    // The verb of the three that carry a request; not an iterator, since the queue is used between calls.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Request> {
        if self.poisoned { None } else { self.next_any() }
    }

    /// The next request, poisoned or not.
    #[inline]
    fn next_any(&mut self) -> Option<Request> {
        while self.budget > 0 && self.broken.is_none() {
            if self.segments >= MAX_SEGMENTS {
                self.saturated = true;
                return None;
            }
            let mut flight = self.spare.pop().unwrap_or_default();
            match self.take(&mut flight) {
                Ok(Some((taken, loaded))) => {
                    if let Some(request) = self.begin(taken, flight, loaded) {
                        return Some(request);
                    }
                }
                nothing => {
                    self.spare.push(flight);
                    if let Err(error) = nothing {
                        self.break_ring(error);
                    }
                    return None;
                }
            }
        }
        None
    }

    /// Takes a chain: what is to be served again first, then what is available.
    #[inline]
    fn take(&mut self, flight: &mut Flight) -> Take {
        flight.marked = !self.replays.is_empty();
        if let Some(replay) = self.replays.pop_front() {
            let loaded = self.ring.retake(&replay, &mut flight.chain, &self.memory, self.limits);
            return Ok(Some((replay.taken, loaded)));
        }
        if self.closing {
            return Ok(None);
        }
        self.ring.take(&mut flight.chain, &self.memory, self.limits, self.tracker.as_mut())
    }

    /// Marks what was taken as in flight; a malformed chain goes back.
    #[inline]
    fn begin(
        &mut self,
        taken: Taken,
        mut flight: Box<Flight>,
        loaded: Result<(), Malformed>,
    ) -> Option<Request> {
        match self.busy.get_mut(usize::from(taken.id)) {
            Some(busy) if !*busy => *busy = true,
            _ => {
                self.break_ring(RingError::InFlight(taken.id));
                return None;
            }
        }
        failpoint::reach("queue.popped");
        if let Some(tracker) = self.tracker.as_mut().filter(|_| !flight.marked) {
            tracker.mark(taken);
        }
        failpoint::reach("queue.marked");
        self.budget_bytes = self.budget_bytes.saturating_sub(flight.chain.bytes());
        self.budget = if self.budget_bytes == 0 { 0 } else { self.budget.saturating_sub(1) };
        self.in_flight = self.in_flight.saturating_add(1);
        flight.segments = flight.chain.segments();
        self.segments = self.segments.saturating_add(flight.segments);
        flight.number = self.order.as_mut().map_or(0, |order| order.begin(taken));
        (flight.taken, flight.taken_ns, flight.out) = (taken, self.timing.taken_ns(), true);
        let request = Request(flight);
        match loaded {
            Ok(()) => Some(request),
            Err(_) => {
                self.abandon(request);
                None
            }
        }
    }

    /// Gives a request back; the device wrote `written_bytes` to the front of its writable part.
    pub fn complete(&mut self, request: Request, written_bytes: u32) {
        self.timing.completed(request.0.taken_ns);
        self.batch.used = self.batch.used.wrapping_add(1);
        self.give_back(request, written_bytes);
    }

    /// Counts bytes that were carried, either way.
    pub fn count_bytes(&mut self, bytes: u64) {
        self.batch.bytes = self.batch.bytes.wrapping_add(bytes);
    }

    /// Gives a request back with length 0 because it is malformed, and counts it as such.
    pub fn abandon(&mut self, request: Request) {
        self.batch.malformed = self.batch.malformed.wrapping_add(1);
        self.give_back(request, 0);
    }

    fn give_back(&mut self, Request(mut flight): Request, written_bytes: u32) {
        self.release(&mut flight);
        if let Some(log) = &self.setup.log {
            log.mark_data(flight.chain.logged(), written_bytes);
        }
        if self.broken.is_none() {
            self.push_used(&flight, written_bytes);
            if self.batch.used.wrapping_add(self.batch.malformed) >= MAX_BATCH {
                self.show();
                self.timing.part_published(&self.setup.stats);
            }
        }
        self.store(flight);
    }

    /// It is in flight no more.
    #[inline]
    fn release(&mut self, flight: &mut Flight) {
        flight.out = false;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.segments = self.segments.saturating_sub(flight.segments);
        // What was left in the ring for want of room can go on.
        self.woken |= std::mem::take(&mut self.saturated);
    }

    #[inline]
    fn store(&mut self, mut flight: Box<Flight>) {
        flight.chain.clear();
        flight.chain.shrink(if self.spare.len() < USUAL_CHAINS { USUAL_SEGMENTS } else { FEW_SEGMENTS });
        self.spare.push(flight);
    }

    fn push_used(&mut self, flight: &Flight, written_bytes: u32) {
        let Some(order) = &mut self.order else {
            return self.fill_used(flight.taken, written_bytes);
        };
        order.finish(flight.number, written_bytes);
        while let Some((taken, written_bytes)) = self.order.as_mut().and_then(Order::next) {
            self.fill_used(taken, written_bytes);
        }
    }

    #[inline]
    fn fill_used(&mut self, taken: Taken, written_bytes: u32) {
        self.ring.push_used(taken, written_bytes);
        self.filled.push(taken.id);
        failpoint::reach("ring.element_written");
    }

    /// Shows the driver what was filled. `true`: it wants an interrupt for it.
    #[inline]
    fn publish(&mut self) -> bool {
        if let Some(tracker) = &mut self.tracker {
            tracker.announce(&self.ring, &self.filled);
        }
        let interrupt = self.ring.publish();
        failpoint::reach("ring.published");
        if let Some(tracker) = &mut self.tracker {
            tracker.settle(&self.ring, &self.filled);
        }
        failpoint::reach("queue.cleared");
        for id in self.filled.drain(..) {
            if let Some(busy) = self.busy.get_mut(usize::from(id)) {
                *busy = false;
            }
        }
        interrupt
    }

    /// Publishes what was given back since the last flush, and interrupts the driver if it wants that.
    pub fn flush(&mut self) {
        if self.batch.used != 0 || self.batch.malformed != 0 {
            self.show();
        }
        self.timing.published(&self.setup.stats);
    }

    /// Publishes and counts a batch.
    fn show(&mut self) {
        if self.broken.is_none() {
            let interrupt = self.publish();
            if let Some(log) = &self.setup.log {
                log.mark_ring();
            }
            if interrupt {
                self.setup.call.raise();
                self.setup.stats.add(Count::Interrupts, 1);
            }
        }
        self.setup.stats.published(&std::mem::take(&mut self.batch), self.in_flight);
    }

    fn break_ring(&mut self, error: RingError) {
        self.setup.stats.broke();
        let queue = self.setup.index;
        log::line!(warn, Class::RingBroken, queue, %error, "Ring broken by its driver; it stays stopped until it is set up again");
        self.broken = Some(error);
        self.setup.error.raise();
    }

    /// Requests taken and not given back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Why the ring is broken, if it is.
    pub fn broken(&self) -> Option<RingError> {
        self.broken
    }

    /// Asks for a turn although the driver may not notify: a device calls it when it can go on.
    pub fn wake(&mut self) {
        self.woken = true;
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken
    }

    pub(crate) fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    /// Begins a turn: a fresh budget, and no notifications while we look anyway.
    pub fn begin_turn(&mut self) {
        (self.budget, self.budget_bytes) = (TURN_BUDGET, TURN_BYTES);
        self.timing.begin_turn();
        if self.broken.is_none() {
            self.ring.disarm();
        }
    }

    /// Ends a turn. `true`: another one is due, because this one used up its budget. A handler that did not drain
    /// the ring wants no notification.
    pub fn end_turn(&mut self, drained: bool) -> bool {
        let open = self.broken.is_none() && drained && !self.saturated;
        self.timing.end_turn();
        self.unarmed = open && self.budget > 0;
        self.setup.stats.set_in_flight(self.in_flight);
        self.log_ring();
        open && self.budget == 0
    }

    /// Whether a ring that was empty, and whose driver was not asked to notify, has something.
    pub(crate) fn has_more(&self) -> bool {
        self.unarmed && self.ring.has_next()
    }

    /// Asks the driver to notify, if the ring was empty. `true`: something came meanwhile, do not wait for it.
    pub(crate) fn arm(&mut self) -> bool {
        if self.unarmed {
            self.unarmed = self.ring.arm();
            self.log_ring();
        }
        self.unarmed
    }

    /// Logs what arming and disarming wrote.
    fn log_ring(&self) {
        if let Some(log) = &self.setup.log {
            log.mark_ring();
        }
    }

    pub(crate) fn set_call(&mut self, call: Signal) {
        self.setup.call = call;
    }

    /// Where the ring is to go on after a stop.
    pub(crate) fn base(&self) -> u32 {
        self.ring.base()
    }

    /// The ring has not been served by anybody yet.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.known && self.ring.base() == Ring::first_base(matches!(self.ring, Ring::Packed(_)))
    }

    /// Interrupts unconditionally: whoever starts a ring may have missed a call before.
    pub(crate) fn raise_call(&self) {
        self.setup.call.raise();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            log::line!(
                error,
                Class::RequestLost,
                queue = self.setup.index,
                in_flight = self.in_flight,
                "Queue dropped with requests in flight"
            );
            // Their segments point into this memory: it stays mapped rather than becoming somebody else's.
            let _leaked = Arc::into_raw(Arc::clone(&self.memory));
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;

//! `features/quiesce`: everything holds still for a moment: for a snapshot of what is below, by whoever keeps it.
//!
//! ```text
//!             hold(true)                last call up      flushed
//! open ──────────────────► closed ────────────────────────────────► quiet       each worker for itself; the volume is
//!   ▲                         │ calls wait                            │          quiet when all of them are
//!   └── hold(false), or after `timeout` ◄──────────────────────────────┘
//! ```
//! In: any operation. Out: the same, in their order; while it is closed, none. Quiet is when nothing of a worker is under way below and all that was
//! written is durable there. Keeps what is below keeps. Promises: it opens by itself, also if whoever closed it is gone:
//! a guest is not held for ever. A queue that is stopped waits for that; one that is given up gets its calls back.
//! Refuses to be quiet when what is below cannot be flushed, or the queues have stopped through which that would be.

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

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;
use serde_json::{Map, Value};

use super::only;
use crate::call::Call;
use crate::graph::options::{Preset, Setting, Type};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Outcome, Release, Step, Volume};
use crate::op::{Keeps, Op};

/// What can be set.
pub const OPTIONS: &[Setting] = &[Setting {
    name: "timeout",
    kind: Type::Duration(Duration::from_millis(1)..=Duration::from_secs(3600)),
    preset: Preset::Is("10s"),
    about: "After what time it opens by itself",
}];

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "features/quiesce",
    about: "What is below, which can be made to hold still, durable, for a while",
    subvolumes: 1..=1,
    options: OPTIONS,
    prepare: None,
    make: |made| {
        let timeout = made.values.duration("timeout").unwrap_or(Duration::from_secs(10));
        Ok(Arc::new(Quiesce::new(timeout)))
    },
};

/// Word of the layer's own flush, and of calls that pass.
const OWN: u64 = 1;
const PASSING: u64 = 0;

/// A gate in the way of all calls.
#[derive(Debug)]
pub struct Quiesce {
    gate: Arc<Gate>,
    timeout: Duration,
    /// Of each worker that is there, the turn in which it became quiet.
    workers: Mutex<Vec<Weak<AtomicU64>>>,
}

#[derive(Debug, Default)]
struct Gate {
    /// Counts how often it was opened and closed: even, it is open.
    turn: AtomicU64,
    /// What is below could not be flushed in this turn.
    failed: AtomicBool,
}

fn is_closed(turn: u64) -> bool {
    turn & 1 == 1
}

impl Gate {
    fn turn(&self) -> u64 {
        self.turn.load(Ordering::Acquire)
    }

    /// Goes on from this turn to the next, if nobody else did.
    fn end(&self, turn: u64) {
        self.failed.store(false, Ordering::Relaxed);
        let _ = self.turn.compare_exchange(turn, turn.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl Quiesce {
    /// An open one, which is closed for no longer than this.
    pub fn new(timeout: Duration) -> Quiesce {
        Quiesce { gate: Arc::default(), timeout, workers: Mutex::default() }
    }

    /// Nothing is under way below, and all that was written is durable.
    pub fn is_quiet(&self) -> bool {
        let turn = self.gate.turn();
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut quiet =
            workers.iter().filter_map(Weak::upgrade).map(|quiet| quiet.load(Ordering::Acquire) == turn);
        is_closed(turn) && quiet.all(|is_quiet| is_quiet)
    }
}

impl Volume for Quiesce {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        only(below)
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        let quiet = Arc::new(AtomicU64::new(0));
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(&quiet));
        let (gate, waiting) = (Arc::clone(&self.gate), VecDeque::new());
        Ok(Box::new(Still {
            gate,
            timeout: self.timeout,
            quiet,
            turn: 0,
            waiting,
            below: 0,
            queue: None,
            flushing: None,
        }))
    }

    fn hold(&self, is_held: bool) -> bool {
        let turn = self.gate.turn();
        if is_closed(turn) != is_held {
            self.gate.end(turn);
        }
        true
    }

    fn state(&self) -> Map<String, Value> {
        let members: [(&str, Value); 4] = [
            ("closed", is_closed(self.gate.turn()).into()),
            ("quiet", self.is_quiet().into()),
            ("flush_failed", self.gate.failed.load(Ordering::Relaxed).into()),
            ("timeout_s", self.timeout.as_secs_f64().into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }
}

struct Still {
    gate: Arc<Gate>,
    timeout: Duration,
    quiet: Arc<AtomicU64>,
    /// As it was when we last looked.
    turn: u64,
    waiting: VecDeque<Call>,
    /// Calls that are under way below.
    below: u64,
    /// A queue of this worker: what the engine does is done for one.
    queue: Option<u16>,
    /// Our own flush is, since this turn.
    flushing: Option<u64>,
}

impl Still {
    /// Does what is to be done if the gate was opened or closed.
    #[inline]
    fn look(&mut self, host: &mut Host<'_>) {
        let turn = self.gate.turn();
        if turn != self.turn {
            self.turn = turn;
            self.turned(host);
        }
    }

    fn turned(&mut self, host: &mut Host<'_>) {
        if is_closed(self.turn) {
            if let Some(at) = host.now().checked_add(self.timeout) {
                host.arm(at);
            }
            return self.settle(host);
        }
        host.disarm();
        for mut call in std::mem::take(&mut self.waiting) {
            self.pass(&mut call);
            host.go(Step::Down(call));
        }
    }

    fn pass(&mut self, call: &mut Call) {
        self.below = self.below.saturating_add(1);
        self.queue = Some(call.queue());
        call.push(PASSING);
    }

    /// Once nothing is under way, what was written is flushed. Who never had a call has written nothing.
    fn settle(&mut self, host: &mut Host<'_>) {
        if !is_closed(self.turn) || self.below > 0 || self.flushing.is_some() {
            return;
        }
        match self.queue {
            None => self.quiet.store(self.turn, Ordering::Release),
            Some(queue) if host.is_stopping(queue) => self.gate.failed.store(true, Ordering::Relaxed),
            Some(queue) => {
                self.flushing = Some(self.turn);
                let mut flush = host.piece(queue, Op::Flush, []);
                flush.push(OWN);
                host.go(Step::Down(flush));
            }
        }
    }

    /// Our flush is over. One of another turn says nothing of what was written since.
    fn flushed(&mut self, outcome: Outcome, host: &mut Host<'_>) {
        let is_ours = self.flushing.take() == Some(self.turn);
        match outcome {
            _ if !is_ours => self.settle(host),
            Ok(()) => self.quiet.store(self.turn, Ordering::Release),
            Err(_) => self.gate.failed.store(true, Ordering::Relaxed),
        }
    }
}

impl Layer for Still {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        self.look(host);
        if is_closed(self.turn) {
            self.waiting.push_back(call);
            return Step::Held;
        }
        self.pass(&mut call);
        Step::Down(call)
    }

    fn complete(&mut self, mut call: Call, outcome: Outcome, host: &mut Host<'_>) -> Step {
        if call.pop() == OWN {
            host.end(call);
            self.flushed(outcome, host);
            return Step::Held;
        }
        self.below = self.below.saturating_sub(1);
        self.settle(host);
        Step::Up(call, outcome)
    }

    fn expired(&mut self, host: &mut Host<'_>) {
        if is_closed(self.turn) {
            self.gate.end(self.turn);
        }
        self.look(host);
    }

    fn rung(&mut self, host: &mut Host<'_>) {
        self.look(host);
    }

    fn release(&mut self, queue: u16, how: Release, host: &mut Host<'_>) {
        if how == Release::Go {
            return;
        }
        for call in std::mem::take(&mut self.waiting) {
            if call.queue() == queue {
                host.go(Step::Up(call, Err(Errno::CANCELED)));
            } else {
                self.waiting.push_back(call);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::graph::Graph;
    use crate::op::OpKind;
    use crate::testing::{Disk, Ram, stack};

    const LONG: Duration = Duration::from_secs(3600);

    fn graph(ram: &Ram, timeout: Duration) -> Graph {
        stack(vec![ram.volume(), Box::new(Quiesce::new(timeout))])
    }

    fn gate(graph: &Graph) -> &dyn Volume {
        &*graph.part(1).unwrap().volume
    }

    fn is_quiet(graph: &Graph) -> bool {
        gate(graph).state()["quiet"] == true
    }

    fn discard(at: u64) -> Op {
        Op::Discard { offset: at * 512, bytes: 512 }
    }

    #[test]
    fn it_is_quiet_when_all_is_up_and_flushed_and_goes_on_where_it_was() {
        let ram = Ram::new(1 << 20, 512).late(7);
        let graph = graph(&ram, LONG);
        let mut disk = Disk::new(&graph);
        let before: Vec<u64> = (0..8).map(|at| disk.begin(discard(at), &[])).collect();
        assert!(gate(&graph).hold(true));
        disk.ring();
        let after: Vec<u64> = (8..12).map(|at| disk.begin(discard(at), &[])).collect();
        assert!(!is_quiet(&graph));
        disk.until(|_| is_quiet(&graph));
        assert!(before.into_iter().all(|call| disk.done(call).is_some()));
        assert_eq!((ram.seen().len(), ram.seen().last(), ram.unflushed()), (9, Some(&OpKind::Flush), 0));
        disk.work(false);
        assert!(after.iter().all(|call| disk.done(*call).is_none()));
        assert!(gate(&graph).hold(false));
        disk.ring();
        for call in after {
            assert_eq!(disk.wait(call).outcome, Ok(()));
        }
        assert_eq!((ram.seen().len(), is_quiet(&graph)), (13, false));
    }

    #[test]
    fn who_has_nothing_under_way_is_flushed_and_all_workers_count() {
        let ram = Ram::new(1 << 20, 512);
        let graph = graph(&ram, LONG);
        let (mut one, mut other) = (Disk::new(&graph), Disk::new(&graph));
        one.write(0, &[1; 512]).unwrap();
        gate(&graph).hold(true);
        one.ring();
        // The other one has not heard of it yet; it has nothing to flush.
        assert_eq!((ram.unflushed(), is_quiet(&graph)), (0, false));
        other.ring();
        assert!(is_quiet(&graph));
        // Closed twice is closed once.
        gate(&graph).hold(true);
        assert!(is_quiet(&graph));
    }

    #[test]
    fn a_flush_of_an_earlier_turn_is_not_enough() {
        let ram = Ram::new(1 << 20, 512).late(7);
        let graph = graph(&ram, LONG);
        let mut disk = Disk::new(&graph);
        disk.run(discard(9)).unwrap();
        gate(&graph).hold(true);
        disk.ring();
        gate(&graph).hold(false);
        disk.ring();
        let write = disk.begin(discard(0), &[]);
        gate(&graph).hold(true);
        disk.ring();
        disk.until(|_| is_quiet(&graph));
        assert!(disk.done(write).is_some());
        assert_eq!((ram.unflushed(), ram.seen().last()), (0, Some(&OpKind::Flush)));
    }

    #[test]
    fn it_opens_by_itself() {
        let graph = graph(&Ram::new(1 << 20, 512), Duration::from_millis(30));
        let mut disk = Disk::new(&graph);
        let begin = Instant::now();
        gate(&graph).hold(true);
        let held = disk.begin(Op::Flush, &[]);
        assert!(disk.done(held).is_none());
        assert_eq!(disk.wait(held).outcome, Ok(()));
        assert!(begin.elapsed() >= Duration::from_millis(30));
        assert_eq!(gate(&graph).state()["closed"], false);
    }

    #[test]
    fn a_stop_waits_for_it_and_a_queue_that_is_given_up_does_not() {
        let graph = graph(&Ram::new(1 << 20, 512), LONG);
        let mut disk = Disk::new(&graph);
        gate(&graph).hold(true);
        let held = disk.begin(discard(0), &[]);
        disk.stop(Release::Go);
        assert!(disk.done(held).is_none());
        disk.stop(Release::Cancel);
        assert_eq!(disk.done(held).unwrap().outcome, Err(Errno::CANCELED));
    }

    #[test]
    fn what_cannot_be_flushed_is_not_quiet() {
        let ram = Ram::new(1 << 20, 512);
        let graph = graph(&ram, LONG);
        let mut disk = Disk::new(&graph);
        disk.write(0, &[1; 512]).unwrap();
        ram.fail(OpKind::Flush, Some(Errno::IO));
        gate(&graph).hold(true);
        disk.ring();
        assert!(!is_quiet(&graph));
        assert_eq!(gate(&graph).state()["flush_failed"], true);
    }
}

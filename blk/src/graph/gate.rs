//! The gate: all workers stop before it for a moment, and go on in another graph.
//!
//! ```text
//! control thread                     workers
//!   close ──────────────bell───────► take nothing new; what is under way comes up; drained
//!                                    the last one has volumes that go make durable what they took
//!   settle ◄────────────bell──────── ready
//!     commit, open ─────bell───────► go on, in the new graph or in the old one
//! ```
//! In: the graph that is to come ([`Gate::close`]), and from each worker that nothing of it is under way
//! ([`Place::drained`]). Out: to each worker the graph to go on in ([`News`]), to the control thread how it went
//! ([`Settled`]). Promises: no call is served by one graph while another is served by the other; who does not drain in time
//! is told, and the old graph goes on; an open gate costs a worker one load a turn. Refuses a change while one is under way.

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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::Volume;
use super::live::Live;

/// How long workers may take to drain before the change is given up.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Between the graph and those who serve it.
#[derive(Debug)]
pub struct Gate {
    /// Counts what happened to the gate: even, it is open; odd, it is closed.
    turn: AtomicUsize,
    inner: Mutex<Inner>,
    /// Rings for the control thread.
    bell: OwnedFd,
}

#[derive(Debug)]
struct Inner {
    live: Arc<Live>,
    /// By number; those that ended leave their place empty.
    workers: Vec<Option<Worker>>,
    change: Option<Change>,
}

#[derive(Debug)]
struct Worker {
    bell: Arc<OwnedFd>,
    drained: bool,
    /// Calls that are under way, as of its last word.
    waits_for: usize,
}

/// A change for which the gate is closed.
#[derive(Debug)]
struct Change {
    next: Arc<Live>,
    since: Instant,
    /// All have drained, and this is what came of making durable what had to be.
    ready: Option<Result<(), String>>,
    /// Somebody sees to that.
    saving: bool,
}

/// What a worker is to do.
#[derive(Debug)]
pub enum News {
    /// Drain, and be ready to go on in this graph.
    Close(Arc<Live>),
    /// Go on in this graph.
    Open(Arc<Live>),
}

/// How a change went.
#[derive(Debug)]
pub struct Settled {
    /// Why the old graph goes on.
    pub outcome: Result<(), String>,
    /// The graph that is served no more, or was never.
    pub retired: Arc<Live>,
    /// How long the gate was closed.
    pub pause: Duration,
}

impl Gate {
    /// Before this graph, open.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(live: Live) -> io::Result<Gate> {
        let inner = Inner { live: Arc::new(live), workers: Vec::new(), change: None };
        Ok(Gate { turn: AtomicUsize::new(0), inner: Mutex::new(inner), bell: bell()? })
    }

    /// The graph that is served.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.lock().live)
    }

    /// Readable when [`Gate::settle`] has something to settle.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// A worker begins.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn enter(self: &Arc<Gate>) -> io::Result<(Place, Arc<Live>)> {
        let bell = Arc::new(bell()?);
        let mut inner = self.lock();
        let number = inner.workers.len();
        inner.workers.push(Some(Worker { bell: Arc::clone(&bell), drained: false, waits_for: 0 }));
        if inner.change.is_some() {
            ring(&bell);
        }
        let place = Place { gate: Arc::clone(self), number, seen: 0, bell };
        Ok((place, Arc::clone(&inner.live)))
    }

    /// Has all workers drain, to go on in `next`. `false`: they do so already for another change.
    pub fn close(&self, next: Arc<Live>, now: Instant) -> bool {
        let mut inner = self.lock();
        if inner.change.is_some() {
            return false;
        }
        inner.change = Some(Change { next, since: now, ready: None, saving: false });
        inner.workers.iter_mut().flatten().for_each(|worker| (worker.drained, worker.waits_for) = (false, 0));
        self.pass(&inner);
        drop(inner);
        self.save_if_drained();
        true
    }

    /// When a change that nobody settled by then is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.lock().change.as_ref().and_then(|change| change.since.checked_add(PATIENCE))
    }

    /// Opens the gate, if all have drained, in the new graph once `commit` has seen to it that it outlives this process;
    /// or, if they have not in time or something failed, in the old one.
    pub fn settle(&self, now: Instant, commit: impl FnOnce(&Live) -> Result<(), String>) -> Option<Settled> {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let mut inner = self.lock();
        let change = inner.change.take()?;
        let pause = now.saturating_duration_since(change.since);
        let outcome = match &change.ready {
            Some(saved) => saved.clone().and_then(|()| commit(&change.next)),
            None if pause < PATIENCE => {
                inner.change = Some(change);
                return None;
            }
            None => Err(stuck(&inner.workers)),
        };
        let mut retired = change.next;
        if outcome.is_ok() {
            std::mem::swap(&mut inner.live, &mut retired);
        }
        self.pass(&inner);
        let pause = change.since.elapsed();
        Some(Settled { outcome, retired, pause })
    }

    /// All workers look at what they share, the gate and volumes ([`super::Layer::rung`]).
    pub fn ring_all(&self) {
        self.lock().workers.iter().flatten().for_each(|worker| ring(&worker.bell));
    }

    /// What happened to the gate is for all workers to see.
    fn pass(&self, inner: &Inner) {
        self.turn.fetch_add(1, Ordering::Release);
        inner.workers.iter().flatten().for_each(|worker| ring(&worker.bell));
    }

    /// Once all have drained: what volumes that go have taken becomes durable, before another one serves. Here nobody
    /// has anything else to do.
    fn save_if_drained(&self) {
        let mut inner = self.lock();
        let drained = inner.workers.iter().flatten().all(|worker| worker.drained);
        let live = Arc::clone(&inner.live);
        let Some(change) = inner.change.as_mut().filter(|change| drained && !change.saving) else { return };
        change.saving = true;
        let next = Arc::clone(&change.next);
        drop(inner);
        let saved = live.volumes_without(&next).try_for_each(|(name, volume)| save(name, &**volume));
        if let Some(change) = &mut self.lock().change
            && Arc::ptr_eq(&change.next, &next)
        {
            change.ready = Some(saved);
        }
        ring(&self.bell);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's place before the gate.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    number: usize,
    /// The turn of the gate that it knows of.
    seen: usize,
    bell: Arc<OwnedFd>,
}

impl Place {
    /// Becomes readable each time there may be [`News`].
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Nothing new may be begun.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.gate.turn.load(Ordering::Acquire) & 1 == 1
    }

    /// What has happened to the gate since this was last asked.
    pub fn news(&mut self) -> Option<News> {
        let inner = self.gate.lock();
        let turn = self.gate.turn.load(Ordering::Acquire);
        if std::mem::replace(&mut self.seen, turn) == turn {
            return None;
        }
        Some(match &inner.change {
            Some(change) => News::Close(Arc::clone(&change.next)),
            None => News::Open(Arc::clone(&inner.live)),
        })
    }

    /// So many calls of this worker are under way, while the gate is closed: with none it has drained.
    pub fn waits_for(&self, calls: usize) {
        if let Some(Some(worker)) = self.gate.lock().workers.get_mut(self.number) {
            (worker.waits_for, worker.drained) = (calls, calls == 0);
        }
        if calls == 0 {
            self.gate.save_if_drained();
        }
    }

    /// This worker cannot go on in the graph that is to come.
    pub fn refuse(&self, why: &io::Error) {
        if let Some(change) = &mut self.gate.lock().change {
            change.saving = true;
            change.ready = Some(Err(format!("a worker cannot take it: {why}; free memory or descriptors")));
        }
        ring(&self.gate.bell);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(place) = self.gate.lock().workers.get_mut(self.number) {
            *place = None;
        }
        self.gate.save_if_drained();
    }
}

fn save(name: &str, volume: &dyn Volume) -> Result<(), String> {
    volume.make_durable().map_err(|error| {
        format!(
            "volume {name}: what was written to it cannot be made durable: {error}; see the disk below it"
        )
    })
}

fn stuck(workers: &[Option<Worker>]) -> String {
    let waiting = workers.iter().flatten().filter(|worker| !worker.drained);
    let calls: usize = waiting.map(|worker| worker.waits_for).sum();
    format!(
        "{calls} requests were still under way after {} ms; see which volume holds them (graph show), then try again",
        PATIENCE.as_millis()
    )
}

fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn ring(bell: &OwnedFd) {
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;

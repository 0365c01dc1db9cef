//! The engine of a worker: one place to sleep in, for kicks, disk, sockets and other threads.
//!
//! In: descriptors to watch, and file operations on guest buffers. Out: [`Event`]s. File I/O works by
//! completion: [`Engine::submit`] takes the operation *and its owner* (the request with its buffers), keeps
//! it while the host works, and gives both back in [`Event::Done`], failed or not, so that neither can be
//! lost. Everything else works by readiness: [`Engine::watch`] reports each time a descriptor becomes ready
//! (edges, not levels: eventfds never need to be read), and the handler does its own non-blocking calls.
//! [`Engine::arm`] sets an alarm on the monotonic clock. The wait itself takes its time limit: alarms cost neither a
//! descriptor nor a thread, and without one an idle thread sleeps for ever.
//!
//! Two implementations, one meaning: `uring` submits a batch with the system call that waits for the next,
//! `epoll` does file I/O on the spot. Nothing is allocated per operation: owners live in a slab that grows to
//! the number in flight and stays.
//! Refuses: descriptors that cannot be polled; they are reported by an error from [`Engine::watch`] (epoll) or
//! as [`Event::Deaf`] (io_uring).

pub mod epoll;
pub mod uring;

pub(crate) mod slab;
mod timers;

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::memory::Segment;
use slab::Slab;
use timers::Timers;

/// What an operation works on: whatever owns the buffers.
pub trait Buffers {
    /// The buffers. They are read once, when the operation begins.
    fn segments(&self) -> &[Segment];
}

/// A device without host I/O by completion has no operations.
impl Buffers for std::convert::Infallible {
    fn segments(&self) -> &[Segment] {
        match *self {}
    }
}

/// File operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read the file at this offset into the buffers.
    Read {
        /// Bytes from the start.
        offset: u64,
    },
    /// Write the buffers to the file at this offset.
    Write {
        /// Bytes from the start.
        offset: u64,
        /// It is not over before these bytes are durable (`RWF_DSYNC`); says nothing about writes before it.
        durable: bool,
    },
    /// Make all completed writes durable (`fdatasync`).
    Sync,
    /// Change what a range of the file occupies (`fallocate`), never the file's size. Answers 0 bytes.
    Reserve {
        /// What becomes of it.
        room: Room,
        /// Bytes from the start.
        offset: u64,
        /// At least 1.
        bytes: u64,
    },
}

/// What becomes of a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It is given back: a hole, which reads as zeros.
    Hole,
    /// It reads as zeros and keeps its room.
    Zeros,
    /// It has room, and reads as before.
    Kept,
}

impl Room {
    /// Flags of fallocate(2).
    pub(crate) fn mode(self) -> i32 {
        libc::FALLOC_FL_KEEP_SIZE
            | match self {
                Room::Hole => libc::FALLOC_FL_PUNCH_HOLE,
                Room::Zeros => libc::FALLOC_FL_ZERO_RANGE,
                Room::Kept => 0,
            }
    }
}

/// Name of a watched descriptor, chosen by whoever watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u32);

/// Number of an alarm, chosen by whoever arms it. Small ones: a table is as long as the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm(pub u32);

/// What readiness to watch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Readable, or the other side went.
    Read,
    /// Writable, or the other side went.
    Write,
    /// Either.
    Both,
}

/// What the engine has to say.
#[derive(Debug)]
pub enum Event<T> {
    /// A watched descriptor became ready, or may have: a spurious one does no harm.
    Ready(Token),
    /// A watched descriptor cannot be watched any more.
    Deaf(Token),
    /// An alarm went off. It is not armed any more.
    Expired(Alarm),
    /// An operation is over: its owner, and the bytes moved or why not.
    Done(T, Result<u32, Errno>),
}

/// Which implementation to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    /// io_uring, or epoll where the kernel refuses io_uring.
    #[default]
    Auto,
    /// io_uring only.
    IoUring,
    /// epoll only.
    Epoll,
}

/// The engine of one thread.
pub struct Engine<T> {
    inner: Inner,
    slab: Slab<T>,
    timers: Timers,
    events: VecDeque<Event<T>>,
}

/// How long a wait may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nap {
    None,
    AtMost(Duration),
    Endless,
}

// One a thread, for its whole life: a box would only add a hop to each call.
#[allow(clippy::large_enum_variant)]
enum Inner {
    Uring(uring::Uring),
    Epoll(epoll::Epoll),
}

/// What an engine needs of the kernel, for a thread that has yet to start: made before the sandbox closes.
/// A ring, or nothing, which is all that epoll needs.
pub struct Prepared(Option<uring::Disabled>);

impl Prepared {
    /// For one thread.
    ///
    /// # Errors
    /// The kernel refuses what `kind` asks for.
    pub fn new(kind: EngineKind) -> std::io::Result<Prepared> {
        Prepared::fenced(kind, None)
    }

    /// The same; `fence` stays open until the kernel has ended all its operations, which may be after the end of this
    /// process.
    ///
    /// # Errors
    /// As from [`Prepared::new`].
    pub fn fenced(kind: EngineKind, fence: Option<BorrowedFd<'_>>) -> std::io::Result<Prepared> {
        Ok(Prepared(match kind {
            EngineKind::IoUring => Some(uring::Disabled::new(fence)?),
            // A process does not end before its threads, and they not in the middle of a read or write.
            EngineKind::Epoll => None,
            EngineKind::Auto => uring::Disabled::new(fence)
                .inspect_err(|error| tracing::info!(%error, "io_uring is not to be had here, using epoll"))
                .ok(),
        }))
    }

    /// Of io_uring, not of epoll.
    pub fn is_ring(&self) -> bool {
        self.0.is_some()
    }

    /// What can be had in a sandbox.
    pub fn late() -> Prepared {
        Prepared(None)
    }
}

impl<T: Buffers> Engine<T> {
    /// An engine for the calling thread; only this thread may use it.
    ///
    /// # Errors
    /// The kernel refuses what `kind` asks for.
    pub fn new(kind: EngineKind) -> std::io::Result<Engine<T>> {
        Engine::from_prepared(Prepared::new(kind)?)
    }

    /// The same of what was prepared for this thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn from_prepared(prepared: Prepared) -> std::io::Result<Engine<T>> {
        let inner = match prepared.0 {
            Some(ring) => Inner::Uring(ring.enable()?),
            None => Inner::Epoll(epoll::Epoll::new()?),
        };
        Ok(Engine { inner, slab: Slab::default(), timers: Timers::default(), events: VecDeque::new() })
    }

    /// Reports each time `fd` becomes ready, until [`Engine::unwatch`]. It is reported once at the beginning if
    /// it is ready already. The descriptor must stay open that long.
    ///
    /// # Errors
    /// The descriptor cannot be polled.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, interest: Interest, token: Token) -> std::io::Result<()> {
        match &mut self.inner {
            Inner::Uring(uring) => uring.watch(fd, interest, token),
            Inner::Epoll(epoll) => epoll.watch(fd, interest, token),
        }
    }

    /// Ends a watch. Events that are under way may still come.
    pub fn unwatch(&mut self, fd: BorrowedFd<'_>, token: Token) {
        match &mut self.inner {
            Inner::Uring(uring) => uring.unwatch(token),
            Inner::Epoll(epoll) => epoll.unwatch(fd),
        }
    }

    /// Begins an operation. It reaches the kernel with the next [`Engine::wait`] at the latest.
    pub fn submit(&mut self, fd: RawFd, op: Op, owner: T) {
        match &mut self.inner {
            Inner::Uring(uring) => uring.submit(fd, op, owner, &mut self.slab),
            Inner::Epoll(epoll) => {
                let result = epoll.perform(fd, op, owner.segments());
                self.events.push_back(Event::Done(owner, result));
            }
        }
    }

    /// Asks the host to give up the operations of these owners. Each still ends by an event: as cancelled, or as it would
    /// have ended, if it was too late.
    pub fn cancel(&mut self, which: impl Fn(&T) -> bool) {
        match &mut self.inner {
            Inner::Uring(uring) => uring.cancel(&self.slab, which),
            // They were over when they were submitted.
            Inner::Epoll(_) => {}
        }
    }

    /// Operations that are not over.
    pub fn in_flight(&self) -> usize {
        self.slab.len()
    }

    /// Reports [`Event::Expired`] at this moment, once; an alarm that is armed already is moved.
    pub fn arm(&mut self, alarm: Alarm, at: Instant) {
        self.timers.arm(alarm, at);
    }

    /// An alarm is not wanted any more. If it went off already, its event may still come.
    pub fn disarm(&mut self, alarm: Alarm) {
        self.timers.disarm(alarm);
    }

    /// When the next alarm goes off.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Submits what waits to be, and sleeps until there is an event if `sleep`; otherwise only looks.
    ///
    /// # Errors
    /// The engine itself failed, and cannot be used any more.
    pub fn wait(&mut self, sleep: bool) -> std::io::Result<()> {
        let nap = if sleep && self.events.is_empty() { self.nap() } else { Nap::None };
        match &mut self.inner {
            Inner::Uring(uring) => uring.wait(nap, &mut self.slab, &mut self.events)?,
            Inner::Epoll(epoll) => epoll.wait(nap, &mut self.events)?,
        }
        self.expire();
        Ok(())
    }

    /// Until the next alarm.
    fn nap(&self) -> Nap {
        let Some(at) = self.deadline() else { return Nap::Endless };
        match at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Nap::None,
            left => Nap::AtMost(left),
        }
    }

    fn expire(&mut self) {
        if self.deadline().is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(alarm) = self.timers.expire(now) {
            self.events.push_back(Event::Expired(alarm));
        }
    }

    /// Whether [`Engine::wait`] would have something to do, told without a system call; `None` where that cannot be.
    pub fn is_ready(&mut self) -> Option<bool> {
        match &mut self.inner {
            Inner::Uring(uring) => Some(!self.events.is_empty() || uring.is_ready()),
            Inner::Epoll(_) => None,
        }
    }

    /// The next event, if one has come.
    pub fn event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }
}

/// The kernel may still write into buffers of what is in flight: they are kept until it does not.
impl<T> Drop for Engine<T> {
    fn drop(&mut self) {
        if let Inner::Uring(uring) = &mut self.inner {
            uring.drain(&mut self.slab);
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;

//! A port: the state between a pair of queues and the host side.
//!
//! **Guest to host.** Chains are written to the host straight from guest memory, each by a call of its own.
//!
//! ```text
//! somebody reads, takes bytes    written; chains completed
//! somebody reads, is slow        chains stay in the ring, those in hand wait: the guest is held back, nothing is lost
//! nobody reads                   chains are completed; the last KEEP_BYTES stay for the next reader, older ones are
//!                                dropped, counted, and logged at most once a second
//! the queue stops                chains in hand move to the backlog: GET_VRING_BASE never waits for a reader
//! ```
//! What waits in the backlog goes first, so nothing overtakes. What the host's kernel took for a reader who
//! then went away is that reader's.
//!
//! **Host to guest.** At most [`EARLY_BYTES`] are read ahead, to know that there is something before a buffer is
//! taken from the ring: no buffer ever waits in our hands for a host that says nothing. The rest is read
//! straight into that buffer. Without buffers the host's own buffers fill up and hold the sender back.
//! A socket is only looked at: its bytes are taken when the driver has been shown them, so that a daemon that dies
//! loses none, and the next one repeats those of one chain at most.
//!
//! Refuses: transmit chains without a readable byte, receive chains with one or without a writable one; they go
//! back empty, and the host's bytes wait for the next.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backends::device::{Queues, Source, Turn};
use backends::failpoint;
use backends::log::{self, Class};
use backends::memory::Segment;
use backends::queue::{Queue, Request};
use backends::sys;
use rustix::io::{Errno, retry_on_intr};

use crate::backlog::Backlog;
use crate::host::{HostIo, HostSide, Moved, await_writable, peek};
use crate::outgoing::{BATCH_BYTES, Outgoing, fill_window};
use crate::wire::{RECEIVEQ, TRANSMITQ};

/// What the guest wrote while nobody read: this much of it is kept.
pub const KEEP_BYTES: usize = 64 * 1024;
/// What is read from the host before a buffer is taken from the ring.
pub const EARLY_BYTES: usize = 4096;
/// Chains in hand when a queue stops are kept beside that, so that a chain of [`KEEP_BYTES`] loses nothing.
const BACKLOG_BYTES: usize = KEEP_BYTES + BATCH_BYTES;
/// Bytes after which a queue's turn ends, so that the other queue and the control thread get theirs.
const TURN_BYTES: u64 = 1024 * 1024;
/// How long the end of the daemon waits for a reader to take the backlog.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// One port of the device.
pub struct Port {
    host: Box<dyn HostSide>,
    early: Early,
    outgoing: Outgoing,
    backlog: Backlog,
    into: Vec<Segment>,
    counts: Counts,
}

/// Is everything written that was waiting?
enum Flushed {
    Yes,
    Slow,
    Nobody,
}

impl Port {
    /// A port on this host side, which tells `drops` what is lost.
    pub fn new(host: Box<dyn HostSide>, drops: Arc<Drops>) -> Port {
        Port {
            host,
            early: Early::default(),
            outgoing: Outgoing::default(),
            backlog: Backlog::new(BACKLOG_BYTES),
            into: Vec::new(),
            counts: Counts { to_host: 0, to_guest: 0, drops },
        }
    }

    /// The worker begins.
    ///
    /// # Errors
    /// The host side cannot be watched.
    pub fn start(&mut self, io: &mut HostIo<'_>) -> io::Result<()> {
        self.host.start(io)
    }

    /// Something happened on the host side: whatever can go on now goes on.
    pub fn ready(&mut self, source: Source, queues: &mut Queues, io: &mut HostIo<'_>) {
        self.host.ready(source, io);
        self.go_on(queues);
    }

    /// The host side is not what it was: whatever can go on now goes on.
    pub fn go_on(&mut self, queues: &mut Queues) {
        self.counts.drops.client_left.store(self.host.lost_input(), Ordering::Relaxed);
        self.flush();
        for index in [RECEIVEQ, TRANSMITQ] {
            if let Some(queue) = queues.get(index) {
                queue.wake();
            }
        }
    }

    /// A turn of the transmit queue.
    pub fn transmit(&mut self, queue: &mut Queue) -> Turn {
        let mut moved: u64 = 0;
        while moved < TURN_BYTES {
            let flushed = self.flush();
            if matches!(flushed, Flushed::Slow) {
                return Turn::Blocked;
            }
            self.outgoing.gather(queue);
            if self.outgoing.is_empty() {
                return Turn::Drained;
            }
            match self.write_chains(flushed) {
                Moved::Bytes(count) => {
                    failpoint::reach("console.written");
                    self.outgoing.advance(usize::try_from(count).unwrap_or(usize::MAX), queue);
                    self.counts.to_host = self.counts.to_host.wrapping_add(u64::from(count));
                    moved = moved.saturating_add(u64::from(count));
                }
                Moved::Later => return Turn::Blocked,
                Moved::Nobody => self.keep(queue, KEEP_BYTES),
            }
        }
        queue.wake();
        Turn::Blocked
    }

    /// Writes what is in hand, unless older bytes found nobody: they must not be overtaken.
    fn write_chains(&mut self, flushed: Flushed) -> Moved {
        if matches!(flushed, Flushed::Nobody) {
            return Moved::Nobody;
        }
        let window = self.outgoing.window();
        self.host.write(&mut |fd| sys::writev(fd, window))
    }

    /// Writes the backlog, as far as somebody takes it.
    fn flush(&mut self) -> Flushed {
        while !self.backlog.is_empty() {
            let slices = self.backlog.slices();
            match self.host.write(&mut |fd| bytes_moved(|| rustix::io::writev(fd, &slices))) {
                Moved::Bytes(count) => {
                    self.backlog.consume(usize::try_from(count).unwrap_or(usize::MAX));
                    self.counts.to_host = self.counts.to_host.wrapping_add(u64::from(count));
                }
                Moved::Later => return Flushed::Slow,
                Moved::Nobody => return Flushed::Nobody,
            }
        }
        Flushed::Yes
    }

    /// Keeps what is in hand for a later reader, and completes it.
    fn keep(&mut self, queue: &mut Queue, limit: usize) {
        let mut dropped: u64 = 0;
        let backlog = &mut self.backlog;
        self.outgoing
            .give_up(queue, |segment| dropped = dropped.saturating_add(backlog.store(segment, limit)));
        self.counts.drop_bytes(dropped);
    }

    /// The transmit queue stops: nothing of it stays in hand.
    pub fn stop_transmit(&mut self, queue: &mut Queue) {
        self.keep(queue, BACKLOG_BYTES);
    }

    /// A turn of the receive queue.
    pub fn receive(&mut self, queue: &mut Queue) -> Turn {
        let mut moved: u64 = 0;
        while moved < TURN_BYTES {
            if !self.early.fill(&mut *self.host) {
                return Turn::Blocked;
            }
            let Some(request) = queue.next() else { return Turn::Drained };
            if !request.readable().is_empty() || request.writable().is_empty() {
                queue.abandon(request);
                continue;
            }
            moved = moved.saturating_add(self.pour(queue, request));
        }
        queue.wake();
        Turn::Blocked
    }

    /// Fills a buffer with what was read ahead and with what else there is; the bytes written.
    fn pour(&mut self, queue: &mut Queue, mut request: Request) -> u64 {
        let mut written = self.early.move_into(&mut request);
        let looked = self.host.can_look();
        if !looked && !request.writable().is_empty() {
            fill_window(&mut self.into, request.writable());
            let into = &self.into;
            if let Moved::Bytes(count) = self.host.read(&mut |fd| sys::readv(fd, into)) {
                written = written.saturating_add(count);
            }
        }
        failpoint::reach("console.read");
        self.counts.to_guest = self.counts.to_guest.wrapping_add(u64::from(written));
        queue.count_bytes(u64::from(written));
        queue.complete(request, written);
        if looked {
            queue.flush();
            self.early.take_seen(&mut *self.host, written);
        }
        u64::from(written)
    }

    /// Writes the backlog to a reader who is there, for a short time.
    fn drain(&mut self) {
        let until = Instant::now().checked_add(DRAIN_PATIENCE);
        let Some(fd) = self.host.writer() else { return };
        while !self.backlog.is_empty() {
            if !await_writable(fd.as_fd(), until) {
                return;
            }
            let Ok(count) = rustix::io::writev(&fd, &self.backlog.slices()) else { return };
            self.backlog.consume(count);
            self.counts.to_host = self.counts.to_host.wrapping_add(u64::try_from(count).unwrap_or(0));
        }
    }
}

/// The daemon ends: the reader gets the rest, the user the account.
impl Drop for Port {
    fn drop(&mut self) {
        self.drain();
        let Counts { to_host, to_guest, ref drops } = self.counts;
        let dropped = drops.nobody_reads.load(Ordering::Relaxed);
        let (never_read, input_unread) = (self.backlog.len(), self.early.left().len());
        let input_dropped = self.host.lost_input();
        tracing::info!(to_host, to_guest, dropped, never_read, input_dropped, input_unread, "port");
    }
}

/// Repeats a call that a signal interrupts.
fn bytes_moved(call: impl FnMut() -> Result<usize, Errno>) -> Result<u32, Errno> {
    retry_on_intr(call).map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// Bytes that were read before there was a buffer for them.
struct Early {
    bytes: Box<[u8; EARLY_BYTES]>,
    from: usize,
    to: usize,
}

impl Default for Early {
    fn default() -> Early {
        Early { bytes: Box::new([0; EARLY_BYTES]), from: 0, to: 0 }
    }
}

impl Early {
    fn left(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    /// Reads ahead if nothing is left, or looks at what there is; `false` when the host has nothing to say.
    fn fill(&mut self, host: &mut dyn HostSide) -> bool {
        let look = host.can_look();
        if !look && !self.left().is_empty() {
            return true;
        }
        let bytes = &mut self.bytes[..];
        let read = host.read(&mut |fd| {
            bytes_moved(|| match look {
                true => peek(fd, &mut *bytes),
                false => rustix::io::read(fd, &mut *bytes),
            })
        });
        let count = if let Moved::Bytes(count) = read { usize::try_from(count).unwrap_or(0) } else { 0 };
        (self.from, self.to) = (0, count);
        count > 0
    }

    /// Takes from the host what was looked at and has been shown to the driver.
    fn take_seen(&mut self, host: &mut dyn HostSide, count: u32) {
        let mut left = usize::try_from(count).unwrap_or(0);
        (self.from, self.to) = (0, 0);
        while left > 0 {
            let bytes = self.bytes.get_mut(..left).unwrap_or_default();
            let taken = host.read(&mut |fd| bytes_moved(|| rustix::io::read(fd, &mut *bytes)));
            let Moved::Bytes(taken) = taken else { return };
            left = left.saturating_sub(usize::try_from(taken).unwrap_or(left));
        }
    }

    /// Moves as much as there is room for to the front of a request.
    fn move_into(&mut self, request: &mut Request) -> u32 {
        let room = usize::try_from(request.writable_bytes()).unwrap_or(usize::MAX);
        let left = self.left();
        let part = left.get(..room.min(left.len())).unwrap_or_default();
        if request.write_front(part).is_none() {
            return 0;
        }
        let count = part.len();
        self.from = self.from.saturating_add(count);
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Bytes that were lost, by cause: the port counts them, anybody may read them.
#[derive(Debug, Default)]
pub struct Drops {
    /// The guest wrote them while nobody read, and more after them.
    pub nobody_reads: AtomicU64,
    /// A client sent them and left, and so did too many after it, before the guest had read them.
    pub client_left: AtomicU64,
}

/// What the port has carried and lost.
struct Counts {
    to_host: u64,
    to_guest: u64,
    drops: Arc<Drops>,
}

impl Counts {
    /// Counts what the guest wrote and nobody will read; says so at most once a second.
    fn drop_bytes(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let before = self.drops.nobody_reads.fetch_add(bytes, Ordering::Relaxed);
        log::line!(
            warn,
            Class::ConsoleDropped,
            dropped_bytes = before.saturating_add(bytes),
            "Nobody takes the guest's output: the oldest of it is dropped"
        );
    }
}

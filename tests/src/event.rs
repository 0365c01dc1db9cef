//! Eventfds as kicks, calls and errors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::wait;

/// A non-blocking eventfd.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A new one, not signalled.
    ///
    /// # Panics
    /// The kernel has no descriptor left.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Event {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Event(fd.unwrap_or_else(|e| panic!("eventfd: {e}")))
    }

    /// Another handle of an eventfd that belongs to a crate with its own type for it.
    ///
    /// # Panics
    /// `fd` is not open.
    pub fn share(fd: &impl AsRawFd) -> Event {
        // pidfd_getfd duplicates any open descriptor by its number, so a wrong one is an error and not unsound.
        let own = pidfd_open(getpid(), PidfdFlags::empty());
        let shared = own.and_then(|own| pidfd_getfd(own, fd.as_raw_fd(), PidfdGetfdFlags::empty()));
        Event(shared.unwrap_or_else(|e| panic!("descriptor {}: {e}", fd.as_raw_fd())))
    }

    /// Another handle of the same eventfd, for another thread.
    ///
    /// # Panics
    /// The kernel has no descriptor left.
    pub fn again(&self) -> Event {
        Event(self.0.try_clone().unwrap_or_else(|e| panic!("eventfd: {e}")))
    }

    /// Adds one to the counter.
    pub fn signal(&self) {
        self.add(1);
    }

    /// Adds `count` to the counter; `u64::MAX - 1` fills it, so that the next writer would block.
    ///
    /// # Panics
    /// The counter is full.
    pub fn add(&self, count: u64) {
        let written = rustix::io::write(&self.0, &count.to_le_bytes());
        assert_eq!(written, Ok(8), "eventfd counter is full");
    }

    /// The counter, which becomes 0.
    pub fn take(&self) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(8) => u64::from_le_bytes(bytes),
            _ => 0,
        }
    }

    /// Waits until it is signalled and takes the counter; `None` when the deadline came first.
    pub fn wait(&self, until: Instant) -> Option<u64> {
        wait::one_readable(self, until).then(|| self.take())
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

//! An eventfd with the three views that a device needs of it: KVM's, a daemon's and our own.
//!
//! The same descriptor is a doorbell (ioeventfd) or an interrupt (irqfd) for KVM, the kick or call descriptor
//! that a daemon gets, and something that this process may raise, empty or look at. It never blocks.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A non-blocking eventfd.
pub struct Event(EventFd);

impl Event {
    /// A new one, not raised.
    pub fn new() -> std::io::Result<Event> {
        EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Event)
    }

    /// Raises it. A counter that is already at its limit stays raised.
    pub fn raise(&self) {
        // The only failure is EAGAIN at the counter's limit, and then it is raised.
        let _ = self.0.write(1);
    }

    /// Empties it; says whether it had been raised.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// Looks whether it is raised, and leaves it so.
    pub fn is_raised(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// As `kvm-ioctls` wants it.
    pub fn for_kvm(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self`, which the borrow keeps.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_does_not_empty_it() {
        let event = Event::new().unwrap();
        assert!(!event.is_raised());
        event.raise();
        event.raise();
        assert!(event.is_raised());
        assert!(event.is_raised());
        assert!(event.take());
        assert!(!event.take());
    }
}

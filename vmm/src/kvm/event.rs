//! An eventfd with the three views that a device needs of it: KVM's, a daemon's and our own.
//!
//! The same descriptor is a doorbell (ioeventfd) or an interrupt (irqfd) for KVM, the kick or call descriptor
//! that a daemon gets, and something that this process may raise, empty or look at. It never blocks, although a daemon
//! shares its flags and can take O_NONBLOCK away.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{ReadWriteFlags, preadv2};
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
        // There is no write that says for itself that it does not wait.
        let _ = fcntl_setfl(self, OFlags::NONBLOCK);
        // The only failure is EAGAIN at the counter's limit, and then it is raised.
        let _ = self.0.write(1);
    }

    /// Empties it; says whether it had been raised.
    pub fn take(&self) -> bool {
        let mut count = [0; 8];
        // No offset, and no waiting whatever the flags of the descriptor are.
        preadv2(self, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT).is_ok()
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

    #[test]
    fn m01_a_daemon_that_makes_it_blocking_keeps_nobody_waiting() {
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let event = Event::new().unwrap();
            let makes_it_blocking = || fcntl_setfl(&event, OFlags::empty()).unwrap();
            makes_it_blocking();
            assert!(!event.take());
            event.0.write(u64::MAX - 1).unwrap();
            makes_it_blocking();
            event.raise();
            assert!(event.take());
            assert!(!event.take());
            done.send(()).unwrap();
        });
        is_done.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    }
}

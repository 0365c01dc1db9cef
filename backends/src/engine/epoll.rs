//! The engine on epoll, for kernels and sandboxes without io_uring.
//!
//! Watches are edge-triggered, as io_uring's multishot polls are. File operations are done on the spot by
//! the calling thread; a regular file is always ready, so epoll could not tell anything about it anyway.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use epoll::{ControlOptions, Events};
use rustix::io::Errno;

use super::{Event, Interest, Op, Token};
use crate::memory::Segment;
use crate::sys;

const BATCH: usize = 64;

/// One epoll instance.
pub(crate) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        let fd = epoll::create(true)?;
        // SAFETY: `create` has just opened it, and nobody else knows it.
        Ok(Epoll { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, interest: Interest, token: Token) -> io::Result<()> {
        let events = match interest {
            Interest::Read => Events::EPOLLIN,
            Interest::Write => Events::EPOLLOUT,
            Interest::Both => Events::EPOLLIN | Events::EPOLLOUT,
        };
        let event = epoll::Event::new(events | Events::EPOLLET | Events::EPOLLRDHUP, u64::from(token.0));
        epoll::ctl(self.fd.as_raw_fd(), ControlOptions::EPOLL_CTL_ADD, fd.as_raw_fd(), event)
    }

    pub(crate) fn unwatch(&mut self, fd: BorrowedFd<'_>) {
        let nothing = epoll::Event::new(Events::empty(), 0);
        let _ = epoll::ctl(self.fd.as_raw_fd(), ControlOptions::EPOLL_CTL_DEL, fd.as_raw_fd(), nothing);
    }

    pub(crate) fn perform(&mut self, fd: RawFd, op: Op, segments: &[Segment]) -> Result<u32, Errno> {
        match op {
            Op::Read { offset } => sys::preadv(fd, segments, offset),
            Op::Write { offset } => sys::pwritev(fd, segments, offset),
            Op::Sync => sys::fdatasync(fd),
        }
    }

    pub(crate) fn wait<T>(&mut self, sleep: bool, events: &mut VecDeque<Event<T>>) -> io::Result<()> {
        let mut ready = [epoll::Event::new(Events::empty(), 0); BATCH];
        let count = match epoll::wait(self.fd.as_raw_fd(), if sleep { -1 } else { 0 }, &mut ready) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        // The data of an entry is the token that `watch` put there.
        #[allow(clippy::cast_possible_truncation)]
        events.extend(ready.iter().take(count).map(|event| Event::Ready(Token(event.data as u32))));
        Ok(())
    }
}

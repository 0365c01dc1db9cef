//! The engine on epoll, for kernels and sandboxes without io_uring.
//!
//! Watches are edge-triggered, as io_uring's multishot polls are. File operations are done on the spot by
//! the calling thread; a regular file is always ready, so epoll could not tell anything about it anyway.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::{Event, Interest, Nap, Op, Token};
use crate::memory::Segment;
use crate::sys;

/// Events that one wait brings at most.
const BATCH: usize = 64;

/// One epoll instance.
pub(crate) struct Epoll {
    fd: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        Ok(Epoll { fd: epoll::create(CreateFlags::CLOEXEC)?, ready: Vec::with_capacity(BATCH) })
    }

    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, interest: Interest, token: Token) -> io::Result<()> {
        let events = match interest {
            Interest::Read => EventFlags::IN,
            Interest::Write => EventFlags::OUT,
            Interest::Both => EventFlags::IN | EventFlags::OUT,
        };
        let name = EventData::new_u64(u64::from(token.0));
        Ok(epoll::add(&self.fd, fd, name, events | EventFlags::ET | EventFlags::RDHUP)?)
    }

    pub(crate) fn unwatch(&mut self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.fd, fd);
    }

    pub(crate) fn perform(&mut self, fd: RawFd, op: Op, segments: &[Segment]) -> Result<u32, Errno> {
        match op {
            Op::Read { offset } => sys::preadv(fd, segments, offset),
            Op::Write { offset, durable } => sys::pwritev(fd, segments, offset, durable),
            Op::Sync => sys::fdatasync(fd),
            Op::Reserve { room, offset, bytes } => sys::fallocate(fd, room.mode(), offset, bytes),
        }
    }

    pub(crate) fn wait<T>(&mut self, nap: Nap, events: &mut VecDeque<Event<T>>) -> io::Result<()> {
        let limit = match nap {
            Nap::None => Some(Timespec::default()),
            // More than fits into the clock is for ever.
            Nap::AtMost(time) => Timespec::try_from(time).ok(),
            Nap::Endless => None,
        };
        self.ready.clear();
        match epoll::wait(&self.fd, spare_capacity(&mut self.ready), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // The data of an entry is the token that `watch` put there.
        let tokens = self.ready.iter().map(|event| u32::try_from(event.data.u64()).unwrap_or(u32::MAX));
        events.extend(tokens.map(|token| Event::Ready(Token(token))));
        Ok(())
    }
}

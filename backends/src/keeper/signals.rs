//! Waiting, and what ends it: descriptors, a deadline, and the signals that a keeper hears.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Stop;
use crate::daemon::readable_after;

/// Signals as descriptors.
#[derive(Debug)]
pub(super) struct Signals {
    end: UnixStream,
    upgrade: UnixStream,
}

impl Signals {
    /// Hears SIGTERM and SIGINT (end) and SIGHUP (upgrade) from now on.
    pub(super) fn new() -> io::Result<Signals> {
        let (end, upgrade) = (readable_after(&[SIGINT, SIGTERM])?, readable_after(&[SIGHUP])?);
        upgrade.set_nonblocking(true)?;
        crate::sys::hold_signals(false);
        Ok(Signals { end, upgrade })
    }

    /// Becomes readable when an upgrade is asked for.
    pub(super) fn upgrade(&self) -> BorrowedFd<'_> {
        self.upgrade.as_fd()
    }

    /// Whether an upgrade was asked for; however often it was, it is one.
    pub(super) fn take_upgrade(&self) -> bool {
        rustix::io::read(&self.upgrade, &mut [0; 64]).is_ok_and(|count| count > 0)
    }

    /// Waits until one of `fds` is readable or closed; says which are. None is: the deadline has passed.
    ///
    /// # Errors
    /// [`Stop::Asked`] as soon as the daemon is to end.
    pub(super) fn wait<const N: usize>(
        &self,
        fds: [BorrowedFd<'_>; N],
        deadline: Option<Instant>,
    ) -> Result<[bool; N], Stop> {
        let mut set: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        set.push(PollFd::new(&self.end, PollFlags::IN));
        poll_until(&mut set, deadline).map_err(|errno| Stop::Failed(errno.into()))?;
        let ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
        if ready(set.last()) {
            return Err(Stop::Asked);
        }
        Ok(std::array::from_fn(|at| ready(set.get(at))))
    }

    /// Lets time pass.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Stop> {
        self.wait([], Some(Instant::now() + time)).map(drop)
    }
}

/// Whether `fd` becomes readable in time, whatever signals come.
pub(super) fn readable_within(fd: &impl AsFd, time: Duration) -> bool {
    let ready = poll_until(&mut [PollFd::new(fd, PollFlags::IN)], Some(Instant::now() + time));
    ready.is_ok_and(|count| count > 0)
}

/// How many of them are ready by the deadline; signals repeat it.
fn poll_until(set: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<usize, Errno> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(set, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready,
        }
    }
}

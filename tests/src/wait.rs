//! Waiting for what happens, never for time.
//!
//! In: descriptors, or a question, and a deadline. Out: whether one of them became readable before it; the answer yes.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long a double waits for anything. Long, because a loaded machine is no failure: only what never
/// comes reaches it. An fdatasync that meets the journal of a busy disk takes tens of seconds by itself.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The moment after which waiting that begins now is given up.
pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Waits until something is so that no descriptor tells of.
///
/// # Panics
/// It does not come to be so in time.
#[track_caller]
pub fn until(so: impl FnMut() -> bool) {
    until_within(PATIENCE, so);
}

/// The same, for what takes longer: a guest that boots.
///
/// # Panics
/// It does not come to be so in time.
#[track_caller]
pub fn until_within(patience: Duration, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + patience;
    while !so() {
        assert!(Instant::now() < until, "it does not come to be so");
        std::thread::yield_now();
    }
}

/// Waits until one of `fds` is readable, hung up or failed; `false` when the deadline came first.
///
/// # Panics
/// `poll` refuses the descriptors.
pub fn readable(fds: &[BorrowedFd<'_>], until: Instant) -> bool {
    let mut set: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    any(&mut set, until)
}

fn any(set: &mut [PollFd<'_>], until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(set, timeout.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
    }
}

/// As [`readable`] for one descriptor.
pub fn one_readable(fd: &impl AsFd, until: Instant) -> bool {
    readable(&[fd.as_fd()], until)
}

/// Waits until the other end of a socket is closed, whatever is unread; `false` when the deadline came first.
///
/// # Panics
/// `poll` refuses the descriptor.
pub fn closed(fd: &impl AsFd, until: Instant) -> bool {
    any(&mut [PollFd::new(fd, PollFlags::empty())], until)
}

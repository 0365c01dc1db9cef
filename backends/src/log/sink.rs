//! Where lines go: standard error, or journald's socket.
//!
//! Promises: nothing here waits. A reader that stands still, a pipe nobody reads, a full disk: the line is lost, and
//! that is counted. A line that journald does not take goes to standard error, which is journald's too as a rule.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio::{dup2_stderr, stderr};

static LOST: AtomicU64 = AtomicU64::new(0);
/// What standard error was before a file took its place.
static FIRST: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Lines that nobody took since this process began.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Writes a line to standard error.
pub(super) fn to_stderr(line: &str) {
    if !has_room()
        || !matches!(rustix::io::write(stderr(), line.as_bytes()), Ok(count) if count == line.len())
    {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether standard error takes a line at once. A pipe that says so takes PIPE_BUF bytes (pipe(7)).
fn has_room() -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    fds.iter().all(|fd| fd.revents().contains(PollFlags::OUT))
}

/// Puts a file in the place of standard error, and remembers that.
pub(super) fn divert(file: &OwnedFd) -> io::Result<()> {
    *first() = Some(fcntl_dupfd_cloexec(stderr(), 3)?);
    replace(file)
}

/// Puts a file in the place of standard error.
pub(super) fn replace(file: &OwnedFd) -> io::Result<()> {
    Ok(dup2_stderr(file)?)
}

/// Writes a line to what was standard error first.
pub(super) fn to_first_stderr(line: &str) {
    if let Some(fd) = &*first() {
        // Whoever reads it may be gone; the log has it, too.
        let _ = rustix::io::write(fd, line.as_bytes());
    }
}

pub(super) fn forget_first_stderr() {
    *first() = None;
}

fn first() -> MutexGuard<'static, Option<OwnedFd>> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

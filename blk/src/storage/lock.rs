//! The lock of an image: against everybody else who locks it by `fcntl`, QEMU for example.
//!
//! In: the open ways to an image, and those of a keeper before. Out: which to use, locked: by one who writes, or by many
//! who only read. A lock belongs to an open file description. It stays as long as the keeper has that, while workers come
//! and go, and after all of them until the kernel has ended their last I/O on it: so each way has a part of the lock.
//! Refuses what others have locked, and says who that is, if it can be seen (proc(5), fdinfo).

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use backends::sys::{self, Lock};
use rustix::fs::{OFlags, Stat, fcntl_getfl, fstat};
use rustix::io::Errno;
use thiserror::Error;

/// How long another process may keep its lock before that counts as being in use, and how often we look. What a daemon
/// that was killed had begun at the host ends some milliseconds after it.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
/// Where the two parts of an image meet that are locked by its two ways. Other programs lock all of it, or some bytes
/// near its beginning.
const MIDDLE: i64 = 1 << 62;

/// Why an image is not locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody has locked it.
    #[error("{0} uses it; end that one, or add --read-only to all that share it")]
    InUse(Holder),
    /// Locks are not to be had.
    #[error("cannot lock it: {0}; put it on a file system that has locks")]
    Host(io::Error),
}

/// The ways to an image.
#[derive(Debug)]
pub struct Ways {
    /// By way of the page cache.
    pub cached: Option<OwnedFd>,
    /// Past it.
    pub direct: Option<OwnedFd>,
}

impl Ways {
    /// These, which a keeper before had open and locked, if they are what the options mean, opened as they say: `now`.
    /// If they are another way to the same file they let go of it here: the service manager still has them.
    pub fn go_on(self, now: Ways) -> Ways {
        let how = |ways: &Ways| ways.both().map(|way| way.map(|fd| (identity(fd), access(fd))));
        if how(&self) == how(&now) {
            return self;
        }
        for before in self.both().into_iter().flatten().filter(|before| now.lead_to(before)) {
            // One that cannot be let go is in use, as is seen next.
            let _ = sys::lock_file(before.as_fd(), Lock::Open, 0, None);
        }
        now
    }

    /// Locks the image: for many who only read, or for one.
    ///
    /// # Errors
    /// [`LockError`]
    pub fn lock(&self, shared: bool) -> Result<(), LockError> {
        let how = if shared { Lock::Shared } else { Lock::Exclusive };
        let until = Instant::now() + PATIENCE;
        let middle = if self.direct.is_some() { MIDDLE } else { 0 };
        let parts = [(&self.direct, 0, Some(middle)), (&self.cached, middle, None)];
        for (way, from, to) in parts {
            way.iter().try_for_each(|fd| lock(fd, how, (from, to), until))?;
        }
        Ok(())
    }

    /// Whether this is the image.
    pub fn lead_to(&self, fd: &OwnedFd) -> bool {
        self.cached.as_ref().is_some_and(|way| identity(way) == identity(fd))
    }

    fn both(&self) -> [Option<&OwnedFd>; 2] {
        [self.cached.as_ref(), self.direct.as_ref()]
    }
}

fn lock(fd: &OwnedFd, how: Lock, (from, to): (i64, Option<i64>), until: Instant) -> Result<(), LockError> {
    loop {
        match sys::lock_file(fd.as_fd(), how, from, to) {
            Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < until => thread::sleep(PAUSE),
            Err(Errno::AGAIN | Errno::ACCESS) => return Err(LockError::InUse(Holder::of(fd))),
            locked => return locked.map_err(|errno| LockError::Host(errno.into())),
        }
    }
}

/// Which file it is.
fn identity(fd: &OwnedFd) -> Option<(u64, u64)> {
    fstat(fd).ok().map(|Stat { st_dev, st_ino, .. }| (st_dev, st_ino))
}

/// Whether it may be read and written.
fn access(fd: &OwnedFd) -> Option<OFlags> {
    fcntl_getfl(fd).ok().map(|flags| flags & OFlags::RWMODE)
}

/// Who holds a lock.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder(Option<(u32, String)>);

impl fmt::Display for Holder {
    /// Anybody may call a process anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, name)) => write!(f, "process {pid} ({})", name.escape_debug()),
            None => f.write_str("another process"),
        }
    }
}

impl Holder {
    /// The one of this file. Of several it is the one with the lowest number: a keeper is there before its workers.
    fn of(fd: &OwnedFd) -> Holder {
        let file = identity(fd);
        let numbers = entries("/proc").filter_map(|name| name.parse::<u32>().ok());
        let pid = numbers.filter(|pid| file.is_some_and(|file| has_locked(*pid, file))).min();
        let name =
            |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
        Holder(pid.map(|pid| (pid, name(pid))))
    }
}

/// Whether a process has this file open by a description that has locked a part of it.
fn has_locked(pid: u32, file: (u64, u64)) -> bool {
    entries(&format!("/proc/{pid}/fd")).any(|fd| {
        let open = fs::metadata(format!("/proc/{pid}/fd/{fd}"));
        let is_it = open.is_ok_and(|open| (open.dev(), open.ino()) == file);
        let info = || fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        is_it && info().lines().any(|line| line.starts_with("lock:"))
    })
}

/// Names in a directory; of one that may not be read, none.
fn entries(dir: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;

//! The few raw system calls that work on guest memory, made safe.
//!
//! A slice over guest memory would promise the compiler that nobody else writes there, so these take
//! [`Segment`]s and hand the kernel their addresses. Each returns the bytes it moved or the kernel's error,
//! and is repeated when a signal interrupts it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::memory::Segment;

/// Most segments of one call (the kernel's UIO_MAXIOV); what is over is left for the next.
pub(crate) const MAX_SEGMENTS: usize = 1024;

/// Reads a file at `offset` into guest memory.
///
/// # Errors
/// The kernel's.
pub fn preadv(fd: RawFd, segments: &[Segment], offset: u64) -> Result<u32, Errno> {
    let (list, count) = list(segments);
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: the list holds segments of mapped guest memory, for the time of the call.
    repeat(|| unsafe { libc::preadv(fd, list, count, offset) })
}

/// Writes guest memory to a file at `offset`.
///
/// # Errors
/// The kernel's.
pub fn pwritev(fd: RawFd, segments: &[Segment], offset: u64) -> Result<u32, Errno> {
    let (list, count) = list(segments);
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: as in `preadv`.
    repeat(|| unsafe { libc::pwritev(fd, list, count, offset) })
}

/// Reads a stream into guest memory.
///
/// # Errors
/// The kernel's; `EAGAIN` when a non-blocking stream has nothing.
pub fn readv(fd: BorrowedFd<'_>, segments: &[Segment]) -> Result<u32, Errno> {
    let (list, count) = list(segments);
    // SAFETY: as in `preadv`.
    repeat(|| unsafe { libc::readv(fd.as_raw_fd(), list, count) })
}

/// Writes guest memory to a stream.
///
/// # Errors
/// The kernel's; `EAGAIN` when a non-blocking stream takes nothing.
pub fn writev(fd: BorrowedFd<'_>, segments: &[Segment]) -> Result<u32, Errno> {
    let (list, count) = list(segments);
    // SAFETY: as in `preadv`.
    repeat(|| unsafe { libc::writev(fd.as_raw_fd(), list, count) })
}

/// Makes completed writes of a file durable.
///
/// # Errors
/// The kernel's.
pub fn fdatasync(fd: RawFd) -> Result<u32, Errno> {
    // SAFETY: no memory is involved.
    repeat(|| unsafe { libc::fdatasync(fd) } as isize)
}

/// Fills guest memory with random bytes from the kernel; as many as it gave are returned.
///
/// # Errors
/// The kernel's.
pub fn getrandom(segment: &Segment) -> Result<u32, Errno> {
    // SAFETY: the segment is mapped guest memory.
    repeat(|| unsafe { libc::getrandom(segment.as_ptr().cast(), segment.len(), 0) })
}

/// What is done about the lock of a part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// For this open file description alone.
    Exclusive,
    /// Shared with others that only read.
    Shared,
    /// Let go, though the description stays open.
    Open,
}

/// Locks a part of a file for this open file description, from one byte on, up to another or without end. The lock goes
/// when the last descriptor of the description is closed and nothing of it is in flight any more, and is seen by every
/// program that locks by `fcntl`.
///
/// # Errors
/// `EAGAIN`: somebody else holds a lock that excludes this one; others: the file cannot be locked.
pub fn lock_file(fd: BorrowedFd<'_>, how: Lock, from: i64, to: Option<i64>) -> Result<(), Errno> {
    let kind = match how {
        Lock::Exclusive => libc::F_WRLCK,
        Lock::Shared => libc::F_RDLCK,
        Lock::Open => libc::F_UNLCK,
    };
    let lock = libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::INVAL)?,
        l_whence: 0,
        l_start: from,
        // 0: without end.
        l_len: to.map_or(0, |to| to.saturating_sub(from)),
        l_pid: 0,
    };
    // SAFETY: the call reads the structure, which outlives it.
    repeat(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } as isize).map(drop)
}

/// Takes over a descriptor that this program was started with, and closes it on exec.
///
/// # Errors
/// `EBADF`: there is no such descriptor.
pub fn adopt_fd(fd: RawFd) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: only borrowed for the next call, which fails for a descriptor that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and a descriptor named on the command line or by systemd is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the process that made the other end of a connected unix socket has ended; of one that listened, the one that
/// listened. One of another process namespace cannot be seen, and counts as alive.
pub fn peer_is_gone(fd: BorrowedFd<'_>) -> bool {
    let peer = peer(fd).and_then(|peer| Pid::from_raw(peer.pid));
    peer.is_some_and(|peer| test_kill_process(peer) == Err(Errno::SRCH))
}

/// Who made the other end of a connected unix socket, as of then (SO_PEERCRED). Process 0 is one of another process
/// namespace.
pub fn peer(fd: BorrowedFd<'_>) -> Option<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the kernel writes at most `bytes` to the structure, which outlives the call.
    let told =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut peer).cast(), &raw mut bytes) };
    (told == 0).then_some(peer)
}

/// Keeps SIGTERM, SIGINT and SIGHUP waiting, here and in what this process executes, until they are let through.
///
/// Whoever begins by making what has to be removed at the end is not to be killed between the two.
pub(crate) fn hold_signals(hold: bool) {
    let how = if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: the set is initialised by the first call, and outlives the others.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// What `ps` and `top` call this process: it was executed by a path without a name.
pub(crate) fn set_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// Pieces in which code comes back after [`drop_clean_pages`].
const PIECE_BYTES: usize = 64 << 10;

/// Gives back what this process has in memory of its executable and libraries as they are on disk. It comes again,
/// piece by piece, where it is used again: for a process that does little once it has begun.
///
/// A fault brings back all of the mapping that the page cache has in one folio, which may be megabytes (Linux 6.18).
/// So every other piece gets an advice of its own, which makes it a mapping of its own.
pub fn drop_clean_pages() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for (start, len) in clean_mappings(&maps) {
        // A mapping of one piece has been cut out before; the others are cut now.
        for piece in (start..start.saturating_add(len)).step_by(PIECE_BYTES).skip(1).step_by(2) {
            let len = PIECE_BYTES.min(start.saturating_add(len).saturating_sub(piece));
            advise(piece, len, libc::MADV_RANDOM);
        }
        advise(start, len, libc::MADV_DONTNEED);
    }
}

/// Advice about a private mapping of a file that is neither writable nor was written to.
fn advise(start: usize, len: usize, advice: libc::c_int) {
    // SAFETY: neither advice changes what is read there: pages that are dropped come from the file again.
    unsafe { libc::madvise(start as *mut libc::c_void, len, advice) };
}

/// Addresses and lengths of private, read-only mappings of files of which no page is other than in its file. A mapping
/// is a line `start-end perms offset dev inode path` and then lines `Name: value`.
fn clean_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let (mut clean, mut current) = (Vec::new(), None);
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            ["Anonymous:" | "Swap:", kib, _] if *kib != "0" => current = None,
            // The last line of each mapping.
            ["VmFlags:", ..] => clean.extend(current.take()),
            [range, perms, _, _, _, path]
                if path.starts_with('/') && !perms.contains('w') && perms.ends_with('p') =>
            {
                let (start, end) = range.split_once('-').unwrap_or_default();
                let address = |hex| usize::from_str_radix(hex, 16).ok();
                current =
                    address(start).zip(address(end)).map(|(start, end)| (start, end.saturating_sub(start)));
            }
            [range, ..] if range.contains('-') => current = None,
            _ => {}
        }
    }
    clean
}

/// Frees a thread from a system call that waits: the call fails with `EINTR`. Does nothing to a thread that is not
/// in one.
pub fn interrupt_thread(thread: &JoinHandle<()>) {
    static INSTALLED: Once = Once::new();
    extern "C" fn nothing(_: libc::c_int) {}
    INSTALLED.call_once(|| {
        // SAFETY: a handler that does nothing is safe at any moment; without SA_RESTART calls are not repeated.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
    });
    if !thread.is_finished() {
        // SAFETY: the handle keeps the thread's identity valid until it is joined, which takes the handle.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
    }
}

fn list(segments: &[Segment]) -> (*const libc::iovec, i32) {
    let count = segments.len().min(MAX_SEGMENTS);
    // At most 1024.
    (segments.as_ptr().cast(), i32::try_from(count).unwrap_or(i32::MAX))
}

fn repeat(mut call: impl FnMut() -> isize) -> Result<u32, Errno> {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(u32::try_from(result).unwrap_or(u32::MAX));
        }
        let error = std::io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => {}
            errno => return Err(errno.unwrap_or(Errno::IO)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_its_file_as_it_is_in_memory_is_dropped() {
        let mapping = |head: &str, anonymous: u32, swap: u32| {
            format!("{head}\nSize: 1024 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd mr\n")
        };
        let smaps = [
            mapping("1000-3000 r-xp 00000000 fe:00 42     /usr/lib/a.so", 0, 0),
            mapping("3000-4000 r--p 00000000 fe:00 42     /usr/lib/a.so", 4, 0),
            mapping("4000-5000 r--p 00000000 fe:00 42     /usr/lib/a.so", 0, 4),
            mapping("5000-6000 rw-p 00000000 fe:00 42     /usr/lib/a.so", 0, 0),
            mapping("6000-7000 r--s 00000000 fe:00 42     /usr/lib/a.so", 0, 0),
            mapping("7000-8000 r-xp 00000000 00:00 0      [vdso]", 0, 0),
            mapping("8000-9000 r--p 00000000 00:00 0", 0, 0),
            mapping("9000-c000 r--p 00002000 fe:00 42     /usr/lib/a.so", 0, 0),
        ];
        assert_eq!(clean_mappings(&smaps.concat()), [(0x1000, 0x2000), (0x9000, 0x3000)]);
    }

    #[test]
    fn code_and_constants_are_there_again_when_they_are_used() {
        let text = "read from the file again";
        for _ in 0..3 {
            drop_clean_pages();
            assert_eq!(text.len() + format!("{text:?}").len(), 50);
        }
    }
}

//! The few raw system calls that work on guest memory, made safe.
//!
//! A slice over guest memory would promise the compiler that nobody else writes there, so these take
//! [`Segment`]s and hand the kernel their addresses. Each returns the bytes it moved or the kernel's error,
//! and is repeated when a signal interrupts it.

use std::io;
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

/// Writes guest memory to a file at `offset`; `durable`: and waits until it is.
///
/// # Errors
/// The kernel's.
pub fn pwritev(fd: RawFd, segments: &[Segment], offset: u64, durable: bool) -> Result<u32, Errno> {
    let (list, count) = list(segments);
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    if durable {
        // SAFETY: as in `preadv`.
        repeat(|| unsafe { libc::pwritev2(fd, list, count, offset, libc::RWF_DSYNC) })
    } else {
        // SAFETY: as in `preadv`.
        repeat(|| unsafe { libc::pwritev(fd, list, count, offset) })
    }
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

/// Changes what a range of a file occupies; `mode` is of `FALLOC_FL_*`.
///
/// # Errors
/// The kernel's.
pub fn fallocate(fd: RawFd, mode: i32, offset: u64, bytes: u64) -> Result<u32, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    let bytes = i64::try_from(bytes).map_err(|_| Errno::INVAL)?;
    // SAFETY: no memory is involved.
    repeat(|| unsafe { libc::fallocate(fd, mode, offset, bytes) } as isize)
}

/// Where a part of a file is on its device (`struct fiemap_extent`, linux/fiemap.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Its first byte in the file.
    pub logical: u64,
    /// The same on the device.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    reserved: [u64; 2],
    /// `FIEMAP_EXTENT_*`
    pub flags: u32,
    reserved_too: [u32; 3],
}

/// Places that are asked for at once.
const PLACES: u32 = 64;

/// `struct fiemap` with room behind it.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    places: [Place; PLACES as usize],
}

/// Where a file's bytes from `start` on are, after all of it was written out; the first of them, none past its end.
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` of a file system that does not tell.
pub fn places(fd: BorrowedFd<'_>, start: u64) -> Result<Vec<Place>, Errno> {
    /// `_IOWR('f', 11, struct fiemap)`
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    const FIEMAP_FLAG_SYNC: u32 = 1;
    let places = [Place::default(); PLACES as usize];
    let length = u64::MAX.saturating_sub(start);
    let mut map =
        Fiemap { start, length, flags: FIEMAP_FLAG_SYNC, mapped: 0, count: PLACES, reserved: 0, places };
    // SAFETY: the kernel writes the structure and at most `count` places behind it, which are there.
    repeat(|| unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } as isize)?;
    Ok(map.places.into_iter().take(usize::try_from(map.mapped).unwrap_or(0)).collect())
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

/// Numbers of a user of this host and of their group, by name.
pub(crate) fn user(name: &str) -> Option<(u32, u32)> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: the name ends with a zero; what is returned is valid until the next such call, and this one is made while
    // the program has a single thread.
    unsafe { libc::getpwnam(name.as_ptr()).as_ref() }.map(|entry| (entry.pw_uid, entry.pw_gid))
}

/// Number of a group of this host, by name.
pub(crate) fn group(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: as in `user`.
    unsafe { libc::getgrnam(name.as_ptr()).as_ref() }.map(|entry| entry.gr_gid)
}

/// The ABI of this kernel's Landlock.
pub(crate) fn landlock_abi() -> io::Result<u8> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_ulong = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no memory, makes nothing, and answers with a number.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    if abi < 0 { Err(io::Error::last_os_error()) } else { Ok(u8::try_from(abi).unwrap_or(u8::MAX)) }
}

/// Whether this kernel's seccomp can end a process.
pub(crate) fn has_seccomp() -> io::Result<()> {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the call reads the number that it is pointed to, which outlives it.
    let known =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0_u32, &raw const action) };
    if known < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What `ps` and `top` call this process: it was executed by a path without a name.
pub(crate) fn set_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// Pieces in which code comes back after [`drop_clean_pages`].
const PIECE_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;

/// Cuts what this process has of its executable and libraries as they are on disk into pieces, at its beginning: a fault
/// brings in all of the mapping that the page cache has in one folio, which may be megabytes (Linux 6.18). Every other
/// piece gets an advice of its own, which makes it a mapping of its own.
pub fn cut_clean_mappings() {
    each_clean_segment(&mut |start, len| {
        for piece in (start..start.saturating_add(len)).step_by(PIECE_BYTES).skip(1).step_by(2) {
            let len = PIECE_BYTES.min(start.saturating_add(len).saturating_sub(piece));
            advise(piece, len, libc::MADV_RANDOM);
        }
    });
}

/// Gives back what this process has in memory of its executable and libraries as they are on disk. It comes again,
/// piece by piece, where it is used again: for a process that does little once it has begun. Breakpoints that a debugger
/// has set are lost.
pub fn drop_clean_pages() {
    each_clean_segment(&mut |start, len| advise(start, len, libc::MADV_DONTNEED));
}

/// Advice about a private mapping of a file that is neither writable nor was written to.
fn advise(start: usize, len: usize, advice: libc::c_int) {
    // SAFETY: neither advice changes what is read there: pages that are dropped come from the file again.
    unsafe { libc::madvise(start as *mut libc::c_void, len, advice) };
}

/// Takes an address and a length.
type Visit<'a> = &'a mut dyn FnMut(usize, usize);

/// Visits what executable and libraries have loaded and never write to: code and constants, of more than one piece. (What
/// the loader fills in and makes read-only after that is of a writable segment.) The loader is asked, not /proc: that
/// takes a fraction of the time, and no file.
fn each_clean_segment(mut visit: Visit<'_>) {
    unsafe extern "C" fn object(
        info: *mut libc::dl_phdr_info,
        _: usize,
        visit: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the loader's description of one object, and what is handed on below.
        let (info, visit) = unsafe { (&*info, &mut *visit.cast::<Visit<'_>>()) };
        // SAFETY: the object's program headers, which are loaded with it; each object has some.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let segments = headers.iter().filter_map(|header| clean_segment(info.dlpi_addr, header));
        segments.for_each(|(start, len)| visit(start, len));
        0
    }
    // SAFETY: the callback's types are these; it keeps nothing, and `visit` does not panic.
    unsafe { libc::dl_iterate_phdr(Some(object), std::ptr::from_mut(&mut visit).cast()) };
}

/// The pages of a segment of an object that was loaded at `base`.
fn clean_segment(base: u64, header: &libc::Elf64_Phdr) -> Option<(usize, usize)> {
    if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
        return None;
    }
    let start = usize::try_from(base.wrapping_add(header.p_vaddr)).ok()?;
    let end = start.checked_add(usize::try_from(header.p_filesz).ok()?)?;
    let (start, end) = (start & !(PAGE_BYTES - 1), end.checked_next_multiple_of(PAGE_BYTES)?);
    Some((start, end.saturating_sub(start))).filter(|(_, len)| *len > PIECE_BYTES)
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
    fn only_whole_segments_that_nobody_writes_to_are_dropped() {
        let header = |p_type, p_flags, p_filesz| libc::Elf64_Phdr {
            p_type,
            p_flags,
            p_filesz,
            p_offset: 0,
            p_vaddr: 0x1080,
            p_paddr: 0,
            p_memsz: p_filesz,
            p_align: 0x1000,
        };
        let (code, data) = (libc::PF_R | libc::PF_X, libc::PF_R | libc::PF_W);
        let of = |header: libc::Elf64_Phdr| clean_segment(0x50_0000, &header);
        assert_eq!(of(header(libc::PT_LOAD, code, 0x2_0000)), Some((0x50_1000, 0x2_1000)));
        assert_eq!(of(header(libc::PT_LOAD, libc::PF_R, 0x1_ff80)), Some((0x50_1000, 0x2_0000)));
        assert_eq!(of(header(libc::PT_LOAD, data, 0x2_0000)), None);
        assert_eq!(of(header(libc::PT_DYNAMIC, libc::PF_R, 0x2_0000)), None);
        assert_eq!(of(header(libc::PT_LOAD, code, 0x1000)), None, "the vDSO, and what is not worth it");
    }

    #[test]
    fn code_of_this_program_and_of_the_c_library_is_found() {
        let mut segments = Vec::new();
        each_clean_segment(&mut |start, len| segments.push(start..start + len));
        let code: [usize; 2] = [drop_clean_pages as *const () as usize, libc::getpid as *const () as usize];
        for place in code {
            assert!(segments.iter().any(|pages| pages.contains(&place)), "{place:x}");
        }
    }

    #[test]
    fn code_and_constants_are_there_again_when_they_are_used() {
        let text = "read from the file again";
        cut_clean_mappings();
        for _ in 0..3 {
            drop_clean_pages();
            assert_eq!(text.len() + format!("{text:?}").len(), 50);
        }
    }
}

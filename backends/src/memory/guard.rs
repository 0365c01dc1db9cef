//! What happens when a front-end cuts its memory file short while we use it.
//!
//! A page past the end of its file raises SIGBUS in whoever touches it, which would end the daemon: the
//! front-end of one machine could end what serves it, with work of its guest in flight. So each mapping of a file
//! that can shrink is entered in a table; the signal handler puts an anonymous page where the fault was, marks
//! the mapping torn, and rings a bell. The access then goes on (with zeros, or into nowhere), and the control
//! thread, woken by the bell, ends the session. System calls on such pages fail with EFAULT by themselves.
//!
//! The table is fixed and lock-free, because a signal handler may not wait. A SIGBUS anywhere else is what it
//! was: the end of the process.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// Mappings that can be guarded at a time: all slots of a session that ends and of one that begins.
const GUARDS: usize = 2 * super::MAX_SLOTS;

static TABLE: [Entry; GUARDS] = [const { Entry::new() }; GUARDS];
static BELL: AtomicI32 = AtomicI32::new(-1);

struct Entry {
    taken: AtomicBool,
    /// 0: nothing to guard yet, or any more.
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    torn: AtomicBool,
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
        }
    }
}

/// An entry of the table, given back on drop, which must come before the mapping goes.
#[derive(Debug)]
pub(super) struct Guard(usize);

impl Guard {
    /// Guards the `len` bytes of a mapping at `start`, whole pages of `page` bytes. `None` when the table is full.
    pub(super) fn new(start: usize, len: usize, page: usize) -> Option<Guard> {
        install();
        let at = TABLE.iter().position(|entry| !entry.taken.swap(true, Ordering::AcqRel))?;
        let entry = TABLE.get(at)?;
        entry.torn.store(false, Ordering::Relaxed);
        entry.page.store(page, Ordering::Relaxed);
        entry.len.store(len, Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        Some(Guard(at))
    }

    /// A page of the mapping was lost.
    pub(super) fn is_torn(&self) -> bool {
        TABLE.get(self.0).is_some_and(|entry| entry.torn.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(entry) = TABLE.get(self.0) {
            entry.start.store(0, Ordering::Release);
            entry.taken.store(false, Ordering::Release);
        }
    }
}

/// Rings `bell` (an eventfd) whenever a mapping is torn. The descriptor stays open for the life of the process.
pub fn ring_when_torn(bell: OwnedFd) {
    BELL.store(bell.into_raw_fd(), Ordering::Release);
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all fields are set that the kernel reads, and the handler keeps to what signal-safety(7) allows.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    });
}

/// Runs in the thread that touched a page that is not there.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo of a SIGBUS, which has an address.
    let addr = unsafe { (*info).si_addr() }.addr();
    if !TABLE.iter().any(|entry| entry.mend(addr)) {
        // Not guest memory: once we return the fault happens again, and ends the process as it should.
        // SAFETY: resetting a signal to its default is always allowed.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

impl Entry {
    /// Start and length of the page of this mapping that `addr` is in, if it is in one and that page wholly in it.
    fn page_of(&self, addr: usize) -> Option<(usize, usize)> {
        let start = self.start.load(Ordering::Acquire);
        let (len, page) = (self.len.load(Ordering::Relaxed), self.page.load(Ordering::Relaxed));
        let offset = addr.checked_sub(start).filter(|_| start != 0)?;
        // Mappings begin at a page and are whole pages long.
        let base = offset.checked_sub(offset.checked_rem(page)?)?;
        (base.checked_add(page)? <= len).then_some((start.checked_add(base)?, page))
    }

    /// Puts a page where `addr` is, if that is in this mapping.
    fn mend(&self, addr: usize) -> bool {
        let Some((base, page)) = self.page_of(addr) else { return false };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page lies wholly in a mapping of ours (see `page_of`) that is still there, since its entry goes
        // first; it holds nothing any more, and whoever uses it expects others to write to it.
        let mended = unsafe { libc::mmap(base as *mut libc::c_void, page, prot, flags, -1, 0) };
        if mended == libc::MAP_FAILED {
            return false;
        }
        self.torn.store(true, Ordering::Release);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes to a descriptor that is an eventfd or -1; write(2) is signal-safe.
        unsafe { libc::write(BELL.load(Ordering::Acquire), one.as_ptr().cast(), one.len()) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_wholly_in_the_mapping_are_mended() {
        let entry = Entry::new();
        assert_eq!(entry.page_of(0x5000), None, "nothing is guarded");
        entry.len.store(0x4000, Ordering::Relaxed);
        entry.page.store(0x1000, Ordering::Relaxed);
        entry.start.store(0x10_0000, Ordering::Relaxed);
        assert_eq!(entry.page_of(0x10_0000), Some((0x10_0000, 0x1000)));
        assert_eq!(entry.page_of(0x10_3fff), Some((0x10_3000, 0x1000)));
        assert_eq!((entry.page_of(0x10_4000), entry.page_of(0xf_ffff)), (None, None));
        // A page larger than the mapping would cover what is not ours.
        entry.page.store(0x20_0000, Ordering::Relaxed);
        assert_eq!(entry.page_of(0x10_0000), None);
    }
}

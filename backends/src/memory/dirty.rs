//! The dirty log: which pages of the guest were written to, for whoever moves the guest meanwhile.
//!
//! In: a bitmap in shared memory (SET_LOG_BASE), one bit for each 4 KiB of guest-physical addresses. A page is
//! marked after it was written and before the driver is told, so that the last copy of it is a true one.
//! Refuses: a bitmap that is not within its file; pages that the bitmap does not have are passed over, since
//! the front-end did not ask for them.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Mapping, MemoryError, MemoryRegion, check_range};

/// Guest bytes of one bit (vhost-user "Migration": VHOST_LOG_PAGE).
const PAGE_BYTES: u64 = 4096;

/// A mapped bitmap.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
    bytes: u64,
}

impl DirtyLog {
    /// Maps `size_bytes` of the file from `mmap_offset`.
    ///
    /// # Errors
    /// They are not within the file.
    pub fn map(fd: OwnedFd, size_bytes: u64, mmap_offset: u64) -> Result<DirtyLog, MemoryError> {
        let region = MemoryRegion { guest_addr: 0, size_bytes, user_addr: 0, mmap_offset };
        check_range(&region)?;
        Ok(DirtyLog { mapping: Mapping::new(&region, fd)?, bytes: size_bytes })
    }

    /// Marks the pages of guest-physical `addr..addr+len`.
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(last) = len.checked_sub(1).map(|reach| addr.saturating_add(reach)) else { return };
        for page in addr.checked_div(PAGE_BYTES).unwrap_or(0)..=last.checked_div(PAGE_BYTES).unwrap_or(0) {
            if !self.set(page) {
                return;
            }
        }
    }

    /// Sets the bit of a page; `false` past the end of the bitmap.
    fn set(&self, page: u64) -> bool {
        let byte = page >> 3;
        let Some(place) = self.mapping.segment(byte, 1).filter(|_| byte < self.bytes) else { return false };
        // SAFETY: one byte of a mapping that we own; the front-end clears bits meanwhile, hence an atomic.
        let bits = unsafe { AtomicU8::from_ptr(place.as_ptr()) };
        bits.fetch_or(1 << (page & 7), Ordering::Relaxed);
        true
    }
}

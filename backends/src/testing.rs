//! Memory of a small guest for unit tests: one memfd, seen by the code under test and written by the test.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::memory::Memory;
use crate::proto::MemoryRegion;
use crate::ring::split::SplitRing;
use crate::ring::{Descriptor, Layout};

/// Guest-physical and front-end addresses of the first region differ, so that mixing them up shows.
pub(crate) const GUEST_BASE: u64 = 0x10_0000;
pub(crate) const USER_BASE: u64 = 0x7f00_0000_0000;
pub(crate) const GUEST_BYTES: u64 = 0x10_0000;

thread_local! {
    /// Stores that this thread may still do to shared memory.
    static STORES_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// From now on this thread does `stores` more stores to shared memory, and then none, as if it had been killed.
pub(crate) fn die_after(stores: usize) {
    STORES_LEFT.set(stores);
}

/// Alive again. How many stores it could still have done.
pub(crate) fn rise() -> usize {
    STORES_LEFT.replace(usize::MAX)
}

pub(crate) fn may_store() -> bool {
    let left = STORES_LEFT.get();
    STORES_LEFT.set(left.saturating_sub(usize::from(left != usize::MAX)));
    left > 0
}

/// A guest with one region, and a ring at its beginning.
pub(crate) struct Guest {
    file: File,
    pub(crate) memory: Arc<Memory>,
    pub(crate) size: u16,
    pub(crate) event_idx: bool,
}

pub(crate) fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fd
}

pub(crate) fn region(guest_addr: u64, size_bytes: u64, user_addr: u64, mmap_offset: u64) -> MemoryRegion {
    MemoryRegion { guest_addr, size_bytes, user_addr, mmap_offset }
}

impl Guest {
    pub(crate) fn new(size: u16, event_idx: bool) -> Guest {
        let fd = memfd(GUEST_BYTES);
        let file = File::from(fd.try_clone().unwrap());
        let whole = region(GUEST_BASE, GUEST_BYTES, USER_BASE, 0);
        let memory = Arc::new(Memory::map(vec![(whole, fd)]).unwrap());
        Guest { file, memory, size, event_idx }
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout {
            size: self.size,
            descriptor: USER_BASE,
            available: USER_BASE + 0x4000,
            used: USER_BASE + 0x8000,
            packed: false,
            event_idx: self.event_idx,
        }
    }

    pub(crate) fn ring(&self, base: u16) -> SplitRing {
        SplitRing::new(&self.memory, &self.layout(), base).unwrap()
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn read_u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    /// Descriptor `index` of the table; `at` is an offset into the region.
    pub(crate) fn descriptor(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor { addr: GUEST_BASE + at, len, flags, next };
        self.write(u64::from(index) * 16, &descriptor.to_bytes());
    }

    /// Entry `index % size` of the available ring.
    pub(crate) fn available(&self, index: u16, head: u16) {
        self.write(0x4004 + 2 * u64::from(index % self.size), &head.to_le_bytes());
    }

    pub(crate) fn available_index(&self, index: u16) {
        self.write(0x4002, &index.to_le_bytes());
    }

    pub(crate) fn available_flags(&self, flags: u16) {
        self.write(0x4000, &flags.to_le_bytes());
    }

    pub(crate) fn used_event(&self, index: u16) {
        self.write(0x4004 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.read_u16(0x8004 + 8 * u64::from(self.size))
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.read_u16(0x8000)
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.read_u16(0x8002)
    }

    pub(crate) fn set_used_index(&self, index: u16) {
        self.write(0x8002, &index.to_le_bytes());
    }

    /// Head and length of used element `index % size`.
    pub(crate) fn used(&self, index: u16) -> (u32, u32) {
        let bytes: [u8; 8] = self.read(0x8004 + 8 * u64::from(index % self.size));
        let value = u64::from_le_bytes(bytes);
        (u32::try_from(value & 0xffff_ffff).unwrap(), u32::try_from(value >> 32).unwrap())
    }
}

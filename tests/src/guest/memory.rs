//! Guest RAM: memfds mapped into the test, read and written by guest-physical address.
//!
//! In: pieces (guest address, length), adjacent or with gaps. Out: checked access, ranges to put buffers
//! into, and the region table that a front-end sends. The table is made to catch mix-ups: user addresses have
//! nothing to do with guest addresses, and regions lie in their file in reverse order behind an unused page.
//! An access outside RAM is a mistake of the test and panics.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backends::proto::MemoryRegion;
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{
    AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

use super::space::Space;

/// Where the RAM of [`Ram::new`] begins.
pub const RAM_BASE: u64 = 0x4000_0000;
const PAGE_BYTES: u64 = 4096;
const USER_BASE: u64 = 0x7e00_0000_0000;
const USER_STEP: u64 = 1 << 36;

/// May the file behind the RAM be resized?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Sealed against shrinking and growing, as a VMM should.
    Sealed,
    /// Not sealed, as DPDK and hugetlbfs files are.
    Unsealed,
}

/// One contiguous piece of guest RAM.
#[derive(Clone, Debug)]
pub struct Region {
    /// Addresses and length, as a front-end tells them.
    pub table: MemoryRegion,
    file: Arc<File>,
}

impl Region {
    /// The descriptor that goes with it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn holds_user(&self, addr: u64) -> bool {
        addr.checked_sub(self.table.user_addr).is_some_and(|offset| offset < self.table.size_bytes)
    }

    fn holds_guest(&self, addr: u64) -> bool {
        addr.checked_sub(self.table.guest_addr).is_some_and(|offset| offset < self.table.size_bytes)
    }
}

/// The RAM of one guest.
#[derive(Debug)]
pub struct Ram {
    memory: GuestMemoryMmap<()>,
    regions: Vec<Region>,
    space: Mutex<Space>,
}

impl Ram {
    /// One sealed region of `bytes` at [`RAM_BASE`].
    ///
    /// # Panics
    /// As [`Ram::with`].
    pub fn new(bytes: u64) -> Arc<Ram> {
        Ram::with(&[(RAM_BASE, bytes)], Backing::Sealed)
    }

    /// Regions (guest address, length) in ascending order, all in one file.
    ///
    /// # Panics
    /// Regions overlap, are no whole pages, or the host has no memory for them.
    pub fn with(pieces: &[(u64, u64)], backing: Backing) -> Arc<Ram> {
        let total: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
        let file = Arc::new(memfd(total + PAGE_BYTES, backing));
        let mut offset = total + PAGE_BYTES;
        let mut regions = Vec::new();
        for (nth, (guest_addr, size_bytes)) in (1..).zip(pieces.iter().copied()) {
            assert_eq!(size_bytes % PAGE_BYTES, 0, "region of {size_bytes} bytes is not whole pages");
            offset -= size_bytes;
            let user_addr = USER_BASE - nth * USER_STEP;
            let table = MemoryRegion { guest_addr, size_bytes, user_addr, mmap_offset: offset };
            regions.push(Region { table, file: Arc::clone(&file) });
        }
        let memory = GuestMemoryMmap::from_regions(regions.iter().map(map).collect());
        let memory = memory.unwrap_or_else(|e| panic!("guest regions {pieces:x?}: {e}"));
        let space = Mutex::new(Space::new(pieces.iter().copied()));
        Arc::new(Ram { memory, regions, space })
    }

    /// The regions, lowest guest address first.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The mapping itself, for crates that speak `vm-memory`.
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// The front-end's address of a guest-physical one.
    ///
    /// # Panics
    /// Outside RAM.
    pub fn user_addr(&self, guest_addr: u64) -> u64 {
        let region = self.regions.iter().find(|r| r.holds_guest(guest_addr));
        let region = region.unwrap_or_else(|| panic!("{guest_addr:#x} is outside guest RAM"));
        guest_addr - region.table.guest_addr + region.table.user_addr
    }

    /// The guest-physical address behind one of the front-end's.
    pub fn guest_addr(&self, user_addr: u64) -> Option<u64> {
        let region = self.regions.iter().find(|r| r.holds_user(user_addr))?;
        Some(user_addr - region.table.user_addr + region.table.guest_addr)
    }

    /// Copies out `len` bytes.
    ///
    /// # Panics
    /// Outside RAM.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let done = self.memory.read_slice(&mut bytes, GuestAddress(addr));
        done.unwrap_or_else(|e| panic!("read {len} bytes at {addr:#x}: {e}"));
        bytes
    }

    /// Copies `bytes` in.
    ///
    /// # Panics
    /// Outside RAM.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        let done = self.memory.write_slice(bytes, GuestAddress(addr));
        done.unwrap_or_else(|e| panic!("write {} bytes at {addr:#x}: {e}", bytes.len()));
    }

    /// An atomic load, acquiring what the device released.
    ///
    /// # Panics
    /// Outside RAM or unaligned.
    pub fn load<T: AtomicAccess>(&self, addr: u64) -> T {
        let value = self.memory.load(GuestAddress(addr), Ordering::Acquire);
        value.unwrap_or_else(|e| panic!("load at {addr:#x}: {e}"))
    }

    /// An atomic store, releasing what was written before it.
    ///
    /// # Panics
    /// Outside RAM or unaligned.
    pub fn store<T: AtomicAccess>(&self, addr: u64, value: T) {
        let done = self.memory.store(value, GuestAddress(addr), Ordering::Release);
        done.unwrap_or_else(|e| panic!("store at {addr:#x}: {e}"));
    }

    /// A range of RAM for the caller alone, after a random gap.
    ///
    /// # Panics
    /// RAM is full.
    pub fn take(&self, bytes: u64, align: u64) -> u64 {
        let start = self.space().take(bytes, align);
        start.unwrap_or_else(|| panic!("guest RAM has no room for {bytes} bytes"))
    }

    /// As [`Ram::take`], filled with zeros.
    ///
    /// # Panics
    /// RAM is full.
    pub fn take_zeroed(&self, bytes: u64, align: u64) -> u64 {
        let start = self.take(bytes, align);
        self.write(start, &vec![0; usize::try_from(bytes).unwrap_or(0)]);
        start
    }

    /// Exactly this range for the caller alone: to lie across two regions, or at the very end of RAM.
    ///
    /// # Panics
    /// A part of it is in use.
    pub fn claim(&self, start: u64, bytes: u64) {
        assert!(self.space().claim(start, bytes), "{bytes} bytes at {start:#x} are in use");
    }

    /// Gives back what [`Ram::take`] or [`Ram::claim`] gave.
    ///
    /// # Panics
    /// No such range.
    pub fn give_back(&self, start: u64) {
        assert!(self.space().give_back(start), "nothing was taken at {start:#x}");
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A memfd of `bytes`.
///
/// # Panics
/// The host refuses.
pub fn memfd(bytes: u64, backing: Backing) -> File {
    let make = || {
        let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, bytes)?;
        if backing == Backing::Sealed {
            rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        }
        rustix::io::Result::Ok(File::from(fd))
    };
    make().unwrap_or_else(|e| panic!("memfd of {bytes} bytes: {e}"))
}

fn map(region: &Region) -> GuestRegionMmap<()> {
    let MemoryRegion { guest_addr, size_bytes, mmap_offset, .. } = region.table;
    let offset = FileOffset::from_arc(Arc::clone(&region.file), mmap_offset);
    let size = usize::try_from(size_bytes).unwrap_or(usize::MAX);
    let mapping = MmapRegion::from_file(offset, size).unwrap_or_else(|e| panic!("map {size} bytes: {e}"));
    GuestRegionMmap::new(mapping, GuestAddress(guest_addr))
        .unwrap_or_else(|| panic!("region at {guest_addr:#x} wraps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [(u64, u64); 2] = [(0, 0x2000), (0x2000, 0x1000)];

    #[test]
    fn access_crosses_from_a_region_into_its_neighbour() {
        let ram = Ram::with(&TWO, Backing::Sealed);
        ram.write(0x1ffe, &[1, 2, 3, 4]);
        assert_eq!(ram.read(0x1ffd, 6), [0, 1, 2, 3, 4, 0]);
    }

    #[test]
    fn the_file_holds_what_the_table_says() {
        let ram = Ram::with(&[(0, 0x1000), (0x10_0000, 0x3000)], Backing::Unsealed);
        ram.store(0x10_2000, 0xabcd_u16);
        let region = &ram.regions()[1];
        let mut bytes = [0; 2];
        rustix::io::pread(region.fd(), &mut bytes, region.table.mmap_offset + 0x2000).unwrap();
        assert_eq!(u16::from_le_bytes(bytes), 0xabcd);
    }

    #[test]
    fn user_addresses_are_others_and_lead_back() {
        let ram = Ram::with(&TWO, Backing::Sealed);
        for addr in [0, 0x1fff, 0x2000, 0x2fff] {
            let user = ram.user_addr(addr);
            assert_ne!(user, addr);
            assert_eq!(ram.guest_addr(user), Some(addr));
        }
        assert_eq!(ram.guest_addr(ram.user_addr(0x1fff) + 1), None);
    }

    #[test]
    fn only_unsealed_files_shrink() {
        for (backing, shrinks) in [(Backing::Sealed, false), (Backing::Unsealed, true)] {
            let ram = Ram::with(&TWO, backing);
            assert_eq!(rustix::fs::ftruncate(ram.regions()[0].fd(), 0x1000).is_ok(), shrinks);
        }
    }

    #[test]
    #[should_panic(expected = "outside guest RAM")]
    fn a_test_that_misses_ram_is_told_so() {
        Ram::new(0x1000).user_addr(RAM_BASE + 0x1000);
    }
}

//! A dirty log as the front-end has it: which pages of the guest the back-end says it wrote.
//!
//! In: the guest's RAM, which says how long the log must be. Out: a file to hand over (SET_LOG_BASE), and the
//! pages whose bits are set. Also pages that did change, by comparing RAM with what it was before.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use crate::guest::memory::{Backing, Ram, memfd};

/// Guest bytes of one bit of a log.
pub const PAGE_BYTES: u64 = 4096;

/// A log of all the RAM of a guest.
#[derive(Debug)]
pub struct DirtyLog {
    file: File,
    bytes: u64,
}

impl DirtyLog {
    /// A log with no page marked, in whole pages of memory.
    pub fn new(ram: &Ram) -> DirtyLog {
        let end = |region: &crate::guest::memory::Region| region.table.guest_addr + region.table.size_bytes;
        let end = ram.regions().iter().map(end).max().unwrap_or(0);
        let bytes = (end / PAGE_BYTES).div_ceil(8).next_multiple_of(PAGE_BYTES);
        DirtyLog { file: memfd(bytes, Backing::Sealed), bytes }
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Pages that are marked.
    pub fn marked(&self) -> BTreeSet<u64> {
        let bits = self.read();
        let set = |(at, byte): (usize, &u8)| {
            let byte = *byte;
            (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at as u64 * 8 + bit)
        };
        bits.iter().enumerate().filter(|(_, byte)| **byte != 0).flat_map(set).collect()
    }

    /// Marks no page any more. Call it while nobody marks any.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn clear(&self) {
        let zeros = vec![0; self.read().len()];
        self.file.write_all_at(&zeros, 0).unwrap_or_else(|e| panic!("clear a dirty log: {e}"));
    }

    fn read(&self) -> Vec<u8> {
        let mut bits = vec![0; usize::try_from(self.bytes).unwrap_or(0)];
        self.file.read_exact_at(&mut bits, 0).unwrap_or_else(|e| panic!("read a dirty log: {e}"));
        bits
    }
}

impl AsFd for DirtyLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Pages of guest memory that hold these bytes; at least one.
pub fn pages(addr: u64, len: u64) -> impl Iterator<Item = u64> {
    addr / PAGE_BYTES..=addr.saturating_add(len.max(1) - 1) / PAGE_BYTES
}

/// All of a guest's RAM at one moment.
#[derive(Debug)]
pub struct Snapshot(Vec<Piece>);

/// A region's guest address and bytes.
type Piece = (u64, Vec<u8>);

impl Snapshot {
    /// RAM as it is now.
    pub fn of(ram: &Ram) -> Snapshot {
        let read = |region: &crate::guest::memory::Region| {
            let (addr, bytes) = (region.table.guest_addr, region.table.size_bytes);
            (addr, ram.read(addr, usize::try_from(bytes).unwrap_or(0)))
        };
        Snapshot(ram.regions().iter().map(read).collect())
    }

    /// Pages that are different now.
    pub fn changed(&self, ram: &Ram) -> BTreeSet<u64> {
        let now = Snapshot::of(ram);
        let page = usize::try_from(PAGE_BYTES).unwrap_or(1);
        let differs = |((addr, old), (_, new)): (&Piece, &Piece)| {
            let pages = old.chunks(page).zip(new.chunks(page)).enumerate();
            let changed = pages.filter(|(_, (old, new))| old != new);
            changed.map(|(nth, _)| addr / PAGE_BYTES + nth as u64).collect::<Vec<_>>()
        };
        self.0.iter().zip(&now.0).flat_map(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_pages_and_changes_are_seen() {
        let ram = Ram::with(&[(0, 0x4000), (0x10_0000, 0x2000)], Backing::Sealed);
        let log = DirtyLog::new(&ram);
        assert_eq!(log.bytes(), PAGE_BYTES);
        log.file.write_all_at(&[0b1000_0001, 1], 32).unwrap();
        assert_eq!(log.marked(), BTreeSet::from([256, 263, 264]));
        log.clear();
        assert_eq!(log.marked(), BTreeSet::new());
        let before = Snapshot::of(&ram);
        ram.write(0x1fff, &[1, 1]);
        ram.write(0x10_1000, &[1]);
        assert_eq!(before.changed(&ram), BTreeSet::from([1, 2, 0x101]));
        assert_eq!(pages(0x1fff, 2).collect::<Vec<_>>(), [1, 2]);
    }
}

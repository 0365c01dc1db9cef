//! Guest RAM: one sealed memfd, its regions listed once for KVM and for vhost-user.
//!
//! In: a size. Out: the memfd, mapped shared, and [`RamRegion`]s that say where each piece lies in the guest,
//! in the file and in this process. A daemon that gets the descriptor can neither shrink nor grow the file
//! (`F_SEAL_SHRINK`, `F_SEAL_GROW`), nor change the seals (`F_SEAL_SEAL`), so a mapping of it never faults.
//! Writing and hole punching stay possible: devices write, the balloon punches.
//!
//! Nothing is touched here: pages appear when the guest, the loader or a device first uses them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::layout;

/// Least RAM a machine may have: the legacy megabyte and one more for a kernel.
pub const MIN_RAM_BYTES: u64 = 2 << 20;

/// Most RAM a machine may have: as many pages as KVM takes in one region.
pub const MAX_RAM_BYTES: u64 = ((1 << 31) - 1) * layout::PAGE_BYTES;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Less than [`MIN_RAM_BYTES`].
    #[error("--memory {0}: too small, a machine needs at least {MIN_RAM_BYTES} bytes (2M)")]
    TooSmall(u64),
    /// Not a whole number of pages.
    #[error("--memory {0}: not a multiple of the page size, {page} bytes", page = layout::PAGE_BYTES)]
    NotPages(u64),
    /// More than [`MAX_RAM_BYTES`].
    #[error("--memory {0}: too large, a machine takes at most {MAX_RAM_BYTES} bytes (8T less one page)")]
    TooLarge(u64),
    /// memfd, seals or mapping refused by the host.
    #[error("--memory {bytes}: the host refused to {step}: {cause}; use less memory or raise its limits")]
    Host {
        /// Size asked for.
        bytes: u64,
        /// What was being done.
        step: &'static str,
        /// What the host said.
        cause: String,
    },
}

/// One contiguous piece of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// Guest physical address.
    pub gpa: u64,
    /// Size in bytes, a multiple of the page size.
    pub size: u64,
    /// Offset in the memfd.
    pub offset: u64,
    /// Where it is mapped in this process.
    pub host_addr: u64,
}

/// The RAM of one machine.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap<()>,
    regions: Vec<RamRegion>,
    file: Arc<File>,
}

impl GuestRam {
    /// Makes `bytes` of RAM: a sealed memfd, mapped shared, split around the hole below 4 GiB.
    pub fn new(bytes: u64) -> Result<GuestRam, MemoryError> {
        check_size(bytes)?;
        let file =
            Arc::new(sealed_memfd(bytes).map_err(|e| host(bytes, "make a sealed memfd of that size", e))?);
        let mut pieces = Vec::new();
        let mut regions = Vec::new();
        for (gpa, offset, size) in split(bytes) {
            let mapping = map(&file, offset, size).map_err(|e| host(bytes, "map it", e))?;
            regions.push(RamRegion { gpa, size, offset, host_addr: mapping.as_ptr().addr() as u64 });
            let region =
                GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or(MemoryError::TooLarge(bytes))?;
            pieces.push(region);
        }
        let memory = GuestMemoryMmap::from_regions(pieces).map_err(|e| host(bytes, "place it", e))?;
        Ok(GuestRam { memory, regions, file })
    }

    /// The regions, lowest guest address first: one below 3 GiB, and one from 4 GiB when needed.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// The memfd behind all regions.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Checked access to the RAM.
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// Makes every byte zero again by giving all pages back to the host; the mappings stay.
    pub fn clear(&self) -> std::io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, punch, 0, self.bytes())?)
    }

    /// Size of all regions together.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.size).sum()
    }
}

/// Refuses a size that no machine can have; the same check for the command line and for [`GuestRam::new`].
pub fn check_size(bytes: u64) -> Result<(), MemoryError> {
    if !bytes.is_multiple_of(layout::PAGE_BYTES) {
        return Err(MemoryError::NotPages(bytes));
    }
    if bytes < MIN_RAM_BYTES {
        return Err(MemoryError::TooSmall(bytes));
    }
    if bytes > MAX_RAM_BYTES {
        return Err(MemoryError::TooLarge(bytes));
    }
    Ok(())
}

/// (guest address, file offset, size) of each region.
fn split(bytes: u64) -> Vec<(u64, u64, u64)> {
    let low = bytes.min(layout::RAM_LOW_END);
    let mut pieces = vec![(0, 0, low)];
    if bytes > low {
        pieces.push((layout::RAM_ABOVE_4G, low, bytes - low));
    }
    pieces
}

fn sealed_memfd(bytes: u64) -> rustix::io::Result<File> {
    let fd = rustix::fs::memfd_create("outboard-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(fd))
}

/// Maps `size` bytes of the memfd shared, without reserving swap for them.
fn map(file: &Arc<File>, offset: u64, size: u64) -> Result<MmapRegion<()>, String> {
    let size = usize::try_from(size).map_err(|e| e.to_string())?;
    MmapRegion::from_file(FileOffset::from_arc(Arc::clone(file), offset), size).map_err(|e| e.to_string())
}

fn host(bytes: u64, step: &'static str, cause: impl ToString) -> MemoryError {
    MemoryError::Host { bytes, step, cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn sizes_that_no_machine_can_have_are_refused() {
        assert!(matches!(check_size(0), Err(MemoryError::TooSmall(0))));
        assert!(matches!(check_size(MIN_RAM_BYTES - 4096), Err(MemoryError::TooSmall(_))));
        assert!(matches!(check_size((64 << 20) + 1), Err(MemoryError::NotPages(_))));
        assert!(matches!(check_size(MAX_RAM_BYTES + 4096), Err(MemoryError::TooLarge(_))));
        assert!(check_size(MIN_RAM_BYTES).is_ok());
    }

    #[test]
    fn ram_continues_at_4_gib_behind_the_hole() {
        assert_eq!(split(64 << 20), [(0, 0, 64 << 20)]);
        assert_eq!(split(3 << 30), [(0, 0, 3 << 30)]);
        assert_eq!(split(5 << 30), [(0, 0, 3 << 30), (4 << 30, 3 << 30, 2 << 30)]);
    }

    #[test]
    fn both_regions_are_one_file() {
        let ram = GuestRam::new((3 << 30) + (1 << 20)).unwrap();
        ram.memory().write_obj(0x1122_3344u32, GuestAddress(4 << 30)).unwrap();
        let mut bytes = [0; 4];
        rustix::io::pread(ram.fd(), &mut bytes, ram.regions()[1].offset).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1122_3344);
        assert_eq!(ram.bytes(), (3 << 30) + (1 << 20));
    }

    #[test]
    fn cleared_ram_is_zero_where_it_was_written() {
        let ram = GuestRam::new(MIN_RAM_BYTES).unwrap();
        ram.memory().write_obj(0x1122_3344u32, GuestAddress(0x1000)).unwrap();
        ram.clear().unwrap();
        assert_eq!(ram.memory().read_obj::<u32>(GuestAddress(0x1000)).unwrap(), 0);
    }

    #[test]
    fn a_holder_of_the_descriptor_cannot_resize_the_file() {
        let ram = GuestRam::new(MIN_RAM_BYTES).unwrap();
        for bytes in [4096, MIN_RAM_BYTES * 2] {
            assert_eq!(rustix::fs::ftruncate(ram.fd(), bytes), Err(rustix::io::Errno::PERM));
        }
        let seals = rustix::fs::fcntl_get_seals(ram.fd()).unwrap();
        assert_eq!(seals, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL);
        assert_eq!(rustix::fs::fcntl_add_seals(ram.fd(), SealFlags::WRITE), Err(rustix::io::Errno::PERM));
    }
}

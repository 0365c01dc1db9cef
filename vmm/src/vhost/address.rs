//! Guest memory as a daemon is told of it: the table of regions, and where in it the parts of a virtqueue lie.
//!
//! In: guest-physical addresses that a hostile driver chose. Out: addresses for the daemon, or `None` unless each
//! part lies aligned and wholly in one region.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use backends::proto::MemoryRegion;

use super::frontend::RingAddresses;
use crate::memory::{GuestRam, RamRegion};
use crate::pci::common::Queue;

/// Where guest-physical address 0 lies in the address space that ring addresses are given in. The protocol
/// wants addresses of the front-end, but any will do that agree; these do not tell a daemon where this process
/// has its memory, and none of them is 0, which some back-ends take for "not set".
pub const USER_BASE: u64 = 1 << 44;

/// Guest RAM as a daemon is told of it.
pub fn regions(ram: &GuestRam) -> Vec<MemoryRegion> {
    let region = |region: &RamRegion| MemoryRegion {
        guest_addr: region.gpa,
        size_bytes: region.size,
        user_addr: USER_BASE.saturating_add(region.gpa),
        mmap_offset: region.offset,
    };
    ram.regions().iter().map(region).collect()
}

/// The parts of a ring: sizes and alignments of virtio 1.3 §2.7 (split) and §2.8.10 (packed).
pub fn locate(ram: &GuestRam, queue: &Queue, packed: bool) -> Option<RingAddresses> {
    let size = u64::from(queue.size);
    let bytes = |fixed: u64, each: u64| size.saturating_mul(each).saturating_add(fixed);
    let (driver, driver_align, device) = if packed { (4, 4, 4) } else { (bytes(6, 2), 2, bytes(6, 8)) };
    Some(RingAddresses {
        descriptor: user_address(ram, queue.descriptors, bytes(0, 16), 16)?,
        available: user_address(ram, queue.driver, driver, driver_align)?,
        used: user_address(ram, queue.device, device, 4)?,
    })
}

/// The address for a daemon of a range that lies wholly in one region.
fn user_address(ram: &GuestRam, gpa: u64, bytes: u64, align: u64) -> Option<u64> {
    let end = gpa.checked_add(bytes)?;
    let region = ram
        .regions()
        .iter()
        .find(|region| region.gpa <= gpa && end <= region.gpa.saturating_add(region.size));
    region.filter(|_| gpa.is_multiple_of(align)).and(USER_BASE.checked_add(gpa))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_found_only_where_all_of_it_is_memory() {
        let ram = GuestRam::new((3 << 30) + (1 << 20)).unwrap();
        let (low_end, high, end) = (3u64 << 30, 4u64 << 30, (4u64 << 30) + (1 << 20));
        let cases = [
            (0, 1024, true),
            (low_end - 1024, 1024, true),
            (low_end - 1024, 1040, false),
            (low_end, 16, false),
            (high - 16, 32, false),
            (high, 1024, true),
            (end - 16, 16, true),
            (end - 16, 17, false),
            (end, 16, false),
            (u64::MAX - 15, 16, false),
            (0x1008, 16, false),
        ];
        for (at, bytes, found) in cases {
            let want = found.then_some(USER_BASE.wrapping_add(at));
            assert_eq!(user_address(&ram, at, bytes, 16), want, "{at:#x}+{bytes}");
        }
        let queue =
            Queue { size: 256, descriptors: 0, driver: 0x2000, device: low_end - 2054, ..Queue::default() };
        assert!(locate(&ram, &Queue { device: low_end - 2056, ..queue }, false).is_some());
        assert!(
            locate(&ram, &Queue { device: low_end - 2052, ..queue }, false).is_none(),
            "6 + 8 * 256 bytes"
        );
        assert!(locate(&ram, &Queue { device: low_end - 4, ..queue }, true).is_some(), "packed: 4 bytes");
        assert!(locate(&ram, &Queue { device: 0x3002, ..queue }, false).is_none(), "aligned to 4");
        assert!(
            locate(&ram, &Queue { driver: 0x2001, device: 0x3000, ..queue }, false).is_none(),
            "aligned to 2"
        );
        assert!(
            locate(&ram, &Queue { descriptors: 8, device: 0x3000, ..queue }, false).is_none(),
            "aligned to 16"
        );
    }
}

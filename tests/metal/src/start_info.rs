//! What the VMM hands over: `hvm_start_info` of the PVH boot protocol (xen/include/public/arch-x86/hvm/start_info.h).

use core::{ffi::CStr, slice};

const MAGIC: u32 = 0x336E_C578;
const RAM: u32 = 1;

/// `struct hvm_start_info`, version 1.
#[repr(C)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    cmdline: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryRange {
    /// First physical address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    kind: u32,
    reserved: u32,
}

impl StartInfo {
    /// The structure at `address`, where the entry code found it.
    ///
    /// # Safety
    /// `address` must be what the VMM passed in EBX; the memory it names is never written again.
    pub unsafe fn at(address: u64) -> &'static Self {
        assert!(address != 0, "no hvm_start_info");
        // SAFETY: low memory is mapped one to one, and the caller vouches for the address.
        let info = unsafe { &*(address as *const Self) };
        assert_eq!(info.magic, MAGIC, "hvm_start_info has a wrong magic");
        assert!(info.version >= 1, "hvm_start_info without a memory map");
        info
    }

    /// The kernel command line; empty when there is none.
    pub fn cmdline(&self) -> &'static str {
        if self.cmdline == 0 {
            return "";
        }
        // SAFETY: the VMM placed a string that ends in NUL there and does not touch it again.
        let text = unsafe { CStr::from_ptr(self.cmdline as *const _) };
        text.to_str().expect("the command line is not UTF-8")
    }

    /// Physical address of the ACPI RSDP.
    pub fn rsdp(&self) -> u64 {
        self.rsdp
    }

    /// The ranges of usable RAM.
    pub fn ram(&self) -> impl Iterator<Item = MemoryRange> {
        // SAFETY: the VMM placed that many entries there and does not touch them again.
        let map = unsafe {
            slice::from_raw_parts(self.memory_map as *const MemoryRange, self.memory_map_entries as usize)
        };
        map.iter().copied().filter(|range| range.kind == RAM)
    }

    /// Whether `start..start + bytes` is usable RAM.
    pub fn is_ram(&self, start: u64, bytes: u64) -> bool {
        self.ram().any(|range| range.start <= start && start + bytes <= range.start + range.bytes)
    }
}

//! What a kernel finds in RAM when it starts: memory map, command line, initramfs, ACPI tables, page tables.
//!
//! The same facts are written for both protocols, as `hvm_start_info` (Xen PVH ABI) and, for a bzImage, as
//! `boot_params` (Linux x86 boot protocol); which one counts is decided by the register the boot CPU starts with.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::acpi::RESET_VALUE;
use crate::layout;
use crate::memory::GuestRam;

/// `XEN_HVM_START_MAGIC_VALUE`.
const PVH_MAGIC: u32 = 0x336E_C578;
/// Version of `hvm_start_info` that carries a memory map.
const PVH_VERSION: u32 = 1;
/// Memory types, the same numbers in E820 and in PVH.
const TYPE_RAM: u32 = 1;
const TYPE_RESERVED: u32 = 2;
/// `type_of_loader`: "undefined", a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;
/// All the firmware there is: a Linux that was not started by EFI, on hardware-reduced ACPI, resets by a jump to the
/// BIOS in real mode and does not try the reset register before. These instructions do it instead.
#[rustfmt::skip]
const RESET_STUB: [u8; 8] = [
    0xBA, PORT_RESET[0], PORT_RESET[1], // mov dx, PORT_RESET
    0xB0, RESET_VALUE,                  // mov al, RESET_VALUE
    0xEE,                               // out dx, al
    0xEB, 0xFE,                         // jmp .
];
const PORT_RESET: [u8; 2] = layout::PORT_RESET.to_le_bytes();
/// Page table bits: present and writable; and a 2 MiB page.
const PAGE_TABLE: u64 = 0b11;
const PAGE_2M: u64 = PAGE_TABLE | 1 << 7;
/// GDT of the 64-bit entry: null, unused, `__BOOT_CS` at 0x10 (64-bit code), `__BOOT_DS` at 0x18 (data).
const GDT: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];
/// Limit to load into GDTR for the table that [`write`] leaves at [`layout::GDT`].
pub const GDT_LIMIT: u16 = 31;

/// What differs from machine to machine.
pub struct BootData<'a> {
    /// Without its NUL; shorter than [`layout::CMDLINE_BYTES`].
    pub cmdline: &'a str,
    /// Guest address and size of the initramfs.
    pub initrd: Option<(u64, u64)>,
    /// The tables that [`super::acpi::tables`] made.
    pub acpi: &'a [u8],
}

/// Writes everything; the error is the guest address that could not be written.
pub fn write(ram: &GuestRam, data: &BootData, setup: Option<&setup_header>) -> Result<(), u64> {
    let memory = ram.memory();
    let mut cmdline = data.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    let pieces = [
        (cmdline.as_slice(), layout::CMDLINE),
        (data.acpi, layout::ACPI_TABLES),
        (RESET_STUB.as_slice(), layout::RESET_VECTOR),
    ];
    for (bytes, address) in pieces {
        memory.write_slice(bytes, GuestAddress(address)).map_err(|_| address)?;
    }
    match setup {
        None => write_start_info(ram, data),
        Some(setup) => {
            write_long_mode_tables(ram)?;
            write_zero_page(ram, data, setup)
        }
    }
}

/// (address, size, type) of what the guest should know, in ascending order.
fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, layout::LOW_RAM_END, TYPE_RAM)];
    for region in ram.regions() {
        let start = region.gpa.max(layout::HIGH_RAM);
        map.push((start, region.gpa + region.size - start, TYPE_RAM));
    }
    map.push((layout::PCI_ECAM, layout::PCI_ECAM_BYTES, TYPE_RESERVED));
    map.sort_unstable();
    map
}

fn write_start_info(ram: &GuestRam, data: &BootData) -> Result<(), u64> {
    let map: Vec<_> = memory_map(ram)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 })
        .collect();
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        nr_modules: u32::from(data.initrd.is_some()),
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI_TABLES,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: u32::try_from(map.len()).map_err(|_| layout::PVH_MEMMAP)?,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMMAP));
    if let Some((paddr, size)) = data.initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        params.set_modules(&[module], GuestAddress(layout::PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, ram.memory()).map_err(|_| layout::PVH_START_INFO)
}

fn write_zero_page(ram: &GuestRam, data: &BootData, setup: &setup_header) -> Result<(), u64> {
    let low = |address: u64| u32::try_from(address).map_err(|_| address);
    let mut page = boot_params { hdr: *setup, acpi_rsdp_addr: layout::ACPI_TABLES, ..Default::default() };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = low(layout::CMDLINE)?;
    if let Some((address, size)) = data.initrd {
        page.hdr.ramdisk_image = low(address)?;
        page.hdr.ramdisk_size = low(size)?;
    }
    let mut table = page.e820_table;
    for (slot, (addr, size, kind)) in table.iter_mut().zip(memory_map(ram)) {
        *slot = boot_e820_entry { addr, size, r#type: kind };
        page.e820_entries += 1;
    }
    page.e820_table = table;
    let params = BootParams::new(&page, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, ram.memory()).map_err(|_| layout::ZERO_PAGE)
}

/// GDT, and page tables that map the first 4 GiB one to one with 2 MiB pages.
pub fn write_long_mode_tables(ram: &GuestRam) -> Result<(), u64> {
    let directories = (0..4).map(|i| (layout::PAGE_DIRECTORIES + i * layout::PAGE_BYTES) | PAGE_TABLE);
    let pages = (0..4 * 512).map(|i| (i << 21) | PAGE_2M);
    write_table(ram, layout::GDT, GDT.into_iter())?;
    write_table(ram, layout::PML4, std::iter::once(layout::PDPT | PAGE_TABLE))?;
    write_table(ram, layout::PDPT, directories)?;
    write_table(ram, layout::PAGE_DIRECTORIES, pages)
}

fn write_table(ram: &GuestRam, address: u64, entries: impl Iterator<Item = u64>) -> Result<(), u64> {
    let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
    ram.memory().write_slice(&bytes, GuestAddress(address)).map_err(|_| address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM_BYTES;

    #[test]
    fn the_memory_map_shows_ram_around_the_hole_and_reserves_the_ecam() {
        let ram = GuestRam::new(4 << 30).unwrap();
        assert_eq!(
            memory_map(&ram),
            [
                (0, layout::LOW_RAM_END, TYPE_RAM),
                (1 << 20, (3 << 30) - (1 << 20), TYPE_RAM),
                (layout::PCI_ECAM, 1 << 20, TYPE_RESERVED),
                (4 << 30, 1 << 30, TYPE_RAM),
            ]
        );
    }

    #[test]
    fn start_info_points_to_everything() {
        let ram = GuestRam::new(MIN_RAM_BYTES).unwrap();
        let data = BootData { cmdline: "x", initrd: Some((0x18_0000, 77)), acpi: b"RSD PTR " };
        write(&ram, &data, None).unwrap();
        let word = |at: u64| ram.memory().read_obj::<u64>(GuestAddress(at)).unwrap();
        let info = layout::PVH_START_INFO;
        assert_eq!(word(info), u64::from(PVH_VERSION) << 32 | u64::from(PVH_MAGIC));
        assert_eq!(word(info + 8), 1 << 32);
        assert_eq!(word(word(info + 16)), 0x18_0000);
        assert_eq!(word(word(info + 16) + 8), 77);
        assert_eq!(word(word(info + 24)), u64::from(b'x'));
        assert_eq!(&word(word(info + 32)).to_le_bytes(), b"RSD PTR ");
        assert_eq!(word(word(info + 40) + 8), layout::LOW_RAM_END);
        assert_eq!(word(info + 48), 3);
    }
}

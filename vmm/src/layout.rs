//! The guest-physical address map and the I/O ports, in one place.
//!
//! ```text
//! 0x0000_0000  real-mode area: GDT, start info or zero page, page tables, command line
//! 0x000E_0000  ACPI tables, the RSDP first (where a guest that scans for it looks); at the end the reset vector
//! 0x0010_0000  RAM: kernel, then initramfs at the top of what lies below 3 GiB
//! 0xC000_0000  32-bit window from which the guest places PCI BARs
//! 0xE000_0000  PCI configuration space of bus 0 (ECAM)
//! 0xFEC0_0000  I/O APIC          0xFEE0_0000  local APICs (both inside KVM)
//! 0xFFFB_C000  pages that KVM needs on some Intel hosts
//! 1_0000_0000  the rest of RAM
//! ```
//! Everything here is a promise to the guest: ACPI describes exactly these numbers.

/// Size of a guest page.
pub const PAGE_BYTES: u64 = 4096;

/// GDT of the boot CPU.
pub const GDT: u64 = 0x500;
/// PVH start info (Xen `hvm_start_info`), with its module list and memory map behind it.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list: one entry, the initramfs.
pub const PVH_MODULES: u64 = 0x6100;
/// PVH memory map.
pub const PVH_MEMMAP: u64 = 0x6200;
/// Linux `boot_params` ("zero page") of a bzImage.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top page table of the 64-bit entry; page directory pointers and directories follow it.
pub const PML4: u64 = 0x9000;
/// Page directory pointer table.
pub const PDPT: u64 = 0xA000;
/// Four page directories of 2 MiB pages: the first 4 GiB, mapped one to one.
pub const PAGE_DIRECTORIES: u64 = 0xB000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its NUL.
pub const CMDLINE_BYTES: u64 = 0x1_0000;
/// End of the RAM that the memory map calls usable below 1 MiB.
pub const LOW_RAM_END: u64 = 0x9_FC00;
/// RSDP, and all the other ACPI tables behind it.
pub const ACPI_TABLES: u64 = 0xE_0000;
/// Room for the ACPI tables: up to the reset vector.
pub const ACPI_TABLES_BYTES: u64 = RESET_VECTOR - ACPI_TABLES;
/// Where real mode begins after a reset (F000:FFF0), and where guests jump that want one from the firmware.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Start of the RAM above the legacy area; kernels are loaded from here.
pub const HIGH_RAM: u64 = 0x10_0000;

/// End of the RAM below 4 GiB; what does not fit continues at [`RAM_ABOVE_4G`].
pub const RAM_LOW_END: u64 = 0xC000_0000;
/// Where the second piece of RAM begins.
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;

/// Window from which the guest places 32-bit PCI BARs.
pub const PCI_WINDOW: u64 = 0xC000_0000;
/// Size of [`PCI_WINDOW`].
pub const PCI_WINDOW_BYTES: u64 = 0x2000_0000;
/// PCI configuration space (ECAM) of segment 0, bus 0.
pub const PCI_ECAM: u64 = 0xE000_0000;
/// Size of [`PCI_ECAM`]: one bus of 256 functions of 4 KiB.
pub const PCI_ECAM_BYTES: u64 = 0x10_0000;

/// I/O APIC registers (KVM's in-kernel irqchip fixes the address).
pub const IOAPIC: u32 = 0xFEC0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// Page for `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS: usize = 0xFFFB_D000;

/// First GSI behind the pins of the I/O APIC: MSI routes start here.
pub const FIRST_MSI_GSI: u32 = 24;

/// I/O port of the ACPI sleep control register (FADT `SLEEP_CONTROL_REG`).
pub const PORT_SLEEP_CONTROL: u16 = 0x600;
/// I/O port of the ACPI sleep status register (FADT `SLEEP_STATUS_REG`).
pub const PORT_SLEEP_STATUS: u16 = 0x601;
/// I/O port of the ACPI reset register (FADT `RESET_REG`).
pub const PORT_RESET: u16 = 0x602;
/// First of the eight ports of the serial line COM1.
pub const PORT_COM1: u16 = 0x3F8;
/// Number of ports of an 8250.
pub const PORT_COM1_COUNT: u8 = 8;
/// GSI of COM1.
pub const COM1_GSI: u32 = 4;
/// Diagnostic ("POST") port: each byte written is a mark in `--timings`.
pub const PORT_MARK: u16 = 0x80;
/// pvpanic event port (QEMU `docs/specs/pvpanic`).
pub const PORT_PVPANIC: u16 = 0x505;
/// i8042 status and command port: byte 0xFE asks for a CPU reset.
pub const PORT_I8042: u16 = 0x64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_do_not_overlap() {
        let areas = [
            (GDT, 0x100),
            (PVH_START_INFO, 0x100),
            (PVH_MODULES, 0x100),
            (PVH_MEMMAP, 0x200),
            (ZERO_PAGE, PAGE_BYTES),
            (PML4, PAGE_BYTES),
            (PDPT, PAGE_BYTES),
            (PAGE_DIRECTORIES, 4 * PAGE_BYTES),
            (CMDLINE, CMDLINE_BYTES),
            (LOW_RAM_END, 0),
            (ACPI_TABLES, ACPI_TABLES_BYTES),
            (RESET_VECTOR, 16),
            (HIGH_RAM, RAM_LOW_END - HIGH_RAM),
            (PCI_WINDOW, PCI_WINDOW_BYTES),
            (PCI_ECAM, PCI_ECAM_BYTES),
            (u64::from(IOAPIC), PAGE_BYTES),
            (u64::from(LOCAL_APIC), PAGE_BYTES),
            (KVM_IDENTITY_MAP, PAGE_BYTES),
            (KVM_TSS as u64, 3 * PAGE_BYTES),
            (RAM_ABOVE_4G, 0),
        ];
        for pair in areas.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:#x} runs into {:#x}", pair[0].0, pair[1].0);
        }
    }
}

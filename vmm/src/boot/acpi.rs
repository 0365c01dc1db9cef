//! The ACPI tables: what the guest is told about its machine, built once and copied into its RAM.
//!
//! In: number of CPUs, whether there is a serial line. Out: one block of bytes for [`layout::ACPI_TABLES`], RSDP
//! first. Hardware-reduced ACPI: no legacy timer, no legacy interrupt controller, no SCI; power-off and reset are
//! one I/O port each. PCI interrupts are MSI-X only, so the host bridge needs no `_PRT`.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate,
    Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::layout;

const OEM_ID: [u8; 6] = *b"OUTBRD";
const OEM_TABLE_ID: [u8; 8] = *b"OUTBOARD";
const OEM_REVISION: u32 = 1;

/// `SLP_TYP` of S5, as `_S5` announces it and the sleep control register expects it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Value of the reset register that resets.
pub const RESET_VALUE: u8 = 1;

/// IA-PC boot flags (ACPI 6.5, 5.2.9.3): there is no VGA and no CMOS clock; an 8042 is not claimed either.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_RTC: u16 = 1 << 5;

/// Alignment of each table; the RSDP alone requires it, the others like it.
const TABLE_ALIGN: usize = 16;

/// All tables, placed for [`layout::ACPI_TABLES`].
pub fn tables(cpus: u8, serial: bool) -> Vec<u8> {
    // The RSDP comes first but names the XSDT, which comes last: leave room and fill it in at the end.
    let mut block = vec![0; Rsdp::len()];
    let dsdt = append(&mut block, &dsdt(serial));
    let entries =
        [append(&mut block, &fadt(dsdt)), append(&mut block, &madt(cpus)), append(&mut block, &mcfg())];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    entries.iter().for_each(|address| xsdt.add_entry(*address));
    let xsdt = append(&mut block, &xsdt);
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    block[..rsdp.len()].copy_from_slice(&rsdp);
    block
}

/// Appends a table and returns its guest address.
fn append(block: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    block.resize(block.len().next_multiple_of(TABLE_ALIGN), 0);
    let address = layout::ACPI_TABLES + block.len() as u64;
    table.to_aml_bytes(block);
    address
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_RTC).into();
    fadt.reset_reg = port(layout::PORT_RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(layout::PORT_SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::PORT_SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM, 0, 0, 0);
    mcfg
}

fn dsdt(serial: bool) -> impl Aml {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut code = Vec::new();
    s5(&mut code);
    host_bridge(&mut code);
    motherboard(&mut code);
    pvpanic(&mut code);
    if serial {
        com1(&mut code);
    }
    dsdt.append_slice(&code);
    dsdt
}

/// Puts a device into `\_SB_`.
fn device(code: &mut Vec<u8>, name: &str, objects: Vec<&dyn Aml>) {
    let device = Device::new(name.into(), objects);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(code);
}

/// `_S5`: the sleep type that switches off.
fn s5(code: &mut Vec<u8>) {
    let package = Package::new(vec![&SLEEP_TYPE_S5]);
    Name::new("_S5_".into(), &package).to_aml_bytes(code);
}

fn memory(start: u64, bytes: u64) -> AddressSpace<u64> {
    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, start + bytes - 1, None)
}

/// The PCI Express host bridge of segment 0: one bus, one 32-bit memory window, no I/O ports.
fn host_bridge(code: &mut Vec<u8>) {
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let window = memory(layout::PCI_WINDOW, layout::PCI_WINDOW_BYTES);
    device(
        code,
        "PCI0",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&bus, &window])),
        ],
    );
}

/// Linux uses the ECAM only when a motherboard resource claims it.
fn motherboard(code: &mut Vec<u8>) {
    let ecam = memory(layout::PCI_ECAM, layout::PCI_ECAM_BYTES);
    device(
        code,
        "MBRD",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    );
}

/// The port where a guest tells that it panicked (QEMU `docs/specs/pvpanic`).
fn pvpanic(code: &mut Vec<u8>) {
    let ports = IO::new(layout::PORT_PVPANIC, layout::PORT_PVPANIC, 1, 1);
    device(
        code,
        "PEVT",
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &0x0Fu8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    );
}

/// The 8250 on its usual ports.
fn com1(code: &mut Vec<u8>) {
    let ports = IO::new(layout::PORT_COM1, layout::PORT_COM1, 1, layout::PORT_COM1_COUNT);
    let irq = Interrupt::new(true, true, false, false, layout::COM1_GSI);
    device(
        code,
        "COM1",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &irq])),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(block: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest address, cut to the length its header gives.
    fn table(block: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI_TABLES).unwrap();
        let length = u32::from_le_bytes(block[start + 4..start + 8].try_into().unwrap());
        &block[start..start + usize::try_from(length).unwrap()]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let block = tables(4, true);
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
        let xsdt = table(&block, u64_at(&block, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let names: Vec<&[u8]> = xsdt[36..]
            .chunks(8)
            .map(|entry| {
                let entry = table(&block, u64_at(entry, 0));
                assert_eq!(sum(entry), 0);
                &entry[..4]
            })
            .collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        let fadt = table(&block, u64_at(xsdt, 36));
        let dsdt = table(&block, u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(fadt[128], RESET_VALUE);
    }

    #[test]
    fn the_largest_machine_fits_its_area() {
        assert!(tables(crate::config::MAX_CPUS, true).len() as u64 <= layout::ACPI_TABLES_BYTES);
    }

    #[test]
    fn the_serial_line_is_described_only_when_there_is_one() {
        let has_com1 = |block: Vec<u8>| block.windows(4).any(|w| w == b"COM1");
        assert!(has_com1(tables(1, true)));
        assert!(!has_com1(tables(1, false)));
    }
}

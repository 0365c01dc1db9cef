//! The ACPI tables, read with suspicion: a wrong signature, length or checksum ends the test.
//!
//! RSDP -> XSDT (or RSDT, for QEMU) -> FADT (power-off and reset), MADT (CPUs), MCFG (ECAM). Of the AML in
//! the DSDT only the `_S5` package is looked for, by its bytes. Clauses are those of ACPI 6.5.

use crate::{cpu, say};
use alloc::vec::Vec;
use core::{ptr, slice};

const HARDWARE_REDUCED: u32 = 1 << 20;
const RESET_SUPPORTED: u32 = 1 << 10;

/// One table, header included; its length and checksum are right.
#[derive(Clone, Copy)]
struct Table(&'static [u8]);

impl Table {
    /// The table at a physical address.
    fn at(address: u64) -> Self {
        assert!(address != 0, "ACPI names a table at address 0");
        // SAFETY: tables lie in memory below 4 GiB, mapped one to one, and nobody writes them.
        let header = unsafe { slice::from_raw_parts(address as *const u8, 36) };
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        // SAFETY: as above; the checksum below tells a wrong length.
        let table = Self(unsafe { slice::from_raw_parts(address as *const u8, length as usize) });
        table.check(length as usize);
        table
    }

    /// ACPI 5.2.6: all bytes of a table add up to 0.
    fn check(&self, length: usize) {
        let sum = self.0[..length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "ACPI checksum of {:?} is wrong", self.signature());
    }

    fn signature(&self) -> &str {
        str::from_utf8(&self.0[..4]).unwrap_or("????")
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }

    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        *self.0[offset..].first_chunk().expect("an ACPI table is too short")
    }

    /// ACPI 5.2.3.2: a generic address structure.
    fn register(&self, offset: usize) -> Register {
        Register { space: self.0[offset], address: self.u64(offset + 4) }
    }
}

/// A byte-wide register in memory or I/O space.
struct Register {
    space: u8,
    address: u64,
}

impl Register {
    fn write(&self, value: u8) {
        match self.space {
            // SAFETY: ACPI says that this address is the register.
            0 => unsafe { ptr::write_volatile(self.address as *mut u8, value) },
            1 => cpu::out8(u16::try_from(self.address).expect("an I/O register above 64 KiB"), value),
            space => panic!("ACPI register in address space {space}"),
        }
    }
}

/// The tables of this machine, each checked when it is asked for.
pub struct Acpi {
    root: Table,
    entry_bytes: usize,
}

impl Acpi {
    /// Follows the RSDP at this address.
    pub fn new(rsdp: u64) -> Self {
        assert!(rsdp != 0, "no RSDP in hvm_start_info");
        // SAFETY: the VMM says that the RSDP is there; 36 bytes is its size since ACPI 2.0.
        let rsdp = Table(unsafe { slice::from_raw_parts(rsdp as *const u8, 36) });
        assert_eq!(&rsdp.0[..8], b"RSD PTR ", "wrong RSDP signature");
        rsdp.check(20);
        let (root, entry_bytes) = if rsdp.0[15] >= 2 {
            rsdp.check(36);
            (Table::at(rsdp.u64(24)), 8)
        } else {
            (Table::at(rsdp.u32(16).into()), 4)
        };
        assert_eq!(root.signature(), if entry_bytes == 8 { "XSDT" } else { "RSDT" });
        Self { root, entry_bytes }
    }

    /// Addresses of the tables.
    fn addresses(&self) -> impl Iterator<Item = u64> {
        let offsets = (36..self.root.0.len()).step_by(self.entry_bytes);
        offsets.map(
            |offset| if self.entry_bytes == 8 { self.root.u64(offset) } else { self.root.u32(offset).into() },
        )
    }

    fn table(&self, signature: &str) -> Table {
        // SAFETY: every table begins with its signature; it is mapped, and nobody writes it.
        let found = |address: &u64| unsafe { *(*address as *const [u8; 4]) } == *signature.as_bytes();
        Table::at(self.addresses().find(found).unwrap_or_else(|| panic!("no ACPI table {signature}")))
    }

    /// ACPI 5.2.12.2, 5.2.12.12: APIC IDs of the enabled CPUs.
    pub fn cpus(&self) -> Vec<u32> {
        let madt = self.table("APIC");
        let mut cpus = Vec::new();
        let mut offset = 44;
        while offset < madt.0.len() {
            let (kind, length) = (madt.0[offset], usize::from(madt.0[offset + 1]));
            assert!(length >= 2, "a MADT entry of {length} bytes");
            match kind {
                0 if madt.u32(offset + 4) & 1 != 0 => cpus.push(madt.0[offset + 3].into()),
                9 if madt.u32(offset + 8) & 1 != 0 => cpus.push(madt.u32(offset + 4)),
                _ => {}
            }
            offset += length;
        }
        cpus
    }

    /// PCI Firmware Specification 3.3, 4.1.2: where the configuration space of segment 0, bus 0 is.
    pub fn ecam(&self) -> u64 {
        let mcfg = self.table("MCFG");
        assert_eq!((mcfg.u16(52), mcfg.0[54]), (0, 0), "the first ECAM is not that of segment 0, bus 0");
        mcfg.u64(44)
    }

    /// ACPI 7.4.2.6 (soft off): does not return unless the VMM is wrong.
    pub fn power_off(&self) {
        let fadt = self.table("FACP");
        let sleep_type = self.soft_off_type(&fadt);
        if fadt.u32(112) & HARDWARE_REDUCED != 0 {
            // ACPI 4.8.3.7: SLP_TYPx in bits 2..5, SLP_EN is bit 5.
            fadt.register(244).write(sleep_type << 2 | 1 << 5);
        } else {
            // ACPI 4.8.3.2.1: SLP_TYPx in bits 10..13, SLP_EN is bit 13.
            let port = u16::try_from(fadt.u32(64)).expect("PM1a_CNT_BLK is not a port");
            cpu::out16(port, u16::from(sleep_type) << 10 | 1 << 13);
        }
    }

    /// ACPI 4.8.3.6: does not return unless the VMM is wrong.
    pub fn reset(&self) {
        let fadt = self.table("FACP");
        assert!(fadt.u32(112) & RESET_SUPPORTED != 0, "the FADT offers no reset register");
        fadt.register(116).write(fadt.0[128]);
    }

    /// The first element of the `_S5` package in the DSDT.
    fn soft_off_type(&self, fadt: &Table) -> u8 {
        let wide = if fadt.0.len() >= 148 { fadt.u64(140) } else { 0 };
        let dsdt = Table::at(if wide != 0 { wide } else { fadt.u32(40).into() });
        // ACPI 20.2.5: "_S5_", PackageOp, a one-byte length, the number of elements, the first.
        let found = dsdt.0.windows(9).find(|code| code[0] == b'_' && &code[1..5] == b"S5_\x12");
        match found.expect("the DSDT has no _S5")[5..] {
            [_, _, 0x0A, value] => value,
            [_, _, value @ (0 | 1), _] => value,
            ref other => panic!("_S5 begins with {other:x?}"),
        }
    }

    /// Checks every table, and prints what was found.
    pub fn describe(&self) {
        for table in self.addresses().map(Table::at) {
            say!("acpi {}", table.signature());
        }
        say!("cpus {:?}", self.cpus());
    }
}

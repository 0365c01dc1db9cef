//! MSI-X of one function (PCI 3.0, 6.8.2): capability, table, pending bits.

use crate::{
    apic,
    pci::{Bus, Mmio},
};
use alloc::string::String;
use virtio_drivers::transport::pci::bus::DeviceFunction;

const CAPABILITY: u8 = 0x11;
const ENABLE: u16 = 1 << 15;
const ENTRY_BYTES: u64 = 16;
const MASKED: u32 = 1 << 0;

/// The MSI-X registers of a function.
pub struct Msix {
    capability: Mmio,
    table: Mmio,
    pending: Mmio,
    /// How many vectors the function has.
    pub vectors: u16,
}

impl Msix {
    /// Finds the capability, masks every vector and turns MSI-X on.
    pub fn new(bus: &mut Bus, at: DeviceFunction) -> Result<Self, String> {
        let offset = bus.capabilities(at, CAPABILITY).next().ok_or("no MSI-X capability")?;
        let capability = bus.config(at, offset);
        let vectors = (capability.read16(2) & 0x7FF) + 1;
        let table = locate(bus, at, capability.read32(4))?;
        let pending = locate(bus, at, capability.read32(8))?;
        let msix = Self { capability, table, pending, vectors };
        (0..vectors).for_each(|vector| msix.mask(vector, true));
        msix.capability.write16(2, ENABLE);
        Ok(msix)
    }

    fn entry(&self, vector: u16) -> u64 {
        ENTRY_BYTES * u64::from(vector)
    }

    /// Points a vector at interrupt `interrupt` of this CPU, and unmasks it.
    pub fn route(&self, vector: u16, interrupt: u8) {
        let entry = self.entry(vector);
        self.table.write32(entry, 0xFEE0_0000 | apic::id() << 12);
        self.table.write32(entry + 4, 0);
        self.table.write32(entry + 8, interrupt.into());
        self.mask(vector, false);
    }

    /// Masks or unmasks a vector.
    pub fn mask(&self, vector: u16, masked: bool) {
        self.table.write32(self.entry(vector) + 12, if masked { MASKED } else { 0 });
    }

    /// Whether an interrupt waits for the vector to be unmasked.
    pub fn is_pending(&self, vector: u16) -> bool {
        self.pending.read32(u64::from(vector / 32) * 4) & 1 << (vector % 32) != 0
    }
}

/// Where a "BAR and offset" register points to.
fn locate(bus: &mut Bus, at: DeviceFunction, register: u32) -> Result<Mmio, String> {
    let bar = u8::try_from(register & 7).unwrap_or(0);
    Ok(Mmio(bus.bar_address(at, bar)? + u64::from(register & !7)))
}

//! The way from an address in the ECAM window to a register of a function (PCI Express 5.0 §7.2.2), and the
//! host bridge, the only function of the bus that is no device.
//!
//! One segment, one bus. Bits 12-14 of the offset are the function, 15-19 the device, 20 and up the bus. A
//! function that is not there reads as all ones, which is how a guest learns that.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use super::config::{ConfigSpace, Identity};
use crate::layout::{PCI_ECAM, PCI_ECAM_BYTES};

/// Devices a bus has room for.
pub const SLOTS: u8 = 32;

/// Register of a function on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Device number, below [`SLOTS`].
    pub slot: u8,
    /// Function number; only 0 exists.
    pub function: u8,
    /// Offset in its 4 KiB.
    pub offset: usize,
}

impl Register {
    /// The register at a guest-physical address; `None` when that is outside the window.
    pub fn at(gpa: u64) -> Option<Register> {
        let offset = gpa.checked_sub(PCI_ECAM).filter(|offset| *offset < PCI_ECAM_BYTES)?;
        Some(Register {
            slot: u8::try_from(offset >> 15 & 0x1f).ok()?,
            function: u8::try_from(offset >> 12 & 0x7).ok()?,
            offset: usize::try_from(offset & 0xfff).ok()?,
        })
    }
}

/// Configuration space of the host bridge at 00:00.0: it has no registers of its own. The numbers are those that
/// Red Hat gave to QEMU's generic PCI Express bridge.
pub fn host_bridge() -> ConfigSpace {
    ConfigSpace::new(&Identity {
        vendor: 0x1b36,
        device: 0x0008,
        revision: 0,
        class: 0x06_00_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_slot_function_and_register() {
        let register = Register::at(PCI_ECAM + (3 << 15) + (5 << 12) + 0x3c).unwrap();
        assert_eq!(register, Register { slot: 3, function: 5, offset: 0x3c });
        assert_eq!(Register::at(PCI_ECAM - 1), None);
        assert_eq!(Register::at(PCI_ECAM + PCI_ECAM_BYTES), None);
        let last = Register::at(PCI_ECAM + PCI_ECAM_BYTES - 1).unwrap();
        assert_eq!(last, Register { slot: 31, function: 7, offset: 0xfff });
    }
}

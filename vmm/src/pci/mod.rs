//! The PCI bus: one segment, one bus, a host bridge and up to 31 devices of one function.
//!
//! In: the guest's accesses to the ECAM window and to the BARs. Out: calls of the [`PciDevice`] that owns the
//! address. A device has one BAR of [`BAR_BYTES`] that is placed here when it is added and that the guest may
//! move. Everything is shared by all vCPU threads: finding the owner takes no device's lock, so that a device
//! that waits for its daemon keeps nobody but its own driver waiting.
//!
//! Accesses of any size, at any offset, in any order come from a hostile guest: none of them panics, none is
//! answered from outside the device.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

pub mod common;
pub mod config;
pub mod doorbell;
pub mod ecam;
pub mod msix;
pub mod virtio;

#[cfg(test)]
pub mod testing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use self::config::ConfigSpace;
use self::ecam::{Register, SLOTS, host_bridge};
use crate::layout::PCI_WINDOW;

/// Size of every device's BAR.
pub const BAR_BYTES: u32 = 0x8000;

/// Why a device could not be added.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// Every slot is taken.
    #[error("--device: more than {} devices do not fit on the PCI bus; leave some out", SLOTS - 1)]
    Full,
}

/// A PCI function as the bus sees it. All methods are called from any vCPU thread.
pub trait PciDevice: Send + Sync {
    /// Called once, before any other: the device is on the bus and BAR 0 is at `bar`.
    fn place(&self, bar: u32);
    /// Reads configuration space.
    fn config_read(&self, offset: usize, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: usize, data: &[u8]);
    /// Where BAR 0 is decoded, if it is. Must not wait for the device.
    fn bar(&self) -> Option<u64>;
    /// Reads BAR 0; `offset` is below [`BAR_BYTES`], the access may reach beyond it.
    fn bar_read(&self, offset: u64, data: &mut [u8]);
    /// Writes BAR 0; `offset` is below [`BAR_BYTES`], the access may reach beyond it.
    fn bar_write(&self, offset: u64, data: &[u8]);
    /// The machine is reset: as after [`PciDevice::place`].
    fn reset(&self);
}

/// The bus of one machine.
pub struct PciRoot {
    bridge: Mutex<ConfigSpace>,
    /// Devices from slot 1 on.
    devices: RwLock<Vec<Arc<dyn PciDevice>>>,
}

impl Default for PciRoot {
    fn default() -> Self {
        PciRoot::new()
    }
}

impl PciRoot {
    /// A bus with nothing but its host bridge.
    pub fn new() -> PciRoot {
        PciRoot { bridge: Mutex::new(host_bridge()), devices: RwLock::default() }
    }

    /// Puts a device into the next free slot, places its BAR and says which slot it got.
    ///
    /// # Errors
    /// [`PciError::Full`].
    pub fn add(&self, device: Arc<dyn PciDevice>) -> Result<u8, PciError> {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        let slot = u8::try_from(devices.len()).ok().and_then(|taken| taken.checked_add(1));
        let slot = slot.filter(|slot| *slot < SLOTS).ok_or(PciError::Full)?;
        device.place(bar_of(slot));
        devices.push(device);
        Ok(slot)
    }

    /// Serves a read of the guest. False: the address belongs to nobody here, and `data` is as it was.
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> bool {
        if let Some(register) = Register::at(gpa) {
            self.config_read(register, data);
            return true;
        }
        let owner = self.bar_owner(gpa);
        owner.map(|(device, offset)| device.bar_read(offset, data)).is_some()
    }

    /// Serves a write of the guest. False: the address belongs to nobody here.
    pub fn write(&self, gpa: u64, data: &[u8]) -> bool {
        if let Some(register) = Register::at(gpa) {
            self.config_write(register, data);
            return true;
        }
        let owner = self.bar_owner(gpa);
        owner.map(|(device, offset)| device.bar_write(offset, data)).is_some()
    }

    /// Brings every device to the state it had when it was added.
    pub fn reset(&self) {
        self.all().iter().for_each(|device| device.reset());
        *self.lock_bridge() = host_bridge();
    }

    fn config_read(&self, register: Register, data: &mut [u8]) {
        match (register.slot, self.function(register)) {
            (_, Some(device)) => device.config_read(register.offset, data),
            (0, None) if register.function == 0 => self.lock_bridge().read(register.offset, data),
            _ => data.fill(0xff),
        }
    }

    fn config_write(&self, register: Register, data: &[u8]) {
        match (register.slot, self.function(register)) {
            (_, Some(device)) => device.config_write(register.offset, data),
            (0, None) if register.function == 0 => self.lock_bridge().write(register.offset, data),
            _ => {}
        }
    }

    /// The device a register belongs to; slot 0 is the bridge, which is none.
    fn function(&self, register: Register) -> Option<Arc<dyn PciDevice>> {
        let index = usize::from(register.slot).checked_sub(1).filter(|_| register.function == 0)?;
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        devices.get(index).map(Arc::clone)
    }

    /// The device in whose BAR an address lies, and where. If the guest has laid one BAR over another, the
    /// first device has it.
    fn bar_owner(&self, gpa: u64) -> Option<(Arc<dyn PciDevice>, u64)> {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        devices.iter().find_map(|device| {
            let offset = gpa.checked_sub(device.bar()?)?;
            (offset < u64::from(BAR_BYTES)).then(|| (Arc::clone(device), offset))
        })
    }

    fn all(&self) -> Vec<Arc<dyn PciDevice>> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock_bridge(&self) -> MutexGuard<'_, ConfigSpace> {
        self.bridge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the BAR of a slot is placed: slots have equal shares of the start of the window.
fn bar_of(slot: u8) -> u32 {
    let bar = PCI_WINDOW.saturating_add(u64::from(slot).saturating_mul(u64::from(BAR_BYTES)));
    u32::try_from(bar).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;

//! PCI by ECAM: finding devices, placing their BARs, and raw access for tests that misbehave.
//!
//! `virtio-drivers` knows the bus; what it lacks (allocation of BARs, accesses of other sizes than 32 bits)
//! is here.

use alloc::{format, string::String, vec::Vec};
use core::ptr;
use virtio_drivers::transport::{
    DeviceType,
    pci::{
        bus::{BarInfo, Cam, Command, DeviceFunction, DeviceFunctionInfo, MemoryBarType, MmioCam, PciRoot},
        virtio_device_type,
    },
};

/// Where BARs that the firmware left unset are placed.
const WINDOW: core::ops::Range<u64> = 0xC000_0000..0xE000_0000;
/// Bytes of configuration space that the registers of this guest's devices are in.
pub const CONFIG_BYTES: u64 = 256;

/// Bus 0 of segment 0.
pub struct Bus {
    /// The crate's access to configuration space.
    pub root: PciRoot<MmioCam<'static>>,
    ecam: u64,
    next_bar: u64,
}

/// One function, with where it is.
pub struct Function {
    /// Bus, device and function number.
    pub at: DeviceFunction,
    /// Identification.
    pub info: DeviceFunctionInfo,
}

impl Function {
    /// The virtio device type, if it is one.
    pub fn virtio(&self) -> Option<DeviceType> {
        virtio_device_type(&self.info)
    }
}

impl Bus {
    /// The bus whose configuration space starts at physical address `ecam`.
    pub fn new(ecam: u64) -> Self {
        // SAFETY: MCFG says that the ECAM is there; it is mapped one to one and no Rust object is in it.
        let access = unsafe { MmioCam::new(ecam as *mut u8, Cam::Ecam) };
        Self { root: PciRoot::new(access), ecam, next_bar: WINDOW.start }
    }

    /// All functions of the bus.
    pub fn functions(&self) -> Vec<Function> {
        self.root.enumerate_bus(0).map(|(at, info)| Function { at, info }).collect()
    }

    /// The first virtio device of this type, its BARs placed and decoded, bus mastering on.
    pub fn virtio(&mut self, wanted: DeviceType) -> Result<Function, String> {
        let found = self.functions().into_iter().find(|function| function.virtio() == Some(wanted));
        let function = found.ok_or_else(|| format!("no virtio device of type {wanted:?} on the bus"))?;
        self.enable(function.at)?;
        Ok(function)
    }

    /// Places unset BARs and lets the function decode memory and reach RAM.
    pub fn enable(&mut self, at: DeviceFunction) -> Result<(), String> {
        for (index, bar) in (0u8..).zip(self.bars(at)?) {
            if let Some(BarInfo::Memory { address: 0, size, address_type, .. }) = bar {
                self.place(at, index, address_type, size)?;
            }
        }
        self.root.set_command(at, Command::MEMORY_SPACE | Command::BUS_MASTER);
        Ok(())
    }

    fn place(&mut self, at: DeviceFunction, index: u8, kind: MemoryBarType, size: u64) -> Result<(), String> {
        let address = self.next_bar.next_multiple_of(size);
        if address + size > WINDOW.end {
            return Err(format!("no room for BAR {index} of {size:#x} bytes"));
        }
        self.next_bar = address + size;
        match kind {
            MemoryBarType::Width64 => self.root.set_bar_64(at, index, address),
            _ => self.root.set_bar_32(at, index, u32::try_from(address).map_err(|error| format!("{error}"))?),
        }
        Ok(())
    }

    /// The six BARs of a function.
    pub fn bars(&mut self, at: DeviceFunction) -> Result<[Option<BarInfo>; 6], String> {
        self.root.bars(at).map_err(|error| format!("BARs of {at}: {error}"))
    }

    /// Physical address of a BAR in memory space.
    pub fn bar_address(&mut self, at: DeviceFunction, index: u8) -> Result<u64, String> {
        let bar = self.root.bar_info(at, index).map_err(|error| format!("BAR {index} of {at}: {error}"))?;
        let memory = bar.and_then(|bar| bar.memory_address_size());
        memory.map(|(address, _)| address).ok_or_else(|| format!("BAR {index} of {at} is not memory"))
    }

    /// Physical address of a function's configuration space.
    pub fn config_address(&self, at: DeviceFunction) -> u64 {
        self.ecam + (u64::from(at.bus) << 20 | u64::from(at.device) << 15 | u64::from(at.function) << 12)
    }

    /// The register of 32 bits at `offset` of a function's configuration space.
    pub fn config(&self, at: DeviceFunction, offset: u64) -> Mmio {
        Mmio(self.config_address(at) + offset)
    }

    /// Offsets of the capabilities with this ID.
    pub fn capabilities(&self, at: DeviceFunction, id: u8) -> impl Iterator<Item = u64> {
        self.root
            .capabilities(at)
            .filter(move |capability| capability.id == id)
            .map(|found| found.offset.into())
    }
}

/// A place in a device's registers, for accesses of any size.
#[derive(Clone, Copy)]
pub struct Mmio(pub u64);

macro_rules! accesses {
    ($($read:ident $write:ident $type:ty),*) => {$(
        #[doc = concat!("Reads a `", stringify!($type), "` at `offset`.")]
        pub fn $read(self, offset: u64) -> $type {
            // SAFETY: device registers, mapped one to one; no Rust object is there.
            unsafe { ptr::read_volatile((self.0 + offset) as *const $type) }
        }

        #[doc = concat!("Writes a `", stringify!($type), "` at `offset`.")]
        pub fn $write(self, offset: u64, value: $type) {
            // SAFETY: as for reading; what the write makes the device do is the test's business.
            unsafe { ptr::write_volatile((self.0 + offset) as *mut $type, value) }
        }
    )*};
}

impl Mmio {
    accesses!(read8 write8 u8, read16 write16 u16, read32 write32 u32, read64 write64 u64);
}

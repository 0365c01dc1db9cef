//! A virtio PCI transport around the one of `virtio-drivers`.
//!
//! It adds what that one lacks: the doorbell's address is kept, so a notification is one write (and, with
//! ioeventfd, no exit of the VMM), queues get an MSI-X vector, and features can be hidden from the driver.

use crate::{
    dma::Identity,
    msix::Msix,
    pci::{Bus, Function, Mmio},
};
use alloc::{format, string::String, vec::Vec};
use bitflags::bitflags;
use virtio_drivers::{
    PhysAddr, Result as VirtioResult,
    transport::{
        DeviceStatus, DeviceType, InterruptStatus, Transport,
        pci::{PciTransport, VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_NOTIFY_CFG},
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const VENDOR_CAPABILITY: u8 = 0x09;

/// Offsets in `struct virtio_pci_common_cfg`, virtio 1.3 section 4.1.4.3.
pub mod common {
    use core::ops::Range;

    /// Which half of the device's features is read.
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// That half.
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// Which half of the driver's features is written.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// That half.
    pub const DRIVER_FEATURE: u64 = 0x0C;
    /// MSI-X vector of configuration changes.
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    /// How many queues there are.
    pub const NUM_QUEUES: u64 = 0x12;
    /// The device status.
    pub const DEVICE_STATUS: u64 = 0x14;
    /// Which queue the following registers are of.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// MSI-X vector of the queue.
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1A;
    /// Writing 1 starts the queue.
    pub const QUEUE_ENABLE: u64 = 0x1C;
    /// Where the queue's doorbell is.
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1E;
    /// Descriptor, driver and device area, 8 bytes each.
    pub const QUEUE_ADDRESSES: Range<u64> = 0x20..0x38;
}

/// Interrupt of queue 0; the next queues follow.
pub const FIRST_INTERRUPT: u8 = 40;

bitflags! {
    /// What a queue of our own negotiates.
    #[derive(Clone, Copy, Debug)]
    pub struct Feature: u64 {
        /// virtio 1.0 or newer, section 6.
        const VERSION_1 = 1 << 32;
    }
}

/// The transport.
pub struct VirtioPci {
    inner: PciTransport,
    common: Mmio,
    doorbells: Vec<Mmio>,
    visible_features: u64,
    /// The interrupts, where they are used.
    pub msix: Option<Msix>,
}

impl VirtioPci {
    /// Takes over the first device of type `kind`.
    ///
    /// `visible_features` hides device features from the driver; with `interrupts`, queue N raises
    /// interrupt [`FIRST_INTERRUPT`] + N through MSI-X vector N.
    pub fn new(
        bus: &mut Bus,
        kind: DeviceType,
        visible_features: u64,
        interrupts: bool,
    ) -> Result<Self, String> {
        let function = bus.virtio(kind)?;
        let inner = PciTransport::new::<Identity, _>(&mut bus.root, function.at)
            .map_err(|error| format!("{error}"))?;
        let (common, _) = structure(bus, &function, VIRTIO_PCI_CAP_COMMON_CFG)?;
        let doorbells = doorbells(bus, &function, common)?;
        let msix = if interrupts { Some(Msix::new(bus, function.at)?) } else { None };
        Ok(Self { inner, common, doorbells, visible_features, msix })
    }

    /// Virtqueues of the device.
    pub fn queues(&self) -> u16 {
        self.common.read16(common::NUM_QUEUES)
    }

    /// Gives queue `queue` MSI-X vector `queue`. The device takes it or answers NO_VECTOR (0xFFFF).
    fn set_vector(&mut self, queue: u16) {
        let Some(msix) = &self.msix else { return };
        msix.route(queue, FIRST_INTERRUPT + u8::try_from(queue).unwrap_or(0));
        self.common.write16(common::CONFIG_MSIX_VECTOR, 0xFFFF);
        self.common.write16(common::QUEUE_SELECT, queue);
        self.common.write16(common::QUEUE_MSIX_VECTOR, queue);
        let taken = self.common.read16(common::QUEUE_MSIX_VECTOR);
        assert_eq!(taken, queue, "the device refused MSI-X vector {queue} (it has {})", msix.vectors);
    }
}

/// Where a structure of the device is, and where in configuration space its capability is.
pub fn structure(bus: &mut Bus, function: &Function, kind: u8) -> Result<(Mmio, Mmio), String> {
    let capabilities = bus.capabilities(function.at, VENDOR_CAPABILITY);
    let mut places = capabilities.map(|offset| bus.config(function.at, offset));
    let place = places.find(|place| place.read8(3) == kind);
    drop(places);
    let place = place.ok_or_else(|| format!("no virtio capability of type {kind}"))?;
    Ok((Mmio(bus.bar_address(function.at, place.read8(4))? + u64::from(place.read32(8))), place))
}

/// The address to write to for each queue, virtio 1.3 section 4.1.4.4.
pub fn doorbells(bus: &mut Bus, function: &Function, common: Mmio) -> Result<Vec<Mmio>, String> {
    let (notify, capability) = structure(bus, function, VIRTIO_PCI_CAP_NOTIFY_CFG)?;
    let multiplier = u64::from(capability.read32(16));
    let doorbell = |queue| {
        common.write16(common::QUEUE_SELECT, queue);
        Mmio(notify.0 + multiplier * u64::from(common.read16(common::QUEUE_NOTIFY_OFF)))
    };
    Ok((0..common.read16(common::NUM_QUEUES)).map(doorbell).collect())
}

impl Transport for VirtioPci {
    fn notify(&mut self, queue: u16) {
        self.doorbells[usize::from(queue)].write16(0, queue);
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features() & self.visible_features
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        self.set_vector(queue);
        self.inner.queue_set(queue, size, descriptors, driver, device);
    }

    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.inner.write_driver_features(features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, bytes: u32) {
        self.inner.set_guest_page_size(bytes);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> VirtioResult<T> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> VirtioResult<()> {
        self.inner.write_config_space(offset, value)
    }
}

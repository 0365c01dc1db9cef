//! The common configuration of a virtio function (virtio 1.3 §4.1.4.3): registers and the rules between them.
//!
//! In: reads and writes of the guest. Out: the bytes of the registers, and for each write the [`Effect`] that
//! its owner has to carry out. Nothing here touches a daemon, an interrupt or KVM, so all rules are in one place
//! and tested without any.
//!
//! A write counts only if it covers exactly one register (or half of a 64-bit one); any other is ignored. What
//! describes a queue is frozen while the queue is enabled, features are frozen once FEATURES_OK is set, and
//! NEEDS_RESET is the device's alone: a guest can neither set nor clear it except by a reset.
//!
//! A reset takes the device as long as it takes. Until [`Common::finish_reset`] the status does not read as 0
//! (virtio 1.3 §4.1.4.3.1) and no write counts; a queue that is being reset says so in its register.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

/// Bytes of the registers.
pub const COMMON_BYTES: usize = 0x40;
/// Feature bit 32: virtio 1.x. Every daemon must offer it, every driver must take it.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature bit 34: packed virtqueues, whose size need not be a power of two.
pub const F_RING_PACKED: u64 = 1 << 34;
/// Feature bit 40: single queues can be reset.
pub const F_RING_RESET: u64 = 1 << 40;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;

mod offset {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const STATUS: usize = 0x14;
    pub const GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    pub const QUEUE_RESET: usize = 0x3a;
}

/// What a write asks of the owner of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    Nothing,
    /// Reset the device; [`Common::finish_reset`] when that is done.
    Reset,
    /// DRIVER_OK: start the device with the enabled queues.
    Start,
    /// Start this one queue of a running device.
    StartQueue(u16),
    /// Stop this one queue (RING_RESET); it is disabled already. [`Common::finish_reset`] when that is done.
    StopQueue(u16),
    /// The configuration change has another vector.
    ConfigVector(u16),
    /// A queue has another vector.
    QueueVector(u16, u16),
}

/// A virtqueue as the driver describes it. Addresses are guest-physical and not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Number of descriptors.
    pub size: u16,
    /// The driver has enabled it.
    pub enabled: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring (packed: driver event suppression).
    pub driver: u64,
    /// Used ring (packed: device event suppression).
    pub device: u64,
    /// It is being reset (RING_RESET).
    pub resetting: bool,
}

/// The registers.
#[derive(Debug)]
pub struct Common {
    offered: u64,
    max_queue_size: u16,
    resetting: bool,
    generation: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    queue_select: u16,
    queues: Vec<Queue>,
}

impl Common {
    /// Of a device with these features and queues.
    pub fn new(offered: u64, queues: u16, max_queue_size: u16) -> Common {
        let queue = Queue { size: max_queue_size, ..Queue::default() };
        Common {
            offered,
            max_queue_size,
            resetting: false,
            generation: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues: vec![queue; usize::from(queues)],
        }
    }

    /// Features that the driver took.
    pub fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// A driver is using the device.
    pub fn is_running(&self) -> bool {
        self.status & STATUS_DRIVER_OK != 0
    }

    /// Queues that the driver has enabled.
    pub fn enabled_queues(&self) -> impl Iterator<Item = (u16, Queue)> {
        (0..).zip(self.queues.iter().copied()).filter(|(_, queue)| queue.enabled)
    }

    /// One queue.
    pub fn queue(&self, index: u16) -> Option<Queue> {
        self.queues.get(usize::from(index)).copied()
    }

    /// The queue that is selected at the moment; it need not exist.
    pub fn selected(&self) -> u16 {
        self.queue_select
    }

    /// Asks the driver for a reset (virtio 1.3 §2.1.2). True if there is a driver that must be told and was not.
    pub fn needs_reset(&mut self) -> bool {
        let tell = self.is_running() && !self.resetting && self.status & STATUS_NEEDS_RESET == 0;
        if tell {
            self.status |= STATUS_NEEDS_RESET;
        }
        tell
    }

    /// The device configuration is another now. True if there is a driver that must be told.
    pub fn config_changed(&mut self) -> bool {
        self.generation = self.generation.wrapping_add(1);
        self.is_running() && !self.resetting
    }

    /// The device is being reset; the driver need not have asked.
    pub fn begin_reset(&mut self) {
        self.resetting = true;
    }

    /// The device, or a queue, is being reset.
    pub fn is_resetting(&self) -> bool {
        self.resetting || self.queues.iter().any(|queue| queue.resetting)
    }

    /// What was being reset is at rest. True if that is the device: everything is as before the first write.
    pub fn finish_reset(&mut self) -> bool {
        let all = self.resetting;
        if all {
            let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
            let fresh = Common::new(self.offered, queues, self.max_queue_size);
            *self = Common { generation: self.generation, ..fresh };
        }
        self.queues.iter_mut().for_each(|queue| queue.resetting = false);
        all
    }

    /// Serves a read of the guest, of any size. The vectors are those that the interrupts have now.
    pub fn read(&self, at: usize, data: &mut [u8], config_vector: u16, queue_vector: u16) {
        data.fill(0);
        let image = self.image(config_vector, queue_vector);
        let from = image.get(at..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn image(&self, config_vector: u16, queue_vector: u16) -> [u8; COMMON_BYTES] {
        use offset::*;
        let mut image = [0; COMMON_BYTES];
        let mut put = |at: usize, value: &[u8]| {
            let to = image.get_mut(at..).unwrap_or_default();
            to.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        };
        let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(DEVICE_FEATURE, &half(self.offered, self.device_feature_select));
        put(DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(DRIVER_FEATURE, &half(self.driver_features, self.driver_feature_select));
        put(CONFIG_VECTOR, &config_vector.to_le_bytes());
        put(NUM_QUEUES, &queues.to_le_bytes());
        put(STATUS, &[self.status]);
        put(GENERATION, &[self.generation]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(QUEUE_VECTOR, &queue_vector.to_le_bytes());
        // A queue that does not exist has size 0 (virtio 1.3 §4.1.4.3.1).
        if let Some(queue) = self.queue(self.queue_select) {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(QUEUE_DESC, &queue.descriptors.to_le_bytes());
            put(QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(QUEUE_DEVICE, &queue.device.to_le_bytes());
            put(QUEUE_RESET, &u16::from(queue.resetting).to_le_bytes());
        }
        image
    }

    /// Serves a write of the guest and says what has to follow from it.
    pub fn write(&mut self, at: usize, data: &[u8]) -> Effect {
        match *data {
            _ if self.resetting => Effect::Nothing,
            [value] if at == offset::STATUS => self.write_status(value),
            [a, b] => self.write_u16(at, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(at, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.write_address(at, u64::MAX, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => Effect::Nothing,
        }
    }

    fn write_u16(&mut self, at: usize, value: u16) -> Effect {
        match at {
            offset::CONFIG_VECTOR => return Effect::ConfigVector(value),
            offset::QUEUE_VECTOR => return Effect::QueueVector(self.queue_select, value),
            offset::QUEUE_SELECT => self.queue_select = value,
            offset::QUEUE_SIZE => self.write_queue_size(value),
            offset::QUEUE_ENABLE if value == 1 => return self.enable_queue(),
            offset::QUEUE_RESET if value == 1 => return self.reset_queue(),
            _ => {}
        }
        Effect::Nothing
    }

    fn write_u32(&mut self, at: usize, value: u32) -> Effect {
        match at {
            offset::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            offset::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            offset::DRIVER_FEATURE => self.write_driver_feature(value),
            _ if at & 4 == 0 => return self.write_address(at, 0xffff_ffff, u64::from(value)),
            _ => return self.write_address(at & !4, 0xffff_ffff << 32, u64::from(value) << 32),
        }
        Effect::Nothing
    }

    fn write_driver_feature(&mut self, value: u32) {
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            // More than 64 feature bits are not offered, so none of them can be taken.
            _ => return,
        };
        if self.status & STATUS_FEATURES_OK == 0 {
            self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    /// Changes the bits of `mask` in one of the three addresses of the selected queue.
    fn write_address(&mut self, at: usize, mask: u64, value: u64) -> Effect {
        if let Some(queue) = self.selected_mut().filter(|queue| !queue.enabled) {
            let address = match at {
                offset::QUEUE_DESC => &mut queue.descriptors,
                offset::QUEUE_DRIVER => &mut queue.driver,
                offset::QUEUE_DEVICE => &mut queue.device,
                _ => return Effect::Nothing,
            };
            *address = *address & !mask | value;
        }
        Effect::Nothing
    }

    /// A size that the ring cannot have is not taken, which the driver learns by reading back.
    fn write_queue_size(&mut self, size: u16) {
        let packed = self.driver_features & F_RING_PACKED != 0;
        let possible = (1..=self.max_queue_size).contains(&size) && (packed || size.is_power_of_two());
        if let Some(queue) = self.selected_mut().filter(|queue| possible && !queue.enabled) {
            queue.size = size;
        }
    }

    fn enable_queue(&mut self) -> Effect {
        let (index, running) = (self.queue_select, self.is_running());
        match self.selected_mut() {
            Some(queue) if !queue.enabled && !queue.resetting => {
                queue.enabled = true;
                if running { Effect::StartQueue(index) } else { Effect::Nothing }
            }
            _ => Effect::Nothing,
        }
    }

    /// virtio 1.3 §2.6.1: the queue is as after a device reset, and the register reads as 1 until it is at rest.
    fn reset_queue(&mut self) -> Effect {
        let (index, fresh) = (self.queue_select, Queue { size: self.max_queue_size, ..Queue::default() });
        let negotiated = self.is_running() && self.driver_features & F_RING_RESET != 0;
        match self.selected_mut().filter(|queue| negotiated && queue.enabled) {
            Some(queue) => {
                *queue = Queue { resetting: true, ..fresh };
                Effect::StopQueue(index)
            }
            None => Effect::Nothing,
        }
    }

    /// virtio 1.3 §2.1: bits are added one after the other, 0 resets.
    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let mut added = value & !self.status & !STATUS_NEEDS_RESET;
        if added & STATUS_FEATURES_OK != 0 && !self.accepts_features() {
            added &= !STATUS_FEATURES_OK;
        }
        // DRIVER_OK before features were agreed on is no start (virtio 1.3 §3.1.1).
        if (self.status | added) & STATUS_FEATURES_OK == 0 {
            added &= !STATUS_DRIVER_OK;
        }
        self.status |= added;
        if added & STATUS_DRIVER_OK != 0 { Effect::Start } else { Effect::Nothing }
    }

    fn accepts_features(&self) -> bool {
        let subset = self.driver_features & !self.offered == 0;
        subset && self.driver_features & F_VERSION_1 != 0
    }

    fn selected_mut(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }
}

/// The 32 feature bits that a selector names; there are none from 64 on.
fn half(features: u64, select: u32) -> [u8; 4] {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => [a, b, c, d],
        1 => [e, f, g, h],
        _ => [0; 4],
    }
}

#[cfg(test)]
#[path = "common_tests.rs"]
mod tests;

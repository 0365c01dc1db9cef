//! A modern virtio-pci function (virtio 1.3 §4.1) in front of a [`Backend`] that is the device.
//!
//! ```text
//! BAR 0, 32 KiB   0x0000 common configuration    0x3000 notify, 4 bytes a queue
//!                 0x1000 ISR                     0x4000 MSI-X table
//!                 0x2000 device configuration    0x6000 MSI-X pending bits
//! ```
//! The same areas are named by the vendor capabilities, and reachable through the PCI configuration access
//! capability. In: accesses of vCPU threads. Out: calls of the backend at DRIVER_OK, reset and writes of the
//! device configuration, and nothing in between: notifications are ioeventfds ([`Doorbells`]), interrupts
//! irqfds ([`Msix`]).
//!
//! One lock covers the function; where its BAR lies is known without it. A driver that asks its backend for the
//! impossible gets a NEEDS_RESET and a configuration interrupt. A reset that the backend does not finish at once
//! goes on behind the driver's back, which sees the old status until then.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;

use super::common::{Common, Effect, Queue};
use super::config::{ConfigSpace, Identity};
use super::doorbell::{Doorbells, STRIDE};
use super::msix::{self, CONFIG_LINE, Msix, queue_line};
use super::{BAR_BYTES, PciDevice};
use crate::kvm::event::Event;
use crate::kvm::irq::{IrqError, IrqRouter};

/// Most queues a function can have: what the notify area and vhost-user's queue index both hold.
pub const MAX_QUEUES: u16 = 256;

const VENDOR: u16 = 0x1af4;
/// Device id of virtio type 0; that of type n is n more (virtio 1.3 §4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;
/// Any value from 0x40 on says "not transitional".
const SUBSYSTEM: u16 = 0x1100;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x6000;

const CAPABILITY_VENDOR: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// Offsets in the PCI configuration access capability.
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LENGTH: usize = 12;
const WINDOW_DATA: usize = 16;

const ISR_CONFIG: u8 = 1 << 1;
const NO_BAR: u64 = u64::MAX;

/// The driver asked for the impossible, which the backend has said in the log; after a reset it may try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// A virtqueue that is to be served.
#[derive(Clone)]
pub struct Ring {
    /// Index.
    pub index: u16,
    /// What the driver said of it, unchecked.
    pub queue: Queue,
    /// Raised by the driver.
    pub kick: Arc<Event>,
    /// Raised to interrupt the driver.
    pub call: Arc<Event>,
}

/// The device behind a function. A call may keep the vCPU that made it for a moment, but not until it is done.
pub trait Backend: Send {
    /// A driver starts, with these features.
    fn start(&mut self, features: u64, rings: Vec<Ring>) -> Result<(), Fault>;
    /// A queue starts while others run.
    fn start_ring(&mut self, ring: Ring) -> Result<(), Fault>;
    /// A queue ends: see [`Backend::is_at_rest`].
    fn stop_ring(&mut self, index: u16);
    /// All queues end: see [`Backend::is_at_rest`].
    fn stop(&mut self);
    /// From now on not one byte of the guest changes because of a queue that was ended.
    fn is_at_rest(&self) -> bool;
    /// Reads the device configuration; zeros beyond its end.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// A write of the driver to the device configuration; it may reach beyond its end.
    fn write_config(&mut self, offset: usize, data: &[u8]);
}

/// What a function is made from.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Virtio device type.
    pub device_type: u16,
    /// PCI class code, 24 bits.
    pub class: u32,
    /// Features for the guest.
    pub features: u64,
    /// Virtqueues, at most [`MAX_QUEUES`].
    pub queues: u16,
    /// Largest size of each.
    pub max_queue_size: u16,
}

/// Why a function could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// Interrupt lines.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// Kick eventfds.
    #[error("Cannot make an eventfd: {0}; raise the limit of open files (ulimit -n)")]
    Event(io::Error),
}

/// The function.
pub struct VirtioPci<B> {
    /// Where BAR 0 is decoded, or [`NO_BAR`].
    bar: AtomicU64,
    state: Mutex<State<B>>,
}

struct State<B> {
    config: ConfigSpace,
    /// As it was when the function was placed.
    fresh: ConfigSpace,
    common: Common,
    msix: Msix,
    doorbells: Doorbells,
    isr: u8,
    /// Offset of the MSI-X capability.
    msix_at: usize,
    /// Offset of the PCI configuration access capability.
    window: usize,
    backend: B,
}

impl<B: Backend> VirtioPci<B> {
    /// Puts a function in front of `backend`.
    pub fn new(
        shape: &Shape,
        backend: B,
        vm: &Arc<VmFd>,
        irq: &Arc<IrqRouter>,
    ) -> Result<VirtioPci<B>, FunctionError> {
        let msix = Msix::new(irq, shape.queues)?;
        let (config, msix_at, window) = capabilities(shape, &msix);
        let state = State {
            fresh: config.clone(),
            config,
            common: Common::new(shape.features, shape.queues, shape.max_queue_size),
            msix,
            doorbells: Doorbells::new(vm, shape.queues).map_err(FunctionError::Event)?,
            isr: 0,
            msix_at,
            window,
            backend,
        };
        Ok(VirtioPci { bar: AtomicU64::new(NO_BAR), state: Mutex::new(state) })
    }

    /// Tells the driver of what the backend came upon, if `look` finds anything.
    pub fn attend(&self, look: impl FnOnce() -> Result<(), Fault>) {
        let mut state = self.lock();
        state.note(look());
    }

    /// Tells the driver that the device configuration has changed.
    pub fn config_changed(&self) {
        let mut state = self.lock();
        if state.common.config_changed() {
            state.raise_config();
        }
    }

    /// The driver's part of [`PciDevice::reset`]: the backend comes to rest when it is ready.
    pub fn begin_reset(&self) {
        self.lock().reset_device();
    }

    /// A vCPU that panicked in here must not take the others along.
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes known where the BAR is after a change of configuration space.
    fn publish(&self, state: &mut State<B>) {
        let bar = state.config.bar();
        state.doorbells.place(bar.and_then(|bar| bar.checked_add(NOTIFY)));
        self.bar.store(bar.unwrap_or(NO_BAR), Ordering::Release);
    }
}

impl<B: Backend> PciDevice for VirtioPci<B> {
    fn place(&self, bar: u32) {
        let mut state = self.lock();
        state.fresh = state.fresh.clone().with_bar(BAR_BYTES, bar);
        state.config = state.fresh.clone();
        self.publish(&mut state);
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        self.lock().config_read(offset, data);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        state.config_write(offset, data);
        self.publish(&mut state);
    }

    fn bar(&self) -> Option<u64> {
        Some(self.bar.load(Ordering::Acquire)).filter(|bar| *bar != NO_BAR)
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        self.lock().bar_read(offset, data);
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        self.lock().bar_write(offset, data);
    }

    /// The backend is at rest already.
    fn reset(&self) {
        let mut state = self.lock();
        state.reset_device();
        state.msix.reset();
        state.config = state.fresh.clone();
        self.publish(&mut state);
    }
}

impl<B: Backend> State<B> {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        let at = self.window.saturating_add(WINDOW_DATA);
        if overlap(offset, data.len(), at, 4)
            && let Some((bar_offset, length)) = self.window_target()
        {
            let mut value = [0; 4];
            self.bar_read(bar_offset, value.get_mut(..length).unwrap_or_default());
            self.config.set(at, &value);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let at = self.window.saturating_add(WINDOW_DATA);
        if overlap(offset, data.len(), at, 4)
            && let Some((bar_offset, length)) = self.window_target()
        {
            let value = self.config.u32(at).to_le_bytes();
            self.bar_write(bar_offset, value.get(..length).unwrap_or_default());
        }
        let control = self.msix_at.saturating_add(msix::CONTROL);
        if overlap(offset, data.len(), control, 2) {
            let high = self.config.byte(control.saturating_add(1));
            self.msix.set_control(u16::from_le_bytes([self.config.byte(control), high]));
        }
    }

    /// Where in the BAR the PCI configuration access capability points, and how many bytes it moves; `None`
    /// while that is not an access the capability allows (virtio 1.3 §4.1.4.9.1).
    fn window_target(&self) -> Option<(u64, usize)> {
        let word = |at: usize| self.config.u32(self.window.saturating_add(at));
        let (offset, length) = (word(WINDOW_OFFSET), word(WINDOW_LENGTH));
        let in_bar = self.config.byte(self.window.saturating_add(WINDOW_BAR)) == 0 && offset < BAR_BYTES;
        let allowed = in_bar && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        Some((u64::from(offset), usize::try_from(length).ok()?)).filter(|_| allowed)
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        let (area, at) = split(offset);
        match area {
            COMMON => {
                self.settle();
                let queue_vector = self.msix.vector(queue_line(self.common.selected()));
                self.common.read(at, data, self.msix.vector(CONFIG_LINE), queue_vector);
            }
            ISR => self.read_isr(at, data),
            DEVICE => self.backend.read_config(at, data),
            TABLE => self.msix.read_table(at, data),
            PENDING => self.msix.read_pending(at, data),
            _ => data.fill(0),
        }
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        let (area, at) = split(offset);
        match area {
            COMMON => {
                self.settle();
                let effect = self.common.write(at, data);
                self.carry_out(effect);
            }
            DEVICE => self.backend.write_config(at, data),
            NOTIFY => self.doorbells.ring(offset.saturating_sub(NOTIFY)),
            TABLE => self.msix.write_table(at, data),
            _ => {}
        }
    }

    /// Reading the ISR clears it (virtio 1.3 §4.1.4.5.1).
    fn read_isr(&mut self, at: usize, data: &mut [u8]) {
        copy(&[self.isr], at, data);
        if at == 0 {
            self.isr = 0;
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Reset => self.reset_device(),
            Effect::Start => self.start(),
            Effect::StartQueue(index) => self.start_queue(index),
            Effect::StopQueue(index) => self.stop_queue(index),
            Effect::ConfigVector(vector) => self.msix.set_vector(CONFIG_LINE, vector),
            Effect::QueueVector(queue, vector) => self.msix.set_vector(queue_line(queue), vector),
        }
    }

    fn start(&mut self) {
        let (doorbells, msix) = (&self.doorbells, &self.msix);
        let queues: Vec<_> = self.common.enabled_queues().collect();
        let rings: Vec<_> =
            queues.iter().filter_map(|(i, queue)| ring(doorbells, msix, *i, *queue)).collect();
        let outcome = self.backend.start(self.common.driver_features(), rings);
        if outcome.is_ok() {
            queues.iter().for_each(|(index, _)| self.doorbells.set_running(*index, true));
        }
        self.note(outcome);
    }

    fn start_queue(&mut self, index: u16) {
        let queue = self.common.queue(index).unwrap_or_default();
        let Some(ring) = ring(&self.doorbells, &self.msix, index, queue) else { return };
        let outcome = self.backend.start_ring(ring);
        if outcome.is_ok() {
            self.doorbells.set_running(index, true);
        }
        self.note(outcome);
    }

    fn stop_queue(&mut self, index: u16) {
        self.doorbells.set_running(index, false);
        self.backend.stop_ring(index);
        self.msix.set_vector(queue_line(index), msix::NO_VECTOR);
        self.settle();
    }

    fn reset_device(&mut self) {
        self.common.begin_reset();
        for (index, _) in self.common.enabled_queues() {
            self.doorbells.set_running(index, false);
        }
        self.backend.stop();
        self.settle();
    }

    /// Finishes a reset, of the device or of a queue, once that is at rest. A driver looks again and again.
    fn settle(&mut self) {
        if self.common.is_resetting() && self.backend.is_at_rest() && self.common.finish_reset() {
            self.msix.forget_vectors();
            self.isr = 0;
        }
    }

    /// Tells the driver of a fault.
    fn note(&mut self, outcome: Result<(), Fault>) {
        if outcome.is_err() && self.common.needs_reset() {
            self.raise_config();
        }
    }

    fn raise_config(&mut self) {
        self.isr |= ISR_CONFIG;
        if let Some(event) = self.msix.event(CONFIG_LINE) {
            event.raise();
        }
    }
}

fn ring(doorbells: &Doorbells, msix: &Msix, index: u16, queue: Queue) -> Option<Ring> {
    let kick = Arc::clone(doorbells.kick(index)?);
    let call = Arc::clone(msix.event(queue_line(index))?);
    Some(Ring { index, queue, kick, call })
}

/// Configuration space with all capabilities; the offsets of the MSI-X and of the configuration access one.
fn capabilities(shape: &Shape, msix: &Msix) -> (ConfigSpace, usize, usize) {
    let mut space = ConfigSpace::new(&Identity {
        vendor: VENDOR,
        device: DEVICE_BASE.saturating_add(shape.device_type),
        revision: 1,
        class: shape.class,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    });
    let msix_at = space.add_capability(msix::CAPABILITY_ID, &msix.capability(low(TABLE), low(PENDING)));
    space.allow(msix_at.saturating_add(msix::CONTROL), &msix::CONTROL_WRITABLE.to_le_bytes());
    for (cfg_type, from, to) in
        [(CFG_COMMON, COMMON, ISR), (CFG_ISR, ISR, DEVICE), (CFG_DEVICE, DEVICE, NOTIFY)]
    {
        space.add_capability(CAPABILITY_VENDOR, &capability(cfg_type, low(from), low(to), &[]));
    }
    let notify = capability(CFG_NOTIFY, low(NOTIFY), low(TABLE), &STRIDE.to_le_bytes());
    space.add_capability(CAPABILITY_VENDOR, &notify);
    let window = space.add_capability(CAPABILITY_VENDOR, &capability(CFG_PCI, 0, 0, &[0; 4]));
    space.allow(window.saturating_add(WINDOW_BAR), &[0xff]);
    space.allow(window.saturating_add(WINDOW_OFFSET), &[0xff; 12]);
    (space, msix_at, window)
}

/// `struct virtio_pci_cap` (virtio 1.3 §4.1.4) without its first two bytes, and what this kind appends.
fn capability(cfg_type: u8, from: u32, to: u32, more: &[u8]) -> Vec<u8> {
    const CAPABILITY_BYTES: u8 = 16;
    let length = u8::try_from(more.len()).unwrap_or(0).saturating_add(CAPABILITY_BYTES);
    let mut body = vec![length, cfg_type, 0, 0, 0, 0];
    body.extend(from.to_le_bytes());
    body.extend(to.saturating_sub(from).to_le_bytes());
    body.extend(more);
    body
}

fn low(offset: u64) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// Area of the BAR and offset in it. Table and pending bits have two pages each, the others one.
fn split(offset: u64) -> (u64, usize) {
    let start = if offset < TABLE { offset & !0xfff } else { offset & !0x1fff };
    (start, usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX))
}

fn copy(from: &[u8], at: usize, data: &mut [u8]) {
    data.fill(0);
    let from = from.get(at..).unwrap_or_default();
    data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

fn overlap(offset: usize, length: usize, at: usize, bytes: usize) -> bool {
    offset < at.saturating_add(bytes) && at < offset.saturating_add(length)
}

#[cfg(test)]
#[path = "virtio_tests.rs"]
mod tests;

//! A device whose brain is elsewhere: a PCI function on one side, a daemon on the other.
//!
//! There is one such device for all types. The data path does not come by here: the daemon has the guest's
//! memory, the kick eventfds and the call eventfds, which stay the same for the life of the device. What does come
//! by is the start of a driver, its reset, and a write to the configuration space. It becomes a wish
//! ([`Agreement`]), and the device's own thread ([`Link`]) sees to it that the daemon fulfils it; configuration
//! space is read from a copy.
//!
//! A daemon that is mute, lies or dies costs nobody anything but the wait for it: what the driver set up is kept,
//! and goes on in the daemon that comes back. A ring that does not lie in guest memory or is broken, and a daemon
//! that refuses something, cost the driver its session (NEEDS_RESET), and after a reset it may try again.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use backends::log::{self, Class};
use backends::sandbox::Filter;

use super::address::locate;
use super::agreement::{Agreement, LinkState, Queue, Session, Wish};
use super::frontend::Frontend;
use super::link::Link;
use super::{Error, Problem};
use crate::memory::GuestRam;
use crate::pci::PciDevice;
use crate::pci::common::F_RING_PACKED;
use crate::pci::virtio::{Backend, Fault, Ring, VirtioPci};

/// A device on the PCI bus with its daemon.
pub struct VhostPciDevice {
    id: String,
    agreement: Arc<Agreement>,
    function: Arc<VirtioPci<VhostBackend>>,
}

impl VhostPciDevice {
    /// The device that `link` serves, once its thread is started.
    pub(super) fn new(function: Arc<VirtioPci<VhostBackend>>, link: &Link) -> VhostPciDevice {
        VhostPciDevice { id: link.spec.id.clone(), agreement: Arc::clone(&link.agreement), function }
    }

    /// Its name, as the user gave it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How things stand with its daemon.
    pub fn link(&self) -> LinkState {
        self.agreement.link()
    }
}

impl Drop for VhostPciDevice {
    fn drop(&mut self) {
        self.agreement.end();
    }
}

impl PciDevice for VhostPciDevice {
    fn place(&self, bar: u32) {
        self.function.place(bar);
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        self.function.config_write(offset, data);
    }

    fn bar(&self) -> Option<u64> {
        self.function.bar()
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(offset, data);
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(offset, data);
    }

    /// Waits for the daemon, which may take as long as it may take to drain.
    fn reset(&self) {
        self.function.begin_reset();
        self.agreement.wait_at_rest();
        self.function.reset();
    }
}

/// The thread of a device that is yet to start, with a daemon that has been greeted.
pub struct DeviceThread {
    pub(super) link: Link,
    pub(super) greeted: Frontend,
}

impl DeviceThread {
    /// Starts it, and returns when it is confined by this filter.
    ///
    /// # Errors
    /// One line to show.
    pub fn start(self, filter: Filter) -> Result<(), Error> {
        let DeviceThread { link, greeted } = self;
        let (name, kind, socket) =
            (format!("vhost {}", link.spec.id), link.spec.kind, link.spec.socket.clone());
        let (sender, confined) = sync_channel(1);
        let run = move || {
            let applied = filter.apply();
            let may_run = applied.is_ok();
            // The one who asked waits for it.
            let _ = sender.send(applied);
            if may_run {
                link.run(greeted);
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(Problem::Thread);
        let started = thread.and_then(|_| confined.recv().unwrap_or(Ok(())).map_err(Problem::Sandbox));
        started.map_err(|problem| Error { kind, socket, problem })
    }
}

/// The daemon, as the PCI function sees it.
pub struct VhostBackend {
    /// Name and socket, for messages.
    label: String,
    agreement: Arc<Agreement>,
    ram: Arc<GuestRam>,
    /// Features of the driver that has the device.
    features: u64,
    /// A ring outside memory has been said; a guest must not be able to fill the log.
    driver_blamed: bool,
}

impl VhostBackend {
    pub(super) fn new(label: String, agreement: Arc<Agreement>, ram: Arc<GuestRam>) -> VhostBackend {
        VhostBackend { label, agreement, ram, features: 0, driver_blamed: false }
    }

    /// The queue with the places where a daemon finds its parts, if they lie aligned in guest memory.
    fn queue(&mut self, ring: Ring) -> Result<(u16, Arc<Queue>), Fault> {
        let index = ring.index;
        let Some(at) = locate(&self.ram, &ring.queue, self.features & F_RING_PACKED != 0) else {
            if !std::mem::replace(&mut self.driver_blamed, true) {
                let label = &self.label;
                log::line!(
                    warn,
                    Class::DeviceRefused.once(),
                    "device {label}: queue {index} does not lie aligned in guest memory (said once)"
                );
            }
            return Err(Fault);
        };
        Ok((index, Arc::new(Queue { ring, at })))
    }
}

impl Backend for VhostBackend {
    fn start(&mut self, features: u64, rings: Vec<Ring>) -> Result<(), Fault> {
        self.features = features;
        let queues: BTreeMap<_, _> =
            rings.into_iter().map(|ring| self.queue(ring)).collect::<Result<_, _>>()?;
        let session = Some(Arc::new(Session { features }));
        self.agreement.ask(|wish| *wish = Wish { session, queues, writes: std::mem::take(&mut wish.writes) });
        self.agreement.take_fault()
    }

    fn start_ring(&mut self, ring: Ring) -> Result<(), Fault> {
        let (index, queue) = self.queue(ring)?;
        self.agreement.ask(|wish| {
            // A session that was refused is over for all its queues.
            if wish.session.is_some() {
                wish.queues.insert(index, queue);
            }
        });
        self.agreement.take_fault()
    }

    fn stop_ring(&mut self, index: u16) {
        self.agreement.ask(|wish| drop(wish.queues.remove(&index)));
    }

    fn stop(&mut self) {
        self.agreement.end_session();
    }

    fn is_at_rest(&self) -> bool {
        self.agreement.is_at_rest()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.agreement.read_config(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.agreement.write_config(offset, data);
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;

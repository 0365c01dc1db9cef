//! A device whose brain is elsewhere: a PCI function on one side, a connection to a daemon on the other.
//!
//! There is one such device for all types. The data path does not come by here: the daemon has the guest's
//! memory, the kick eventfds and the call eventfds. What does come by is the start of a driver, its reset, a
//! write to the configuration space, a ring that the daemon finds broken (its error eventfd, one for all queues),
//! and the end of the daemon. What a driver asks for is a conversation with a deadline, held in
//! the vCPU thread that asked for it. A daemon has [`RUN_DEADLINE`] for what needs no more than its attention, and
//! as much again for each queue that it gets; to give a queue back it has [`DRAIN_DEADLINE`], since it must first
//! come to the end of what the queue is waiting for. Configuration space is read from a copy that was made at
//! connect.
//!
//! A daemon that is mute, lies or dies is *failed*: the connection is shut down, it is said in the log once,
//! the driver is told (NEEDS_RESET), and this device answers no driver any more. A ring that does not lie in
//! guest memory or is broken, and a daemon that refuses something, cost the driver its session, and after a reset
//! it may try again.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use backends::proto::MemoryRegion;
use rustix::event::epoll::EventFlags;
use rustix::net::{Shutdown, shutdown};

use super::frontend::{Frontend, FrontendError, RingAddresses, within};
use crate::kvm::event::Event;
use crate::memory::GuestRam;
use crate::pci::PciDevice;
use crate::pci::common::{F_RING_PACKED, Queue};
use crate::pci::virtio::{Backend, Fault, Ring, VirtioPci};

/// How long a vCPU waits at most for an answer that takes the daemon no time.
pub const RUN_DEADLINE: Duration = Duration::from_secs(1);
/// How long it waits at most until a queue is drained. An fdatasync of over a second is nothing unusual; the
/// daemons of this project give up by themselves, and hang up, after 30 s.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(35);
/// Where guest-physical address 0 lies in the address space that ring addresses are given in. The protocol
/// wants addresses of the front-end, but any will do that agree; these do not tell a daemon where this process
/// has its memory, and none of them is 0, which some back-ends take for "not set".
const USER_BASE: u64 = 1 << 44;

/// A device on the PCI bus with its daemon.
pub struct VhostPciDevice {
    id: String,
    /// The same socket as the function's connection, to be watched without its lock.
    socket: Arc<OwnedFd>,
    /// Raised by the daemon, likewise.
    errors: Arc<Event>,
    function: VirtioPci<VhostBackend>,
}

impl VhostPciDevice {
    pub(super) fn new(
        id: String,
        socket: Arc<OwnedFd>,
        errors: Arc<Event>,
        function: VirtioPci<VhostBackend>,
    ) -> VhostPciDevice {
        VhostPciDevice { id, socket, errors, function }
    }

    /// Its name, as the user gave it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The connection to the daemon.
    pub fn connection_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What calls for [`VhostPciDevice::attend`], to be watched edge triggered: a connection that has ended stays
    /// so, and an error stays until somebody has the time for it. Answers on the connection belong to the vCPU
    /// thread that asked, so only its end is looked for.
    pub fn watched(&self) -> [(BorrowedFd<'_>, EventFlags); 3] {
        [
            (self.connection_fd(), EventFlags::RDHUP),
            (self.errors.as_fd(), EventFlags::IN),
            (self.function.free().as_fd(), EventFlags::IN),
        ]
    }

    /// Looks after a daemon that ended, or found a ring broken. A daemon says nothing unasked, so one that does
    /// has failed. Never waits: while a vCPU talks to the daemon nothing is done, and this is called for again.
    pub fn attend(&self) {
        self.function.free().take();
        // The driver has been told, and there is nobody else to tell.
        let _ = self.function.try_with_backend(VhostBackend::look);
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

    fn reset(&self) {
        self.function.reset();
    }
}

/// The daemon, as the PCI function sees it.
pub(super) struct VhostBackend {
    /// Name and socket, for messages.
    label: String,
    socket: Arc<OwnedFd>,
    /// What the daemon raises when it finds a ring broken.
    errors: Arc<Event>,
    frontend: Frontend,
    ram: Arc<GuestRam>,
    config: Vec<u8>,
    /// Rings the daemon has.
    started: BTreeSet<u16>,
    /// [`DRAIN_DEADLINE`], unless a test has less time.
    drain: Duration,
    failed: bool,
    /// A driver's mistake has been said; a guest must not be able to fill the log.
    driver_blamed: bool,
}

impl VhostBackend {
    pub(super) fn new(
        label: String,
        socket: Arc<OwnedFd>,
        errors: Arc<Event>,
        frontend: Frontend,
        ram: Arc<GuestRam>,
        config: Vec<u8>,
    ) -> VhostBackend {
        let started = BTreeSet::new();
        VhostBackend {
            label,
            socket,
            errors,
            frontend,
            ram,
            config,
            started,
            drain: DRAIN_DEADLINE,
            failed: false,
            driver_blamed: false,
        }
    }

    /// Looks whether the daemon is still there, and content.
    fn look(&mut self) -> Result<(), Fault> {
        if self.failed {
            return Ok(());
        }
        let seen = self.frontend.look();
        self.judge(seen)?;
        if self.errors.take() && !self.started.is_empty() {
            self.blame_driver("the daemon found a queue broken; its driver was told to reset the device");
            return Err(Fault::Driver);
        }
        Ok(())
    }

    /// Turns what the conversation came to into what the driver has to know.
    fn judge<T>(&mut self, outcome: Result<T, FrontendError>) -> Result<T, Fault> {
        outcome.map_err(|error| {
            if error.is_refusal() {
                self.blame_driver(&format!("the daemon did not take what the driver set up: {error}"));
                return Fault::Driver;
            }
            self.fail(&error);
            Fault::Device
        })
    }

    fn fail(&mut self, error: &FrontendError) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!("device {}: failed, its driver was told: {error}", self.label);
            // It may be closed already; what counts is that nothing more is read from it.
            let _ = shutdown(&*self.socket, Shutdown::Both);
        }
    }

    fn blame_driver(&mut self, what: &str) {
        if !std::mem::replace(&mut self.driver_blamed, true) {
            tracing::warn!("device {}: {what} (said once)", self.label);
        }
    }

    fn refuse_if_failed(&self) -> Result<(), Fault> {
        if self.failed { Err(Fault::Device) } else { Ok(()) }
    }

    /// Where the daemon finds the parts of a ring, if they lie aligned in guest memory.
    fn addresses(&mut self, ring: &Ring<'_>, features: u64) -> Result<RingAddresses, Fault> {
        let found = locate(&self.ram, &ring.queue, features & F_RING_PACKED != 0);
        found.ok_or_else(|| {
            self.blame_driver(&format!("queue {} does not lie aligned in guest memory", ring.index));
            Fault::Driver
        })
    }

    fn start_all(
        &mut self,
        features: u64,
        rings: &[(&Ring<'_>, RingAddresses)],
    ) -> Result<(), FrontendError> {
        for (ring, at) in rings {
            // From the first message on there may be something to stop.
            self.started.insert(ring.index);
            let error = self.errors.as_fd();
            self.frontend.start_ring(ring, *at, features, error, within(RUN_DEADLINE))?;
        }
        self.frontend.fence(within(RUN_DEADLINE))
    }
}

impl Backend for VhostBackend {
    fn start(&mut self, features: u64, rings: &[Ring<'_>]) -> Result<(), Fault> {
        self.refuse_if_failed()?;
        let mut located = Vec::with_capacity(rings.len());
        for ring in rings {
            located.push((ring, self.addresses(ring, features)?));
        }
        let ram = Arc::clone(&self.ram);
        let begun = self.frontend.begin(features, &regions(&ram), ram.fd(), within(RUN_DEADLINE));
        let outcome = begun.and_then(|()| self.start_all(features, &located));
        self.judge(outcome)
    }

    fn start_ring(&mut self, features: u64, ring: &Ring<'_>) -> Result<(), Fault> {
        self.refuse_if_failed()?;
        let at = self.addresses(ring, features)?;
        let outcome = self.start_all(features, &[(ring, at)]);
        self.judge(outcome)
    }

    fn stop_ring(&mut self, index: u16) -> Result<(), Fault> {
        if self.failed || !self.started.remove(&index) {
            return Ok(());
        }
        let outcome = self.frontend.stop_ring(index, within(self.drain));
        self.judge(outcome)
    }

    fn stop(&mut self) -> Result<(), Fault> {
        let started = std::mem::take(&mut self.started);
        if self.failed {
            return Ok(());
        }
        let mut stop = |index| self.frontend.stop_ring(index, within(self.drain));
        let outcome = started.into_iter().try_for_each(&mut stop);
        // What was broken is gone, and no fault of the next driver.
        self.errors.take();
        self.judge(outcome)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// A write that the daemon refuses, or that reaches beyond the space, changes nothing.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> Result<(), Fault> {
        let end = offset.checked_add(data.len());
        let inside = end.is_some_and(|end| end <= self.config.len()) && !data.is_empty();
        let Some(wire_offset) = u32::try_from(offset).ok().filter(|_| inside && !self.failed) else {
            return Ok(());
        };
        match self.frontend.set_config(wire_offset, data, within(RUN_DEADLINE)) {
            Ok(true) => {
                let place = self.config.get_mut(offset..).unwrap_or_default();
                place.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) if error.is_refusal() => Ok(()),
            Err(error) => self.judge(Err(error)),
        }
    }
}

/// Guest RAM as a daemon is told of it.
fn regions(ram: &GuestRam) -> Vec<MemoryRegion> {
    let region = |region: &crate::memory::RamRegion| MemoryRegion {
        guest_addr: region.gpa,
        size_bytes: region.size,
        user_addr: USER_BASE.saturating_add(region.gpa),
        mmap_offset: region.offset,
    };
    ram.regions().iter().map(region).collect()
}

/// The parts of a ring: sizes and alignments of virtio 1.3 §2.7 (split) and §2.8.10 (packed).
fn locate(ram: &GuestRam, queue: &Queue, packed: bool) -> Option<RingAddresses> {
    let size = u64::from(queue.size);
    let bytes = |fixed: u64, each: u64| size.saturating_mul(each).saturating_add(fixed);
    let (driver, driver_align, device) = if packed { (4, 4, 4) } else { (bytes(6, 2), 2, bytes(6, 8)) };
    Some(RingAddresses {
        descriptor: user_address(ram, queue.descriptors, bytes(0, 16), 16)?,
        available: user_address(ram, queue.driver, driver, driver_align)?,
        used: user_address(ram, queue.device, device, 4)?,
    })
}

/// The address for a daemon of a range that lies wholly in one region.
fn user_address(ram: &GuestRam, gpa: u64, bytes: u64, align: u64) -> Option<u64> {
    let end = gpa.checked_add(bytes)?;
    let region = ram
        .regions()
        .iter()
        .find(|region| region.gpa <= gpa && end <= region.gpa.saturating_add(region.size));
    region.filter(|_| gpa.is_multiple_of(align)).and(USER_BASE.checked_add(gpa))
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;

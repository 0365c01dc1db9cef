//! One vhost-user session: (state, message, descriptors) to (state, answer, effects).
//!
//! In: decoded requests. Out: an answer, or a [`Refusal`] that says which rule was broken; and effects on
//! memory and rings, through the small trait [`Host`]. No I/O happens here, so the whole behaviour is tested
//! by tables. Promises: a refused request leaves the state as it was; a ring is handed to a worker when, and
//! only when, it is complete (memory, size, addresses, kick) and enabled, whatever the order of messages; a
//! kick that came before that is not lost, since its eventfd keeps it. Refuses: features that were not
//! offered, changes of a running ring, queues that do not exist, messages of protocol features that were not
//! negotiated.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

mod host;
mod ring;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::log::{self, Class};
use crate::memory::{MAX_SLOTS, MemoryError};
use crate::notify::Signal;
use crate::proto::wire::{F_LOG_ALL, F_PROTOCOL_FEATURES};
use crate::proto::{Code, Inflight, MemoryRegion, ProtocolFeatures, Reply, Request, VringAddr};
use crate::ring::Ring as Virtqueue;
use crate::worker::Stop;
pub use host::{Direction, Host, Refusal, RingStart};
pub(crate) use ring::F_RING_PACKED;
use ring::{Ring, RingState};

/// Longest queue there can be (virtio 1.3 §2.7, §2.8.10.1).
pub const MAX_QUEUE_SIZE: u16 = 32768;
/// Feature bits that are between front-end and back-end, and offered by every back-end.
const FRONT_END_FEATURES: u64 = F_PROTOCOL_FEATURES | F_LOG_ALL;

/// What a device offers to every session.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Device and ring features.
    pub features: u64,
    /// Protocol features.
    pub protocol: ProtocolFeatures,
    /// Virtqueues.
    pub queues: u16,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    offer: Offer,
    features: u64,
    protocol: ProtocolFeatures,
    status: u8,
    rings: Vec<Ring>,
}

type Answer = Result<Option<Reply>, Refusal>;

impl Session {
    /// A session in which nothing has been said yet.
    pub fn new(offer: Offer) -> Session {
        let rings = (0..offer.queues).map(|_| Ring::default()).collect();
        Session { offer, features: 0, protocol: ProtocolFeatures::empty(), status: 0, rings }
    }

    /// Whether acks may be asked for.
    pub fn reply_ack(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// What was agreed on so far: features, and protocol features.
    pub fn negotiated(&self) -> (u64, ProtocolFeatures) {
        (self.features, self.protocol)
    }

    /// Takes one request.
    ///
    /// # Errors
    /// A [`Refusal`] leaves the session as it was, except [`Refusal::Drain`], which ends it.
    pub fn handle(&mut self, request: Request, fds: Vec<OwnedFd>, host: &mut impl Host) -> Answer {
        let code = request.code();
        if !self.protocol.contains(code.rule().needs) {
            return Err(Refusal::NotNegotiated(code));
        }
        let mut fds = fds.into_iter();
        match request {
            Request::GetFeatures => value(self.offer.features | FRONT_END_FEATURES),
            Request::SetFeatures(bits) => self.set_features(bits, host),
            // The text leaves RESET_OWNER to be ignored, and an owner is whoever holds the connection.
            Request::SetOwner | Request::ResetOwner => Ok(None),
            Request::GetProtocolFeatures => value(self.offer.protocol.bits()),
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(bits),
            Request::GetQueueNum => value(u64::from(self.offer.queues)),
            Request::GetMaxMemSlots => value(u64::try_from(MAX_SLOTS).unwrap_or(u64::MAX)),
            Request::SetMemTable(regions) => {
                self.with_rings_stopped(host, |host| host.set_memory(regions.into_iter().zip(fds).collect()))
            }
            Request::AddMemReg(region) => self.add_region(region, fds.next(), host),
            Request::RemMemReg(region) => self.with_rings_stopped(host, |host| host.remove_memory(region)),
            Request::SetVringNum { index, num } => self.set_size(index, num, host),
            Request::SetVringBase { index, base } => self.set_base(index, base, host),
            Request::SetVringAddr(addr) => self.set_address(addr, host),
            Request::GetVringBase { index } => self.get_base(index, host),
            Request::SetVringKick(vring) => self.set_kick(vring.index, fds.next(), host),
            Request::SetVringCall(vring) => self.set_call(vring.index, fds.next(), host),
            Request::SetVringErr(vring) => {
                self.stopped(vring.index.into(), code)?.error = Signal::new(fds.next());
                Ok(None)
            }
            Request::SetVringEnable { index, enable } => self.enable(index, enable != 0, host),
            Request::SetLogBase { size_bytes, mmap_offset } => {
                let fd = fds.next().ok_or(Refusal::Device(code))?;
                self.with_rings_stopped(host, |host| host.set_log(size_bytes, mmap_offset, fd))?;
                value(0)
            }
            // Whoever reads the log looks at it by himself: the descriptor that would wake him is not needed.
            Request::SetLogFd => Ok(None),
            Request::SetBackendReqFd => {
                host.set_channel(fds.next().ok_or(Refusal::Device(code))?);
                Ok(None)
            }
            Request::SendRarp { mac } => taken(host.send_rarp(mac), code),
            Request::NetSetMtu { mtu_bytes } => {
                taken(u16::try_from(mtu_bytes).is_ok_and(|mtu| host.set_mtu(mtu)), code)
            }
            Request::GetInflightFd(shape) => {
                let idle = !self.is_running();
                Ok(Some(Reply::Inflight(host.inflight(shape.queues, shape.queue_size, idle))))
            }
            Request::SetInflightFd(shape) => self.set_inflight(shape, fds.next(), host),
            Request::ResetDevice => self.reset(host),
            Request::SetStatus(status) => self.set_status(status, host),
            Request::GetStatus => value(u64::from(self.status)),
            Request::SetDeviceStateFd { direction, phase } => {
                value(self.transfer_state(direction, phase, fds.next(), host))
            }
            Request::CheckDeviceState => value(u64::from(!host.state_is_good())),
            Request::GetConfig { offset, size } => get_config(offset, size, host),
            Request::SetConfig { offset, data } => set_config(offset, &data, host),
        }
    }

    /// Stops what still runs: the connection is over, or the device goes back to its beginning.
    ///
    /// # Errors
    /// [`Refusal::Drain`]: a ring did not come to rest. It goes on draining by itself and keeps its memory.
    pub fn close(&mut self, host: &mut impl Host) -> Result<(), Refusal> {
        let mut outcome = Ok(());
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.state == RingState::Running {
                outcome = outcome.and(host.stop_ring(index, Stop::Drain).map(drop));
                ring.state = RingState::Stopped;
            }
        }
        outcome
    }

    fn set_features(&mut self, bits: u64, host: &mut impl Host) -> Answer {
        let unknown = bits & !(self.offer.features | FRONT_END_FEATURES);
        if unknown != 0 {
            return Err(Refusal::Features(unknown));
        }
        let changed = bits ^ self.features;
        if changed & !F_LOG_ALL != 0 && self.is_running() {
            return Err(Refusal::Running);
        }
        self.features = bits;
        host.negotiated(bits);
        if changed & F_LOG_ALL != 0 {
            // What is in flight was taken without a note of where it writes, or with one that nobody needs.
            return self.with_rings_stopped(host, |_| Ok(()));
        }
        self.reconcile_all(host)
    }

    fn set_protocol_features(&mut self, bits: u64) -> Answer {
        let features = ProtocolFeatures::from_bits_retain(bits);
        if !self.offer.protocol.contains(features) {
            return Err(Refusal::Features(features.difference(self.offer.protocol).bits()));
        }
        self.protocol = features;
        Ok(None)
    }

    /// Memory changes under no running ring: they stop, and go on where they were.
    fn with_rings_stopped<H: Host>(
        &mut self,
        host: &mut H,
        change: impl FnOnce(&mut H) -> Result<(), MemoryError>,
    ) -> Answer {
        let mut stopped = Vec::new();
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.state == RingState::Running {
                ring.base = Some(host.stop_ring(index, Stop::Drain)?);
                ring.state = RingState::Stopped;
                stopped.push(index);
            }
        }
        let changed = change(host);
        self.reconcile_all(host)?;
        for index in stopped {
            let ring = self.ring(u32::from(index))?;
            if ring.state == RingState::Stopped {
                // Its memory was taken from under it.
                ring.error.raise();
            }
        }
        changed.map(|()| None).map_err(Refusal::from)
    }

    /// Adding needs no stop: running queues see the new memory when they are told, so they are restarted too.
    fn add_region(&mut self, region: MemoryRegion, fd: Option<OwnedFd>, host: &mut impl Host) -> Answer {
        let Some(fd) = fd else { return Err(MemoryError::Range(region).into()) };
        self.with_rings_stopped(host, |host| host.add_memory(region, fd))
    }

    fn set_size(&mut self, index: u32, num: u32, host: &mut impl Host) -> Answer {
        let packed = self.features & F_RING_PACKED != 0;
        let size = u16::try_from(num).ok().filter(|n| (1..=MAX_QUEUE_SIZE).contains(n));
        let size = size.filter(|n| packed || n.is_power_of_two());
        let ring = self.stopped(index, Code::SetVringNum)?;
        let old = ring.size.replace(size.ok_or(Refusal::Size(num))?);
        self.reconcile(index, host).inspect_err(|_| {
            if let Ok(ring) = self.ring(index) {
                ring.size = old;
            }
        })
    }

    /// Where a ring of a new session is, its in-flight region knows better than the front-end. A ring that this session
    /// has had goes where it is told: its requests were given back, and it may be another one by now.
    fn set_base(&mut self, index: u32, base: u32, host: &mut impl Host) -> Answer {
        let packed = self.features & F_RING_PACKED != 0;
        let ring = self.stopped(index, Code::SetVringBase)?;
        // Whether a packed one is within the ring shows when its size is known.
        if !packed && base > u32::from(u16::MAX) {
            return Err(Refusal::Base(base));
        }
        ring.base = Some(base);
        let told = std::mem::replace(&mut ring.told, true);
        // What was suspended is still in flight.
        if told && !self.suspends() {
            host.forget_inflight(Some((queue_number(index)?, packed)));
        }
        Ok(None)
    }

    /// SET_INFLIGHT_FD: what the region says of rings counts more than what was said of them before.
    fn set_inflight(&mut self, shape: Inflight, fd: Option<OwnedFd>, host: &mut impl Host) -> Answer {
        if self.is_running() {
            return Err(Refusal::InflightRunning);
        }
        let fd = fd.ok_or(Refusal::Device(Code::SetInflightFd))?;
        host.set_inflight(shape, fd, self.features & F_RING_PACKED != 0)?;
        self.rings.iter_mut().for_each(|ring| ring.told = false);
        Ok(None)
    }

    fn set_address(&mut self, addr: VringAddr, host: &mut impl Host) -> Answer {
        let (features, index) = (self.features, addr.index);
        let ring = self.ring(index)?;
        if ring.state == RingState::Running {
            return self.set_running_address(addr, host);
        }
        let old = ring.addr.replace(addr);
        if host.has_memory() && ring.layout(features).is_some_and(|layout| !host.ring_fits(&layout)) {
            ring.addr = old;
            return Err(Refusal::RingAddress(index));
        }
        self.reconcile(index, host).inspect_err(|_| {
            if let Ok(ring) = self.ring(index) {
                ring.addr = old;
            }
        })
    }

    /// A running ring takes its own addresses again, with another way of logging (migration does that).
    fn set_running_address(&mut self, addr: VringAddr, host: &mut impl Host) -> Answer {
        let index = addr.index;
        let ring = self.ring(index)?;
        let places = |a: &VringAddr| (a.descriptor, a.available, a.used);
        match ring.addr.replace(addr) {
            Some(old) if old == addr => Ok(None),
            Some(old) if places(&old) == places(&addr) => {
                ring.base = Some(host.stop_ring(queue_number(index)?, Stop::Drain)?);
                ring.state = RingState::Stopped;
                self.reconcile(index, host)
            }
            old => {
                ring.addr = old;
                Err(Refusal::RingRunning { index, code: Code::SetVringAddr })
            }
        }
    }

    fn get_base(&mut self, index: u32, host: &mut impl Host) -> Answer {
        let packed = self.features & F_RING_PACKED != 0;
        let how = if self.suspends() { Stop::Suspend } else { Stop::Drain };
        let ring = self.ring(index)?;
        if ring.state == RingState::Running {
            ring.base = Some(host.stop_ring(queue_number(index)?, how)?);
            ring.state = RingState::Stopped;
        }
        (ring.kick, ring.told) = (None, true);
        let base = ring.base.unwrap_or(Virtqueue::first_base(packed));
        Ok(Some(Reply::VringState { index, base }))
    }

    fn set_kick(&mut self, index: u8, fd: Option<OwnedFd>, host: &mut impl Host) -> Answer {
        let fd = fd.ok_or(Refusal::Polled(index))?;
        let ring = self.ring(index.into())?;
        if ring.state == RingState::Running {
            ring.base = Some(host.stop_ring(index.into(), Stop::Drain)?);
            ring.state = RingState::Stopped;
        }
        let old = ring.kick.replace(Arc::new(fd));
        self.reconcile(index.into(), host).inspect_err(|_| {
            if let Ok(ring) = self.ring(index.into()) {
                ring.kick = old;
            }
        })
    }

    fn set_call(&mut self, index: u8, fd: Option<OwnedFd>, host: &mut impl Host) -> Answer {
        let ring = self.ring(index.into())?;
        ring.call = Signal::new(fd);
        if ring.state == RingState::Running {
            host.set_call(index.into(), ring.call.clone());
        }
        Ok(None)
    }

    fn enable(&mut self, index: u32, enable: bool, host: &mut impl Host) -> Answer {
        let ring = self.ring(index)?;
        let old = ring.enabled.replace(enable);
        if ring.state == RingState::Running && !enable {
            ring.base = Some(host.stop_ring(queue_number(index)?, Stop::Drain)?);
            ring.state = RingState::Stopped;
        }
        self.reconcile(index, host).inspect_err(|_| {
            if let Ok(ring) = self.ring(index) {
                ring.enabled = old;
            }
        })
    }

    /// RESET_DEVICE: all rings disabled, the device as it began; connection and memory stay.
    fn reset(&mut self, host: &mut impl Host) -> Answer {
        self.close(host)?;
        for ring in &mut self.rings {
            *ring = Ring { enabled: Some(false), ..ring.fresh() };
        }
        (self.features, self.status) = (0, 0);
        host.forget_inflight(None);
        host.reset_device();
        Ok(None)
    }

    /// Status 0 is the driver's reset (virtio 1.3 §2.1.2): nothing of its rings is touched any more.
    fn set_status(&mut self, status: u64, host: &mut impl Host) -> Answer {
        self.status = u8::try_from(status).map_err(|_| Refusal::Status(status))?;
        if self.status == 0 {
            self.close(host)?;
            self.rings.iter_mut().for_each(|ring| *ring = ring.fresh());
            host.forget_inflight(None);
        }
        Ok(None)
    }

    /// The answer has an error in its low byte, and bit 8 where no descriptor comes back.
    fn transfer_state(
        &mut self,
        direction: u32,
        phase: u32,
        fd: Option<OwnedFd>,
        host: &mut impl Host,
    ) -> u64 {
        const NO_FD: u64 = 1 << 8;
        let direction = match direction {
            0 => Direction::Save,
            1 => Direction::Load,
            _ => return NO_FD | 1,
        };
        // The only phase there is: the device stands still.
        let still = phase == 0 && self.rings.iter().all(|ring| ring.state == RingState::Stopped);
        let begun = still && fd.is_some_and(|fd| host.transfer_state(direction, fd));
        NO_FD | u64::from(!begun)
    }

    /// Starts whatever has become complete.
    fn reconcile_all(&mut self, host: &mut impl Host) -> Answer {
        for index in 0..u32::from(self.offer.queues) {
            if let Err(refusal) = self.reconcile(index, host) {
                // Not the fault of this message: the ring is left out of memory by it, and stays stopped.
                log::line!(debug, Class::RingRefused, queue = index, %refusal, "Ring cannot go on");
            }
        }
        Ok(None)
    }

    /// Hands the ring to a worker if nothing is missing any more.
    fn reconcile(&mut self, index: u32, host: &mut impl Host) -> Answer {
        let features = self.features;
        let ring = self.ring(index)?;
        let enabled = ring.enabled.unwrap_or(features & F_PROTOCOL_FEATURES == 0);
        let (Some(layout), Some(kick)) = (ring.layout(features), &ring.kick) else { return Ok(None) };
        if !enabled || !host.has_memory() || ring.state == RingState::Running {
            return Ok(None);
        }
        if !host.ring_fits(&layout) {
            return Err(Refusal::RingAddress(index));
        }
        host.start_ring(RingStart {
            index: queue_number(index)?,
            layout,
            base: ring.base.unwrap_or(Virtqueue::first_base(layout.packed)),
            features,
            kick: Arc::clone(kick),
            call: ring.call.clone(),
            error: ring.error.clone(),
            log_writes: features & F_LOG_ALL != 0,
            log_used: ring.log_used().filter(|_| features & F_LOG_ALL != 0),
        })?;
        ring.state = RingState::Running;
        Ok(None)
    }

    /// GET_VRING_BASE leaves requests in flight ("GET_VRING_BASE_INFLIGHT": only together with INFLIGHT_SHMFD).
    fn suspends(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::GET_VRING_BASE_INFLIGHT | ProtocolFeatures::INFLIGHT_SHMFD)
    }

    fn is_running(&self) -> bool {
        self.rings.iter().any(|ring| ring.state == RingState::Running)
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, Refusal> {
        let queues = self.rings.len();
        let ring = usize::try_from(index).ok().and_then(|at| self.rings.get_mut(at));
        ring.ok_or(Refusal::NoQueue { index, queues })
    }

    fn stopped(&mut self, index: u32, code: Code) -> Result<&mut Ring, Refusal> {
        let ring = self.ring(index)?;
        match ring.state {
            RingState::Stopped => Ok(ring),
            RingState::Running => Err(Refusal::RingRunning { index, code }),
        }
    }
}

fn taken(taken: bool, code: Code) -> Answer {
    if taken { Ok(None) } else { Err(Refusal::Device(code)) }
}

fn value(value: u64) -> Answer {
    Ok(Some(Reply::U64(value)))
}

/// Queue numbers have 8 bits in kick messages and 32 in others; a device has at most 256.
fn queue_number(index: u32) -> Result<u16, Refusal> {
    u16::try_from(index).map_err(|_| Refusal::NoQueue { index, queues: 256 })
}

/// A range that is not there is answered by an empty payload ("Virtio device config space").
fn get_config(offset: u32, size: u32, host: &impl Host) -> Answer {
    let space = host.config();
    let range = || {
        let (from, len) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
        let mut bytes = space.get(from..)?.to_vec();
        // A front-end may ask for more than the device has (QEMU does): the rest reads as zero.
        bytes.resize(len, 0);
        Some(bytes)
    };
    Ok(Some(Reply::Config { offset, data: range().unwrap_or_default() }))
}

fn set_config(offset: u32, data: &[u8], host: &mut impl Host) -> Answer {
    let refused = Refusal::Config { offset, size: data.len() };
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = from.checked_add(data.len());
    if end.is_none_or(|end| end > host.config().len()) || !host.set_config(from, data) {
        return Err(refused);
    }
    Ok(None)
}

#[cfg(test)]
mod tests;

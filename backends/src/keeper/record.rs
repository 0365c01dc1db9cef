//! What a front-end has said so far, held as the messages that say it again.
//!
//! In: each message that the worker accepted. Out: the messages that bring a new worker where the old one was. Each
//! fact has one [`Slot`], and a later message about it takes the place of the earlier one, so the record is as large
//! as the session's state and no larger. Slots are ordered as they are replayed:
//!
//! ```text
//! features, inflight region, log, channel ─► rings: size, base, addresses, eventfds, enabled ─► memory ─► kicks
//! ```
//! Rings come before memory, so that none of their addresses is judged by half a memory table; kicks come last, so
//! that no ring runs before all memory is there. What the protocol resets, the record forgets.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::notify::Signal;
use crate::proto::{MemoryRegion, ProtocolFeatures, Reply, Request};
use crate::session::F_RING_PACKED;

/// A message that was accepted, and its descriptors.
#[derive(Debug)]
struct Said {
    request: Request,
    fds: Vec<OwnedFd>,
}

/// What a message is about, in the order of replaying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Owner,
    Features,
    Inflight,
    Log,
    Channel,
    Mtu,
    /// By offset.
    Config(u32),
    Status,
    /// By queue.
    Ring(u32, Part),
    /// By guest address.
    Region(u64),
    /// By queue.
    Kick(u32),
}

/// A part of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Size,
    Base,
    Address,
    Call,
    Error,
    Enabled,
}

impl Slot {
    /// Where a message belongs that replaces an earlier one and does nothing else.
    fn of(request: &Request) -> Option<Slot> {
        Some(match request {
            Request::SetOwner => Slot::Owner,
            Request::SetFeatures(_) => Slot::Features,
            Request::SetInflightFd(_) => Slot::Inflight,
            Request::SetLogBase { .. } => Slot::Log,
            Request::SetBackendReqFd => Slot::Channel,
            Request::NetSetMtu { .. } => Slot::Mtu,
            Request::SetConfig { offset, .. } => Slot::Config(*offset),
            Request::SetStatus(_) => Slot::Status,
            Request::SetVringNum { index, .. } => Slot::Ring(*index, Part::Size),
            Request::SetVringBase { index, .. } => Slot::Ring(*index, Part::Base),
            Request::SetVringAddr(addr) => Slot::Ring(addr.index, Part::Address),
            Request::SetVringCall(ring) => Slot::Ring(ring.index.into(), Part::Call),
            Request::SetVringErr(ring) => Slot::Ring(ring.index.into(), Part::Error),
            Request::SetVringEnable { index, .. } => Slot::Ring(*index, Part::Enabled),
            Request::AddMemReg(region) => Slot::Region(region.guest_addr),
            Request::SetVringKick(ring) => Slot::Kick(ring.index.into()),
            _ => return None,
        })
    }
}

/// The state of one front-end's session.
#[derive(Debug)]
pub(super) struct Record {
    /// What the front-end negotiated: it decides which messages it may send.
    pub(super) protocol: ProtocolFeatures,
    /// Device state was under way in a worker that died.
    pub(super) state_lost: bool,
    said: BTreeMap<Slot, Said>,
    state_begun: bool,
}

impl Record {
    /// Nothing has been said yet.
    pub(super) fn new() -> Record {
        Record {
            protocol: ProtocolFeatures::empty(),
            state_lost: false,
            said: BTreeMap::new(),
            state_begun: false,
        }
    }

    /// Notes a message that the worker accepted, with what it answered.
    pub(super) fn accept(&mut self, request: Request, fds: Vec<OwnedFd>, answer: Option<&Reply>) {
        match (&request, answer) {
            (Request::SetProtocolFeatures(bits), _) => {
                self.protocol = ProtocolFeatures::from_bits_retain(*bits)
            }
            (Request::SetFeatures(bits), _) => {
                if bits & F_RING_PACKED == 0 {
                    self.forget_packed();
                }
                self.put(request, fds);
            }
            (Request::SetMemTable(regions), _) => self.set_memory(regions, fds),
            (Request::RemMemReg(region), _) => drop(self.said.remove(&Slot::Region(region.guest_addr))),
            (Request::GetVringBase { index }, Some(Reply::VringState { base, .. })) => {
                self.stop_ring(*index, *base)
            }
            (Request::SetLogBase { .. }, Some(answer)) if *answer != Reply::U64(0) => {}
            (Request::ResetDevice, _) => self.reset_device(),
            (Request::SetStatus(0), _) => self.forget_rings(),
            (Request::SetDeviceStateFd { .. }, _) => (self.state_begun, self.state_lost) = (true, false),
            (Request::CheckDeviceState, _) => self.state_begun = false,
            _ => self.put(request, fds),
        }
    }

    /// The worker died: a transfer of device state that had begun went with it.
    pub(super) fn worker_died(&mut self) {
        self.state_lost |= std::mem::take(&mut self.state_begun);
    }

    /// Whether a worker that dies now takes device state with it, or one has.
    pub(super) fn state_under_way(&self) -> bool {
        self.state_begun || self.state_lost
    }

    /// Whether a region tracks what is in flight.
    pub(super) fn has_inflight(&self) -> bool {
        self.said.contains_key(&Slot::Inflight)
    }

    /// The messages of a replay, in order.
    pub(super) fn replay(&self) -> impl Iterator<Item = (&Request, &[OwnedFd])> {
        self.said.values().map(|said| (&said.request, said.fds.as_slice()))
    }

    /// Raises the kick of every ring, as its driver may have done for nobody.
    pub(super) fn kick_all(&self) {
        for said in self.said.range(Slot::Kick(0)..).flat_map(|(_, said)| &said.fds) {
            Signal::new(said.try_clone().ok()).raise();
        }
    }

    fn put(&mut self, request: Request, fds: Vec<OwnedFd>) {
        if let Some(slot) = Slot::of(&request) {
            self.said.insert(slot, Said { request, fds });
        }
    }

    fn set_memory(&mut self, regions: &[MemoryRegion], fds: Vec<OwnedFd>) {
        // Region by region, as they are added and removed.
        self.said.retain(|slot, _| !matches!(slot, Slot::Region(_)));
        for (region, fd) in regions.iter().zip(fds) {
            self.put(Request::AddMemReg(*region), vec![fd]);
        }
    }

    /// Only a ring that was spoken of: the answer about another one is a refusal.
    fn stop_ring(&mut self, index: u32, base: u32) {
        if self.said.keys().any(|slot| matches!(slot, Slot::Ring(ring, _) if *ring == index)) {
            self.said.remove(&Slot::Kick(index));
            self.put(Request::SetVringBase { index, base }, Vec::new());
        }
    }

    /// Rings are split now. A base or a size that only packed ones have is of a driver before, and no worker takes it.
    fn forget_packed(&mut self) {
        self.said.retain(|_, said| match said.request {
            Request::SetVringBase { base, .. } => base <= u32::from(u16::MAX),
            Request::SetVringNum { num, .. } => num.is_power_of_two(),
            _ => true,
        });
    }

    fn reset_device(&mut self) {
        let rings: Vec<u32> = self.said.keys().filter_map(|slot| slot.ring()).collect();
        self.forget_rings();
        self.said.retain(|slot, _| !matches!(slot, Slot::Features | Slot::Config(_)));
        for index in rings {
            self.put(Request::SetVringEnable { index, enable: 0 }, Vec::new());
        }
    }

    /// Rings as they began, but with their eventfds, as the session does it.
    fn forget_rings(&mut self) {
        self.said.retain(|slot, _| match slot {
            Slot::Ring(_, part) => matches!(part, Part::Call | Part::Error),
            Slot::Kick(_) | Slot::Status => false,
            _ => true,
        });
    }
}

impl Slot {
    fn ring(&self) -> Option<u32> {
        match self {
            Slot::Ring(index, _) => Some(*index),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;

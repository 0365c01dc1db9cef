//! What has to hold for a device to go on in another daemon: is it the same device, and where does a queue go on?
//!
//! A queue goes on at its used index: whatever the driver made available and did not get back is served again. A
//! daemon that tracks what is in flight takes from its region which requests those are, and where a packed ring
//! stands, whose index is nowhere in the ring. Without tracking the used index says it all only if requests are
//! given back in the order they came (VIRTIO_F_IN_ORDER offered), or if none is missing. Otherwise nobody can know,
//! and the driver has to begin anew.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::kind::{DeviceKind, Offer};
use super::{guest_config, guest_features};
use crate::memory::GuestRam;
use crate::pci::common::{self, F_RING_PACKED};

/// VIRTIO_F_IN_ORDER.
const F_IN_ORDER: u64 = 1 << 35;
/// Base of a packed ring that begins: both indices 0, both wrap counters 1 (vhost-user GET_VRING_BASE).
const PACKED_BASE: u32 = 0x8000_8000;
/// The index follows two bytes of flags (virtio 1.3 §2.7.6, §2.7.8).
const INDEX: u64 = 2;

/// What a guest was told of its device, and so what every daemon of it must have.
#[derive(Clone, Copy, Debug)]
pub struct Contract {
    /// Its type.
    pub kind: DeviceKind,
    /// Features that the guest was offered.
    pub features: u64,
    /// Number of virtqueues.
    pub queues: u16,
    /// Largest size of each.
    pub queue_size: u16,
    /// Bytes of configuration space.
    pub config_bytes: usize,
}

impl Contract {
    /// Sees whether a daemon that came back is this device. Its configuration space for the guest, which may say
    /// something new.
    ///
    /// # Errors
    /// What it lacks, as a whole clause.
    pub fn check(&self, offer: &Offer) -> Result<Vec<u8>, String> {
        self.kind.check(offer)?;
        let missing = self.features & !guest_features(self.kind, offer);
        if missing != 0 {
            return Err(format!("it lacks features {missing:#x} that the guest was offered"));
        }
        let queues = offer.queues.unwrap_or(self.kind.default_queues());
        if queues < self.queues {
            return Err(format!("it has {queues} queues, the guest was told of {}", self.queues));
        }
        let config = guest_config(self.kind, offer.config.clone().unwrap_or_default(), self.queues);
        if config.len() != self.config_bytes {
            return Err(format!(
                "its configuration space has {} bytes, the guest was told of {}",
                config.len(),
                self.config_bytes
            ));
        }
        Ok(config)
    }

    /// Requests are given back in the order they came.
    fn is_in_order(&self) -> bool {
        self.features & F_IN_ORDER != 0
    }
}

/// Base of a queue that begins, with these features of the driver.
pub fn first_base(features: u64) -> u32 {
    if features & F_RING_PACKED != 0 { PACKED_BASE } else { 0 }
}

/// Base of a queue that goes on in another daemon, which may have an account of what is in flight (`tracked`).
/// `None` if nobody can know.
pub fn next_base(
    contract: &Contract,
    features: u64,
    queue: &common::Queue,
    ram: &GuestRam,
    tracked: bool,
) -> Option<u32> {
    if features & F_RING_PACKED != 0 {
        // The region knows better.
        return tracked.then_some(PACKED_BASE);
    }
    let index = |area: u64| {
        let at = GuestAddress(area.checked_add(INDEX)?);
        ram.memory().load::<u16>(at, Ordering::Acquire).ok()
    };
    let used = index(queue.device)?;
    let knows = tracked || contract.is_in_order() || index(queue.driver)? == used;
    knows.then_some(used.into())
}

//! A ring as the messages of its front-end described it so far.
//!
//! Its state is who has it, and nothing else: whether it can start follows from what has been said about it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::notify::Signal;
use crate::proto::VringAddr;
use crate::ring::Layout;

/// Feature bit: packed rings.
pub(crate) const F_RING_PACKED: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

/// A ring as the messages described it so far.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) state: RingState,
    pub(super) size: Option<u16>,
    pub(super) addr: Option<VringAddr>,
    /// Where to go on; until it is known the ring begins.
    pub(super) base: Option<u32>,
    /// The front-end has said where it is, or was told, since an in-flight region was set that says so, too.
    pub(super) told: bool,
    pub(super) kick: Option<Arc<OwnedFd>>,
    pub(super) call: Signal,
    pub(super) error: Signal,
    /// SET_VRING_ENABLE; until it comes the negotiated features decide.
    pub(super) enabled: Option<bool>,
}

/// Who has the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RingState {
    /// This session: nothing touches its memory.
    #[default]
    Stopped,
    /// A worker.
    Running,
}

impl Ring {
    pub(super) fn layout(&self, features: u64) -> Option<Layout> {
        let (size, addr) = (self.size?, self.addr.as_ref()?);
        Some(Layout {
            size,
            descriptor: addr.descriptor,
            available: addr.available,
            used: addr.used,
            packed: features & F_RING_PACKED != 0,
            event_idx: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
        })
    }

    /// As it began, but with its eventfds: some front-ends send those once for the life of the connection.
    pub(super) fn fresh(&self) -> Ring {
        Ring { call: self.call.clone(), error: self.error.clone(), ..Ring::default() }
    }

    /// VHOST_VRING_F_LOG and the address that goes with it.
    pub(super) fn log_used(&self) -> Option<u64> {
        self.addr.as_ref().filter(|addr| addr.flags & 1 != 0).map(|addr| addr.log)
    }
}

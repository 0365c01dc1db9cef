//! What a front-end negotiates.

use backends::proto::ProtocolFeatures;
use backends::proto::wire::{F_LOG_ALL, F_PROTOCOL_FEATURES};

use crate::guest::format::RingKind;

/// Device feature bit 29: VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Device feature bit 34: VIRTIO_F_RING_PACKED.
pub const F_RING_PACKED: u64 = 1 << 34;
/// Device feature bit 35: VIRTIO_F_IN_ORDER.
pub const F_IN_ORDER: u64 = 1 << 35;
/// Device feature bit 28: VIRTIO_F_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Device feature bit 32: VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;
/// How guest RAM is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// SET_MEM_TABLE.
    Table,
    /// ADD_MEM_REG for each region (needs CONFIGURE_MEM_SLOTS).
    Slots,
    /// Not at all; the test does it.
    None,
}

/// What to negotiate. What the back-end does not offer is left out.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// Device features; rings and order are asked for below, and logging when it is needed.
    pub features: u64,
    /// Kind of all rings: VIRTIO_F_RING_PACKED or not.
    pub rings: RingKind,
    /// VIRTIO_F_IN_ORDER.
    pub in_order: bool,
    /// Protocol features; `None`: do not speak about them at all.
    pub protocol: Option<ProtocolFeatures>,
    /// Memory.
    pub memory: Memory,
}

impl Default for Wants {
    /// Everything offered but order, on split rings, memory by table.
    fn default() -> Wants {
        Wants {
            features: u64::MAX,
            rings: RingKind::Split,
            in_order: false,
            protocol: Some(ProtocolFeatures::all()),
            memory: Memory::Table,
        }
    }
}

impl Wants {
    /// Everything offered but order, on rings of this kind.
    pub fn on(rings: RingKind) -> Wants {
        Wants { rings, ..Wants::default() }
    }

    /// The device features among `offered` that are wanted, without those of the protocol.
    pub(super) fn among(&self, offered: u64) -> u64 {
        let mut never = F_PROTOCOL_FEATURES | F_LOG_ALL;
        if self.rings == RingKind::Split {
            never |= F_RING_PACKED;
        }
        if !self.in_order {
            never |= F_IN_ORDER;
        }
        offered & self.features & !never
    }
}

//! What a ring format brings: where its parts lie, and the verbs that [`super::ring::Ring`] is made of.
//!
//! In: descriptors without links. Out: entries of the ring that hold them, and pairs (id, length) that the
//! device gave back. Everything that differs between split and packed rings is behind this trait.

use super::raw::{DESC_BYTES, Desc, Raw};
use super::raw_packed::{Place, RawPacked};
use super::ring::Interrupts;

/// How a virtqueue lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RingKind {
    /// Descriptor table, available ring, used ring (virtio 1.3 §2.7).
    #[default]
    Split,
    /// One ring that both sides write (§2.8).
    Packed,
}

/// What a ring is made as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Its kind.
    pub kind: RingKind,
    /// Entries; a power of two where it is split.
    pub size: u16,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_IN_ORDER: descriptors are taken in order, and must come back in order.
    pub in_order: bool,
}

impl Shape {
    /// A split ring without any feature.
    pub fn split(size: u16) -> Shape {
        Shape { size, ..Shape::default() }
    }

    /// The base that says that nothing has been made available yet.
    pub fn first_base(self) -> u32 {
        match self.kind {
            RingKind::Split => 0,
            // Both sides at entry 0 of the first lap, whose wrap bit is 1 (§2.8.1).
            RingKind::Packed => 0x8000_8000,
        }
    }

    /// The base after `entries` entries of a ring (descriptors if packed, chains if split), all of them answered.
    pub fn base_after(self, entries: u16) -> u32 {
        match self.kind {
            RingKind::Split => u32::from(entries),
            RingKind::Packed => {
                let place = u32::from(Place { at: 0, wrap: true }.advanced(entries, self.size).bits());
                place << 16 | place
            }
        }
    }
}

/// Where the three parts of a ring lie, in guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Kind of the ring.
    pub kind: RingKind,
    /// Entries of the ring.
    pub size: u16,
    /// Descriptor table; packed: descriptor ring.
    pub desc: u64,
    /// Available ring; packed: driver event suppression.
    pub avail: u64,
    /// Used ring; packed: device event suppression.
    pub used: u64,
}

impl Layout {
    /// Lengths of the three parts in bytes, event fields included (§2.7, §2.8.14).
    pub fn lengths(kind: RingKind, size: u16) -> [u64; 3] {
        let size = u64::from(size);
        match kind {
            RingKind::Split => [DESC_BYTES * size, 6 + 2 * size, 6 + 8 * size],
            RingKind::Packed => [DESC_BYTES * size, 4, 4],
        }
    }

    /// What the device writes of it: (address, bytes).
    pub fn written_by_device(&self) -> Vec<(u64, u64)> {
        let [desc, _, used] = Layout::lengths(self.kind, self.size);
        match self.kind {
            RingKind::Split => vec![(self.used, used)],
            RingKind::Packed => vec![(self.desc, desc), (self.used, used)],
        }
    }
}

/// Entries of a ring that hold a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    /// Head (split) or buffer id (packed), by which it comes back.
    pub id: u16,
    /// Places in the descriptor table or ring, in the order of the chain.
    pub at: Vec<u16>,
}

/// An honest driver's side of a ring.
pub(super) trait Format: std::fmt::Debug + Send {
    fn layout(&self) -> Layout;
    /// Entries that are not in use.
    fn free(&self) -> usize;
    /// Writes a chain into free entries; the device sees it after [`Format::publish`].
    fn add(&mut self, descs: &[Desc]) -> Slots;
    /// Shows the device what was added. `true`: it wants a kick for that.
    fn publish(&mut self) -> bool;
    /// The device has finished something that nobody has taken yet.
    fn has_used(&self) -> bool;
    /// Chains that the device has finished and nobody has taken yet.
    fn waiting(&self) -> usize;
    /// The next finished chain: (id, length).
    fn take_used(&mut self) -> Option<(u32, u32)>;
    /// A chain that was taken is no longer needed.
    fn release(&mut self, slots: Slots);
    /// Tells the device when to interrupt, counted from the next finished chain.
    fn set_interrupts(&mut self, when: Interrupts);
    /// Where the device stands when it has finished all that was published (vhost-user SET_VRING_BASE).
    fn base(&self) -> u32;
    /// A descriptor of a chain in the ring, with the flags NEXT, WRITE and INDIRECT.
    fn desc(&self, at: u16) -> Desc;
    /// Writes another in its place, as available as that is.
    fn set_desc(&self, at: u16, desc: Desc);
    /// The fields of a split ring.
    fn raw(&self) -> Option<&Raw> {
        None
    }
    /// The fields of a packed ring.
    fn raw_packed(&self) -> Option<&RawPacked> {
        None
    }
}

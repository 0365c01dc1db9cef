//! The fields of a split ring where they lie in guest RAM, each open to be read and to be written wrongly.
//!
//! An honest driver is [`super::ring::Ring`], which is built on this. A hostile one reaches the same memory
//! by [`super::ring::Ring::raw`]: any descriptor field, any index or entry of either ring, flags, loops,
//! indirect tables of any length. Nothing is checked here except that it is in RAM.
//!
//! ```text
//! descriptors  size x { addr u64, len u32, flags u16, next u16 }          virtio 1.3 §2.7.5, aligned to 16
//! available    flags u16, idx u16, size x u16, used_event u16             §2.7.6, aligned to 2
//! used         flags u16, idx u16, size x { id u32, len u32 }, avail_event u16   §2.7.8, aligned to 4
//! ```

use std::sync::Arc;

use virtio_bindings::virtio_ring;

use super::format::{Layout, RingKind};
use super::memory::Ram;

/// Descriptor flag: another descriptor follows (VIRTQ_DESC_F_NEXT).
pub const NEXT: u16 = flag(virtio_ring::VRING_DESC_F_NEXT);
/// Descriptor flag: the device may write (VIRTQ_DESC_F_WRITE).
pub const WRITE: u16 = flag(virtio_ring::VRING_DESC_F_WRITE);
/// Descriptor flag: the buffer is a table of descriptors (VIRTQ_DESC_F_INDIRECT).
pub const INDIRECT: u16 = flag(virtio_ring::VRING_DESC_F_INDIRECT);
/// Flag of either ring: the other side need not notify (NO_INTERRUPT, NO_NOTIFY).
pub const NO_NOTIFICATION: u16 = 1;
/// Bytes of a descriptor.
pub const DESC_BYTES: u64 = 16;

/// The bindings have these three small numbers as `u32`.
const fn flag(bits: u32) -> u16 {
    assert!(bits < 8);
    bits.to_le_bytes()[0] as u16
}

/// A descriptor, of a ring or of an indirect table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`], or anything.
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Desc {
    /// A descriptor of one buffer, with no successor.
    pub fn new(addr: u64, len: u32, flags: u16) -> Desc {
        Desc { addr, len, flags, next: 0 }
    }

    /// As it stands in a split ring.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// As it stands in a packed ring: `next` is the buffer id, and before the flags.
    pub fn to_packed_bytes(self) -> [u8; 16] {
        Desc { flags: self.next, next: self.flags, ..self }.to_bytes()
    }

    /// From a split ring.
    pub fn from_bytes(bytes: [u8; 16]) -> Desc {
        let value = u128::from_le_bytes(bytes);
        let half = |shift: u32| u16::try_from(value >> shift & 0xffff).unwrap_or(0);
        let len = u32::from(half(64)) | u32::from(half(80)) << 16;
        let addr = u64::try_from(value & u128::from(u64::MAX)).unwrap_or(0);
        Desc { addr, len, flags: half(96), next: half(112) }
    }

    /// From a packed ring, the buffer id in `next`.
    pub fn from_packed_bytes(bytes: [u8; 16]) -> Desc {
        let desc = Desc::from_bytes(bytes);
        Desc { flags: desc.next, next: desc.flags, ..desc }
    }
}

/// Makes a table of descriptors where each names its right neighbour as the next, as in an indirect table.
pub fn link(descs: &[Desc]) -> Vec<Desc> {
    let last = descs.len().saturating_sub(1);
    let linked = |(nth, desc): (u16, &Desc)| match usize::from(nth) < last {
        true => Desc { flags: desc.flags | NEXT, next: nth.wrapping_add(1), ..*desc },
        false => *desc,
    };
    (0..=u16::MAX).cycle().zip(descs).map(linked).collect()
}

/// Unchecked access to one ring.
#[derive(Clone, Debug)]
pub struct Raw {
    ram: Arc<Ram>,
    layout: Layout,
}

impl Raw {
    /// A zeroed ring somewhere in RAM, its parts apart from each other.
    pub fn place(ram: &Arc<Ram>, size: u16) -> Raw {
        let [desc, avail, used] = Layout::lengths(RingKind::Split, size);
        let part = |bytes, align| ram.take_zeroed(bytes, align);
        let (desc, avail, used) = (part(desc, 16), part(avail, 2), part(used, 4));
        Raw { ram: Arc::clone(ram), layout: Layout { kind: RingKind::Split, size, desc, avail, used } }
    }

    /// The addresses.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index % self.layout.size)
    }

    /// Reads descriptor `index` (modulo the size) of the ring's table.
    pub fn desc(&self, index: u16) -> Desc {
        let bytes = self.ram.read(self.layout.desc + DESC_BYTES * self.slot(index), 16);
        Desc::from_bytes(bytes.try_into().unwrap_or([0; 16]))
    }

    /// Writes descriptor `index` (modulo the size) of the ring's table.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.ram.write(self.layout.desc + DESC_BYTES * self.slot(index), &desc.to_bytes());
    }

    /// Flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.ram.store(self.layout.avail, flags);
    }

    /// Index of the available ring.
    pub fn avail_idx(&self) -> u16 {
        self.ram.load(self.layout.avail + 2)
    }

    /// Index of the available ring: everything before it is the device's.
    pub fn set_avail_idx(&self, idx: u16) {
        self.ram.store(self.layout.avail + 2, idx);
    }

    /// Entry of the available ring at running index `at`: the head of a chain.
    pub fn set_avail_entry(&self, at: u16, head: u16) {
        self.ram.store(self.layout.avail + 4 + 2 * self.slot(at), head);
    }

    /// Makes one more entry available, whatever it is, and says under which index.
    pub fn offer(&self, head: u16) -> u16 {
        let at = self.avail_idx();
        self.set_avail_entry(at, head);
        self.set_avail_idx(at.wrapping_add(1));
        at
    }

    /// The used index after which the driver wants an interrupt (EVENT_IDX).
    pub fn set_used_event(&self, idx: u16) {
        self.ram.store(self.layout.avail + 4 + 2 * u64::from(self.layout.size), idx);
    }

    /// Flags of the used ring.
    pub fn used_flags(&self) -> u16 {
        self.ram.load(self.layout.used)
    }

    /// Flags of the used ring, which only the device should write.
    pub fn set_used_flags(&self, flags: u16) {
        self.ram.store(self.layout.used, flags);
    }

    /// Index of the used ring.
    pub fn used_idx(&self) -> u16 {
        self.ram.load(self.layout.used + 2)
    }

    /// Index of the used ring, which only the device should write.
    pub fn set_used_idx(&self, idx: u16) {
        self.ram.store(self.layout.used + 2, idx);
    }

    /// Entry of the used ring at running index `at`: (id, length).
    pub fn used_entry(&self, at: u16) -> (u32, u32) {
        let addr = self.layout.used + 4 + 8 * self.slot(at);
        (self.ram.load(addr), self.ram.load(addr + 4))
    }

    /// Entry of the used ring, which only the device should write.
    pub fn set_used_entry(&self, at: u16, id: u32, len: u32) {
        let addr = self.layout.used + 4 + 8 * self.slot(at);
        self.ram.store(addr, id);
        self.ram.store(addr + 4, len);
    }

    /// The available index after which the device wants a kick (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        self.ram.load(self.layout.used + 4 + 8 * u64::from(self.layout.size))
    }
}

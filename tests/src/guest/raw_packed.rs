//! The fields of a packed ring where they lie in guest RAM, each open to be read and to be written wrongly.
//!
//! ```text
//! descriptor ring   size x { addr u64, len u32, id u16, flags u16 }   virtio 1.3 §2.8.13, aligned to 16
//! driver events     off_wrap u16, flags u16                           §2.8.14, aligned to 4
//! device events     off_wrap u16, flags u16
//! ```
//! Nothing is checked here except that it is in RAM. See [`super::raw`] for the split ring.

use std::sync::Arc;

use super::format::{Layout, RingKind};
use super::memory::Ram;
use super::raw::{DESC_BYTES, Desc};

/// Flag of an entry: with the other as the lap says, it is available (§2.8.1).
pub const AVAIL: u16 = 1 << 7;
/// Flag of an entry: equal to [`AVAIL`] and the lap, it is used.
pub const USED: u16 = 1 << 15;
/// Event flags: notify always.
pub const EVENT_ENABLE: u16 = 0;
/// Event flags: never notify.
pub const EVENT_DISABLE: u16 = 1;
/// Event flags: notify when the named entry is passed (EVENT_IDX).
pub const EVENT_DESC: u16 = 2;

/// A place in the ring and the lap it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Entry.
    pub at: u16,
    /// Wrap bit of the lap; the first lap has 1.
    pub wrap: bool,
}

impl Place {
    /// From 15 bits of place and one of lap.
    pub fn from_bits(bits: u16) -> Place {
        Place { at: bits & 0x7fff, wrap: bits & 0x8000 != 0 }
    }

    /// As an event area and a ring base have it.
    pub fn bits(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }

    /// As many entries further in a ring of `size`.
    pub fn advanced(self, by: u16, size: u16) -> Place {
        let next = u32::from(self.at) + u32::from(by);
        let size = u32::from(size);
        let at = u16::try_from(next % size).unwrap_or(0);
        Place { at, wrap: self.wrap ^ (next / size % 2 == 1) }
    }

    /// Flag bits of an entry that is available in this lap.
    pub fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// Flag bits of an entry that was used in this lap.
    pub fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// Unchecked access to one packed ring.
#[derive(Clone, Debug)]
pub struct RawPacked {
    ram: Arc<Ram>,
    layout: Layout,
}

impl RawPacked {
    /// A zeroed ring somewhere in RAM, its parts apart from each other.
    pub fn place(ram: &Arc<Ram>, size: u16) -> RawPacked {
        let [desc, avail, used] = Layout::lengths(RingKind::Packed, size);
        let part = |bytes, align| ram.take_zeroed(bytes, align);
        let (desc, avail, used) = (part(desc, 16), part(avail, 4), part(used, 4));
        RawPacked { ram: Arc::clone(ram), layout: Layout { kind: RingKind::Packed, size, desc, avail, used } }
    }

    /// The addresses.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn entry_addr(&self, at: u16) -> u64 {
        self.layout.desc + DESC_BYTES * u64::from(at % self.layout.size)
    }

    /// Entry `at` (modulo the size) with all its flags; its id stands in `next`.
    pub fn entry(&self, at: u16) -> Desc {
        Desc::from_packed_bytes(self.ram.read(self.entry_addr(at), 16).try_into().unwrap_or([0; 16]))
    }

    /// Writes entry `at` (modulo the size), its flags last.
    pub fn set_entry(&self, at: u16, entry: Desc) {
        self.ram.write(self.entry_addr(at), &entry.to_packed_bytes()[..14]);
        self.set_flags(at, entry.flags);
    }

    /// Flags of an entry.
    pub fn flags(&self, at: u16) -> u16 {
        self.ram.load(self.entry_addr(at) + 14)
    }

    /// Flags of an entry: whose it is changes with them.
    pub fn set_flags(&self, at: u16, flags: u16) {
        self.ram.store(self.entry_addr(at) + 14, flags);
    }

    /// When the driver wants interrupts: (off_wrap, flags).
    pub fn driver_event(&self) -> (u16, u16) {
        (self.ram.load(self.layout.avail), self.ram.load(self.layout.avail + 2))
    }

    /// When the driver wants interrupts.
    pub fn set_driver_event(&self, off_wrap: u16, flags: u16) {
        self.ram.store(self.layout.avail, off_wrap);
        self.ram.store(self.layout.avail + 2, flags);
    }

    /// When the device wants kicks: (off_wrap, flags).
    pub fn device_event(&self) -> (u16, u16) {
        (self.ram.load(self.layout.used), self.ram.load(self.layout.used + 2))
    }

    /// When the device wants kicks, which only the device should write.
    pub fn set_device_event(&self, off_wrap: u16, flags: u16) {
        self.ram.store(self.layout.used, off_wrap);
        self.ram.store(self.layout.used + 2, flags);
    }
}

//! The packed virtqueue (virtio 1.3 §2.8).
//!
//! ```text
//! descriptor ring      16 bytes an entry: addr, len, id, flags    driver writes requests, device overwrites with used
//! driver event area    off_wrap | flags                           when the driver wants interrupts
//! device event area    off_wrap | flags                           when the device wants notifications
//! ```
//! Both sides walk the one ring and count laps by a wrap bit. An entry is available when its AVAIL flag equals
//! the lap's bit and its USED flag does not, and used when both equal it (§2.8.1). A chain is a run of entries;
//! its buffer id stands in the last one (§2.8.6). The device writes one used entry a chain and steps over as
//! many entries as the chain had.
//!
//! A batch shows at once: the flags of its first used entry are stored last.

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

use std::sync::atomic::{Ordering, fence};

use super::{Descriptor, Layout, Ring, RingError, Take, Taken, event_wanted};
use crate::chain::{Chain, Limits, Links, Loading, Malformed};
use crate::inflight::packed::Marks;
use crate::memory::{Area, Memory};

/// Flag bits of an entry beside those of [`Descriptor`] (§2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Offsets of length and flags in an entry; the id is between.
const LEN: usize = 8;
const FLAGS: usize = 14;
/// Fields of an event area (§2.8.10).
const EVENT_OFF_WRAP: usize = 0;
const EVENT_FLAGS: usize = 2;
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESC: u16 = 2;

/// A place in the ring, and the lap it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    at: u16,
    wrap: bool,
}

impl Cursor {
    /// From 15 bits of place and one of lap, as event areas and ring bases have it.
    fn from_bits(bits: u16, size: u16) -> Option<Cursor> {
        let cursor = Cursor { at: bits & 0x7fff, wrap: bits & 0x8000 != 0 };
        (cursor.at < size).then_some(cursor)
    }

    fn bits(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }

    fn advance(&mut self, by: u16, size: u16) {
        // Both are at most 32768, so the sum fits.
        let next = self.at.wrapping_add(by);
        if next >= size {
            *self = Cursor { at: next.wrapping_sub(size), wrap: !self.wrap };
        } else {
            self.at = next;
        }
    }
}

/// The device's side of a packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    entries: Area,
    driver_event: Area,
    device_event: Area,
    size: u16,
    event_idx: bool,
    avail: Cursor,
    used: Cursor,
    /// First used entry of the batch at hand, whose flags are not stored yet.
    first: Option<(Cursor, u16)>,
    /// Used cursor when the driver was last told, or found not to want it.
    told: Cursor,
}

impl PackedRing {
    /// Finds the ring in memory; `base` holds both cursors (vhost-user GET_VRING_BASE).
    ///
    /// `None` when a part is unaligned (§2.8.10.1: 16, 4 and 4 bytes) or not in one region, or `base` is outside.
    pub fn new(memory: &Memory, layout: &Layout, base: u32) -> Option<PackedRing> {
        if layout.size == 0 || layout.size > 1 << 15 {
            return None;
        }
        let bytes = usize::from(layout.size).checked_mul(Descriptor::BYTES)?;
        let entries = memory.ring_area(layout.descriptor, bytes, 16)?;
        let is_first = FIRST_BASES.contains(&base) && is_new(&entries, layout.size);
        let base = if is_first { Ring::first_base(true) } else { base };
        // The halves of the base.
        let (low, high) = (u16::try_from(base & 0xffff).ok()?, u16::try_from(base >> 16).ok()?);
        let used = Cursor::from_bits(high, layout.size)?;
        Some(PackedRing {
            entries,
            driver_event: memory.ring_area(layout.available, 4, 4)?,
            device_event: memory.ring_area(layout.used, 4, 4)?,
            size: layout.size,
            event_idx: layout.event_idx,
            avail: Cursor::from_bits(low, layout.size)?,
            used,
            first: None,
            told: used,
        })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Both cursors: where to go on from after a stop.
    pub fn base(&self) -> u32 {
        u32::from(self.avail.bits()) | u32::from(self.used.bits()) << 16
    }

    /// Where the next used entry goes, with the bit of its lap in bit 15.
    #[inline]
    pub(crate) fn used_place(&self) -> u16 {
        self.used.bits()
    }

    /// Whether the entry at a place is not available in that place's lap: the device has used it. What the driver
    /// made of it since then belongs to a later lap.
    pub(crate) fn is_used(&self, place: u16) -> bool {
        let place = Cursor::from_bits(place, self.size);
        place.is_none_or(|place| !self.is_available(place).unwrap_or(false))
    }

    /// Goes on where `slots` entries from `used` on are in flight. What was filled there by somebody who did not come to
    /// publish it must not show with the first entry that is: those entries are as the driver made them again.
    pub(crate) fn resume(&mut self, used: u16, slots: u16) {
        let Some(used) = Cursor::from_bits(used, self.size) else { return };
        (self.used, self.told, self.avail) = (used, used, used);
        for _ in 0..slots {
            let place = self.place(self.avail).wrapping_add(FLAGS);
            let flags = self.entries.load_u16(place, Ordering::Relaxed).unwrap_or(0);
            if !self.flags_available(flags, self.avail) {
                let lap = if self.avail.wrap { AVAIL } else { USED };
                self.entries.store_u16(place, flags & !(AVAIL | USED) | lap, Ordering::Relaxed);
            }
            self.avail.advance(1, self.size);
        }
    }

    /// Takes the next available chain into `chain`, if there is one; `marks` gets a copy of its descriptors.
    ///
    /// Outer error: the ring is broken. Inner error: the chain is malformed and must go back.
    #[inline]
    pub(crate) fn take(
        &mut self,
        chain: &mut Chain,
        memory: &Memory,
        limits: Limits,
        marks: Option<&mut Marks>,
    ) -> Take {
        if !self.is_available(self.avail)? {
            return Ok(None);
        }
        let mut taking = marks.as_deref().map(Marks::begin).unwrap_or_default();
        let mut loading = chain.begin(memory, limits);
        let mut outcome = Ok(());
        let mut slots = 0u16;
        loop {
            let words = self.entries.read_words(self.place(self.avail)).ok_or(RingError::Memory)?;
            let descriptor = Descriptor::from_words(words).as_packed();
            // The first was seen to be available; a chain that runs into what is not never ends well.
            if slots > 0 && !self.flags_available(descriptor.flags, self.avail) {
                return Err(RingError::Chain);
            }
            if let Some(marks) = &marks {
                taking = marks.record(taking, words).ok_or(RingError::Chain)?;
            }
            self.avail.advance(1, self.size);
            slots = slots.wrapping_add(1);
            // Malformed or not, the id in the last entry must be found to give the chain back.
            if outcome.is_ok() {
                outcome = add(&mut loading, slots, descriptor);
            }
            if !descriptor.has(Descriptor::NEXT) {
                let id = descriptor.next;
                if id >= self.size {
                    return Err(RingError::Head(id));
                }
                if let Some(marks) = marks {
                    marks.end(id, slots, taking);
                }
                return Ok(Some((Taken { id, slots }, outcome.and_then(|()| loading.end()))));
            }
            if slots >= self.size {
                return Err(RingError::Chain);
            }
        }
    }

    #[inline]
    fn is_available(&self, at: Cursor) -> Result<bool, RingError> {
        let place = self.place(at).wrapping_add(FLAGS);
        // The acquire orders the rest of the entry, and of its chain, after the flags.
        let flags = self.entries.load_u16(place, Ordering::Acquire).ok_or(RingError::Memory)?;
        Ok(self.flags_available(flags, at))
    }

    #[inline]
    fn flags_available(&self, flags: u16, at: Cursor) -> bool {
        flags & (AVAIL | USED) == if at.wrap { AVAIL } else { USED }
    }

    /// Fills the next used entry. The driver sees it after [`PackedRing::publish`].
    #[inline]
    pub fn push_used(&mut self, taken: Taken, written_bytes: u32) {
        let place = self.place(self.used);
        let lap = if self.used.wrap { AVAIL | USED } else { 0 };
        // WRITE says that the length counts (§2.8.7.1).
        let flags = if written_bytes > 0 { lap | Descriptor::WRITE } else { lap };
        let id = u64::from(taken.id) << 32;
        let word = (u64::from(written_bytes) | id | u64::from(flags) << 48).to_le_bytes();
        if self.first.is_none() {
            self.first = Some((self.used, flags));
            let [len_and_id @ .., _, _] = word;
            self.entries.write::<6>(place.wrapping_add(LEN), len_and_id);
        } else {
            // Nobody looks at it before the first one shows.
            self.entries.write(place.wrapping_add(LEN), word);
        }
        self.used.advance(taken.slots, self.size);
    }

    /// Shows the driver all that was pushed. `true`: it wants an interrupt for it (§2.8.10).
    pub fn publish(&mut self) -> bool {
        let Some((first, flags)) = self.first.take() else { return false };
        self.entries.store_u16(self.place(first).wrapping_add(FLAGS), flags, Ordering::Release);
        // The entries must be visible before the driver's wish is read, or an interrupt could get lost.
        fence(Ordering::SeqCst);
        let told = std::mem::replace(&mut self.told, self.used);
        match self.driver_event.load_u16(EVENT_FLAGS, Ordering::Acquire).unwrap_or(EVENT_ENABLE) {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => {
                let bits = self.driver_event.load_u16(EVENT_OFF_WRAP, Ordering::Relaxed).unwrap_or(0);
                self.passed(bits, told)
            }
            _ => true,
        }
    }

    /// Whether the step from `told` to the used cursor passed the entry that the driver named (§2.8.10).
    fn passed(&self, off_wrap: u16, told: Cursor) -> bool {
        // Places are made one line of numbers: what lies a lap back is `size` less.
        let mut event = off_wrap & 0x7fff;
        if event >= self.size {
            // An entry that the ring does not have: better too many interrupts than none for ever.
            return true;
        }
        if (off_wrap & 0x8000 != 0) != self.used.wrap {
            event = event.wrapping_sub(self.size);
        }
        let mut old = told.at;
        if told.wrap != self.used.wrap {
            old = old.wrapping_sub(self.size);
        }
        event_wanted(event, self.used.at, old)
    }

    /// Asks the driver not to notify while we are looking anyway.
    pub fn disarm(&mut self) {
        self.device_event.store_u16(EVENT_FLAGS, EVENT_DISABLE, Ordering::Relaxed);
    }

    /// Asks for a notification of the next chain. `true`: one came meanwhile, look again instead of waiting.
    pub fn arm(&mut self) -> bool {
        if self.event_idx {
            self.device_event.store_u16(EVENT_OFF_WRAP, self.avail.bits(), Ordering::Relaxed);
            self.device_event.store_u16(EVENT_FLAGS, EVENT_DESC, Ordering::Release);
        } else {
            self.device_event.store_u16(EVENT_FLAGS, EVENT_ENABLE, Ordering::Relaxed);
        }
        // The wish must be visible before the flags are read again, or a notification could get lost.
        fence(Ordering::SeqCst);
        self.has_next()
    }

    /// Whether the next entry is available.
    #[inline]
    pub fn has_next(&self) -> bool {
        self.is_available(self.avail).unwrap_or(false)
    }

    #[inline]
    fn place(&self, at: Cursor) -> usize {
        // At most 32767 * 16.
        usize::from(at.at).wrapping_mul(Descriptor::BYTES)
    }
}

/// Takes the descriptor that makes a chain `slots` long. §2.8.8: an indirect one stands alone.
#[inline(always)]
fn add(loading: &mut Loading<'_>, slots: u16, descriptor: Descriptor) -> Result<(), Malformed> {
    if slots > 1 && descriptor.has(Descriptor::INDIRECT) {
        return Err(Malformed::Indirect);
    }
    loading.add(descriptor, Links::None)
}

/// Takes a chain into `chain` that was taken before, from a copy of its descriptors.
pub(crate) fn retake(
    descriptors: &[Descriptor],
    chain: &mut Chain,
    memory: &Memory,
    limits: Limits,
) -> Result<(), Malformed> {
    let mut loading = chain.begin(memory, limits);
    for (slots, descriptor) in (1..).zip(descriptors) {
        add(&mut loading, slots, *descriptor)?;
    }
    loading.end()
}

/// What front-ends say that mean the beginning of a ring and do not know of four values: those that set every base to
/// 0, and DPDK's virtio_user, which names where the driver is (place 0, first lap) and not where the device is.
const FIRST_BASES: [u32; 2] = [0, 0x8000];

/// Whether the ring is in its first lap. By the letter the device is in an even lap at [`FIRST_BASES`], where entries
/// of the lap before have USED set; in the first lap none has.
fn is_new(entries: &Area, size: u16) -> bool {
    let place = |at: u16| usize::from(at).wrapping_mul(Descriptor::BYTES).wrapping_add(FLAGS);
    let flags = |at: u16| entries.load_u16(place(at), Ordering::Relaxed);
    (0..size).all(|at| flags(at).is_some_and(|flags| flags & USED == 0))
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;

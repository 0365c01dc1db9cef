//! The split virtqueue (virtio 1.3 §2.7).
//!
//! ```text
//! descriptor table   16 bytes a descriptor: addr, len, flags, next
//! available ring     flags | idx | ring[size]          | used_event     written by the driver
//! used ring          flags | idx | ring[size]{id, len} | avail_event    written by the device
//! ```
//! The indices run freely over 16 bits; an entry's place is the index modulo the queue size, which is a power
//! of two. The device keeps its own copies of where it is (`next_avail`, `next_used`): what a guest writes
//! into the used ring changes nothing here.

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

use super::{Descriptor, Layout, RingError, event_wanted};
use crate::descriptor::Table;
use crate::memory::{Area, Memory};

const FLAGS: usize = 0;
const IDX: usize = 2;
const RING: usize = 4;
/// Driver to device: do not interrupt (virtio 1.3 §2.7.6). Device to driver: do not notify (§2.7.8).
const NO_EVENT: u16 = 1;

/// The device's side of a split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    descriptors: Area,
    available: Area,
    used: Area,
    size: u16,
    event_idx: bool,
    /// Next available entry to take.
    next_avail: u16,
    /// Driver's available index as last loaded.
    seen_avail: u16,
    /// Next used entry to fill.
    next_used: u16,
    /// Used index when the driver was last told, or found not to want it.
    told_used: u16,
}

impl SplitRing {
    /// Finds the ring in memory; serving goes on at available entry `base`.
    ///
    /// `None` when a part is unaligned (§2.7: 16, 2 and 4 bytes) or not wholly inside one region.
    pub fn new(memory: &Memory, layout: &Layout, base: u16) -> Option<SplitRing> {
        if !layout.size.is_power_of_two() || layout.size > 1 << 15 {
            return None;
        }
        let event = if layout.event_idx { 2 } else { 0 };
        let bytes =
            |entry: usize, fixed: usize| usize::from(layout.size).checked_mul(entry)?.checked_add(fixed);
        let used = memory.ring_area(layout.used, bytes(8, RING)?.checked_add(event)?, 4)?;
        let next_used = used.load_u16(IDX, Ordering::Acquire)?;
        Some(SplitRing {
            descriptors: memory.ring_area(layout.descriptor, bytes(Descriptor::BYTES, 0)?, 16)?,
            available: memory.ring_area(layout.available, bytes(2, RING)?.checked_add(event)?, 2)?,
            used,
            size: layout.size,
            event_idx: layout.event_idx,
            next_avail: base,
            seen_avail: base,
            next_used,
            told_used: next_used,
        })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Next available entry: the base to go on from after a stop.
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Next used entry: the used index, once what was pushed is published.
    #[inline]
    pub fn used_index(&self) -> u16 {
        self.next_used
    }

    /// Looks anew where the used ring stands: whoever served the ring before may have gone on until now.
    pub(crate) fn reload(&mut self) -> u16 {
        self.next_used = self.used.load_u16(IDX, Ordering::Acquire).unwrap_or(self.next_used);
        self.told_used = self.next_used;
        self.next_used
    }

    /// How far the driver's index is ahead of what was used.
    pub(crate) fn outstanding(&self) -> u16 {
        let index = self.available.load_u16(IDX, Ordering::Acquire).unwrap_or(self.next_used);
        index.wrapping_sub(self.next_used)
    }

    /// Goes on at another available entry.
    pub(crate) fn resume(&mut self, base: u16) {
        (self.next_avail, self.seen_avail) = (base, base);
    }

    /// Takes the next available head, if there is one.
    ///
    /// # Errors
    /// [`RingError`]: the ring is broken, see there.
    #[inline]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<u16>, RingError> {
        if self.next_avail == self.seen_avail && !self.refresh()? {
            return Ok(None);
        }
        let entry = self.place(RING, self.next_avail, 2);
        let head = self.available.load_u16(entry, Ordering::Relaxed).ok_or(RingError::Memory)?;
        if head >= self.size {
            return Err(RingError::Head(head));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Loads the driver's index; `true` when it is ahead of us. The acquire orders the entries after it.
    #[inline]
    fn refresh(&mut self) -> Result<bool, RingError> {
        let index = self.available.load_u16(IDX, Ordering::Acquire).ok_or(RingError::Memory)?;
        if index.wrapping_sub(self.next_avail) > self.size {
            return Err(RingError::AvailableIndex { index, next: self.next_avail, size: self.size });
        }
        self.seen_avail = index;
        Ok(index != self.next_avail)
    }

    /// Descriptor `index` of the table; `None` when the table has no such one.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let place = usize::from(index).checked_mul(Descriptor::BYTES)?;
        self.descriptors.read_words(place).map(Descriptor::from_words)
    }

    /// Fills the next used element. The driver sees it after [`SplitRing::publish`].
    #[inline]
    pub fn push_used(&mut self, head: u16, written_bytes: u32) {
        let element = u64::from(head) | u64::from(written_bytes) << 32;
        let place = self.place(RING, self.next_used, 8);
        self.used.write(place, element.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all that was pushed. `true`: it wants an interrupt for it (§2.7.7.2, §2.7.10).
    pub fn publish(&mut self) -> bool {
        self.used.store_u16(IDX, self.next_used, Ordering::Release);
        // The index must be visible before the driver's wish is read, or an interrupt could get lost.
        fence(Ordering::SeqCst);
        let told = std::mem::replace(&mut self.told_used, self.next_used);
        if !self.event_idx {
            let flags = self.available.load_u16(FLAGS, Ordering::Relaxed).unwrap_or(0);
            return flags & NO_EVENT == 0;
        }
        let used_event = self.available.load_u16(self.event_field(2), Ordering::Relaxed).unwrap_or(told);
        event_wanted(used_event, self.next_used, told)
    }

    /// Asks the driver not to notify while we are looking anyway. With EVENT_IDX an old `avail_event` does it.
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.used.store_u16(FLAGS, NO_EVENT, Ordering::Relaxed);
        }
    }

    /// Asks for a notification of the next entry. `true`: entries came meanwhile, look again instead of waiting.
    pub fn arm(&mut self) -> bool {
        if self.event_idx {
            self.used.store_u16(self.event_field(8), self.next_avail, Ordering::Relaxed);
        } else {
            self.used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the index is read again, or a notification could get lost.
        fence(Ordering::SeqCst);
        self.has_next()
    }

    /// Whether the driver's index is not ours.
    #[inline]
    pub fn has_next(&self) -> bool {
        self.available.load_u16(IDX, Ordering::Acquire).is_some_and(|index| index != self.next_avail)
    }

    #[inline]
    fn place(&self, start: usize, index: u16, entry: usize) -> usize {
        // At most 32767 * 8 + 4.
        usize::from(index & self.size.wrapping_sub(1)).wrapping_mul(entry).wrapping_add(start)
    }

    fn event_field(&self, entry: usize) -> usize {
        usize::from(self.size).wrapping_mul(entry).wrapping_add(RING)
    }
}

impl Table for SplitRing {
    #[inline]
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        self.descriptor(index)
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;

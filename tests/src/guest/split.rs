//! The honest driver's side of a split virtqueue (virtio 1.3 §2.7).
//!
//! In: descriptors without links. Out: slots, and pairs (id, length) that the device gave back. Slots are
//! handed out in random order, so the descriptors of a chain are never neighbours by luck. Another ring
//! format has to bring the methods of [`Split`] that [`super::ring::Ring`] calls, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::memory::Ram;
use super::raw::{Desc, NEXT, NO_NOTIFICATION, Raw};
use super::ring::Interrupts;
use crate::random::Random;

#[derive(Debug)]
pub(super) struct Split {
    raw: Raw,
    event_idx: bool,
    free: Vec<u16>,
    random: Random,
    /// Next index of the available ring to be written; those before `published` the device may see.
    next_avail: u16,
    published: u16,
    /// Next index of the used ring to be read.
    next_used: u16,
}

impl Split {
    /// A ring of which `base` requests have been made and answered already.
    pub(super) fn new(ram: &Arc<Ram>, size: u16, event_idx: bool, base: u16) -> Split {
        let raw = Raw::place(ram, size);
        raw.set_avail_idx(base);
        raw.set_used_idx(base);
        Split {
            raw,
            event_idx,
            free: (0..size).collect(),
            random: Random::from_env(),
            next_avail: base,
            published: base,
            next_used: base,
        }
    }

    pub(super) fn raw(&self) -> &Raw {
        &self.raw
    }

    /// Slots that are not in use.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes `count` slots, in random order.
    pub(super) fn reserve(&mut self, count: usize) -> Option<Vec<u16>> {
        if count > self.free.len() {
            return None;
        }
        self.random.shuffle(&mut self.free);
        Some(self.free.split_off(self.free.len() - count))
    }

    /// Writes a chain into free slots; [`Split::offer`] makes it available.
    pub(super) fn place(&mut self, descs: &[Desc]) -> Option<Vec<u16>> {
        let slots = self.reserve(descs.len())?;
        for (nth, (slot, desc)) in slots.iter().zip(descs).enumerate() {
            let linked = match slots.get(nth + 1) {
                Some(&next) => Desc { flags: desc.flags | NEXT, next, ..*desc },
                None => *desc,
            };
            self.raw.set_desc(*slot, linked);
        }
        Some(slots)
    }

    /// Puts a head into the available ring; the device sees it after [`Split::publish`].
    pub(super) fn offer(&mut self, head: u16) {
        self.raw.set_avail_entry(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the device what was offered. `true`: it wants a kick for that (§2.7.10).
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        self.raw.set_avail_idx(new);
        self.published = new;
        fence(Ordering::SeqCst);
        if self.event_idx {
            passed(self.raw.avail_event(), old, new)
        } else {
            old != new && self.raw.used_flags() & NO_NOTIFICATION == 0
        }
    }

    /// The device has finished something that was not taken yet.
    pub(super) fn has_used(&self) -> bool {
        self.raw.used_idx() != self.next_used
    }

    /// The next used entry.
    pub(super) fn take_used(&mut self) -> Option<(u32, u32)> {
        if !self.has_used() {
            return None;
        }
        let entry = self.raw.used_entry(self.next_used);
        self.next_used = self.next_used.wrapping_add(1);
        Some(entry)
    }

    pub(super) fn release(&mut self, slots: &[u16]) {
        self.free.extend(slots);
    }

    /// Tells the device when to interrupt, counted from the next used entry (§2.7.7).
    pub(super) fn set_interrupts(&self, when: Interrupts) {
        let never = when == Interrupts::Never;
        let ahead = match when {
            Interrupts::Always => 0,
            Interrupts::After(entries) => entries.wrapping_sub(1),
            Interrupts::Never => u16::MAX,
        };
        // With EVENT_IDX the flag must stay 0 and the index alone decides (§2.7.7.1).
        self.raw.set_avail_flags(if never && !self.event_idx { NO_NOTIFICATION } else { 0 });
        self.raw.set_used_event(self.next_used.wrapping_add(ahead));
        fence(Ordering::SeqCst);
    }
}

/// Was `event` passed when an index went from `old` to `new` (§2.7.7.2, `vring_need_event`)?
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

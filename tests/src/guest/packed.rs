//! The honest driver's side of a packed virtqueue (virtio 1.3 §2.8).
//!
//! A chain is a run of entries, its buffer id in the last one. All entries of a batch but the first are
//! written as available at once: the device stops at the first, which becomes available by
//! [`Format::publish`]. Ids are handed out in random order, so that none equals its place by luck.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::format::{Format, Layout, Shape, Slots};
use super::memory::Ram;
use super::raw::{Desc, INDIRECT, NEXT, WRITE};
use super::raw_packed::{AVAIL, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, Place, RawPacked, USED};
use super::ring::Interrupts;
use crate::random::Random;

/// Flags that say what an entry is, not whose.
const MEANING: u16 = NEXT | WRITE | INDIRECT;

#[derive(Debug)]
pub(super) struct Packed {
    raw: RawPacked,
    shape: Shape,
    ids: VecDeque<u16>,
    free: u16,
    random: Random,
    /// Next entry to be written; those before `published` the device may see.
    next: Place,
    published: Place,
    /// Where the next used entry will stand.
    next_used: Place,
    /// Chains the device has, oldest first: (id, entries).
    flying: VecDeque<(u16, u16)>,
}

impl Packed {
    /// A ring of which everything before `base` has been made available and answered.
    pub(super) fn new(ram: &Arc<Ram>, shape: Shape, base: u32) -> Packed {
        let raw = RawPacked::place(ram, shape.size);
        let place = |half: u32| Place::from_bits(u16::try_from(half).unwrap_or(0));
        let (next, next_used) = (place(base & 0xffff), place(base >> 16));
        let before = Place { wrap: !next.wrap, ..next };
        for at in 0..shape.size {
            raw.set_flags(at, if at < next.at { next.used() } else { before.used() });
        }
        Packed {
            raw,
            shape,
            ids: (0..shape.size).collect(),
            free: shape.size,
            random: Random::from_env(),
            next,
            published: next,
            next_used,
            flying: VecDeque::new(),
        }
    }

    fn take_id(&mut self) -> u16 {
        if !self.shape.in_order {
            let other = self.random.below(self.ids.len() as u64);
            self.ids.swap(0, usize::try_from(other).unwrap_or(0));
        }
        self.ids.pop_front().unwrap_or_else(|| panic!("every buffer id is in use"))
    }

    fn is_used(&self, place: Place) -> bool {
        self.raw.flags(place.at) & (AVAIL | USED) == place.used()
    }

    /// Entries of the chain with this id; 1 if there is none.
    fn entries(&self, id: u16) -> u16 {
        self.flying.iter().find(|(flying, _)| *flying == id).map_or(1, |(_, entries)| *entries)
    }

    /// The place that is used by the time that `chains` chains are finished in order.
    fn place_of(&self, chains: u16) -> Place {
        let known = self.flying.iter().map(|(_, entries)| *entries);
        let before: u16 = known.chain(std::iter::repeat(1)).take(usize::from(chains.saturating_sub(1))).sum();
        self.next_used.advanced(before, self.shape.size)
    }
}

impl Format for Packed {
    fn layout(&self) -> Layout {
        self.raw.layout()
    }

    fn free(&self) -> usize {
        usize::from(self.free)
    }

    fn add(&mut self, descs: &[Desc]) -> Slots {
        let (id, mut at) = (self.take_id(), Vec::new());
        for (nth, desc) in descs.iter().enumerate() {
            let next = if nth + 1 < descs.len() { NEXT } else { 0 };
            // Available with the first of its batch: until then that one is as if used a lap ago.
            let whose = if self.next == self.published {
                Place { wrap: !self.next.wrap, ..self.next }.used()
            } else {
                self.next.available()
            };
            self.raw.set_entry(self.next.at, Desc { flags: desc.flags | next | whose, next: id, ..*desc });
            at.push(self.next.at);
            self.next = self.next.advanced(1, self.shape.size);
        }
        let entries = u16::try_from(at.len()).unwrap_or(u16::MAX);
        self.free -= entries;
        self.flying.push_back((id, entries));
        Slots { id, at }
    }

    /// §2.8.10: whether the device wants a kick is read after the entries are visible.
    fn publish(&mut self) -> bool {
        let (first, size) = (self.published, self.shape.size);
        if first == self.next {
            return false;
        }
        let flags = self.raw.flags(first.at) & !(AVAIL | USED);
        self.raw.set_flags(first.at, flags | first.available());
        self.published = self.next;
        fence(Ordering::SeqCst);
        let (off_wrap, flags) = self.raw.device_event();
        match flags {
            EVENT_DISABLE => false,
            EVENT_DESC => {
                let mut shown = std::iter::successors(Some(first), |place| Some(place.advanced(1, size)));
                shown.by_ref().take_while(|place| *place != self.next).any(|place| place.bits() == off_wrap)
            }
            _ => true,
        }
    }

    fn has_used(&self) -> bool {
        self.is_used(self.next_used)
    }

    fn waiting(&self) -> usize {
        let mut place = self.next_used;
        let taken = |_: &usize| {
            let used = self.is_used(place);
            place = place.advanced(self.entries(self.raw.entry(place.at).next), self.shape.size);
            used
        };
        (0..self.flying.len()).take_while(taken).count()
    }

    fn take_used(&mut self) -> Option<(u32, u32)> {
        if !self.has_used() {
            return None;
        }
        let entry = self.raw.entry(self.next_used.at);
        self.next_used = self.next_used.advanced(self.entries(entry.next), self.shape.size);
        self.flying.retain(|(id, _)| *id != entry.next);
        // §2.8.7.1: the length counts only where the device says that it wrote.
        Some((u32::from(entry.next), if entry.flags & WRITE == 0 { 0 } else { entry.len }))
    }

    fn release(&mut self, slots: Slots) {
        self.free += u16::try_from(slots.at.len()).unwrap_or(0);
        self.ids.push_back(slots.id);
    }

    fn set_interrupts(&mut self, when: Interrupts) {
        let wanted = if self.shape.event_idx { EVENT_DESC } else { EVENT_ENABLE };
        let (chains, flags) = match when {
            Interrupts::Never => (1, EVENT_DISABLE),
            Interrupts::Always => (1, wanted),
            Interrupts::After(chains) => (chains, wanted),
        };
        self.raw.set_driver_event(self.place_of(chains).bits(), flags);
        fence(Ordering::SeqCst);
    }

    fn base(&self) -> u32 {
        u32::from(self.published.bits()) << 16 | u32::from(self.published.bits())
    }

    fn desc(&self, at: u16) -> Desc {
        let entry = self.raw.entry(at);
        Desc { flags: entry.flags & MEANING, ..entry }
    }

    fn set_desc(&self, at: u16, desc: Desc) {
        let whose = self.raw.flags(at) & (AVAIL | USED);
        self.raw.set_entry(at, Desc { flags: desc.flags & MEANING | whose, ..desc });
    }

    fn raw_packed(&self) -> Option<&RawPacked> {
        Some(&self.raw)
    }
}

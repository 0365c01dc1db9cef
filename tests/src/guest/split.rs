//! The honest driver's side of a split virtqueue (virtio 1.3 §2.7).
//!
//! Slots of the descriptor table are handed out in random order, so the descriptors of a chain are never
//! neighbours by luck; with IN_ORDER they are taken one after the other, as §2.7.5.1 asks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::format::{Format, Layout, Shape, Slots};
use super::memory::Ram;
use super::raw::{Desc, NEXT, NO_NOTIFICATION, Raw};
use super::ring::Interrupts;
use crate::random::Random;

#[derive(Debug)]
pub(super) struct Split {
    raw: Raw,
    shape: Shape,
    free: VecDeque<u16>,
    random: Random,
    /// Next index of the available ring to be written; those before `published` the device may see.
    next_avail: u16,
    published: u16,
    /// Next index of the used ring to be read.
    next_used: u16,
}

impl Split {
    /// A ring of which `base` requests have been made and answered already.
    pub(super) fn new(ram: &Arc<Ram>, shape: Shape, base: u32) -> Split {
        let base = u16::try_from(base).unwrap_or_else(|_| panic!("{base:#x} is no base of a split ring"));
        let raw = Raw::place(ram, shape.size);
        raw.set_avail_idx(base);
        raw.set_used_idx(base);
        Split {
            raw,
            shape,
            free: (0..shape.size).collect(),
            random: Random::from_env(),
            next_avail: base,
            published: base,
            next_used: base,
        }
    }

    fn take_slots(&mut self, count: usize) -> Vec<u16> {
        if !self.shape.in_order {
            self.random.shuffle(self.free.make_contiguous());
        }
        self.free.drain(..count).collect()
    }
}

impl Format for Split {
    fn layout(&self) -> Layout {
        self.raw.layout()
    }

    fn free(&self) -> usize {
        self.free.len()
    }

    fn add(&mut self, descs: &[Desc]) -> Slots {
        let at = self.take_slots(descs.len());
        for (nth, (slot, desc)) in at.iter().zip(descs).enumerate() {
            let linked = match at.get(nth + 1) {
                Some(&next) => Desc { flags: desc.flags | NEXT, next, ..*desc },
                None => *desc,
            };
            self.raw.set_desc(*slot, linked);
        }
        let id = *at.first().unwrap_or_else(|| panic!("a chain needs a descriptor"));
        self.raw.set_avail_entry(self.next_avail, id);
        self.next_avail = self.next_avail.wrapping_add(1);
        Slots { id, at }
    }

    /// §2.7.10: whether the device wants a kick is read after the index is visible.
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        self.raw.set_avail_idx(new);
        self.published = new;
        fence(Ordering::SeqCst);
        if self.shape.event_idx {
            passed(self.raw.avail_event(), old, new)
        } else {
            old != new && self.raw.used_flags() & NO_NOTIFICATION == 0
        }
    }

    fn has_used(&self) -> bool {
        self.raw.used_idx() != self.next_used
    }

    fn waiting(&self) -> usize {
        usize::from(self.raw.used_idx().wrapping_sub(self.next_used))
    }

    fn take_used(&mut self) -> Option<(u32, u32)> {
        if !self.has_used() {
            return None;
        }
        let entry = self.raw.used_entry(self.next_used);
        self.next_used = self.next_used.wrapping_add(1);
        Some(entry)
    }

    fn release(&mut self, slots: Slots) {
        self.free.extend(slots.at);
    }

    fn set_interrupts(&mut self, when: Interrupts) {
        let never = when == Interrupts::Never;
        let ahead = match when {
            Interrupts::Always => 0,
            Interrupts::After(chains) => chains.wrapping_sub(1),
            Interrupts::Never => u16::MAX,
        };
        // With EVENT_IDX the flag must stay 0 and the index alone decides (§2.7.7.1).
        self.raw.set_avail_flags(if never && !self.shape.event_idx { NO_NOTIFICATION } else { 0 });
        self.raw.set_used_event(self.next_used.wrapping_add(ahead));
        fence(Ordering::SeqCst);
    }

    fn base(&self) -> u32 {
        u32::from(self.published)
    }

    fn desc(&self, at: u16) -> Desc {
        self.raw.desc(at)
    }

    fn set_desc(&self, at: u16, desc: Desc) {
        self.raw.set_desc(at, desc);
    }

    fn raw(&self) -> Option<&Raw> {
        Some(&self.raw)
    }
}

/// Was `event` passed when an index went from `old` to `new` (§2.7.7.2, `vring_need_event`)?
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

//! Split rings: a hostile driver's writes, and chains taken and given back (virtio 1.3 §2.7).
//!
//! In: size, terms and indices to begin at, then records (see `play`). An index of the driver and entries of the
//! available ring are records of their own, and any bytes of the ring can be written at any time.

use super::Input;
use super::play::{AVAILABLE, DESCRIPTORS, Format, Next, Terms, USED, play};
use super::shadow::Shadow;
use super::walk;
use crate::guest::raw::Desc;

/// A driver's life on a split ring.
pub fn split(data: &[u8]) {
    play::<Split>(data);
}

/// Where the device should be.
struct Split {
    terms: Terms,
    /// Entry to take next, and the driver's index when it was last looked at.
    next: u16,
    seen: u16,
    used: u16,
    told: u16,
}

impl Split {
    fn slot(&self, index: u16) -> u64 {
        u64::from(index % self.terms.rules.size)
    }

    fn entry(&self, index: u16) -> u64 {
        AVAILABLE + 4 + 2 * self.slot(index)
    }

    /// The driver asked to hear when this used index is passed.
    fn used_event(&self, shadow: &Shadow) -> u16 {
        shadow.u16(AVAILABLE + 4 + 2 * u64::from(self.terms.rules.size))
    }
}

impl Format for Split {
    const PACKED: bool = false;
    const SIZES: &'static [u16] = &[8, 1, 2, 4, 16];

    fn new(terms: Terms, shadow: &mut Shadow, input: &mut Input<'_>) -> Split {
        let (next, used) = (input.u16(), input.u16());
        shadow.write(AVAILABLE + 2, &next.to_le_bytes());
        shadow.write(USED + 2, &used.to_le_bytes());
        Split { terms, next, seen: next, used, told: used }
    }

    fn base(&self) -> u32 {
        self.next.into()
    }

    fn encode(&self, desc: Desc, _: &mut Input<'_>) -> [u8; 16] {
        desc.to_bytes()
    }

    /// More entries, the index, or what the driver wants to hear.
    fn driver(&mut self, shadow: &mut Shadow, input: &mut Input<'_>) {
        let (what, value) = (input.u8() % 4, input.u8());
        let index = shadow.u16(AVAILABLE + 2);
        match what {
            0 | 1 => {
                // A head, made available; every sixteenth time any number.
                let head = if value >> 4 == 0xf { input.u16() } else { (value & 0xf).into() };
                shadow.write(self.entry(index), &head.to_le_bytes());
                shadow.write(AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
            }
            2 => {
                let moved = index.wrapping_add_signed(i8::from_le_bytes([value]).into());
                shadow.write(AVAILABLE + 2, &moved.to_le_bytes());
            }
            _ => {
                let event = self.used.wrapping_add_signed(i8::from_le_bytes([value]).into());
                let place = AVAILABLE + 4 + 2 * u64::from(self.terms.rules.size);
                shadow.write(place, &event.to_le_bytes());
                shadow.write(AVAILABLE, &u16::from(value & 1).to_le_bytes());
            }
        }
    }

    fn take(&mut self, shadow: &Shadow) -> Next {
        if self.next == self.seen {
            let index = shadow.u16(AVAILABLE + 2);
            let ahead = index.wrapping_sub(self.next);
            if ahead > self.terms.rules.size {
                return Next::Broken;
            }
            self.seen = index;
            if ahead == 0 {
                return Next::Nothing;
            }
        }
        let head = shadow.u16(self.entry(self.next));
        if head >= self.terms.rules.size {
            return Next::Broken;
        }
        self.next = self.next.wrapping_add(1);
        Next::Chain { id: head, slots: 1, buffers: walk::split(shadow, DESCRIPTORS, head, self.terms.rules) }
    }

    fn push(&mut self, shadow: &mut Shadow, id: u16, _: u16, written: u32) {
        let element = u64::from(id) | u64::from(written) << 32;
        shadow.expect(USED + 4 + 8 * self.slot(self.used), &element.to_le_bytes());
        self.used = self.used.wrapping_add(1);
    }

    fn publish(&mut self, shadow: &mut Shadow) -> bool {
        shadow.expect(USED + 2, &self.used.to_le_bytes());
        let mut step = std::mem::replace(&mut self.told, self.used);
        if !self.terms.event_idx {
            return shadow.u16(AVAILABLE) & 1 == 0;
        }
        let event = self.used_event(shadow);
        while step != self.used {
            if step == event {
                return true;
            }
            step = step.wrapping_add(1);
        }
        false
    }

    fn offer(&mut self, shadow: &mut Shadow, desc: Desc) {
        shadow.write(DESCRIPTORS, &desc.to_bytes());
        shadow.write(self.entry(self.next), &0u16.to_le_bytes());
        shadow.write(AVAILABLE + 2, &self.next.wrapping_add(1).to_le_bytes());
    }

    fn last_used(&self, shadow: &Shadow) -> (u32, u32) {
        let index = shadow.u16(USED + 2).wrapping_sub(1);
        let element = u64::from_le_bytes(shadow.read(USED + 4 + 8 * self.slot(index)).unwrap_or_default());
        (u32::try_from(element & 0xffff_ffff).unwrap_or(0), u32::try_from(element >> 32).unwrap_or(0))
    }
}

//! Packed rings: a hostile driver's writes, and chains taken and given back (virtio 1.3 §2.8).
//!
//! In: size, terms and cursors to begin at, then records (see `play`). What lap a descriptor claims to be of is part
//! of its record, and any bytes of the ring can be written at any time.

use super::Input;
use super::play::{AVAILABLE, DESCRIPTORS, Format, Next, Terms, play};
use super::shadow::Shadow;
use super::walk;
use crate::guest::raw::{Desc, NEXT, WRITE};

const AVAIL_FLAG: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;
const FIRST_BASE: u32 = 0x8000_8000;

/// A driver's life on a packed ring.
pub fn packed(data: &[u8]) {
    play::<Packed>(data);
}

/// A place counted from the beginning of an even lap, over two laps.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(u32);

/// Where the device should be.
struct Packed {
    terms: Terms,
    next: Place,
    used: Place,
    told: Place,
    /// Flags of the first used entry that nobody has seen yet, and where.
    hidden: Option<(Place, u16)>,
    /// The last used entry.
    last: Place,
}

impl Packed {
    fn size(&self) -> u32 {
        self.terms.rules.size.into()
    }

    /// From place and lap as they stand in bases and event areas.
    fn place(&self, bits: u16) -> Place {
        let lap = if bits & 0x8000 == 0 { 0 } else { self.size() };
        Place(u32::from(bits & 0x7fff) + lap)
    }

    fn bits(&self, place: Place) -> u32 {
        (place.0 % self.size()) | (u32::from(self.wrap(place)) << 15)
    }

    fn wrap(&self, place: Place) -> bool {
        place.0 >= self.size()
    }

    fn after(&self, place: Place, by: u16) -> Place {
        Place((place.0 + u32::from(by)) % (2 * self.size()))
    }

    fn addr(&self, place: Place) -> u64 {
        DESCRIPTORS + 16 * u64::from(place.0 % self.size())
    }

    fn flags(&self, place: Place, available: bool) -> u16 {
        match (self.wrap(place), available) {
            (true, true) => AVAIL_FLAG,
            (false, true) => USED_FLAG,
            (true, false) => AVAIL_FLAG | USED_FLAG,
            (false, false) => 0,
        }
    }

    /// The entry there, if it is available.
    fn entry(&self, shadow: &Shadow, place: Place) -> Option<Desc> {
        let desc = Desc::from_packed_bytes(shadow.read(self.addr(place))?);
        let lap = desc.flags & (AVAIL_FLAG | USED_FLAG);
        (lap == self.flags(place, true)).then_some(desc)
    }
}

impl Format for Packed {
    const PACKED: bool = true;
    const SIZES: &'static [u16] = &[8, 1, 2, 3, 5, 16];

    fn new(terms: Terms, _: &mut Shadow, input: &mut Input<'_>) -> Packed {
        let mut ring =
            Packed { terms, next: Place(0), used: Place(0), told: Place(0), hidden: None, last: Place(0) };
        // Whole laps from the first entry of the first one, whose wrap bit is set.
        let start = Place((ring.size() + u32::from(input.u8())) % (2 * ring.size()));
        // A base of zero means the beginning of a ring that nobody used.
        let start = if start.0 == 0 { Place(ring.size()) } else { start };
        (ring.next, ring.used, ring.told, ring.last) = (start, start, start, start);
        ring
    }

    fn base(&self) -> u32 {
        let base = self.bits(self.next) | self.bits(self.used) << 16;
        assert!(base != 0 && (self.next.0 != self.size() || base == FIRST_BASE));
        base
    }

    fn encode(&self, mut desc: Desc, input: &mut Input<'_>) -> [u8; 16] {
        desc.next %= self.terms.rules.size + u16::from(desc.next > 250);
        desc.flags |= match input.u8() % 8 {
            7 => AVAIL_FLAG | USED_FLAG,
            6 => 0,
            5 => self.flags(self.after(self.next, self.terms.rules.size), true),
            _ => self.flags(self.next, true),
        };
        desc.to_packed_bytes()
    }

    /// What the driver wants to hear, or the flags of an entry that is to come.
    fn driver(&mut self, shadow: &mut Shadow, input: &mut Input<'_>) {
        let (what, value) = (input.u8() % 4, input.u16());
        match what {
            0 => shadow.write(AVAILABLE, &value.to_le_bytes()),
            1 => shadow.write(AVAILABLE + 2, &value.to_le_bytes()[..1]),
            _ => {
                let [ahead, flags] = value.to_le_bytes();
                let place = self.after(self.next, u16::from(ahead) % self.terms.rules.size);
                let id = u16::from(ahead >> 4) % self.terms.rules.size;
                let flags = u16::from(flags & 3) | self.flags(place, true);
                shadow.write(self.addr(place) + 12, &id.to_le_bytes());
                shadow.write(self.addr(place) + 14, &flags.to_le_bytes());
            }
        }
    }

    fn take(&mut self, shadow: &Shadow) -> Next {
        let mut entries = Vec::new();
        loop {
            let Some(desc) = self.entry(shadow, self.next) else {
                return if entries.is_empty() { Next::Nothing } else { Next::Broken };
            };
            self.next = self.after(self.next, 1);
            entries.push(desc);
            let more = desc.flags & NEXT != 0;
            if more && entries.len() >= self.terms.rules.size.into()
                || !more && desc.next >= self.terms.rules.size
            {
                return Next::Broken;
            }
            if !more {
                let slots = u16::try_from(entries.len()).unwrap_or(u16::MAX);
                let buffers = walk::packed(shadow, &entries, self.terms.rules);
                return Next::Chain { id: desc.next, slots, buffers };
            }
        }
    }

    fn push(&mut self, shadow: &mut Shadow, id: u16, slots: u16, written: u32) {
        let flags = self.flags(self.used, false) | if written > 0 { WRITE } else { 0 };
        shadow.expect(self.addr(self.used) + 8, &written.to_le_bytes());
        shadow.expect(self.addr(self.used) + 12, &id.to_le_bytes());
        if self.hidden.is_none() {
            self.hidden = Some((self.used, flags));
        } else {
            shadow.expect(self.addr(self.used) + 14, &flags.to_le_bytes());
        }
        self.last = self.used;
        self.used = self.after(self.used, slots);
    }

    fn publish(&mut self, shadow: &mut Shadow) -> bool {
        let Some((place, flags)) = self.hidden.take() else { return false };
        shadow.expect(self.addr(place) + 14, &flags.to_le_bytes());
        let mut step = std::mem::replace(&mut self.told, self.used);
        let (bits, wish) = (shadow.u16(AVAILABLE), shadow.u16(AVAILABLE + 2));
        match wish {
            1 => return false,
            2 if self.terms.event_idx && u32::from(bits & 0x7fff) < self.size() => {}
            _ => return true,
        }
        let event = self.place(bits);
        while step != self.used {
            if step == event {
                return true;
            }
            step = self.after(step, 1);
        }
        false
    }

    fn offer(&mut self, shadow: &mut Shadow, desc: Desc) {
        let flags = desc.flags | self.flags(self.next, true);
        shadow.write(self.addr(self.next), &Desc { flags, ..desc }.to_packed_bytes());
    }

    fn last_used(&self, shadow: &Shadow) -> (u32, u32) {
        let desc = Desc::from_packed_bytes(shadow.read(self.addr(self.last)).unwrap_or_default());
        (desc.next.into(), desc.len)
    }
}

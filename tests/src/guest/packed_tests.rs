//! The packed driver against a device of a few lines that reads the ring by its own arithmetic: it counts
//! entries from the beginning of time and derives lap and place from that.

use std::sync::Arc;

use super::chain::{Chain, POISON};
use super::format::{RingKind, Shape};
use super::memory::{Backing, Ram};
use super::raw::{Desc, INDIRECT, NEXT, WRITE};
use super::raw_packed::{AVAIL, EVENT_DESC, EVENT_DISABLE, Place, USED};
use super::ring::{Interrupts, Ring, RingError};
use crate::random::Random;

/// Echoes: copies what is readable into what is writable, as far as it fits.
struct Echo {
    ram: Arc<Ram>,
    desc: u64,
    size: u64,
    /// Entries gone through since the first lap began.
    seen: u64,
    done: u64,
    /// Chains taken and not given back: (id, entries, length).
    held: Vec<(u16, u64, u32)>,
}

impl Echo {
    fn new(ring: &Ring, seen: u64) -> Echo {
        let layout = ring.layout();
        let (ram, size) = (Arc::clone(ring.ram()), u64::from(layout.size));
        Echo { ram, desc: layout.desc, size, seen, done: seen, held: Vec::new() }
    }

    fn odd_lap(&self, entry: u64) -> bool {
        entry / self.size % 2 == 1
    }

    fn entry(&self, entry: u64) -> Desc {
        let bytes = self.ram.read(self.desc + 16 * (entry % self.size), 16);
        Desc::from_packed_bytes(bytes.try_into().unwrap())
    }

    /// Takes a chain, if one is available.
    fn take(&mut self) -> bool {
        let (first, odd) = (self.seen, self.odd_lap(self.seen));
        let flags = self.entry(first).flags;
        if (flags & AVAIL != 0) == odd || (flags & USED != 0) != odd {
            return false;
        }
        let mut buffers = Vec::new();
        loop {
            let desc = self.entry(self.seen);
            self.seen += 1;
            if desc.flags & INDIRECT != 0 {
                let bytes = self.ram.read(desc.addr, usize::try_from(desc.len).unwrap());
                let table = bytes.chunks(16).map(|bytes| Desc::from_packed_bytes(bytes.try_into().unwrap()));
                buffers.extend(table);
            } else {
                buffers.push(desc);
            }
            if desc.flags & NEXT == 0 {
                let len = self.echo(&buffers);
                self.held.push((desc.next, self.seen - first, len));
                return true;
            }
        }
    }

    fn echo(&self, buffers: &[Desc]) -> u32 {
        let (writable, readable): (Vec<_>, Vec<_>) = buffers.iter().partition(|desc| desc.flags & WRITE != 0);
        let size = |desc: &Desc| usize::try_from(desc.len).unwrap();
        let bytes: Vec<u8> = readable.iter().flat_map(|d: &&Desc| self.ram.read(d.addr, size(d))).collect();
        let mut rest = &bytes[..];
        for desc in &writable {
            let (here, later) = rest.split_at(size(desc).min(rest.len()));
            self.ram.write(desc.addr, here);
            rest = later;
        }
        u32::try_from(bytes.len() - rest.len()).unwrap()
    }

    /// Gives back the chain that was taken as number `nth` of those held; the place its entry went to.
    fn give_back(&mut self, nth: usize) -> u64 {
        let (id, entries, len) = self.held.remove(nth);
        let (place, write) = (self.done, if len > 0 { WRITE } else { 0 });
        let lap = if self.odd_lap(place) { 0 } else { AVAIL | USED };
        let used = Desc { addr: 0, len, flags: lap | write, next: id };
        self.ram.write(self.desc + 16 * (place % self.size), &used.to_packed_bytes());
        self.done += entries;
        place
    }

    /// Answers everything that is available, in order; how much that was.
    fn turn(&mut self) -> usize {
        while self.take() {}
        let count = self.held.len();
        (0..count).for_each(|_| _ = self.give_back(0));
        count
    }
}

fn pair(size: u16, event_idx: bool) -> (Ring, Echo) {
    let ram = Ram::with(&[(0x1000, 0x8_0000), (0x10_0000, 0x8_0000)], Backing::Sealed);
    let shape = Shape { kind: RingKind::Packed, size, event_idx, in_order: false };
    let ring = Ring::new(&ram, shape);
    let echo = Echo::new(&ring, 0);
    (ring, echo)
}

/// Chains of every shape, many in flight, given back in any order, on rings of any size.
#[test]
fn chains_of_every_shape_come_back_with_their_bytes() {
    let mut random = Random::new(3);
    for size in [1, 2, 3, 7, 16, 33] {
        let (mut ring, mut echo) = pair(size, false);
        let mut flying = Vec::new();
        for round in 0..400 {
            let pieces: Vec<_> = (0..1 + random.below(4)).map(|_| random.bytes(round % 40)).collect();
            let sent = pieces.concat();
            let room = u32::try_from(sent.len()).unwrap();
            let chain = pieces.iter().fold(Chain::new(), |chain, piece| chain.readable(piece));
            let chain = chain.writable(room / 3).writable(0).writable(room - room / 3);
            let chain =
                if random.below(2) == 0 || chain.slots() > size.into() { chain.indirect() } else { chain };
            if chain.slots() <= ring.free() {
                flying.push((ring.add(&chain), sent));
                if random.below(3) > 0 {
                    ring.publish();
                }
                continue;
            }
            ring.publish();
            while echo.take() {}
            assert_eq!(echo.held.len(), flying.len());
            while !echo.held.is_empty() {
                let nth = usize::try_from(random.below(echo.held.len() as u64)).unwrap();
                echo.give_back(nth);
            }
            assert_eq!(ring.waiting(), flying.len());
            while let Some(done) = ring.used().unwrap() {
                let nth = flying.iter().position(|(id, _)| *id == done.head).unwrap();
                assert_eq!(flying.swap_remove(nth).1, done.data);
            }
            assert_eq!((flying.len(), ring.free()), (0, size.into()));
        }
    }
}

#[test]
fn nothing_of_a_batch_shows_before_it_is_published() {
    let (mut ring, mut echo) = pair(4, false);
    for _ in 0..10 {
        ring.add(&Chain::new().readable(b"ab").writable(2));
        ring.add_readable(b"x");
        assert_eq!(echo.turn(), 0);
        assert!(ring.publish());
        assert_eq!(echo.turn(), 2);
        assert_eq!(ring.wait_all().unwrap().len(), 2);
    }
    assert!(!ring.publish(), "nothing new");
}

#[test]
fn a_ring_may_begin_anywhere() {
    for (base, entries) in [(0x8000_8000, 0), (0x8003_8003, 3), (0x0000_0000, 5), (0x0004_0004, 9)] {
        let ram = Ram::new(1 << 20);
        let shape = Shape { kind: RingKind::Packed, size: 5, ..Shape::default() };
        let mut ring = Ring::starting_at(&ram, shape, base);
        let mut echo = Echo::new(&ring, entries);
        assert_eq!((ring.base(), ring.waiting(), echo.turn()), (base, 0, 0));
        for _ in 0..13 {
            ring.add(&Chain::new().readable(b"ab").writable(2));
            ring.publish();
            assert_eq!(echo.turn(), 1);
            assert_eq!(ring.wait_used().unwrap().data, b"ab");
        }
        let at = entries + 26;
        let place = Place { at: u16::try_from(at % 5).unwrap(), wrap: !echo.odd_lap(at) };
        assert_eq!(ring.base(), u32::from(place.bits()) * 0x1_0001);
    }
}

/// Every entry a device may name against every batch, by counting.
#[test]
fn kicks_go_out_only_when_the_device_wants_them() {
    for start in 0..8_u16 {
        for named in 0..8 {
            for batch in 1..=4 {
                let (mut ring, mut echo) = pair(4, true);
                for _ in 0..start {
                    ring.add_readable(b"x");
                    ring.publish();
                    echo.turn();
                    ring.used().unwrap();
                }
                let place = Place { at: named % 4, wrap: named < 4 };
                ring.raw_packed().set_device_event(place.bits(), EVENT_DESC);
                (0..batch).for_each(|_| assert!(ring.add_readable(b"x") < 4));
                let passed = (start..start + batch).any(|entry| entry % 8 == named);
                assert_eq!(ring.publish(), passed, "from {start}, {batch} entries, event {named}");
            }
        }
    }
    let (mut ring, _) = pair(4, false);
    ring.raw_packed().set_device_event(0, EVENT_DISABLE);
    ring.add_readable(b"x");
    assert!(!ring.publish());
}

#[test]
fn the_driver_says_which_entry_is_to_interrupt() {
    let (mut ring, mut echo) = pair(16, true);
    ring.set_interrupts(Interrupts::Never);
    assert_eq!(ring.raw_packed().driver_event().1, EVENT_DISABLE);
    ring.set_interrupts(Interrupts::Always);
    assert_eq!(ring.raw_packed().driver_event(), (0x8000, EVENT_DESC));
    ring.add(&Chain::new().readable(b"a").readable(b"b").writable(1));
    ring.add_readable(b"x");
    ring.set_interrupts(Interrupts::After(3));
    assert_eq!(ring.raw_packed().driver_event(), (0x8004, EVENT_DESC));
    ring.publish();
    echo.turn();
    ring.wait_all().unwrap();
    ring.set_interrupts(Interrupts::After(13));
    assert_eq!(ring.raw_packed().driver_event(), (0, EVENT_DESC), "twelve entries further is the next lap");
    let (mut ring, _) = pair(16, false);
    ring.set_interrupts(Interrupts::After(3));
    assert_eq!(ring.raw_packed().driver_event().1, 0);
}

#[test]
fn a_device_that_lies_is_caught() {
    let lie = |id: u16, len: u32, flags: u16| {
        let (mut ring, mut echo) = pair(4, false);
        let head = ring.add_writable(4);
        ring.publish();
        echo.take();
        let id = if id == 0 { head } else { id };
        ring.raw_packed().set_entry(0, Desc { addr: 0, len, flags: AVAIL | USED | flags, next: id });
        (ring.used().map(|done| done.map(|done| (done.len, done.data))), head)
    };
    assert_eq!(lie(0, 5, WRITE).0, Err(RingError::TooLong { said: 5, room: 4 }));
    assert_eq!(lie(0x7000, 0, 0).0, Err(RingError::Unknown(0x7000)));
    assert_eq!(lie(0, 4, 0).0, Ok(Some((0, Vec::new()))), "without WRITE the length says nothing");
    assert_eq!(lie(0, 4, WRITE).0, Ok(Some((4, vec![POISON; 4]))), "untouched room is seen");
}

#[test]
fn order_is_checked_where_it_was_promised() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let ram = Ram::new(1 << 20);
        let shape = Shape { kind, size: 4, in_order: true, event_idx: false };
        let mut ring = Ring::new(&ram, shape);
        let heads = [ring.add_readable(b"a"), ring.add_readable(b"b")];
        assert_eq!(heads, [0, 1], "descriptors are taken in order");
        ring.publish();
        match kind {
            RingKind::Split => {
                ring.raw().set_used_entry(0, 1, 0);
                ring.raw().set_used_idx(1);
            }
            RingKind::Packed => {
                ring.raw_packed().set_entry(0, Desc { next: 1, ..Desc::new(0, 0, AVAIL | USED) })
            }
        }
        assert_eq!(ring.used(), Err(RingError::OutOfOrder(1)));
    }
}

#[test]
fn fields_lie_where_the_specification_says() {
    let (mut ring, echo) = pair(4, false);
    let head = ring.add(&Chain::new().readable(b"abc").writable(7));
    ring.publish();
    let entries = ring.entries(head).to_vec();
    assert_eq!(entries, [0, 1]);
    let first = echo.ram.read(echo.desc, 16);
    assert_eq!((&first[8..12], &first[14..]), (&3u32.to_le_bytes()[..], &(AVAIL | NEXT).to_le_bytes()[..]));
    let second = echo.ram.read(echo.desc + 16, 16);
    assert_eq!(
        (&second[12..14], &second[14..]),
        (&head.to_le_bytes()[..], &(AVAIL | WRITE).to_le_bytes()[..])
    );
    ring.set_desc(1, Desc { addr: 9, ..ring.desc(1) });
    assert_eq!(ring.desc(1), Desc { addr: 9, len: 7, flags: WRITE, next: head });
    assert_eq!(ring.raw_packed().flags(1), AVAIL | WRITE, "it is as available as it was");
    let table = ring.table(&[Desc { addr: 1, len: 2, flags: 3, next: 4 }]);
    assert_eq!(echo.ram.read(table, 16), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0, 3, 0]);
}

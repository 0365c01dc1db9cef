//! The driver's verbs against a device of a few lines that reads the ring by its own arithmetic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blk::{Answer, Blk, Framing, Request};
use super::chain::{Chain, POISON};
use super::format::{Layout, Shape};
use super::memory::{Backing, Ram};
use super::raw::{Desc, INDIRECT, NEXT, NO_NOTIFICATION, WRITE};
use super::ring::{Interrupts, Ring, RingError};
use crate::random::Random;

/// Echoes: copies what is readable into what is writable, as far as it fits.
struct Echo {
    ram: Arc<Ram>,
    layout: Layout,
    seen: u16,
    done: u16,
}

impl Echo {
    fn new(ring: &Ring) -> Echo {
        let base = ring.raw().avail_idx();
        Echo { ram: Arc::clone(ring.ram()), layout: ring.layout(), seen: base, done: base }
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index % self.layout.size)
    }

    /// Answers everything available; how many that were.
    fn turn(&mut self, ring: &Ring, event_idx: bool) -> usize {
        let before = self.done;
        while self.ram.load::<u16>(self.layout.avail + 2) != self.seen {
            let head: u16 = self.ram.load(self.layout.avail + 4 + 2 * self.slot(self.seen));
            self.seen = self.seen.wrapping_add(1);
            let len = self.echo(head);
            self.put_used(head, len);
        }
        self.ram.store(self.layout.used + 4 + 8 * u64::from(self.layout.size), self.seen);
        if self.wants_interrupt(before, event_idx) {
            ring.call.signal();
        }
        usize::from(self.done.wrapping_sub(before))
    }

    fn wants_interrupt(&self, before: u16, event_idx: bool) -> bool {
        let event: u16 = self.ram.load(self.layout.avail + 4 + 2 * u64::from(self.layout.size));
        let suppressed = self.ram.load::<u16>(self.layout.avail) & NO_NOTIFICATION != 0;
        let passed = (0..self.done.wrapping_sub(before)).any(|n| before.wrapping_add(n) == event);
        before != self.done && if event_idx { passed } else { !suppressed }
    }

    fn put_used(&mut self, head: u16, len: u32) {
        let entry = self.layout.used + 4 + 8 * self.slot(self.done);
        self.ram.store(entry, u32::from(head));
        self.ram.store(entry + 4, len);
        self.done = self.done.wrapping_add(1);
        self.ram.store(self.layout.used + 2, self.done);
    }

    fn desc(&self, table: u64, index: u16) -> Desc {
        let at = table + 16 * u64::from(index);
        let bytes = self.ram.read(at, 16);
        Desc {
            addr: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            len: u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            flags: u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            next: u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        }
    }

    /// The chain's buffers in order, from the ring and from an indirect table alike.
    fn walk(&self, head: u16) -> Vec<Desc> {
        let (mut table, mut index, mut found) = (self.layout.desc, head, Vec::new());
        loop {
            let desc = self.desc(table, index);
            if desc.flags & INDIRECT != 0 {
                (table, index) = (desc.addr, 0);
                continue;
            }
            found.push(desc);
            if desc.flags & NEXT == 0 {
                return found;
            }
            index = desc.next;
        }
    }

    fn echo(&self, head: u16) -> u32 {
        let (writable, readable): (Vec<_>, Vec<_>) =
            self.walk(head).into_iter().partition(|desc| desc.flags & WRITE != 0);
        let size = |desc: &Desc| usize::try_from(desc.len).unwrap();
        let bytes: Vec<u8> = readable.iter().flat_map(|d| self.ram.read(d.addr, size(d))).collect();
        let mut rest = &bytes[..];
        for desc in &writable {
            let (here, later) = rest.split_at(size(desc).min(rest.len()));
            self.ram.write(desc.addr, here);
            rest = later;
        }
        u32::try_from(bytes.len() - rest.len()).unwrap()
    }
}

fn ram() -> Arc<Ram> {
    Ram::with(&[(0x1000, 0x8_0000), (0x10_0000, 0x8_0000)], Backing::Sealed)
}

fn pair(event_idx: bool, base: u16) -> (Ring, Echo) {
    let ring = Ring::starting_at(&ram(), Shape { event_idx, ..Shape::split(16) }, u32::from(base));
    let echo = Echo::new(&ring);
    (ring, echo)
}

#[test]
fn chains_of_every_shape_come_back_with_their_bytes() {
    let (mut ring, mut echo) = pair(false, 0);
    let mut random = Random::new(3);
    for round in 0..500 {
        let pieces: Vec<_> = (0..1 + random.below(4)).map(|_| random.bytes(round % 40)).collect();
        let sent = pieces.concat();
        let room = u32::try_from(sent.len()).unwrap();
        let chain = pieces.iter().fold(Chain::new(), |chain, piece| chain.readable(piece));
        let chain = chain.writable(room / 3).writable(0).writable(room - room / 3);
        let chain = match random.below(3) {
            0 => chain.indirect(),
            1 => chain.indirect_after(1),
            _ => chain,
        };
        ring.add(&chain);
        ring.notify();
        assert_eq!(echo.turn(&ring, false), 1);
        assert_eq!(ring.wait_used().unwrap().data, sent);
    }
    assert_eq!((ring.free(), ring.in_flight()), (16, 0));
}

#[test]
fn indices_wrap_and_descriptors_are_never_neighbours_by_rule() {
    let (mut ring, mut echo) = pair(true, 65_530);
    let mut heads = Vec::new();
    for _ in 0..20 {
        heads.push(ring.add(&Chain::new().readable(b"ab").writable(2)));
        ring.notify();
        echo.turn(&ring, true);
        assert_eq!(ring.wait_used().unwrap().data, b"ab");
    }
    assert_eq!(ring.raw().used_idx(), 65_530_u16.wrapping_add(20));
    assert!(heads.windows(2).any(|two| two[0] != two[1]), "heads are drawn at random: {heads:?}");
}

#[test]
fn a_batch_costs_one_interrupt_and_a_polling_driver_none() {
    for event_idx in [false, true] {
        let (mut ring, mut echo) = pair(event_idx, 0);
        ring.set_interrupts(Interrupts::After(8));
        (0..8).for_each(|_| {
            ring.add_readable(b"x");
        });
        ring.notify();
        echo.turn(&ring, event_idx);
        assert_eq!(ring.wait_all().unwrap().len(), 8);
        assert_eq!(ring.interrupts(), 1);
        ring.set_interrupts(Interrupts::Never);
        ring.add_readable(b"x");
        ring.notify();
        echo.turn(&ring, event_idx);
        ring.wait_used().unwrap();
        assert_eq!(ring.interrupts(), 1);
    }
}

#[test]
fn kicks_go_out_only_when_the_device_wants_them() {
    let (mut ring, mut echo) = pair(true, 0);
    ring.add_readable(b"x");
    assert!(ring.publish(), "avail_event is the next index");
    ring.add_readable(b"x");
    assert!(!ring.publish(), "avail_event has been passed before");
    echo.turn(&ring, true);
    ring.add_readable(b"x");
    assert!(ring.publish());
    let (mut ring, _) = pair(false, 0);
    ring.raw().set_used_flags(NO_NOTIFICATION);
    ring.add_readable(b"x");
    assert!(!ring.publish());
}

#[test]
fn a_device_that_lies_is_caught() {
    let lie = |id: u32, len: u32| {
        let (mut ring, mut echo) = pair(false, 0);
        let head = ring.add_writable(4);
        ring.publish();
        let id = if id == 0 { u32::from(head) } else { id };
        echo.put_used(0, 0);
        ring.raw().set_used_entry(0, id, len);
        (ring.used(), head)
    };
    assert_eq!(lie(0, 5).0, Err(RingError::TooLong { said: 5, room: 4 }));
    assert_eq!(lie(70_000, 0).0, Err(RingError::Unknown(70_000)));
    assert_eq!(lie(0, 4).0.unwrap().unwrap().data, [POISON; 4], "untouched room is seen");
}

#[test]
fn a_request_answered_twice_is_caught() {
    let (mut ring, mut echo) = pair(false, 0);
    let head = ring.add_writable(4);
    ring.notify();
    echo.turn(&ring, false);
    echo.put_used(head, 0);
    assert!(ring.used().is_ok());
    assert_eq!(ring.used(), Err(RingError::Unknown(u32::from(head))));
}

#[test]
fn a_write_beside_the_buffer_is_caught() {
    for beside in [-1, 4] {
        let (mut ring, mut echo) = pair(false, 0);
        let head = ring.add_writable(4);
        ring.publish();
        let addr = echo.walk(head)[0].addr;
        ring.ram().write(addr.wrapping_add_signed(beside), &[0]);
        echo.put_used(head, 4);
        assert_eq!(ring.used(), Err(RingError::Overrun(addr)));
    }
}

#[test]
fn a_device_that_does_nothing_meets_the_deadline() {
    let (mut ring, _) = pair(true, 0);
    ring.add_readable(b"x");
    ring.notify();
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(ring.wait_used_until(soon), Err(RingError::Deadline(1)));
    ring.err.signal();
    assert_eq!(ring.wait_used(), Err(RingError::Broken));
}

#[test]
fn raw_fields_lie_where_the_specification_says() {
    let (mut ring, echo) = pair(false, 0);
    let head = ring.add(&Chain::new().readable(b"x").writable(1));
    let entries = ring.entries(head).to_vec();
    let lie = Desc { addr: u64::MAX, len: 7, flags: NEXT | WRITE, next: entries[0] };
    ring.set_desc(head, lie);
    assert_eq!((echo.desc(echo.layout.desc, head), ring.desc(head)), (lie, lie));
    assert_eq!(ring.raw().offer(entries[1]), 0);
    assert_eq!(echo.ram.load::<u16>(echo.layout.avail + 2), 1);
    assert_eq!(echo.ram.load::<u16>(echo.layout.avail + 4), entries[1]);
    ring.raw().set_used_event(0x1234);
    assert_eq!(echo.ram.load::<u16>(echo.layout.avail + 4 + 2 * 16), 0x1234);
    let table = ring.table(&[lie, Desc::default()]);
    assert_eq!(echo.desc(table, 0), lie);
}

#[test]
fn a_block_request_survives_any_framing() {
    let request = Request { data_in: 700, ..Request::write(9, &[7; 700]) };
    let framings = [
        Framing::usual(700),
        Framing::joined(),
        Framing::pieces(1, 5),
        Framing { indirect: true, ..Framing::joined() },
    ];
    for framing in framings {
        let (ring, mut echo) = pair(false, 0);
        let mut blk = Blk::new(ring);
        blk.ring.add(&request.chain(&framing));
        blk.ring.notify();
        echo.turn(&blk.ring, false);
        let done = blk.ring.wait_used().unwrap();
        let sent = [&request.header()[..], &request.data_out].concat();
        assert_eq!(done.data, sent[..701]);
        let answer = Answer::new(&done, 700);
        assert_eq!((answer.status, answer.data.len()), (Some(7), 700));
    }
}

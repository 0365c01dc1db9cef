use super::*;
use crate::testing::{GUEST_BASE, GUEST_BYTES, Guest, USER_BASE};

const RING: u64 = 0;
const DRIVER_EVENT: u64 = 0x4000;
const DEVICE_EVENT: u64 = 0x8000;
const DATA: u64 = 0x2_0000;
const TABLE: u64 = 0x4_0000;
const LIMITS: Limits = Limits { descriptors: 8, bytes: 1 << 20, indirect: true, log: false };

/// The driver's side, written from the specification and not from the device's side.
struct Driver {
    guest: Guest,
    size: u16,
    next: u16,
    lap: bool,
    used: u16,
    used_lap: bool,
}

impl Driver {
    fn new(size: u16) -> Driver {
        Driver { guest: Guest::new(8, false), size, next: 0, lap: true, used: 0, used_lap: true }
    }

    fn ring(&self, event_idx: bool) -> PackedRing {
        PackedRing::new(&self.guest.memory, &self.layout(event_idx), 0x8000_8000).unwrap()
    }

    fn layout(&self, event_idx: bool) -> Layout {
        let (descriptor, available, used) =
            (USER_BASE + RING, USER_BASE + DRIVER_EVENT, USER_BASE + DEVICE_EVENT);
        Layout { size: self.size, descriptor, available, used, packed: true, event_idx }
    }

    fn write(&self, at: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let mut bytes = (GUEST_BASE + addr).to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.guest.write(RING + 16 * u64::from(at), &bytes);
    }

    /// Makes a chain of `count` one-byte writable buffers available under `id`.
    fn offer(&mut self, count: u16, id: u16) {
        for nth in 0..count {
            let next = if nth + 1 < count { Descriptor::NEXT } else { 0 };
            self.entry(DATA + u64::from(nth), 1, id, next | Descriptor::WRITE);
        }
    }

    /// Writes one entry at the driver's place, with the flags of its lap.
    fn entry(&mut self, addr: u64, len: u32, id: u16, flags: u16) {
        let lap = if self.lap { AVAIL } else { USED };
        self.write(self.next, addr, len, id, flags | lap);
        self.next += 1;
        if self.next == self.size {
            (self.next, self.lap) = (0, !self.lap);
        }
    }

    /// The next used entry, if the device has published it; `slots` is what its chain took.
    fn reap(&mut self, slots: u16) -> Option<(u16, u32)> {
        let entry: [u8; 16] = self.guest.read(RING + 16 * u64::from(self.used));
        let flags = u16::from_le_bytes([entry[14], entry[15]]);
        if (flags & AVAIL != 0) != self.used_lap || (flags & USED != 0) != self.used_lap {
            return None;
        }
        self.used += slots;
        if self.used >= self.size {
            (self.used, self.used_lap) = (self.used - self.size, !self.used_lap);
        }
        Some((
            u16::from_le_bytes([entry[12], entry[13]]),
            u32::from_le_bytes(entry[8..12].try_into().unwrap()),
        ))
    }

    fn driver_event(&self, off_wrap: u16, flags: u16) {
        self.guest.write(DRIVER_EVENT, &off_wrap.to_le_bytes());
        self.guest.write(DRIVER_EVENT + 2, &flags.to_le_bytes());
    }

    fn device_event(&self) -> (u16, u16) {
        (self.guest.read_u16(DEVICE_EVENT), self.guest.read_u16(DEVICE_EVENT + 2))
    }
}

type Seen = Result<Option<(Taken, Result<usize, Malformed>)>, RingError>;

fn take(ring: &mut PackedRing, driver: &Driver) -> Seen {
    let mut chain = Chain::default();
    let taken = ring.take(&mut chain, &driver.guest.memory, LIMITS, None)?;
    Ok(taken.map(|(taken, loaded)| (taken, loaded.map(|()| chain.segments()))))
}

#[test]
fn virtio_2_8_chains_of_every_length_over_many_laps_of_small_rings() {
    for size in 1..=8u16 {
        for length in 1..=size {
            let mut driver = Driver::new(size);
            let mut ring = driver.ring(false);
            for round in 0..50u16 {
                let id = round % size;
                assert_eq!(take(&mut ring, &driver), Ok(None));
                driver.offer(length, id);
                let taken = Taken { id, slots: length };
                assert_eq!(take(&mut ring, &driver), Ok(Some((taken, Ok(usize::from(length))))));
                assert_eq!(driver.reap(length), None);
                ring.push_used(taken, u32::from(round));
                assert_eq!(driver.reap(length), None, "nothing shows before it is published");
                assert!(ring.publish());
                assert_eq!(driver.reap(length), Some((id, u32::from(round))));
                let again =
                    PackedRing::new(&driver.guest.memory, &driver.layout(false), ring.base()).unwrap();
                assert_eq!((again.avail, again.used), (ring.avail, ring.used), "a base says where to go on");
            }
        }
    }
}

#[test]
fn a_batch_shows_when_its_first_entry_does() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(false);
    for _ in 0..5 {
        for id in 0..3 {
            driver.offer(1, id);
        }
        let taken: Vec<_> = (0..3).map(|_| take(&mut ring, &driver).unwrap().unwrap().0).collect();
        // Given back in another order than they came.
        for at in [2, 0, 1] {
            ring.push_used(taken[at], 7);
            assert_eq!(driver.reap(1), None);
        }
        assert!(ring.publish());
        let ids: Vec<_> = (0..3).map(|_| driver.reap(1).unwrap().0).collect();
        assert_eq!(ids, [2, 0, 1]);
        assert!(!ring.publish(), "an empty batch interrupts nobody");
    }
}

#[test]
fn gp1_ids_outside_the_ring_break_it() {
    let mut driver = Driver::new(4);
    driver.offer(1, 4);
    assert_eq!(take(&mut driver.ring(false), &driver), Err(RingError::Head(4)));
}

#[test]
fn gp2_chains_that_run_over_the_ring_break_it() {
    let mut driver = Driver::new(4);
    let mut ring = driver.ring(false);
    for _ in 0..4 {
        driver.entry(DATA, 1, 0, Descriptor::NEXT);
    }
    assert_eq!(take(&mut ring, &driver), Err(RingError::Chain), "longer than the ring");

    let mut driver = Driver::new(4);
    driver.entry(DATA, 1, 0, Descriptor::NEXT);
    assert_eq!(take(&mut driver.ring(false), &driver), Err(RingError::Chain), "into what is not available");
}

#[test]
fn gp3_indirect_together_with_next_is_malformed() {
    let mut driver = Driver::new(4);
    driver.entry(TABLE, 16, 0, Descriptor::INDIRECT | Descriptor::NEXT);
    driver.entry(DATA, 1, 2, 0);
    let taken = Taken { id: 2, slots: 2 };
    assert_eq!(take(&mut driver.ring(false), &driver), Ok(Some((taken, Err(Malformed::Indirect)))));

    let mut driver = Driver::new(4);
    driver.entry(DATA, 1, 0, Descriptor::NEXT);
    driver.entry(TABLE, 16, 2, Descriptor::INDIRECT);
    assert_eq!(
        take(&mut driver.ring(false), &driver),
        Ok(Some((taken, Err(Malformed::Indirect)))),
        "at the end"
    );
}

#[test]
fn virtio_2_8_7_an_indirect_table_is_taken_whole_and_in_order() {
    let mut driver = Driver::new(4);
    for (at, (len, flags)) in (0u64..).zip([(1u32, 0u16), (2, Descriptor::NEXT), (4, Descriptor::WRITE)]) {
        let mut bytes = (GUEST_BASE + DATA).to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0xff; 2]);
        // Id and flags stand as in the ring.
        bytes.swap(12, 14);
        bytes.swap(13, 15);
        driver.guest.write(TABLE + 16 * at, &bytes);
    }
    driver.entry(TABLE, 48, 3, Descriptor::INDIRECT);
    let mut chain = Chain::default();
    let (taken, loaded) =
        driver.ring(false).take(&mut chain, &driver.guest.memory, LIMITS, None).unwrap().unwrap();
    assert_eq!((taken, loaded), (Taken { id: 3, slots: 1 }, Ok(())));
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (3, 4));
}

#[test]
fn a_malformed_chain_is_walked_to_its_id_and_goes_back() {
    let mut driver = Driver::new(4);
    driver.entry(GUEST_BYTES, 1, 0, Descriptor::NEXT);
    driver.entry(DATA, 1, 3, 0);
    driver.offer(1, 1);
    let mut ring = driver.ring(false);
    let bad = take(&mut ring, &driver).unwrap().unwrap();
    assert_eq!(bad, (Taken { id: 3, slots: 2 }, Err(Malformed::Outside)));
    assert_eq!(take(&mut ring, &driver).unwrap().unwrap().0.id, 1, "the next one is found behind it");
}

#[test]
fn virtio_2_8_10_interrupts_are_suppressed_as_the_driver_asks() {
    let push = |ring: &mut PackedRing| {
        ring.push_used(Taken { id: 0, slots: 1 }, 0);
        ring.publish()
    };
    let driver = Driver::new(4);
    let mut ring = driver.ring(true);
    driver.driver_event(0, EVENT_DISABLE);
    assert!(!push(&mut ring));
    driver.driver_event(0, EVENT_ENABLE);
    assert!(push(&mut ring));
    // GP4: nonsense counts as enabled.
    driver.driver_event(0xffff, 3);
    assert!(push(&mut ring));
}

/// Every event place against every step of a ring, by counting entries.
#[test]
fn virtio_2_8_10_event_arithmetic_is_that_of_counting() {
    for size in 1..=8u16 {
        for start in 0..2 * size {
            for step in 1..=size {
                for event in 0..2 * size {
                    let driver = Driver::new(size);
                    let mut ring = driver.ring(true);
                    let cursor =
                        |line: u16| Cursor { at: line % size, wrap: (line / size).is_multiple_of(2) };
                    (ring.used, ring.told) = (cursor(start), cursor(start));
                    driver.driver_event(cursor(event).bits(), EVENT_DESC);
                    for _ in 0..step {
                        ring.push_used(Taken { id: 0, slots: 1 }, 0);
                    }
                    // Places come again after two laps.
                    let passed = (start..start + step).any(|line| line % (2 * size) == event);
                    assert_eq!(ring.publish(), passed, "size {size}: {start} + {step}, event {event}");
                }
            }
        }
    }
}

#[test]
fn notifications_are_asked_for_and_not_lost() {
    let mut driver = Driver::new(2);
    let mut ring = driver.ring(true);
    ring.disarm();
    assert_eq!(driver.device_event().1, EVENT_DISABLE);
    assert!(!ring.arm());
    assert_eq!(driver.device_event(), (0x8000, EVENT_DESC));
    driver.offer(1, 0);
    assert!(ring.arm(), "a chain that came before arming is seen");
    take(&mut ring, &driver).unwrap().unwrap().1.unwrap();
    driver.offer(1, 1);
    take(&mut ring, &driver).unwrap().unwrap().1.unwrap();
    assert!(!ring.arm());
    assert_eq!(driver.device_event(), (0, EVENT_DESC), "the next lap has the other bit");
}

#[test]
fn rings_and_bases_that_make_no_sense_are_none() {
    let driver = Driver::new(4);
    let make = |change: fn(&mut Layout), base| {
        let mut layout = driver.layout(false);
        change(&mut layout);
        PackedRing::new(&driver.guest.memory, &layout, base).is_some()
    };
    assert!(make(|_| {}, 0x8003_0003));
    assert!(make(|l| l.size = 3, 0x8000_8000), "no power of two is needed");
    assert!(!make(|_| {}, 0x8000_8004));
    assert!(!make(|_| {}, 0x8004_8000));
    assert!(!make(|l| l.size = 0, 0x8000_8000));
    assert!(!make(|l| l.size = 32769, 0x8000_8000));
    assert!(!make(|l| l.descriptor += 8, 0x8000_8000));
    assert!(!make(|l| l.available += 2, 0x8000_8000));
}

#[test]
fn a_base_of_fewer_values_is_the_beginning_of_a_new_ring_and_a_place_in_another() {
    let mut driver = Driver::new(4);
    let layout = driver.layout(false);
    let at = |driver: &Driver| {
        [0, 0x8000].map(|base| PackedRing::new(&driver.guest.memory, &layout, base).unwrap().base())
    };
    assert_eq!(at(&driver), [0x8000_8000; 2]);
    driver.offer(2, 1);
    assert_eq!(at(&driver), [0x8000_8000; 2]);
    let mut ring = driver.ring(false);
    take(&mut ring, &driver).unwrap();
    driver.offer(2, 0);
    take(&mut ring, &driver).unwrap();
    for id in [1, 0] {
        ring.push_used(Taken { id, slots: 2 }, 1);
    }
    ring.publish();
    assert_eq!((ring.base(), at(&driver)), (0, [0, 0x8000]));
}

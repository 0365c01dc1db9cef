//! What a guest may do to a ring, and that nobody but itself suffers (cases G of the threat model).
//!
//! Each case runs against every daemon, and ends with the next good request being answered: on the same ring
//! where the bad chain is given back with length 0, on a restarted ring and for a fresh front-end where the
//! ring breaks.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::frontend::{F_INDIRECT_DESC, Wants};
use tests::guest::chain::{Chain, POISON};
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::guest::raw::{Desc, INDIRECT, NEXT, WRITE, link};
use tests::guest::ring::{Interrupts, Ring};
use tests::machine::{Device, Machine, QUEUE_SIZE, RAM_BYTES};
use tests::wait;

tests::against_every_daemon! {
    g01_available_index_ahead_or_behind_breaks_the_ring,
    g02_available_entry_outside_the_queue_breaks_the_ring,
    g03_next_outside_the_table_is_dropped,
    g03_loops_are_dropped,
    g04_chain_longer_than_the_queue_is_dropped,
    g05_bad_indirect_tables_are_dropped,
    g05_indirect_that_was_not_negotiated_is_dropped,
    g05_write_flag_on_an_indirect_table_is_ignored,
    g06_an_indirect_table_may_follow_plain_descriptors,
    g07_empty_descriptors_are_passed_over,
    g07_an_empty_chain_is_dropped,
    g08_buffers_outside_memory_are_dropped,
    g08_a_chain_across_two_adjacent_regions_works,
    g09_readable_after_writable_is_dropped,
    g10_a_head_published_twice_ends_nothing_else,
    g11_descriptors_rewritten_while_they_are_read_end_nothing,
    g12_buffers_over_the_ring_itself_hurt_the_guest_only,
    g13_a_guest_that_writes_the_used_ring_changes_nothing,
    g14_any_used_event_is_harmless,
    g15_a_kick_storm_leaves_room_for_others,
    g16_a_ring_that_is_never_empty_leaves_the_socket_its_share,
    g17_a_full_ring_that_nobody_reaps_is_answered_once,
    g18_after_a_stop_memory_does_not_change,
}

/// A guest that has been served once.
fn running(device: Device) -> (Machine, Ring) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    (machine, ring)
}

/// The ring breaks; it can be set up again, and so can a whole session.
#[track_caller]
fn assert_breaks(machine: &mut Machine, ring: &Ring) {
    let used = ring.raw().used_idx();
    ring.kick();
    assert!(ring.wait_broken(), "{}: the ring is not broken", machine.device.binary);
    assert_eq!(ring.raw().used_idx(), used, "a broken ring was written to");
    machine.assert_restarts();
    machine.assert_serves_anew();
}

/// Offers a chain made of raw descriptors; it comes back with length 0 and the ring goes on.
#[track_caller]
fn assert_dropped(machine: &Machine, ring: &mut Ring, descs: &[Desc]) {
    let slots = ring.reserve(descs.len());
    for (slot, desc) in slots.iter().zip(descs) {
        ring.raw().set_desc(*slot, *desc);
    }
    assert_comes_back_empty(machine, ring, slots);
}

#[track_caller]
fn assert_comes_back_empty(machine: &Machine, ring: &mut Ring, slots: Vec<u16>) {
    let head = ring.add_reserved(slots);
    ring.notify();
    let done = ring.wait_used().unwrap();
    assert_eq!((done.head, done.len), (head, 0));
    machine.assert_serves(ring);
}

/// Room for a device to write, in RAM.
fn buffer(ring: &Ring) -> Desc {
    Desc::new(ring.ram().take(64, 1), 64, WRITE)
}

fn g01_available_index_ahead_or_behind_breaks_the_ring(device: Device) {
    for ahead in [QUEUE_SIZE + 1, 0x8000, u16::MAX] {
        let (mut machine, ring) = running(device);
        let at = ring.raw().avail_idx();
        ring.raw().set_avail_idx(at.wrapping_add(ahead));
        assert_breaks(&mut machine, &ring);
    }
}

fn g02_available_entry_outside_the_queue_breaks_the_ring(device: Device) {
    for entry in [QUEUE_SIZE, u16::MAX] {
        let (mut machine, ring) = running(device);
        ring.raw().offer(entry);
        assert_breaks(&mut machine, &ring);
    }
}

fn g03_next_outside_the_table_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    for next in [QUEUE_SIZE, u16::MAX] {
        let desc = buffer(&ring);
        assert_dropped(&machine, &mut ring, &[Desc { flags: desc.flags | NEXT, next, ..desc }]);
        let table = ring.raw().table(&[Desc { flags: desc.flags | NEXT, next: 2, ..desc }, desc]);
        assert_dropped(&machine, &mut ring, &[Desc::new(table, 32, INDIRECT)]);
    }
}

fn g03_loops_are_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    for len in [1, 2, 40] {
        let slots = ring.reserve(len);
        for (nth, slot) in slots.iter().enumerate() {
            let desc = buffer(&ring);
            let next = slots[(nth + 1) % len];
            ring.raw().set_desc(*slot, Desc { flags: desc.flags | NEXT, next, ..desc });
        }
        assert_comes_back_empty(&machine, &mut ring, slots);
    }
    let desc = Desc { flags: WRITE | NEXT, ..buffer(&ring) };
    let table = ring.raw().table(&[desc]);
    assert_dropped(&machine, &mut ring, &[Desc::new(table, 16, INDIRECT)]);
}

fn g04_chain_longer_than_the_queue_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    for entries in [usize::from(QUEUE_SIZE) + 1, 65_535] {
        let table = link(&vec![buffer(&ring); entries]);
        let table = ring.raw().table(&table);
        let len = u32::try_from(16 * entries).unwrap();
        assert_dropped(&machine, &mut ring, &[Desc::new(table, len, INDIRECT)]);
    }
}

fn g05_bad_indirect_tables_are_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let table = ring.raw().table(&link(&[buffer(&ring), buffer(&ring)]));
    let end = RAM_BASE + RAM_BYTES;
    let outside = [(0, 32), (end, 32), (end - 16, 32), (u64::MAX - 15, 32), (table, 0xffff_fff0)];
    for (addr, len) in outside.into_iter().chain([(table, 0), (table, 1), (table, 31), (table, 33)]) {
        assert_dropped(&machine, &mut ring, &[Desc::new(addr, len, INDIRECT)]);
    }
    let nested = ring.raw().table(&[Desc::new(table, 32, INDIRECT)]);
    assert_dropped(&machine, &mut ring, &[Desc::new(nested, 16, INDIRECT)]);
    let slots = ring.reserve(2);
    let next = slots[1];
    ring.raw().set_desc(slots[0], Desc { next, ..Desc::new(table, 32, INDIRECT | NEXT) });
    ring.raw().set_desc(next, buffer(&ring));
    assert_comes_back_empty(&machine, &mut ring, slots);
}

fn g05_indirect_that_was_not_negotiated_is_dropped(device: Device) {
    let wants = Wants { features: !F_INDIRECT_DESC, ..Wants::default() };
    let mut machine = device.boot_with(device.launch(), &Ram::new(RAM_BYTES), wants);
    let mut ring = machine.start_queue().unwrap();
    let done = ring.run(&device.request().indirect()).unwrap();
    assert_eq!(done.len, 0);
    machine.assert_serves(&mut ring);
}

fn g05_write_flag_on_an_indirect_table_is_ignored(device: Device) {
    let (machine, mut ring) = running(device);
    let head = ring.add(&device.request().indirect());
    let desc = ring.raw().desc(head);
    ring.raw().set_desc(head, Desc { flags: desc.flags | WRITE, ..desc });
    ring.notify();
    let done = ring.wait_used().unwrap();
    assert!(device.accepts(&done), "{done:?}");
    machine.assert_serves(&mut ring);
}

fn g06_an_indirect_table_may_follow_plain_descriptors(device: Device) {
    let (machine, mut ring) = running(device);
    for direct in 0..3 {
        let done = ring.run(&device.request().indirect_after(direct)).unwrap();
        assert!(device.accepts(&done), "{done:?} after {direct} plain descriptors");
    }
    machine.assert_serves(&mut ring);
}

fn g07_empty_descriptors_are_passed_over(device: Device) {
    let (machine, mut ring) = running(device);
    let chain = device.request();
    for chain in [chain.clone().with_empty_parts(), chain.clone().with_empty_parts().indirect()] {
        let done = ring.run(&chain).unwrap();
        assert!(device.accepts(&done), "{done:?}");
    }
    machine.assert_serves(&mut ring);
}

fn g07_an_empty_chain_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    for flags in [0, WRITE] {
        let nothing = Desc { len: 0, flags, ..buffer(&ring) };
        assert_dropped(&machine, &mut ring, &[nothing]);
        assert_dropped(&machine, &mut ring, &[Desc { addr: u64::MAX, ..nothing }]);
    }
}

fn g08_buffers_outside_memory_are_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let end = RAM_BASE + RAM_BYTES;
    let places = [
        (0, 1),
        (RAM_BASE - 1, 2),
        (end - 1, 2),
        (end, 1),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (RAM_BASE, u32::MAX),
    ];
    for (addr, len) in places {
        for flags in [0, WRITE] {
            assert_dropped(&machine, &mut ring, &[Desc::new(addr, len, flags)]);
            let table = ring.raw().table(&[Desc::new(addr, len, flags)]);
            assert_dropped(&machine, &mut ring, &[Desc::new(table, 16, INDIRECT)]);
        }
    }
}

/// The good request, its longest buffer moved so that it lies half in one region and half in the next.
fn g08_a_chain_across_two_adjacent_regions_works(device: Device) {
    let half = RAM_BYTES / 2;
    let ram = Ram::with(&[(RAM_BASE, half), (RAM_BASE + half, half)], Backing::Sealed);
    let seam = RAM_BASE + half;
    ram.claim(seam - 4096, 8192);
    let mut machine = device.boot_with(device.launch(), &ram, Wants::default());
    let mut ring = machine.start_queue().unwrap();
    let head = ring.add(&device.request());
    let (index, desc) = longest(&ring, head);
    let (addr, len) = (seam - u64::from(desc.len / 2), usize::try_from(desc.len).unwrap());
    ram.write(addr, &ram.read(desc.addr, len));
    ring.raw().set_desc(index, Desc { addr, ..desc });
    ring.notify();
    let done = ring.wait_used().unwrap();
    assert!(device.accepts(&done), "{done:?}");
    let untouched = ram.read(addr, len).iter().filter(|byte| **byte == POISON).count();
    assert!(untouched < len / 4, "{untouched} of {len} bytes were not written");
    machine.assert_serves(&mut ring);
}

/// The longest descriptor of a chain, and its index.
fn longest(ring: &Ring, head: u16) -> (u16, Desc) {
    let next =
        |(_, desc): &(u16, Desc)| (desc.flags & NEXT != 0).then(|| (desc.next, ring.raw().desc(desc.next)));
    let chain = std::iter::successors(Some((head, ring.raw().desc(head))), next);
    chain.max_by_key(|(_, desc)| desc.len).unwrap()
}

fn g09_readable_after_writable_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let chain = Chain::new().writable(64).readable(b"too late");
    for chain in [chain.clone(), chain.indirect()] {
        assert_eq!(ring.run(&chain).unwrap().len, 0);
        machine.assert_serves(&mut ring);
    }
}

/// The device may find the first one finished before it sees the second: then it answers both, which is the
/// guest's own confusion; otherwise the ring breaks. Either way it can be set up again.
fn g10_a_head_published_twice_ends_nothing_else(device: Device) {
    let (mut machine, mut ring) = running(device);
    ring.set_interrupts(Interrupts::Always);
    ring.interrupts();
    let head = ring.add(&device.request());
    let at = ring.raw().avail_idx();
    ring.raw().set_avail_entry(at.wrapping_add(1), head);
    ring.raw().set_avail_idx(at.wrapping_add(2));
    ring.kick();
    let heard = wait::readable(&[ring.call.as_fd(), ring.err.as_fd()], wait::deadline());
    assert!(heard, "neither answered nor broken");
    machine.assert_restarts();
    machine.assert_serves_anew();
}

/// A second thread flips one descriptor between good and outside RAM while the device walks it.
fn g11_descriptors_rewritten_while_they_are_read_end_nothing(device: Device) {
    let (mut machine, mut ring) = running(device);
    let (raw, head, good) = (ring.raw().clone(), ring.reserve(1)[0], buffer(&ring));
    let bad = Desc { addr: u64::MAX - 7, len: u32::MAX, flags: WRITE | NEXT, next: u16::MAX };
    let flip = || {
        raw.set_desc(head, bad);
        raw.set_desc(head, good);
    };
    beside(flip, || {
        for _ in 0..2000 {
            let at = raw.offer(head);
            ring.kick();
            wait_used_idx(&ring, at.wrapping_add(1));
        }
    });
    machine.assert_restarts();
}

/// Runs `work` again and again in a second thread until `story` is over, well or not.
fn beside(mut work: impl FnMut() + Send, story: impl FnOnce()) {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                work();
            }
        });
        let _end = End(&over);
        story();
    });
}

fn g12_buffers_over_the_ring_itself_hurt_the_guest_only(device: Device) {
    for part in 0..3 {
        let (mut machine, mut ring) = running(device);
        let layout = ring.raw().layout();
        let addr = [layout.desc, layout.avail, layout.used][part];
        ring.add(&Chain::new().readable(&[0; 16]).at(addr, 512, true).writable(1));
        ring.notify();
        machine.assert_restarts();
        machine.assert_serves_anew();
    }
}

fn g13_a_guest_that_writes_the_used_ring_changes_nothing(device: Device) {
    let (machine, mut ring) = running(device);
    ring.interrupts();
    ring.set_interrupts(Interrupts::Always);
    let (at, head) = (ring.raw().used_idx(), ring.add(&device.request()));
    ring.publish();
    (0..QUEUE_SIZE).for_each(|slot| ring.raw().set_used_entry(slot, u32::MAX, u32::MAX));
    ring.raw().set_used_idx(0x5555);
    ring.kick();
    assert!(ring.call.wait(wait::deadline()).is_some());
    assert_eq!(ring.raw().used_idx(), at.wrapping_add(1));
    assert_eq!(ring.raw().used_entry(at).0, u32::from(head));
    let done = ring.wait_used().unwrap();
    assert!(device.accepts(&done), "{done:?}");
    machine.assert_serves(&mut ring);
}

fn g14_any_used_event_is_harmless(device: Device) {
    let (machine, mut ring) = running(device);
    ring.set_interrupts(Interrupts::Never);
    for event in [0, 1, 0x7fff, 0x8000, u16::MAX] {
        for offset in [0, ring.raw().used_idx()] {
            ring.raw().set_used_event(offset.wrapping_add(event));
            machine.assert_serves(&mut ring);
        }
    }
    ring.set_interrupts(Interrupts::Always);
    machine.assert_serves(&mut ring);
}

fn g15_a_kick_storm_leaves_room_for_others(device: Device) {
    let (mut machine, mut ring) = running(device);
    let kick = ring.kick.again();
    beside(
        || kick.signal(),
        || {
            for _ in 0..200 {
                machine.frontend.sync().unwrap();
                machine.assert_serves(&mut ring);
            }
        },
    );
    machine.assert_serves_anew();
}

/// A second thread keeps the ring full; the socket is answered all the same, and the ring can be stopped.
fn g16_a_ring_that_is_never_empty_leaves_the_socket_its_share(device: Device) {
    let (mut machine, mut ring) = running(device);
    ring.set_interrupts(Interrupts::Never);
    let mut waits = Vec::new();
    beside(
        || flood(device, &mut ring),
        || {
            for _ in 0..51 {
                let asked = Instant::now();
                machine.frontend.sync().unwrap();
                waits.push(asked.elapsed());
            }
            machine.frontend.stop(device.queue).unwrap();
        },
    );
    waits.sort_unstable();
    assert!(waits[25] < Duration::from_millis(100), "the socket usually waits {:?}", waits[25]);
    machine.assert_serves_anew();
}

/// Puts as many requests into the ring as fit, and takes back what is finished.
fn flood(device: Device, ring: &mut Ring) {
    let request = device.request();
    while ring.free() >= request.slots() {
        ring.add(&request);
    }
    ring.notify();
    while ring.used().unwrap().is_some() {}
}

/// Looks at the used ring until its index is `idx`, as a driver without interrupts does.
#[track_caller]
fn wait_used_idx(ring: &Ring, idx: u16) {
    let until = wait::deadline();
    while ring.raw().used_idx() != idx {
        assert!(Instant::now() < until && ring.err.take() == 0, "not answered: {}", ring.raw().used_idx());
        std::thread::yield_now();
    }
}

fn g17_a_full_ring_that_nobody_reaps_is_answered_once(device: Device) {
    let (mut machine, mut ring) = running(device);
    let (request, before) = (device.request(), ring.raw().used_idx());
    while ring.free() >= request.slots() {
        ring.add(&request);
    }
    let count = u16::try_from(ring.in_flight()).unwrap();
    ring.notify();
    wait_used_idx(&ring, before.wrapping_add(count));
    for _ in 0..100 {
        ring.kick();
        machine.frontend.sync().unwrap();
    }
    let base = machine.frontend.stop(device.queue).unwrap();
    assert_eq!(base, u32::from(before.wrapping_add(count)));
    assert_eq!(ring.raw().used_idx(), before.wrapping_add(count));
    machine.assert_serves_anew();
}

fn g18_after_a_stop_memory_does_not_change(device: Device) {
    for _ in 0..20 {
        let (mut machine, mut ring) = running(device);
        let request = device.request();
        while ring.free() >= request.slots() {
            ring.add(&request);
        }
        ring.notify();
        machine.frontend.stop(device.queue).unwrap();
        let ram = machine.ram();
        let all = || ram.read(RAM_BASE, usize::try_from(RAM_BYTES).unwrap());
        let before = all();
        for _ in 0..20 {
            ring.kick();
            machine.frontend.sync().unwrap();
        }
        assert!(before == all(), "memory changed after the ring was stopped");
        machine.assert_restarts();
    }
}

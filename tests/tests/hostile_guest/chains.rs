//! Chains that loop, run out of memory, overlap or change while they are read; and odd ones that are legal.

use std::sync::atomic::AtomicU64;

use tests::frontend::{F_INDIRECT_DESC, Wants};
use tests::guest::chain::POISON;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::guest::raw::{DESC_BYTES, INDIRECT, NEXT, link};
use tests::guest::ring::{Interrupts, RingError};
use tests::machine::{QUEUE_SIZE, RAM_BYTES, RNG};

use super::*;

tests::against_every_daemon! {
    both: [
        g04_chain_longer_than_the_queue_is_dropped,
        g05_bad_indirect_tables_are_dropped,
        g05_indirect_that_was_not_negotiated_is_dropped,
        g05_write_flag_on_an_indirect_table_is_ignored,
        g06_header_and_data_may_be_cut_anywhere,
        g07_empty_descriptors_are_passed_over,
        g07_an_empty_chain_is_dropped,
        g08_buffers_outside_memory_are_dropped,
        g08_sums_over_four_gigabytes_are_dropped_or_bounded,
        g08_a_chain_across_two_adjacent_regions_works,
        g09_readable_after_writable_is_dropped,
        g11_descriptors_rewritten_while_they_are_read_end_nothing,
        g12_buffers_over_the_ring_itself_hurt_the_guest_only,
    ],
    split: [
        g03_next_outside_the_table_is_dropped,
        g03_loops_are_dropped,
        g05_nested_and_continued_tables_are_dropped,
        g06_an_indirect_table_may_follow_plain_descriptors,
    ],
    packed: [
        g03_links_in_an_indirect_table_mean_nothing,
        gp3_an_indirect_descriptor_that_is_not_alone_is_dropped,
    ],
}

fn g03_next_outside_the_table_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    for next in [QUEUE_SIZE, u16::MAX] {
        let head = ring.add_writable(64);
        ring.set_desc(head, Desc { flags: WRITE | NEXT, next, ..ring.desc(head) });
        assert_comes_back_empty(&machine, &mut ring, head);
        let desc = buffer(&ring);
        let table = ring.table(&[Desc { flags: WRITE | NEXT, next: 2, ..desc }, desc]);
        assert_dropped(&machine, &mut ring, &Chain::new().desc(Desc::new(table, 32, INDIRECT)));
    }
}

fn g03_loops_are_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    for len in [1, 2, 40] {
        let head = ring.add(&(0..len).fold(Chain::new(), |chain, _| chain.writable(64)));
        let last = *ring.entries(head).last().unwrap();
        ring.set_desc(last, Desc { flags: WRITE | NEXT, next: head, ..ring.desc(last) });
        assert_comes_back_empty(&machine, &mut ring, head);
    }
    let table = ring.table(&[Desc { flags: WRITE | NEXT, ..buffer(&ring) }]);
    assert_dropped(&machine, &mut ring, &Chain::new().desc(Desc::new(table, 16, INDIRECT)));
}

/// §2.8.7: all of the table counts, whatever its flags and ids say.
fn g03_links_in_an_indirect_table_mean_nothing(device: Device) {
    let (machine, mut ring) = running(device);
    for flags in [NEXT, INDIRECT, NEXT | INDIRECT] {
        let head = ring.add(&device.request().indirect());
        let outer = ring.desc(ring.entries(head)[0]);
        for at in (outer.addr..outer.addr + u64::from(outer.len)).step_by(16) {
            let desc = Desc::from_packed_bytes(ring.ram().read(at, 16).try_into().unwrap());
            ring.set_table(at, &[Desc { flags: desc.flags | flags, next: u16::MAX, ..desc }]);
        }
        ring.notify();
        let done = ring.wait_used().unwrap();
        assert!(device.accepts(&done), "{done:?}");
        machine.assert_serves(&mut ring);
    }
}

fn g04_chain_longer_than_the_queue_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let desc = buffer(&ring);
    for entries in [QUEUE_SIZE + 1, u16::MAX] {
        let chain = (0..entries).fold(Chain::new(), |chain, _| chain.desc(desc));
        assert_dropped(&machine, &mut ring, &chain.indirect());
    }
}

fn g05_bad_indirect_tables_are_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let table = ring.table(&link(&[buffer(&ring), buffer(&ring)]));
    let end = RAM_BASE + RAM_BYTES;
    let outside = [(0, 32), (end, 32), (end - 16, 32), (u64::MAX - 15, 32), (table, 0xffff_fff0)];
    for (addr, len) in outside.into_iter().chain([(table, 0), (table, 1), (table, 31), (table, 33)]) {
        assert_dropped(&machine, &mut ring, &Chain::new().desc(Desc::new(addr, len, INDIRECT)));
    }
}

fn g05_nested_and_continued_tables_are_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let table = Desc::new(ring.table(&link(&[buffer(&ring), buffer(&ring)])), 32, INDIRECT);
    let nested = Chain::new().desc(table).indirect();
    let continued = Chain::new().desc(table).desc(buffer(&ring));
    assert_dropped(&machine, &mut ring, &nested);
    assert_dropped(&machine, &mut ring, &continued);
}

/// §2.8.8: never together with NEXT, and never in a chain with direct descriptors.
fn gp3_an_indirect_descriptor_that_is_not_alone_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let table = Desc::new(ring.table(&[buffer(&ring), buffer(&ring)]), 32, INDIRECT);
    let first = Chain::new().desc(table).desc(buffer(&ring));
    let last = Chain::new().readable(&[0; 16]).desc(table);
    let between = Chain::new().readable(&[0; 16]).desc(table).writable(1);
    let twice = Chain::new().desc(table).desc(table);
    for chain in [first, last, between, twice] {
        assert_dropped(&machine, &mut ring, &chain);
    }
}

fn g05_indirect_that_was_not_negotiated_is_dropped(device: Device) {
    let wants = Wants { features: !F_INDIRECT_DESC, ..device.wants() };
    let mut machine = device.boot_with(device.launch(), &Ram::new(RAM_BYTES), wants);
    let mut ring = machine.start_queue().unwrap();
    assert_dropped(&machine, &mut ring, &device.request().indirect());
}

fn g05_write_flag_on_an_indirect_table_is_ignored(device: Device) {
    let (machine, mut ring) = running(device);
    let head = ring.add(&device.request().indirect());
    let entry = ring.entries(head)[0];
    ring.set_desc(entry, Desc { flags: INDIRECT | WRITE, ..ring.desc(entry) });
    ring.notify();
    let done = ring.wait_used().unwrap();
    assert!(device.accepts(&done), "{done:?}");
    machine.assert_serves(&mut ring);
}

fn g06_an_indirect_table_may_follow_plain_descriptors(device: Device) {
    let (machine, mut ring) = running(device);
    for direct in 0..3 {
        assert_accepted(&machine, &mut ring, &device.request().indirect_after(direct));
    }
    machine.assert_serves(&mut ring);
}

fn g06_header_and_data_may_be_cut_anywhere(device: Device) {
    let (machine, mut ring) = running(device);
    for bytes in [11, 12, 16, 17, 100] {
        assert_accepted(&machine, &mut ring, &device.request().cut(bytes));
        assert_accepted(&machine, &mut ring, &device.request().cut(bytes).indirect());
    }
    machine.assert_serves(&mut ring);
}

fn g07_empty_descriptors_are_passed_over(device: Device) {
    let (machine, mut ring) = running(device);
    let chain = device.request().with_empty_parts();
    assert_accepted(&machine, &mut ring, &chain);
    assert_accepted(&machine, &mut ring, &chain.indirect());
    machine.assert_serves(&mut ring);
}

fn g07_an_empty_chain_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    for flags in [0, WRITE] {
        let nothing = Desc { len: 0, flags, ..buffer(&ring) };
        assert_dropped(&machine, &mut ring, &Chain::new().desc(nothing));
        assert_dropped(&machine, &mut ring, &Chain::new().desc(Desc { addr: u64::MAX, ..nothing }));
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
            let chain = Chain::new().desc(Desc::new(addr, len, flags));
            assert_dropped(&machine, &mut ring, &chain);
            assert_dropped(&machine, &mut ring, &chain.indirect());
        }
    }
}

fn g08_sums_over_four_gigabytes_are_dropped_or_bounded(device: Device) {
    let (ram, half) = (Ram::new(128 << 20), 64 << 20);
    ram.claim(RAM_BASE, half);
    let mut machine = device.boot_with(device.launch(), &ram, device.wants());
    let mut ring = machine.frontend.start_new(device.queue, 128).unwrap();
    let len = u32::try_from(half).unwrap();
    let sum = |write| (0..70).fold(Chain::new(), |chain, _| chain.at(RAM_BASE, len, write));
    let bound = if device.binary == RNG.binary { 64 << 10 } else { 0 };
    for chain in [sum(false), sum(false).indirect(), sum(true), sum(true).indirect()] {
        assert!(ring.run(&chain).unwrap().len <= bound);
        machine.assert_serves(&mut ring);
    }
}

/// The good request, its longest buffer moved so that it lies half in one region and half in the next.
fn g08_a_chain_across_two_adjacent_regions_works(device: Device) {
    let half = RAM_BYTES / 2;
    let ram = Ram::with(&[(RAM_BASE, half), (RAM_BASE + half, half)], Backing::Sealed);
    let seam = RAM_BASE + half;
    ram.claim(seam - 4096, 8192);
    let mut machine = device.boot_with(device.launch(), &ram, device.wants());
    let mut ring = machine.start_queue().unwrap();
    let head = ring.add(&device.request());
    let entry = *ring.entries(head).iter().max_by_key(|entry| ring.desc(**entry).len).unwrap();
    let desc = ring.desc(entry);
    let (addr, len) = (seam - u64::from(desc.len / 2), usize::try_from(desc.len).unwrap());
    ram.write(addr, &ram.read(desc.addr, len));
    ring.set_desc(entry, Desc { addr, ..desc });
    ring.notify();
    let done = ring.wait_used().unwrap();
    assert!(device.accepts(&done), "{done:?}");
    let untouched = ram.read(addr, len).iter().filter(|byte| **byte == POISON).count();
    assert!(untouched < len / 4, "{untouched} of {len} bytes were not written");
    machine.assert_serves(&mut ring);
}

fn g09_readable_after_writable_is_dropped(device: Device) {
    let (machine, mut ring) = running(device);
    let chain = Chain::new().writable(64).readable(b"too late");
    assert_dropped(&machine, &mut ring, &chain);
    assert_dropped(&machine, &mut ring, &chain.indirect());
}

/// A second thread flips a descriptor between good and outside RAM while the device walks it: in the ring, where
/// it leaves alone what says whose the entry is, and in an indirect table.
fn g11_descriptors_rewritten_while_they_are_read_end_nothing(device: Device) {
    let bad = Desc { addr: u64::MAX - 7, len: u32::MAX, flags: WRITE | NEXT, next: u16::MAX };
    for direct in [true, false] {
        let (mut machine, mut ring) = running(device);
        ring.set_interrupts(Interrupts::Never);
        let (ram, good) = (machine.ram(), buffer(&ring));
        let table = ring.table(&[good]);
        let (chain, bytes) = match direct {
            true => (Chain::new().desc(good), 12),
            false => (Chain::new().desc(Desc::new(table, 16, INDIRECT)), 16),
        };
        let target = AtomicU64::new(table);
        let flip = || {
            let at = target.load(Ordering::Relaxed);
            [bad, good].iter().for_each(|desc| ram.write(at, &desc.to_bytes()[..bytes]));
        };
        beside(flip, || {
            for _ in 0..1000 {
                let head = ring.add(&chain);
                if direct {
                    let entry = u64::from(ring.entries(head)[0]);
                    target.store(ring.layout().desc + DESC_BYTES * entry, Ordering::Relaxed);
                }
                ring.notify();
                let done = ring.wait_used();
                // The length may be that of a flipped entry, or of a table of which the driver knows nothing.
                assert!(matches!(done, Ok(_) | Err(RingError::TooLong { .. })), "{done:?}");
            }
        });
        machine.assert_restarts();
    }
}

fn g12_buffers_over_the_ring_itself_hurt_the_guest_only(device: Device) {
    for part in 0..3 {
        let (mut machine, mut ring) = running(device);
        let layout = ring.layout();
        let addr = [layout.desc, layout.avail, layout.used][part];
        ring.add(&Chain::new().readable(&[0; 16]).at(addr, 512, true).writable(1));
        ring.notify();
        machine.assert_restarts();
        machine.assert_serves_anew();
    }
}

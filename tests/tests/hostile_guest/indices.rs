//! Indices, ids, laps and events that make no sense.

use std::os::fd::AsFd;

use tests::frontend::{F_EVENT_IDX, Wants};
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;
use tests::guest::raw::NEXT;
use tests::guest::raw_packed::{AVAIL, EVENT_DESC, Place, USED};
use tests::guest::ring::Interrupts;
use tests::machine::{QUEUE_SIZE, RAM_BYTES};
use tests::wait;

use super::*;

tests::against_every_daemon! {
    both: [
        g14_any_event_is_harmless,
    ],
    split: [
        g01_available_index_ahead_or_behind_breaks_the_ring,
        g02_available_entry_outside_the_queue_breaks_the_ring,
        g10_a_head_published_twice_ends_nothing_else,
        g13_a_guest_that_writes_the_used_ring_changes_nothing,
    ],
    packed: [
        gp1_a_buffer_id_outside_the_queue_breaks_the_ring,
        gp1_a_buffer_id_in_flight_twice_ends_nothing_else,
        gp2_a_chain_around_the_whole_ring_breaks_it,
        gp2_a_chain_into_entries_that_are_not_available_breaks_the_ring,
        gp4_events_that_make_no_sense_count_as_enabled,
        g13_a_guest_that_writes_over_used_entries_changes_nothing,
    ],
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

fn gp1_a_buffer_id_outside_the_queue_breaks_the_ring(device: Device) {
    for id in [QUEUE_SIZE, 0x8000, u16::MAX] {
        let (mut machine, mut ring) = running(device);
        let head = ring.add(&device.request());
        rename(&ring, head, id);
        ring.publish();
        assert_breaks(&mut machine, &ring);
    }
}

/// Gives a chain that the device has not seen yet another buffer id.
fn rename(ring: &Ring, head: u16, id: u16) {
    let last = *ring.entries(head).last().unwrap();
    ring.set_desc(last, Desc { next: id, ..ring.desc(last) });
}

/// The device may find the first one finished before it sees the second: then it answers both, which is the
/// guest's own confusion; otherwise the ring breaks. Either way it can be set up again.
fn g10_a_head_published_twice_ends_nothing_else(device: Device) {
    let (mut machine, mut ring) = running(device);
    let head = ring.add(&device.request());
    let at = ring.raw().avail_idx();
    ring.raw().set_avail_entry(at.wrapping_add(1), head);
    ring.raw().set_avail_idx(at.wrapping_add(2));
    assert_heard_of(&mut machine, &mut ring);
}

fn gp1_a_buffer_id_in_flight_twice_ends_nothing_else(device: Device) {
    let (mut machine, mut ring) = running(device);
    let (first, second) = (ring.add(&device.request()), ring.add(&device.request()));
    rename(&ring, second, first);
    ring.publish();
    assert_heard_of(&mut machine, &mut ring);
}

/// Answered or broken, and nobody else suffers.
#[track_caller]
fn assert_heard_of(machine: &mut Machine, ring: &mut Ring) {
    ring.set_interrupts(Interrupts::Always);
    ring.interrupts();
    ring.kick();
    let heard = wait::readable(&[ring.call.as_fd(), ring.err.as_fd()], wait::deadline());
    assert!(heard, "neither answered nor broken");
    machine.assert_restarts();
    machine.assert_serves_anew();
}

fn gp2_a_chain_around_the_whole_ring_breaks_it(device: Device) {
    let (mut machine, mut ring) = running(device);
    let chain = (0..QUEUE_SIZE).fold(Chain::new(), |chain, _| chain.writable(8));
    let head = ring.add(&chain);
    let last = *ring.entries(head).last().unwrap();
    ring.set_desc(last, Desc { flags: WRITE | NEXT, ..ring.desc(last) });
    ring.publish();
    assert_breaks(&mut machine, &ring);
}

fn gp2_a_chain_into_entries_that_are_not_available_breaks_the_ring(device: Device) {
    let (mut machine, mut ring) = running(device);
    let head = ring.add_writable(64);
    let entry = ring.entries(head)[0];
    ring.set_desc(entry, Desc { flags: WRITE | NEXT, ..ring.desc(entry) });
    ring.publish();
    assert_breaks(&mut machine, &ring);

    let (mut machine, mut ring) = running(device);
    let head = ring.add(&Chain::new().writable(64).writable(64).writable(64));
    let hole = ring.entries(head)[1];
    let flags = ring.raw_packed().flags(hole);
    ring.raw_packed().set_flags(hole, flags ^ (AVAIL | USED));
    ring.publish();
    assert_breaks(&mut machine, &ring);
}

/// §2.8.10: reserved flags, and entries that the ring does not have.
fn gp4_events_that_make_no_sense_count_as_enabled(device: Device) {
    let (machine, mut ring) = running(device);
    let size = ring.layout().size;
    for off_wrap in [size, size | 0x8000, 0x7fff, u16::MAX] {
        assert_interrupts(&machine, &mut ring, off_wrap, EVENT_DESC);
    }
    for flags in [3, 4, 0xfffc, u16::MAX] {
        assert_interrupts(&machine, &mut ring, 0, flags);
    }
    let wants = Wants { features: !F_EVENT_IDX, ..device.wants() };
    let mut machine = device.boot_with(device.launch(), &Ram::new(RAM_BYTES), wants);
    let mut ring = machine.start_queue().unwrap();
    assert_interrupts(&machine, &mut ring, 0x8007, EVENT_DESC);
}

/// With these driver events a request is answered by an interrupt.
#[track_caller]
fn assert_interrupts(machine: &Machine, ring: &mut Ring, off_wrap: u16, flags: u16) {
    ring.interrupts();
    ring.raw_packed().set_driver_event(off_wrap, flags);
    ring.add(&machine.device.request());
    ring.notify();
    let called = ring.call.wait(wait::deadline()).is_some();
    assert!(called, "{:?}: no interrupt for event {off_wrap:#x}, flags {flags:#x}", machine.device);
    assert!(machine.device.accepts(&ring.wait_used().unwrap()));
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

/// Every entry of the last lap becomes nonsense that is neither available nor used, over and over.
fn g13_a_guest_that_writes_over_used_entries_changes_nothing(device: Device) {
    let (machine, mut ring) = running(device);
    for _ in 0..2 * QUEUE_SIZE {
        let next = Place::from_bits(u16::try_from(ring.base() & 0xffff).unwrap());
        for at in 0..QUEUE_SIZE {
            let lap = Place { at, wrap: next.wrap ^ (at >= next.at) };
            let entry = Desc { addr: u64::MAX, len: u32::MAX, flags: lap.used() | NEXT, next: u16::MAX };
            ring.raw_packed().set_entry(at, entry);
        }
        ring.raw_packed().set_device_event(u16::MAX, u16::MAX);
        machine.assert_serves(&mut ring);
    }
}

fn g14_any_event_is_harmless(device: Device) {
    let (machine, mut ring) = running(device);
    ring.set_interrupts(Interrupts::Never);
    for event in [0, 1, 63, 64, 0x7fff, 0x8000, 0x803f, u16::MAX] {
        for offset in [0, u16::try_from(ring.base() & 0xffff).unwrap()] {
            set_event(&ring, offset.wrapping_add(event));
            machine.assert_serves(&mut ring);
        }
    }
    ring.set_interrupts(Interrupts::Always);
    machine.assert_serves(&mut ring);
}

/// The used index, or the entry, after which the driver says it wants an interrupt.
fn set_event(ring: &Ring, event: u16) {
    match ring.shape().kind {
        RingKind::Split => ring.raw().set_used_event(event),
        RingKind::Packed => ring.raw_packed().set_driver_event(event, EVENT_DESC),
    }
}

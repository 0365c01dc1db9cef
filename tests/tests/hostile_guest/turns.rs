//! Too much, too often, never reaped, and stopped in the middle.

use std::time::{Duration, Instant};

use tests::guest::memory::RAM_BASE;
use tests::guest::ring::Interrupts;
use tests::machine::RAM_BYTES;
use tests::wait;

use super::*;

tests::against_every_daemon! {
    both: [
        g15_a_kick_storm_leaves_room_for_others,
        g16_a_ring_that_is_never_empty_leaves_the_socket_its_share,
        g17_a_full_ring_that_nobody_reaps_is_answered_once,
        g18_after_a_stop_memory_does_not_change,
    ],
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
    fill(device, ring);
    while ring.used().unwrap().is_some() {}
}

/// Puts as many requests into the ring as fit.
fn fill(device: Device, ring: &mut Ring) {
    let request = device.request();
    while ring.free() >= request.slots() {
        ring.add(&request);
    }
    ring.notify();
}

fn g17_a_full_ring_that_nobody_reaps_is_answered_once(device: Device) {
    let (mut machine, mut ring) = running(device);
    ring.set_interrupts(Interrupts::Never);
    fill(device, &mut ring);
    let until = wait::deadline();
    while ring.waiting() < ring.in_flight() {
        assert!(Instant::now() < until && ring.err.take() == 0, "{} were answered", ring.waiting());
        std::thread::yield_now();
    }
    let answered = ring.written_by_device();
    for _ in 0..100 {
        ring.kick();
        machine.frontend.sync().unwrap();
    }
    assert_eq!(machine.frontend.stop(device.queue).unwrap(), ring.base());
    assert_same_but_for_events(&ring, &answered);
    assert!(ring.wait_all().unwrap().iter().all(|done| device.accepts(done)));
    machine.assert_serves_anew();
}

/// Used entries did not change; what the device says about kicks may have.
#[track_caller]
fn assert_same_but_for_events(ring: &Ring, before: &[u8]) {
    let after = ring.written_by_device();
    // Split: flags before, avail_event behind. Packed: the event area behind.
    let entries = 2..before.len() - 4;
    assert!(after[entries.clone()] == before[entries], "a ring that was answered was written to again");
}

fn g18_after_a_stop_memory_does_not_change(device: Device) {
    for _ in 0..20 {
        let (mut machine, mut ring) = running(device);
        fill(device, &mut ring);
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

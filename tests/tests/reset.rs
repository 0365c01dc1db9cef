//! STATUS, RESET_DEVICE and the reset of one queue: what they leave of rings, features and memory.

use backends::proto::Request;
use tests::frontend::Frontend;
use tests::guest::format::RingKind;
use tests::guest::memory::{RAM_BASE, Ram};
use tests::guest::ring::Ring;
use tests::machine::{Device, Machine, QUEUE_SIZE, RAM_BYTES};

/// ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK (virtio 1.3 §2.1).
const RUNNING: u64 = 0b1111;

tests::against_every_daemon! {
    both: [
        the_status_is_what_was_set,
        status_zero_stops_every_ring,
        a_reset_device_keeps_its_memory_and_begins_again,
        resets_under_load_lose_no_ring_for_ever,
        a_queue_that_was_reset_comes_back_with_another_size,
    ],
}

fn running(device: Device) -> (Machine, Ring) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    (machine, ring)
}

/// Every request that fits, of which some may be in the device's hands when the next message comes.
fn fill(device: Device, ring: &mut Ring) {
    let request = device.request();
    while ring.free() >= request.slots() {
        ring.add(&request);
    }
    ring.notify();
}

/// From now on nobody writes to the guest's memory, however often the ring is kicked.
#[track_caller]
fn assert_quiet(frontend: &mut Frontend, ring: &Ring) {
    let bytes = usize::try_from(RAM_BYTES).unwrap();
    let before = ring.ram().read(RAM_BASE, bytes);
    for _ in 0..20 {
        ring.kick();
        frontend.sync().unwrap();
    }
    assert!(ring.ram().read(RAM_BASE, bytes) == before, "memory changed after a reset");
}

fn the_status_is_what_was_set(device: Device) {
    let (mut machine, mut ring) = running(device);
    assert_eq!(machine.frontend.ask_u64(Request::GetStatus).unwrap(), 0);
    for status in [1, 3, 11, RUNNING, RUNNING | 128] {
        machine.frontend.tell(Request::SetStatus(status), &[]).unwrap();
        assert_eq!(machine.frontend.ask_u64(Request::GetStatus).unwrap(), status);
        machine.assert_serves(&mut ring);
    }
    for status in [256, 1 << 32 | 1, u64::MAX] {
        assert!(machine.frontend.tell(Request::SetStatus(status), &[]).is_err_and(|e| e.is_refusal()));
        assert_eq!(machine.frontend.ask_u64(Request::GetStatus).unwrap(), RUNNING | 128);
    }
    machine.reconnect().unwrap();
    assert_eq!(machine.frontend.ask_u64(Request::GetStatus).unwrap(), 0, "a new front-end's own status");
}

fn status_zero_stops_every_ring(device: Device) {
    let (mut machine, mut ring) = running(device);
    for _ in 0..5 {
        machine.frontend.tell(Request::SetStatus(RUNNING), &[]).unwrap();
        fill(device, &mut ring);
        machine.frontend.tell(Request::SetStatus(0), &[]).unwrap();
        assert_quiet(&mut machine.frontend, &ring);
        // Features and memory are the session's: a ring is all that has to be set up again.
        ring = machine.start_queue().unwrap();
        machine.assert_serves(&mut ring);
    }
}

fn a_reset_device_keeps_its_memory_and_begins_again(device: Device) {
    let (mut machine, mut ring) = running(device);
    let features = machine.frontend.features();
    for _ in 0..5 {
        machine.frontend.tell(Request::SetStatus(RUNNING), &[]).unwrap();
        fill(device, &mut ring);
        machine.frontend.tell(Request::ResetDevice, &[]).unwrap();
        assert_eq!(machine.frontend.ask_u64(Request::GetStatus).unwrap(), 0);
        assert_quiet(&mut machine.frontend, &ring);
        machine.frontend.tell(Request::SetFeatures(features), &[]).unwrap();
        ring = machine.frontend.new_ring(QUEUE_SIZE);
        // All rings are disabled by a reset, until SET_VRING_ENABLE.
        machine.frontend.set_up(device.queue, &ring, ring.base()).unwrap();
        fill(device, &mut ring);
        machine.frontend.sync().unwrap();
        assert_eq!(ring.waiting(), 0, "a disabled ring was served");
        machine.frontend.enable(device.queue, true).unwrap();
        assert!(ring.wait_all().unwrap().iter().all(|done| device.accepts(done)));
    }
    machine.assert_serves_anew();
}

fn resets_under_load_lose_no_ring_for_ever(device: Device) {
    let (mut machine, mut ring) = running(device);
    let features = machine.frontend.features();
    for round in 0..100 {
        fill(device, &mut ring);
        if round % 2 == 0 {
            machine.frontend.tell(Request::ResetDevice, &[]).unwrap();
            machine.frontend.tell(Request::SetFeatures(features), &[]).unwrap();
        } else {
            machine.frontend.tell(Request::SetStatus(0), &[]).unwrap();
        }
        ring = machine.start_queue().unwrap();
    }
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

/// What a front-end does when the driver resets a queue (virtio 1.3 §2.6.1, VIRTIO_F_RING_RESET).
fn a_queue_that_was_reset_comes_back_with_another_size(device: Device) {
    let odd = |packed, split| if device.rings == RingKind::Packed { packed } else { split };
    for engine in ["io-uring", "epoll"] {
        let launch = device.launch().args(["--engine", engine]);
        let mut machine = device.boot_with(launch, &Ram::new(RAM_BYTES), device.wants());
        let mut ring = machine.start_queue().unwrap();
        for size in [64, 8, 256, odd(100, 128), odd(5, 4), odd(1000, 1024), 64] {
            fill(device, &mut ring);
            machine.frontend.stop(device.queue).unwrap();
            assert_quiet(&mut machine.frontend, &ring);
            ring = machine.frontend.start_new(device.queue, size).unwrap();
            for _ in 0..20 {
                machine.assert_serves(&mut ring);
            }
        }
    }
}

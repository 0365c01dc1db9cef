//! Rings: sizes, addresses, features, eventfds, and the order in which they are told.

use tests::guest::format::{Layout, RingKind};
use tests::guest::raw_packed::EVENT_ENABLE;
use tests::guest::ring::Interrupts;

use super::*;

tests::against_every_daemon! {
    both: [
        f07_bad_queue_sizes_are_refused,
        f08_bad_ring_addresses_are_refused,
        f13_messages_in_any_order_start_the_ring,
        f14_features_that_were_not_offered_are_refused,
        f14_features_do_not_change_under_a_running_ring,
        f14_a_running_ring_takes_its_own_addresses_again,
        f19_a_call_descriptor_of_any_kind_is_harmless,
        f20_a_kick_that_is_always_readable_is_harmless,
    ],
}

fn f07_bad_queue_sizes_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    let index = u32::from(device.queue);
    let running = machine.frontend.tell(Request::SetVringNum { index, num: 32 }, &[]);
    assert_refused(running);
    machine.assert_serves(&mut ring);
    machine.frontend.stop(device.queue).unwrap();
    for num in [0, 32_769, 65_536, 65_537, 1 << 31, u32::MAX] {
        assert_refused(machine.frontend.tell(Request::SetVringNum { index, num }, &[]));
    }
    for num in [3, 65, 32_767] {
        let answer = machine.frontend.tell(Request::SetVringNum { index, num }, &[]);
        match device.rings {
            RingKind::Split => assert_refused(answer),
            RingKind::Packed => answer.unwrap(),
        }
    }
    machine.assert_restarts();
    machine.assert_serves_anew();
}

fn f08_bad_ring_addresses_are_refused(device: Device) {
    let mut machine = device.boot();
    let ring = machine.frontend.new_ring(QUEUE_SIZE);
    let index = u32::from(device.queue);
    machine.frontend.tell(Request::SetVringNum { index, num: u32::from(QUEUE_SIZE) }, &[]).unwrap();
    let good = machine.frontend.vring_addr(index, &ring);
    let end = machine.ram().regions()[0].table.user_addr + RAM_BYTES;
    let guest = ring.layout();
    let [desc, avail, used] = Layout::lengths(guest.kind, QUEUE_SIZE);
    let past = |bytes: u64, align: u64| end - bytes.next_multiple_of(align) + align;
    let bad = [
        VringAddr { descriptor: good.descriptor + 8, ..good },
        VringAddr { available: good.available + 1, ..good },
        VringAddr { used: good.used + 2, ..good },
        VringAddr { descriptor: end, ..good },
        VringAddr { descriptor: past(desc, 16), ..good },
        VringAddr { available: past(avail, 4), ..good },
        VringAddr { used: past(used, 4), ..good },
        VringAddr { descriptor: 0, ..good },
        VringAddr { used: u64::MAX - 3, ..good },
        VringAddr { descriptor: u64::MAX - 15, ..good },
        VringAddr { descriptor: guest.desc, available: guest.avail, used: guest.used, ..good },
    ];
    for addr in bad {
        assert_refused(machine.frontend.tell(Request::SetVringAddr(addr), &[]));
    }
    machine.frontend.start(device.queue, &ring, ring.base()).unwrap();
    let mut ring = ring;
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f13_messages_in_any_order_start_the_ring(device: Device) {
    let mut machine = device.boot();
    let (index, queue) = (device.queue, u32::from(device.queue));
    let vring = VringFd { index, has_fd: true };
    for first in 0..7 {
        let wants = Wants { memory: Memory::None, ..device.wants() };
        machine.hang_up();
        let mut frontend = Frontend::session(machine.daemon.socket(), &Ram::new(RAM_BYTES), wants).unwrap();
        let mut ring = frontend.new_ring(QUEUE_SIZE);
        let addr = frontend.vring_addr(queue, &ring);
        ring.add(&device.request());
        ring.publish();
        ring.kick();
        for step in (0..7).map(|n| (n + first) % 7) {
            match step {
                0 => frontend.tell(Request::SetVringKick(vring), &[ring.kick.as_fd()]),
                1 => frontend.set_mem_table(),
                2 => frontend.tell(Request::SetVringNum { index: queue, num: u32::from(QUEUE_SIZE) }, &[]),
                3 => frontend.tell(Request::SetVringAddr(addr), &[]),
                4 => frontend.tell(Request::SetVringCall(vring), &[ring.call.as_fd()]),
                5 => frontend.tell(Request::SetVringErr(vring), &[ring.err.as_fd()]).or(Ok(())),
                _ => frontend.enable(index, true),
            }
            .unwrap();
        }
        let done = ring.wait_used();
        let served = done.as_ref().is_ok_and(|done| device.accepts(done));
        assert!(served, "{done:?} beginning with step {first}");
    }
    machine.assert_serves_anew();
}

fn f14_features_that_were_not_offered_are_refused(device: Device) {
    let mut machine = device.boot();
    let offered = machine.frontend.ask_u64(Request::GetFeatures).unwrap();
    for bit in (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit == 0) {
        assert_refused(machine.frontend.tell(Request::SetFeatures(offered | bit), &[]));
    }
    let protocol = machine.frontend.ask_u64(Request::GetProtocolFeatures).unwrap();
    for bit in (0..64).map(|bit| 1 << bit).filter(|bit| protocol & bit == 0) {
        assert_refused(machine.frontend.tell(Request::SetProtocolFeatures(protocol | bit), &[]));
    }
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
}

fn f14_features_do_not_change_under_a_running_ring(device: Device) {
    let (mut machine, mut ring) = running(device);
    let features = machine.frontend.features();
    assert_refused(machine.frontend.tell(Request::SetFeatures(features & !F_EVENT_IDX), &[]));
    machine.frontend.tell(Request::SetFeatures(features), &[]).unwrap();
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f14_a_running_ring_takes_its_own_addresses_again(device: Device) {
    let (mut machine, mut ring) = running(device);
    let addr = machine.frontend.vring_addr(u32::from(device.queue), &ring);
    for flags in [1, 0] {
        let again = VringAddr { flags, log: RAM_BASE, ..addr };
        machine.frontend.tell(Request::SetVringAddr(again), &[]).unwrap();
        machine.assert_serves(&mut ring);
    }
    let moved = VringAddr { descriptor: addr.descriptor + 16, ..addr };
    assert_refused(machine.frontend.tell(Request::SetVringAddr(moved), &[]));
    machine.assert_serves(&mut ring);
}

fn f19_a_call_descriptor_of_any_kind_is_harmless(device: Device) {
    let (mut machine, mut ring) = running(device);
    ring.set_interrupts(Interrupts::Never);
    let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_le_bytes()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let null = std::fs::File::open("/dev/null").unwrap();
    let vring = VringFd { index: device.queue, has_fd: true };
    for call in [full.as_fd(), writer.as_fd(), null.as_fd()] {
        machine.frontend.tell(Request::SetVringCall(vring), &[call]).unwrap();
        for _ in 0..50 {
            ask_for_interrupt(&ring);
            machine.assert_serves(&mut ring);
        }
    }
    let none = Request::SetVringCall(VringFd { index: device.queue, has_fd: false });
    machine.frontend.tell(none, &[]).unwrap();
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

/// Says so in memory only: the double goes on polling.
fn ask_for_interrupt(ring: &Ring) {
    match ring.shape().kind {
        RingKind::Split => ring.raw().set_used_event(ring.raw().used_idx()),
        RingKind::Packed => ring.raw_packed().set_driver_event(0, EVENT_ENABLE),
    }
}

fn f20_a_kick_that_is_always_readable_is_harmless(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.frontend.new_ring(QUEUE_SIZE);
    machine.frontend.start(device.queue, &ring, ring.base()).unwrap();
    machine.frontend.stop(device.queue).unwrap();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let vring = VringFd { index: device.queue, has_fd: true };
    let answer = machine.frontend.tell(Request::SetVringKick(vring), &[zero.as_fd()]);
    assert!(answer.is_ok() || answer.is_err_and(|e| e.is_refusal()));
    let before = machine.daemon.cpu_ticks();
    let quiet = Event::new();
    let soon = Instant::now() + Duration::from_millis(500);
    assert!(quiet.wait(soon).is_none());
    let spent = machine.daemon.cpu_ticks() - before;
    assert!(spent < 25, "{spent} of 50 ticks were spent on a kick that says nothing");
    machine.frontend.stop(device.queue).unwrap();
    machine.frontend.start(device.queue, &ring, ring.base()).unwrap();
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

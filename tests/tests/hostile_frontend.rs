//! What a front-end may send, and that no daemon suffers (cases F of the threat model).
//!
//! A violation is refused by a non-zero ack where one was asked for, else the connection is closed. Either way
//! nothing of the state changes, every descriptor that came is closed, and the next front-end is served.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use backends::proto::wire::{F_PROTOCOL_FEATURES, Header};
use backends::proto::{Code, MemoryRegion, ProtocolFeatures, Reply, Request, VringAddr, VringFd};
use tests::daemon::Counts;
use tests::event::Event;
use tests::frontend::{F_EVENT_IDX, Frontend, FrontendError, Memory, Wants};
use tests::guest::memory::{Backing, RAM_BASE, Ram, memfd};
use tests::guest::ring::Ring;
use tests::machine::{Device, Machine, QUEUE_SIZE, RAM_BYTES};
use tests::wait;

tests::against_every_daemon! {
    f01_unknown_requests_are_refused,
    f01_unknown_requests_end_a_connection_without_acks,
    f02_payloads_of_a_wrong_length_are_refused,
    f02_a_payload_that_is_too_big_ends_the_connection,
    f02_half_a_message_and_silence_ends_the_connection,
    f02_another_protocol_version_is_refused,
    f03_descriptors_that_do_not_belong_are_closed,
    f04_more_descriptors_than_fit_end_the_connection,
    f05_ten_thousand_messages_leave_no_trace,
    f06_queues_that_do_not_exist_are_refused,
    f07_bad_queue_sizes_are_refused,
    f08_bad_ring_addresses_are_refused,
    f09_bad_memory_tables_are_refused_and_the_old_one_stays,
    f09_bad_regions_are_refused,
    f11_a_new_table_while_the_ring_runs,
    f12_memory_taken_from_under_a_ring_breaks_it,
    f13_messages_in_any_order_start_the_ring,
    f14_features_that_were_not_offered_are_refused,
    f14_features_do_not_change_under_a_running_ring,
    f14_a_running_ring_takes_its_own_addresses_again,
    f15_messages_of_features_not_negotiated_are_refused,
    f16_configuration_outside_its_space_is_refused,
    f19_a_call_descriptor_of_any_kind_is_harmless,
    f20_a_kick_that_is_always_readable_is_harmless,
    f22_a_second_front_end_waits,
    f23_a_connection_may_end_after_any_byte,
    f24_a_front_end_that_never_reads_is_hung_up,
}

/// A guest that has been served once.
fn running(device: Device) -> (Machine, Ring) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    (machine, ring)
}

/// The back-end said no, and goes on.
#[track_caller]
fn assert_refused(answer: Result<(), FrontendError>) {
    assert!(answer.as_ref().is_err_and(FrontendError::is_refusal), "{answer:?}");
}

/// Sends a message of any kind, asks for an ack and wants it to be a refusal.
#[track_caller]
fn assert_raw_refused(machine: &mut Machine, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
    let size = u32::try_from(payload.len()).unwrap();
    let header = Header { request, flags: 0b1001, size };
    machine.frontend.raw_message(header, payload, fds).unwrap();
    let ack = machine.frontend.receive_number(request).unwrap();
    assert_ne!(ack, 0, "request {request} with {} bytes and {} descriptors", payload.len(), fds.len());
}

/// Resources with one served front-end, everything else having been given back.
fn at_rest(machine: &mut Machine) -> Counts {
    machine.assert_serves_anew();
    machine.daemon.counts()
}

/// Nothing was kept since `before`; memory may have grown by what an allocator holds back.
#[track_caller]
fn assert_at_rest(machine: &mut Machine, before: Counts) {
    let after = at_rest(machine);
    assert_eq!((after.fds, after.threads), (before.fds, before.threads), "{before:?} {after:?}");
    assert!(after.maps <= before.maps + 2 && after.rss_kib <= before.rss_kib + 1024, "{before:?} {after:?}");
}

fn f01_unknown_requests_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    for request in [0, 6, 7, 99, 255, 0x8000_0000, u32::MAX] {
        for payload in [&[][..], &[0xff; 8], &[7; 4000]] {
            assert_raw_refused(&mut machine, request, payload, &[]);
        }
    }
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f01_unknown_requests_end_a_connection_without_acks(device: Device) {
    let (mut machine, _ring) = running(device);
    machine.frontend.raw_message(Header { request: 99, flags: 1, size: 4 }, &[1, 2, 3, 4], &[]).unwrap();
    assert!(machine.frontend.hung_up());
    machine.assert_serves_anew();
}

fn f02_payloads_of_a_wrong_length_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    for code in Code::ALL {
        let lengths = code.rule().payload_bytes;
        let wrong = [lengths.start().checked_sub(1), Some(lengths.end() + 1), Some(4096)];
        for len in wrong.into_iter().flatten() {
            assert_raw_refused(&mut machine, code as u32, &vec![0; len], &[]);
        }
    }
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f02_a_payload_that_is_too_big_ends_the_connection(device: Device) {
    for size in [4097, 1 << 20, u32::MAX] {
        let (mut machine, _ring) = running(device);
        machine.frontend.raw_message(Header { request: 5, flags: 0b1001, size }, &[0; 64], &[]).unwrap();
        assert!(machine.frontend.hung_up(), "{size} bytes announced");
        machine.assert_serves_anew();
    }
}

fn f02_half_a_message_and_silence_ends_the_connection(device: Device) {
    let (mut machine, mut ring) = running(device);
    let call = ring.call.again();
    let half = Header::request(Code::SetVringCall, 8, true).to_bytes();
    machine.frontend.raw(&half[..7], &[call.as_fd()]).unwrap();
    machine.assert_serves(&mut ring);
    assert!(machine.frontend.hung_up());
    machine.assert_serves_anew();
}

fn f02_another_protocol_version_is_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    for flags in [0b1000, 0b1010, 0b1011] {
        machine.frontend.raw_message(Header { request: 3, flags, size: 0 }, &[], &[]).unwrap();
        assert_ne!(machine.frontend.receive_number(3).unwrap(), 0);
    }
    machine.assert_serves(&mut ring);
}

fn f03_descriptors_that_do_not_belong_are_closed(device: Device) {
    let (mut machine, _ring) = running(device);
    let before = at_rest(&mut machine);
    let event = Event::new();
    let one = event.as_fd();
    for request in requests() {
        let allowed = request.code().rule().descriptors;
        let fits = |count: &usize| *count == 0 || !allowed.contains(count);
        for count in [0, 1, 2, 9, 30].into_iter().filter(fits) {
            let carries = count > 0 || *allowed.start() > 0 || matches!(request, Request::SetMemTable(_));
            if carries {
                assert_raw_refused(
                    &mut machine,
                    request.code() as u32,
                    &request.payload(),
                    &vec![one; count],
                );
            }
        }
    }
    assert_at_rest(&mut machine, before);
}

/// One well-formed request of each kind.
fn requests() -> Vec<Request> {
    let region = MemoryRegion { guest_addr: 0, size_bytes: 4096, user_addr: 4096, mmap_offset: 0 };
    let addr = VringAddr { index: 0, flags: 0, descriptor: 0, used: 0, available: 0, log: 0 };
    let vring = VringFd { index: 0, has_fd: true };
    let all = vec![
        Request::GetFeatures,
        Request::SetFeatures(0),
        Request::SetOwner,
        Request::ResetOwner,
        Request::SetMemTable(vec![region]),
        Request::SetVringNum { index: 0, num: 16 },
        Request::SetVringAddr(addr),
        Request::SetVringBase { index: 0, base: 0 },
        Request::GetVringBase { index: 0 },
        Request::SetVringKick(vring),
        Request::SetVringCall(vring),
        Request::SetVringErr(vring),
        Request::GetProtocolFeatures,
        Request::SetProtocolFeatures(0),
        Request::GetQueueNum,
        Request::SetVringEnable { index: 0, enable: 0 },
        Request::GetConfig { offset: 0, size: 8 },
        Request::SetConfig { offset: 0, data: vec![0] },
        Request::GetMaxMemSlots,
        Request::AddMemReg(region),
        Request::RemMemReg(region),
    ];
    assert_eq!(all.len(), Code::ALL.len());
    all
}

fn f04_more_descriptors_than_fit_end_the_connection(device: Device) {
    let (mut machine, _ring) = running(device);
    let before = at_rest(&mut machine);
    let event = Event::new();
    for count in [33, 64, 253] {
        let header = Header::request(Code::SetVringCall, 8, true);
        let sent = machine.frontend.raw_message(header, &0_u64.to_le_bytes(), &vec![event.as_fd(); count]);
        sent.unwrap();
        assert!(machine.frontend.hung_up(), "{count} descriptors");
        assert_at_rest(&mut machine, before);
    }
}

fn f05_ten_thousand_messages_leave_no_trace(device: Device) {
    let (mut machine, _ring) = running(device);
    let before = at_rest(&mut machine);
    let queue = device.queue;
    let event = Event::new();
    machine.frontend.stop(queue).unwrap();
    let ring = machine.start_queue().unwrap();
    let vring = VringFd { index: queue, has_fd: true };
    for round in 0..10_000 {
        let frontend = &mut machine.frontend;
        frontend.tell(Request::SetVringCall(vring), &[event.as_fd()]).unwrap();
        frontend.tell(Request::SetVringErr(vring), &[event.as_fd()]).ok();
        if round % 20 == 0 {
            frontend.set_mem_table().unwrap();
            frontend.tell(Request::SetVringKick(vring), &[ring.kick.as_fd()]).unwrap();
        }
    }
    drop(ring);
    assert_at_rest(&mut machine, before);
}

fn f06_queues_that_do_not_exist_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    for index in [u32::from(device.queues), 255, 256, 65_536, u32::MAX] {
        let frontend = &mut machine.frontend;
        let addr = VringAddr { index, ..frontend.vring_addr(0, &ring) };
        assert_refused(frontend.tell(Request::SetVringNum { index, num: 16 }, &[]));
        assert_refused(frontend.tell(Request::SetVringBase { index, base: 0 }, &[]));
        assert_refused(frontend.tell(Request::SetVringAddr(addr), &[]));
        assert_refused(frontend.tell(Request::SetVringEnable { index, enable: 1 }, &[]));
        let payload = u64::from(index).to_le_bytes();
        for code in [Code::SetVringKick, Code::SetVringCall, Code::SetVringErr] {
            assert_raw_refused(&mut machine, code as u32, &payload, &[ring.kick.as_fd()]);
        }
        assert_raw_refused(&mut machine, Code::GetVringBase as u32, &payload, &[]);
    }
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f07_bad_queue_sizes_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    let index = u32::from(device.queue);
    let running = machine.frontend.tell(Request::SetVringNum { index, num: 32 }, &[]);
    assert_refused(running);
    machine.assert_serves(&mut ring);
    machine.frontend.stop(device.queue).unwrap();
    for num in [0, 3, 65, 32_769, 65_536, 65_537, 1 << 31, u32::MAX] {
        assert_refused(machine.frontend.tell(Request::SetVringNum { index, num }, &[]));
    }
    machine.assert_restarts();
    machine.assert_serves_anew();
}

fn f08_bad_ring_addresses_are_refused(device: Device) {
    let mut machine = device.boot();
    let ring = machine.frontend.new_ring(QUEUE_SIZE, 0);
    let index = u32::from(device.queue);
    machine.frontend.tell(Request::SetVringNum { index, num: u32::from(QUEUE_SIZE) }, &[]).unwrap();
    let good = machine.frontend.vring_addr(index, &ring);
    let end = machine.ram().regions()[0].table.user_addr + RAM_BYTES;
    let guest = ring.raw().layout();
    let bad = [
        VringAddr { descriptor: good.descriptor + 8, ..good },
        VringAddr { available: good.available + 1, ..good },
        VringAddr { used: good.used + 2, ..good },
        VringAddr { descriptor: end, ..good },
        VringAddr { descriptor: end - 16 * u64::from(QUEUE_SIZE) + 16, ..good },
        VringAddr { available: end - 4, ..good },
        VringAddr { used: end - 4, ..good },
        VringAddr { descriptor: 0, ..good },
        VringAddr { used: u64::MAX - 3, ..good },
        VringAddr { descriptor: u64::MAX - 15, ..good },
        VringAddr { descriptor: guest.desc, available: guest.avail, used: guest.used, ..good },
    ];
    for addr in bad {
        assert_refused(machine.frontend.tell(Request::SetVringAddr(addr), &[]));
    }
    machine.frontend.start(device.queue, &ring, 0).unwrap();
    let mut ring = ring;
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

/// Tables or regions that must be refused: (what, regions); each with a memfd of [`RAM_BYTES`].
fn bad_tables() -> Vec<(&'static str, Vec<MemoryRegion>)> {
    let good = MemoryRegion { guest_addr: 0, size_bytes: 0x1000, user_addr: 0x10_0000, mmap_offset: 0 };
    let twin = MemoryRegion { user_addr: 0x20_0000, ..good };
    let other = MemoryRegion { guest_addr: 0x10_0000, user_addr: good.user_addr + 0xfff, ..good };
    let with = |change: fn(&mut MemoryRegion)| {
        let mut region = good;
        change(&mut region);
        vec![region]
    };
    vec![
        ("overlap in the guest", vec![good, twin]),
        ("overlap in the front-end", vec![good, other]),
        ("no size", with(|r| r.size_bytes = 0)),
        ("guest addresses wrap", with(|r| r.guest_addr = u64::MAX - 0xffe)),
        ("user addresses wrap", with(|r| r.user_addr = u64::MAX - 0xffe)),
        ("offset and size wrap", with(|r| r.mmap_offset = u64::MAX - 0xfff)),
        ("offset past the end", with(|r| r.mmap_offset = RAM_BYTES)),
        ("size past the end", with(|r| r.size_bytes = RAM_BYTES + 0x1000)),
        ("all there is", with(|r| r.size_bytes = u64::MAX)),
    ]
}

fn f09_bad_memory_tables_are_refused_and_the_old_one_stays(device: Device) {
    let (mut machine, mut ring) = running(device);
    let file = memfd(RAM_BYTES, Backing::Sealed);
    for (what, table) in bad_tables() {
        let fds = vec![file.as_fd(); table.len()];
        let answer = machine.frontend.tell(Request::SetMemTable(table), &fds);
        assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
        machine.assert_serves(&mut ring);
    }
    for (what, fd) in bad_files() {
        let region = machine.ram().regions()[0].table;
        let answer = machine.frontend.tell(Request::SetMemTable(vec![region]), &[fd.as_fd()]);
        assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
        machine.assert_serves(&mut ring);
    }
    let nine = vec![file.as_fd(); 9];
    let payload = [&9_u64.to_le_bytes()[..], &[0; 9 * 32]].concat();
    assert_raw_refused(&mut machine, Code::SetMemTable as u32, &payload, &nine);
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

/// Descriptors that cannot be guest memory.
fn bad_files() -> Vec<(&'static str, std::os::fd::OwnedFd)> {
    let (pipe, _) = std::io::pipe().unwrap();
    let read_only = std::fs::File::open("/proc/self/exe").unwrap();
    let device = std::fs::File::open("/dev/zero").unwrap();
    vec![
        ("a pipe", pipe.into()),
        ("a file opened to be read", read_only.into()),
        ("a device", device.into()),
        ("an empty file", memfd(0, Backing::Unsealed).into()),
    ]
}

fn f09_bad_regions_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    let file = memfd(RAM_BYTES, Backing::Sealed);
    let taken = machine.ram().regions()[0].table;
    assert_refused(machine.frontend.add_region(taken, file.as_fd()));
    for (what, table) in bad_tables() {
        if let [region] = table[..] {
            let answer = machine.frontend.add_region(region, file.as_fd());
            assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
        }
    }
    let elsewhere = MemoryRegion { guest_addr: 0, user_addr: 0x1000, size_bytes: 0x1000, mmap_offset: 0 };
    for (what, fd) in bad_files() {
        let answer = machine.frontend.add_region(elsewhere, fd.as_fd());
        assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
    }
    assert_refused(machine.frontend.remove_region(elsewhere));
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f11_a_new_table_while_the_ring_runs(device: Device) {
    let (mut machine, mut ring) = running(device);
    for _ in 0..50 {
        ring.add(&device.request());
        ring.notify();
        machine.frontend.set_mem_table().unwrap();
        assert!(device.accepts(&ring.wait_used().unwrap()));
        machine.assert_serves(&mut ring);
    }
    machine.assert_serves_anew();
}

fn f12_memory_taken_from_under_a_ring_breaks_it(device: Device) {
    let half = RAM_BYTES / 2;
    for pieces in [&[(RAM_BASE, RAM_BYTES)][..], &[(RAM_BASE, half), (RAM_BASE + RAM_BYTES, half)]] {
        let wants = Wants { memory: Memory::Slots, ..Wants::default() };
        let mut machine = device.boot_with(device.launch(), &Ram::with(pieces, Backing::Sealed), wants);
        let mut ring = machine.start_queue().unwrap();
        machine.assert_serves(&mut ring);
        let ram = machine.ram();
        machine.frontend.remove_region(ram.regions()[0].table).unwrap();
        assert!(ring.wait_broken(), "{} regions", pieces.len());
        ring.add(&device.request());
        ring.publish();
        ring.kick();
        machine.frontend.sync().unwrap();
        assert_eq!(ring.used().unwrap(), None, "a ring without memory was served");
        machine.assert_serves_anew();
    }
}

fn f13_messages_in_any_order_start_the_ring(device: Device) {
    let mut machine = device.boot();
    let (index, queue) = (device.queue, u32::from(device.queue));
    let vring = VringFd { index, has_fd: true };
    for first in 0..7 {
        let wants = Wants { memory: Memory::None, ..Wants::default() };
        machine.hang_up();
        let mut frontend = Frontend::session(machine.daemon.socket(), &Ram::new(RAM_BYTES), wants).unwrap();
        let mut ring = frontend.new_ring(QUEUE_SIZE, 0);
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

fn f15_messages_of_features_not_negotiated_are_refused(device: Device) {
    let wants = Wants { protocol: Some(ProtocolFeatures::REPLY_ACK), ..Wants::default() };
    let mut machine = device.boot_with(device.launch(), &Ram::new(RAM_BYTES), wants);
    let event = Event::new();
    for request in requests() {
        let rule = request.code().rule();
        if !rule.needs.is_empty() {
            let fds = vec![event.as_fd(); *rule.descriptors.start()];
            assert_raw_refused(&mut machine, request.code() as u32, &request.payload(), &fds);
        }
    }
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
}

fn f16_configuration_outside_its_space_is_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    for (offset, size) in [(256, 1), (u32::MAX, 2), (0x8000_0000, 256), (200, 256)] {
        let payload = Request::GetConfig { offset, size }.payload();
        machine
            .frontend
            .raw_message(Header::request(Code::GetConfig, payload.len(), false), &payload, &[])
            .unwrap();
        match machine.frontend.receive(Code::GetConfig) {
            Ok(Reply::Config { data, .. }) => assert!(data.is_empty(), "{offset}+{size}: {data:?}"),
            other => panic!("{offset}+{size}: {other:?}"),
        }
        let bytes = vec![0; usize::try_from(size).unwrap()];
        assert_refused(machine.frontend.set_config(offset, &bytes));
    }
    assert_refused(machine.frontend.set_config(0, &[0xff; 8]));
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f19_a_call_descriptor_of_any_kind_is_harmless(device: Device) {
    let (mut machine, mut ring) = running(device);
    ring.set_interrupts(tests::guest::ring::Interrupts::Never);
    let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_le_bytes()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let null = std::fs::File::open("/dev/null").unwrap();
    let vring = VringFd { index: device.queue, has_fd: true };
    for call in [full.as_fd(), writer.as_fd(), null.as_fd()] {
        machine.frontend.tell(Request::SetVringCall(vring), &[call]).unwrap();
        for _ in 0..50 {
            ring.raw().set_used_event(ring.raw().used_idx());
            machine.assert_serves(&mut ring);
        }
    }
    let none = Request::SetVringCall(VringFd { index: device.queue, has_fd: false });
    machine.frontend.tell(none, &[]).unwrap();
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f20_a_kick_that_is_always_readable_is_harmless(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.frontend.new_ring(QUEUE_SIZE, 0);
    machine.frontend.start(device.queue, &ring, 0).unwrap();
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
    machine.frontend.start(device.queue, &ring, 0).unwrap();
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f22_a_second_front_end_waits(device: Device) {
    let (mut machine, mut ring) = running(device);
    let mut second = Frontend::connect(machine.daemon.socket(), &Ram::new(RAM_BYTES)).unwrap();
    second.send(&Request::GetFeatures, &[], false).unwrap();
    for _ in 0..20 {
        machine.assert_serves(&mut ring);
    }
    assert!(!wait::one_readable(&second, Instant::now()), "two front-ends are served at once");
    machine.hang_up();
    assert!(matches!(second.receive(Code::GetFeatures), Ok(Reply::U64(_))));
    drop(second);
    machine.assert_serves_anew();
}

/// The handshake up to a running ring, cut after each of its bytes.
fn f23_a_connection_may_end_after_any_byte(device: Device) {
    let (mut machine, ring) = running(device);
    let before = at_rest(&mut machine);
    let ram = Ram::new(RAM_BYTES);
    let script = script(device, &ram, &ring);
    let total: usize = script.iter().map(|(bytes, _)| bytes.len()).sum();
    machine.hang_up();
    for cut in 0..total {
        let frontend = Frontend::connect(machine.daemon.socket(), &ram).unwrap();
        let mut left = cut;
        for (bytes, fds) in &script {
            let here = left.min(bytes.len());
            if here == 0 || frontend.raw(&bytes[..here], fds).is_err() {
                break;
            }
            left -= here;
        }
    }
    assert_at_rest(&mut machine, before);
}

/// Messages that start a ring, as bytes and descriptors.
fn script<'a>(device: Device, ram: &'a Ram, ring: &'a Ring) -> Vec<(Vec<u8>, Vec<BorrowedFd<'a>>)> {
    let index = u32::from(device.queue);
    let vring = VringFd { index: device.queue, has_fd: true };
    let region = &ram.regions()[0];
    let message = |request: Request, fds: Vec<BorrowedFd<'a>>| {
        let payload = request.payload();
        let header = Header::request(request.code(), payload.len(), true);
        ([&header.to_bytes()[..], &payload].concat(), fds)
    };
    vec![
        message(Request::GetFeatures, vec![]),
        message(Request::SetProtocolFeatures(ProtocolFeatures::REPLY_ACK.bits()), vec![]),
        message(Request::SetFeatures(F_PROTOCOL_FEATURES), vec![]),
        message(Request::SetMemTable(vec![region.table]), vec![region.fd()]),
        message(Request::SetVringNum { index, num: u32::from(QUEUE_SIZE) }, vec![]),
        message(Request::SetVringCall(vring), vec![ring.call.as_fd()]),
        message(Request::SetVringKick(vring), vec![ring.kick.as_fd()]),
        message(Request::SetVringEnable { index, enable: 1 }, vec![]),
    ]
}

fn f24_a_front_end_that_never_reads_is_hung_up(device: Device) {
    let (mut machine, mut ring) = running(device);
    let ask = Header::request(Code::GetFeatures, 0, false).to_bytes();
    let until = wait::deadline();
    // Answers pile up until the daemon cannot send any more; until then it takes what we send.
    while !wait::closed(&machine.frontend, Instant::now()) {
        assert!(Instant::now() < until, "it still waits for a reader");
        if machine.frontend.raw(&ask, &[]).is_err() {
            machine.assert_serves(&mut ring);
        }
    }
    machine.assert_serves_anew();
}

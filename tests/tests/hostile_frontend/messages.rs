//! Messages: unknown, cut, oversized, mixed up, too many, and from a front-end that is not there to listen.

use std::os::unix::net::UnixStream;

use tests::dirty::DirtyLog;
use tests::frontend::{F_RING_PACKED, F_VERSION_1};
use tests::guest::format::RingKind;

use super::*;

/// What every daemon offers.
const PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::REPLY_ACK
    .union(ProtocolFeatures::MQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::DEVICE_STATE);

tests::against_every_daemon! {
    both: [
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
        f15_messages_of_features_not_negotiated_are_refused,
        f16_configuration_outside_its_space_is_refused,
        f22_a_second_front_end_waits,
        f23_a_connection_may_end_after_any_byte,
        f24_a_front_end_that_never_reads_is_hung_up,
    ],
}

fn f01_unknown_requests_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    for request in [0, 23, 99, 255, 0x8000_0000, u32::MAX] {
        assert!(Code::from_number(request).is_none());
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
    let (channel, _theirs) = UnixStream::pair().unwrap();
    let ram = machine.ram();
    let log = DirtyLog::new(&ram);
    let more = memfd(4096, Backing::Sealed);
    let elsewhere = MemoryRegion { guest_addr: 0, size_bytes: 4096, user_addr: 4096, mmap_offset: 0 };
    let state = Request::SetDeviceStateFd { direction: 0, phase: 0 };
    for round in 0..10_000 {
        let frontend = &mut machine.frontend;
        frontend.tell(Request::SetVringCall(vring), &[event.as_fd()]).unwrap();
        frontend.tell(Request::SetVringErr(vring), &[event.as_fd()]).ok();
        frontend.tell(Request::SetBackendReqFd, &[channel.as_fd()]).unwrap();
        frontend.tell(Request::SetLogFd, &[event.as_fd()]).unwrap();
        // Refused, since a ring runs.
        frontend.send(&state, &[event.as_fd()], false).unwrap();
        assert_ne!(frontend.receive_number(Code::SetDeviceStateFd as u32).unwrap() & 0xff, 0);
        if round % 20 == 0 {
            frontend.set_mem_table().unwrap();
            frontend.tell(Request::SetVringKick(vring), &[ring.kick.as_fd()]).unwrap();
            frontend.set_log(&log).unwrap();
            frontend.add_region(elsewhere, more.as_fd()).unwrap();
            frontend.remove_region(elsewhere).unwrap();
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

fn f15_messages_of_features_not_negotiated_are_refused(device: Device) {
    let wants = Wants { protocol: Some(ProtocolFeatures::REPLY_ACK), ..device.wants() };
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

/// A session in which most kinds of message come, cut after each of its bytes.
fn f23_a_connection_may_end_after_any_byte(device: Device) {
    let (mut machine, ring) = running(device);
    let before = at_rest(&mut machine);
    let ram = Ram::new(RAM_BYTES);
    let log = DirtyLog::new(&ram);
    let (channel, _theirs) = UnixStream::pair().unwrap();
    let script = script(device, &ram, &ring, [log.as_fd(), channel.as_fd()]);
    machine.hang_up();
    assert_holds(Frontend::connect(machine.daemon.socket(), &ram).unwrap(), &script);
    let script: Vec<_> = script.into_iter().map(|(request, fds)| (bytes_of(&request), fds)).collect();
    let total: usize = script.iter().map(|(bytes, _)| bytes.len()).sum();
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

fn f24_a_front_end_that_never_reads_is_hung_up(device: Device) {
    let (mut machine, mut ring) = running(device);
    let ask = Header::request(Code::GetFeatures, 0, false).to_bytes();
    while machine.frontend.raw(&ask, &[]).is_ok() {}
    machine.assert_serves(&mut ring);
    // Answers pile up until the daemon cannot send any more; until then it takes what we send.
    let (until, pause) = (wait::deadline(), Duration::from_millis(50));
    while !wait::closed(&machine.frontend, Instant::now() + pause) {
        assert!(Instant::now() < until, "it still waits for a reader");
        while machine.frontend.raw(&ask, &[]).is_ok() {}
    }
    machine.assert_serves_anew();
}

fn bytes_of(request: &Request) -> Vec<u8> {
    let payload = request.payload();
    let header = Header::request(request.code(), payload.len(), true);
    [&header.to_bytes()[..], &payload].concat()
}

/// Nothing in the script is refused but the write to the configuration space, where nothing is writable.
#[track_caller]
fn assert_holds(mut frontend: Frontend, script: &[(Request, Vec<BorrowedFd<'_>>)]) {
    for (request, fds) in script {
        frontend.send(request, fds, true).unwrap();
        // Before it there are no acks, and its own is the first.
        if matches!(request, Request::SetProtocolFeatures(_)) {
            continue;
        }
        let reply = frontend.receive(request.code()).unwrap();
        if !request.code().rule().answered {
            let refused = matches!(request, Request::SetConfig { .. });
            assert_eq!(reply, Reply::U64(u64::from(refused)), "{request:?}");
        }
    }
}

/// Messages that start a ring and stop it, with their descriptors; most kinds there are.
fn script<'a>(
    device: Device,
    ram: &'a Ram,
    ring: &'a Ring,
    [log, channel]: [BorrowedFd<'a>; 2],
) -> Vec<(Request, Vec<BorrowedFd<'a>>)> {
    let index = u32::from(device.queue);
    let vring = VringFd { index: device.queue, has_fd: true };
    let region = &ram.regions()[0];
    let layout = ring.layout();
    // As the ring lies in another guest's RAM of the same shape.
    let [descriptor, available, used] = [layout.desc, layout.avail, layout.used].map(|at| ram.user_addr(at));
    let addr = VringAddr { index, flags: 0, descriptor, available, used, log: 0 };
    let packed = if device.rings == RingKind::Packed { F_RING_PACKED } else { 0 };
    let features = F_PROTOCOL_FEATURES | F_VERSION_1 | packed;
    vec![
        (Request::GetFeatures, vec![]),
        (Request::GetProtocolFeatures, vec![]),
        (Request::SetProtocolFeatures(PROTOCOL_FEATURES.bits()), vec![]),
        (Request::GetQueueNum, vec![]),
        (Request::SetOwner, vec![]),
        (Request::SetFeatures(features), vec![]),
        (Request::SetBackendReqFd, vec![channel]),
        (Request::GetConfig { offset: 0, size: 8 }, vec![]),
        (Request::SetConfig { offset: 0, data: vec![0; 8].into() }, vec![]),
        (Request::GetMaxMemSlots, vec![]),
        (Request::AddMemReg(region.table), vec![region.fd()]),
        (Request::RemMemReg(region.table), vec![]),
        (Request::SetMemTable(vec![region.table]), vec![region.fd()]),
        (Request::SetLogBase { size_bytes: 4096, mmap_offset: 0 }, vec![log]),
        (Request::SetLogFd, vec![ring.err.as_fd()]),
        (Request::SetStatus(15), vec![]),
        (Request::GetStatus, vec![]),
        (Request::SetVringNum { index, num: u32::from(QUEUE_SIZE) }, vec![]),
        (Request::SetVringBase { index, base: ring.shape().first_base() }, vec![]),
        (Request::SetVringAddr(addr), vec![]),
        (Request::SetVringErr(vring), vec![ring.err.as_fd()]),
        (Request::SetVringCall(vring), vec![ring.call.as_fd()]),
        (Request::SetVringKick(vring), vec![ring.kick.as_fd()]),
        (Request::SetVringEnable { index, enable: 1 }, vec![]),
        (Request::GetVringBase { index }, vec![]),
        (Request::SetDeviceStateFd { direction: 0, phase: 0 }, vec![ring.err.as_fd()]),
        (Request::CheckDeviceState, vec![]),
        (Request::ResetDevice, vec![]),
        (Request::ResetOwner, vec![]),
    ]
}

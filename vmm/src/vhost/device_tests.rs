#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use backends::proto::{Code, ProtocolFeatures, Reply, Request};

use super::*;
use crate::kvm::irq::IrqRouter;
use crate::pci::common::F_VERSION_1;
use crate::pci::testing::test_vm;
use crate::vhost::testing::{Daemon, Fake, PATIENCE, Twist};
use crate::vhost::{DeviceSpec, connect};

const STATUS: u64 = 0x14;
const RUNNING: u8 = 0x0f;
const NEEDS_RESET: u8 = 0x40;

struct Rig {
    device: Arc<VhostPciDevice>,
    daemon: Daemon,
    ram: Arc<GuestRam>,
}

fn rig(fake: Fake, script: impl FnMut(&Request) -> Twist + Send + 'static) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let accepted = std::thread::spawn(move || Daemon::serve(listener.accept().unwrap().0, fake, script));
    let spec: DeviceSpec = format!("blk,socket={}", path.display()).parse().unwrap();
    let (vm, ram) = (test_vm(), Arc::new(GuestRam::new(2 << 20).unwrap()));
    let irq = Arc::new(IrqRouter::new(Arc::clone(&vm)));
    let device = connect(&spec, &ram, &vm, &irq).unwrap();
    device.place(0xc000_8000);
    let daemon = accepted.join().unwrap();
    daemon.requests();
    Rig { device, daemon, ram }
}

/// A daemon that is regular until the switch is thrown, and then does `twist` to requests of `code`.
fn switched(
    code: Code,
    twist: impl Fn() -> Twist + Send + 'static,
) -> (Arc<AtomicBool>, impl FnMut(&Request) -> Twist + Send) {
    let switch = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&switch);
    (
        switch,
        move |request: &Request| {
            if seen.load(Ordering::Relaxed) && request.code() == code { twist() } else { Twist::Regular }
        },
    )
}

impl Rig {
    fn status(&self) -> u8 {
        let mut data = [0];
        self.device.bar_read(STATUS, &mut data);
        data[0]
    }

    /// What a driver does up to DRIVER_OK, with two rings of 64 entries at `at` and `at` + 16 KiB.
    fn start_at(&self, at: u64) {
        self.start_queues(2, at);
    }

    fn start_queues(&self, queues: u16, at: u64) {
        self.device.bar_write(0x08, &1u32.to_le_bytes());
        self.device.bar_write(0x0c, &1u32.to_le_bytes());
        self.device.bar_write(STATUS, &[0x0b]);
        for queue in 0..queues {
            let at = at + u64::from(queue) * 0x4000;
            self.device.bar_write(0x16, &queue.to_le_bytes());
            self.device.bar_write(0x18, &64u16.to_le_bytes());
            self.device.bar_write(0x1a, &(queue + 1).to_le_bytes());
            self.device.bar_write(0x20, &at.to_le_bytes());
            self.device.bar_write(0x28, &(at + 0x1000).to_le_bytes());
            self.device.bar_write(0x30, &(at + 0x2000).to_le_bytes());
            self.device.bar_write(0x1c, &1u16.to_le_bytes());
        }
        self.device.bar_write(STATUS, &[RUNNING]);
    }

    fn set_drain_deadline(&self, time: Duration) {
        let set = |backend: &mut VhostBackend| {
            backend.drain = time;
            Ok(())
        };
        self.device.function.try_with_backend(set).unwrap().unwrap();
    }

    fn start(&self) -> u8 {
        self.start_at(0x10_0000);
        self.status()
    }

    fn reset(&self) {
        self.device.bar_write(STATUS, &[0]);
    }
}

#[test]
fn driver_ok_hands_memory_and_rings_to_the_daemon() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    assert_eq!(rig.start(), RUNNING);
    let heard: Vec<_> = rig.daemon.heard.try_iter().collect();
    let requests: Vec<_> = heard.iter().map(|(request, _)| request.clone()).collect();
    let vring = |index| VringFdOf { index };
    assert_eq!(requests[0], Request::SetFeatures(F_VERSION_1 | 1 << 30));
    let Request::SetMemTable(table) = &requests[1] else { panic!("{requests:?}") };
    assert_eq!(table, &regions(&rig.ram));
    assert_eq!((table[0].guest_addr, table[0].size_bytes, table[0].mmap_offset), (0, 2 << 20, 0));
    for index in 0..2u32 {
        let at = USER_BASE + 0x10_0000 + u64::from(index) * 0x4000;
        let of_ring = &requests[2 + index as usize * 7..][..7];
        assert_eq!(of_ring[0], Request::SetVringNum { index, num: 64 });
        assert_eq!(of_ring[1], Request::SetVringBase { index, base: 0 });
        let Request::SetVringAddr(addr) = &of_ring[2] else { panic!("{of_ring:?}") };
        assert_eq!((addr.descriptor, addr.available, addr.used), (at, at + 0x1000, at + 0x2000));
        assert_eq!(of_ring[3], vring(index).call());
        assert_eq!(of_ring[4], Request::SetVringErr(vring(index).fd()));
        assert_eq!(of_ring[5], vring(index).kick());
        assert_eq!(of_ring[6], Request::SetVringEnable { index, enable: 1 });
    }
    assert_eq!(requests.len(), 16);
    rig.reset();
    let stops = rig.daemon.requests();
    assert_eq!(stops, [Request::GetVringBase { index: 0 }, Request::GetVringBase { index: 1 }]);
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.start(), RUNNING, "and again");
}

struct VringFdOf {
    index: u32,
}

impl VringFdOf {
    fn fd(&self) -> backends::proto::VringFd {
        backends::proto::VringFd { index: u8::try_from(self.index).unwrap(), has_fd: true }
    }
    fn call(&self) -> Request {
        Request::SetVringCall(self.fd())
    }
    fn kick(&self) -> Request {
        Request::SetVringKick(self.fd())
    }
}

#[test]
fn the_descriptors_are_memory_kick_and_call() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    rig.start();
    let mut heard: Vec<_> = rig.daemon.heard.try_iter().collect();
    let mut take = |want: fn(&Request) -> bool| {
        let at = heard.iter().position(|(request, _)| want(request)).unwrap();
        heard[at].1.remove(0)
    };
    let memory = take(|request| matches!(request, Request::SetMemTable(_)));
    rustix::io::pwrite(&memory, b"from the daemon", 0x3000).unwrap();
    let mut seen = [0; 15];
    vm_memory::Bytes::read_slice(rig.ram.memory(), &mut seen, vm_memory::GuestAddress(0x3000)).unwrap();
    assert_eq!(&seen, b"from the daemon");

    let kick = take(|request| matches!(request, Request::SetVringKick(v) if v.index == 1));
    rig.device.bar_write(0x3000 + 4, &1u16.to_le_bytes());
    let mut counter = [0; 8];
    rustix::io::read(&kick, &mut counter).unwrap();
    assert_eq!(u64::from_le_bytes(counter), 1);

    let call = take(|request| matches!(request, Request::SetVringCall(v) if v.index == 1));
    rustix::io::write(&call, &1u64.to_le_bytes()).unwrap();
    let mut pending = [0];
    rig.device.bar_read(0x6000, &mut pending);
    assert_eq!(pending, [0b100], "MSI-X is off, so vector 2 of queue 1 is pending");
}

#[test]
fn rings_outside_memory_cost_the_driver_its_session_only() {
    for at in [0x1f_f000, 0x20_0000, 0xc000_0000, u64::MAX - 0x8000, 0x10_0008] {
        let rig = rig(Fake::blk(), |_| Twist::Regular);
        rig.start_at(at);
        assert_eq!(rig.status(), RUNNING | NEEDS_RESET, "{at:#x}");
        assert_eq!(rig.daemon.requests(), [], "the daemon hears nothing of it");
        rig.reset();
        assert_eq!(rig.start(), RUNNING);
    }
}

#[test]
fn a_ring_is_found_only_where_all_of_it_is_memory() {
    let ram = GuestRam::new((3 << 30) + (1 << 20)).unwrap();
    let (low_end, high, end) = (3u64 << 30, 4u64 << 30, (4u64 << 30) + (1 << 20));
    let cases = [
        (0, 1024, true),
        (low_end - 1024, 1024, true),
        (low_end - 1024, 1040, false),
        (low_end, 16, false),
        (high - 16, 32, false),
        (high, 1024, true),
        (end - 16, 16, true),
        (end - 16, 17, false),
        (end, 16, false),
        (u64::MAX - 15, 16, false),
        (0x1008, 16, false),
    ];
    for (at, bytes, found) in cases {
        let want = found.then_some(USER_BASE.wrapping_add(at));
        assert_eq!(user_address(&ram, at, bytes, 16), want, "{at:#x}+{bytes}");
    }
    let queue = Queue { size: 256, enabled: true, descriptors: 0, driver: 0x2000, device: low_end - 2054 };
    assert!(locate(&ram, &Queue { device: low_end - 2056, ..queue }, false).is_some());
    assert!(locate(&ram, &Queue { device: low_end - 2052, ..queue }, false).is_none(), "6 + 8 * 256 bytes");
    assert!(locate(&ram, &Queue { device: low_end - 4, ..queue }, true).is_some(), "packed: 4 bytes");
    assert!(locate(&ram, &Queue { device: 0x3002, ..queue }, false).is_none(), "aligned to 4");
    assert!(
        locate(&ram, &Queue { driver: 0x2001, device: 0x3000, ..queue }, false).is_none(),
        "aligned to 2"
    );
    assert!(
        locate(&ram, &Queue { descriptors: 8, device: 0x3000, ..queue }, false).is_none(),
        "aligned to 16"
    );
}

#[test]
fn packed_rings_begin_with_their_wrap_counters_set() {
    let fake = Fake { features: Fake::blk().features | F_RING_PACKED, ..Fake::blk() };
    let rig = rig(fake, |_| Twist::Regular);
    rig.device.bar_write(0x08, &1u32.to_le_bytes());
    rig.device.bar_write(0x0c, &0b101u32.to_le_bytes());
    rig.device.bar_write(STATUS, &[0x0b]);
    rig.device.bar_write(0x18, &100u16.to_le_bytes());
    for (register, at) in [(0x20, 0x1000u64), (0x28, 0x2000), (0x30, 0x2004)] {
        rig.device.bar_write(register, &at.to_le_bytes());
    }
    rig.device.bar_write(0x1c, &1u16.to_le_bytes());
    rig.device.bar_write(STATUS, &[RUNNING]);
    assert_eq!(rig.status(), RUNNING);
    let requests = rig.daemon.requests();
    assert!(requests.contains(&Request::SetVringBase { index: 0, base: 0x8000_8000 }), "{requests:?}");
    assert!(requests.contains(&Request::SetVringNum { index: 0, num: 100 }));
}

#[test]
fn a_daemon_that_refuses_a_ring_can_be_asked_again() {
    let (switch, script) = switched(Code::SetVringNum, || Twist::Reply(Code::SetVringNum, Reply::U64(1)));
    let rig = rig(Fake::blk(), script);
    switch.store(true, Ordering::Relaxed);
    assert_eq!(rig.start(), RUNNING | NEEDS_RESET);
    switch.store(false, Ordering::Relaxed);
    rig.reset();
    assert_eq!(rig.start(), RUNNING);
}

#[test]
fn a_daemon_that_goes_mute_or_mad_fails_in_time_and_for_good() {
    let twists: [fn() -> Twist; 4] = [
        || Twist::Mute,
        || Twist::HangUp,
        || Twist::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        || Twist::Reply(Code::GetFeatures, Reply::U64(0)),
    ];
    for code in [Code::SetMemTable, Code::SetVringKick, Code::GetVringBase] {
        for twist in twists {
            let (switch, script) = switched(code, twist);
            let rig = rig(Fake::blk(), script);
            switch.store(true, Ordering::Relaxed);
            rig.set_drain_deadline(RUN_DEADLINE);
            let start = Instant::now();
            let status = rig.start();
            rig.reset();
            assert!(start.elapsed() < RUN_DEADLINE * 5, "{code:?}");
            let at_start = code != Code::GetVringBase;
            assert_eq!(status, if at_start { RUNNING | NEEDS_RESET } else { RUNNING }, "{code:?}");
            assert_eq!(rig.status(), 0, "a driver's reset always ends");
            let start = Instant::now();
            assert_eq!(rig.start(), 0x07 & rig.status(), "no driver any more");
            rig.device.bar_write(0x2000, &[1]);
            rig.device.reset();
            assert!(start.elapsed() < RUN_DEADLINE, "a failed daemon is not waited for again");
            // The connection is shut down, so the daemon's side ends.
            rig.daemon.join();
        }
    }
}

#[test]
fn a_daemon_has_more_time_for_more_queues() {
    let slow = |request: &Request| {
        if request.code() == Code::SetVringKick {
            std::thread::sleep(RUN_DEADLINE / 5);
        }
        Twist::Regular
    };
    let rig = rig(Fake { queues: 8, ..Fake::blk() }, slow);
    let start = Instant::now();
    rig.start_queues(8, 0x10_0000);
    assert!(start.elapsed() > RUN_DEADLINE, "more than there is for one");
    assert_eq!(rig.status(), RUNNING);
}

#[test]
fn a_daemon_has_time_to_drain() {
    let slow = |request: &Request| {
        if request.code() == Code::GetVringBase {
            std::thread::sleep(RUN_DEADLINE + RUN_DEADLINE / 5);
        }
        Twist::Regular
    };
    let rig = rig(Fake::blk(), slow);
    assert_eq!(rig.start(), RUNNING);
    rig.reset();
    assert_eq!(rig.start(), RUNNING, "the device lives on");
}

#[test]
fn the_end_of_the_daemon_is_told_to_the_driver() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let accepted = std::thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        let kill = stream.try_clone().unwrap();
        (kill, Daemon::serve(stream, Fake::blk(), |_| Twist::Regular))
    });
    let spec: DeviceSpec = format!("blk,socket={}", path.display()).parse().unwrap();
    let (vm, ram) = (test_vm(), Arc::new(GuestRam::new(2 << 20).unwrap()));
    let irq = Arc::new(IrqRouter::new(Arc::clone(&vm)));
    let device = connect(&spec, &ram, &vm, &irq).unwrap();
    let (kill, daemon): (UnixStream, Daemon) = accepted.join().unwrap();
    let rig = Rig { device, daemon, ram };
    assert_eq!(rig.start(), RUNNING);
    rig.device.attend();
    assert_eq!(rig.status(), RUNNING, "nothing happened");
    kill.shutdown(std::net::Shutdown::Both).unwrap();
    wait_readable(rig.device.connection_fd());
    rig.device.attend();
    rig.device.attend();
    assert_eq!(rig.status(), RUNNING | NEEDS_RESET);
    let mut isr = [0];
    rig.device.bar_read(0x1000, &mut isr);
    assert_eq!(isr, [2], "configuration change");
}

/// Starts a driver; what the daemon got to tell of errors in its second queue.
fn start_with_error(rig: &Rig) -> OwnedFd {
    assert_eq!(rig.start(), RUNNING);
    let is_error = |request: &Request| matches!(request, Request::SetVringErr(vring) if vring.index == 1);
    let (_, mut fds) = rig.daemon.heard.try_iter().find(|(request, _)| is_error(request)).unwrap();
    fds.remove(0)
}

fn raise(event: &OwnedFd) {
    rustix::io::write(event, &1u64.to_le_bytes()).unwrap();
}

#[test]
fn a_broken_ring_is_told_to_the_driver_who_may_try_again() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    let error = start_with_error(&rig);
    raise(&error);
    rig.device.attend();
    assert_eq!(rig.status(), RUNNING | NEEDS_RESET);
    let mut isr = [0];
    rig.device.bar_read(0x1000, &mut isr);
    assert_eq!(isr, [2], "configuration change");
    rig.reset();
    assert_eq!(rig.start(), RUNNING);
}

#[test]
fn a_broken_ring_is_no_fault_of_the_next_driver() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    let error = start_with_error(&rig);
    raise(&error);
    rig.reset();
    rig.device.attend();
    assert_eq!(rig.start(), RUNNING);
    rig.device.attend();
    assert_eq!(rig.status(), RUNNING);
}

#[test]
fn a_daemon_that_takes_no_error_eventfd_serves_all_the_same() {
    let refuse = |request: &Request| match request.code() {
        Code::SetVringErr => Twist::Reply(Code::SetVringErr, Reply::U64(1)),
        _ => Twist::Regular,
    };
    assert_eq!(rig(Fake::blk(), refuse).start(), RUNNING);
}

#[test]
fn the_main_loop_does_not_wait_for_a_vcpu_that_waits_for_the_daemon() {
    let (drains, draining) = std::sync::mpsc::channel();
    let (drained, drain) = std::sync::mpsc::channel();
    let script = move |request: &Request| {
        if request.code() == Code::GetVringBase {
            drains.send(()).unwrap();
            drain.recv_timeout(PATIENCE).unwrap();
        }
        Twist::Regular
    };
    let rig = rig(Fake::blk(), script);
    let error = start_with_error(&rig);
    std::thread::scope(|scope| {
        let device = &rig.device;
        scope.spawn(|| device.bar_write(STATUS, &[0]));
        draining.recv_timeout(PATIENCE).unwrap();
        raise(&error);
        rig.device.attend();
        assert!(!rig.device.function.free().is_raised());
        // Had the call above waited, this would come too late.
        drained.send(()).unwrap();
        draining.recv_timeout(PATIENCE).unwrap();
        drained.send(()).unwrap();
    });
    wait_readable(rig.device.function.free().as_fd());
    rig.device.attend();
    assert_eq!(rig.start(), RUNNING);
}

fn wait_readable(fd: BorrowedFd<'_>) {
    let timeout = rustix::event::Timespec::try_from(PATIENCE).unwrap();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1));
}

#[test]
fn a_write_to_configuration_space_goes_to_the_daemon_and_into_the_copy() {
    let (switch, script) = switched(Code::SetConfig, || Twist::Reply(Code::SetConfig, Reply::U64(1)));
    let rig = rig(Fake::blk(), script);
    let read = |at: u64| {
        let mut data = [0];
        rig.device.bar_read(0x2000 + at, &mut data);
        data[0]
    };
    rig.device.bar_write(0x2000 + 32, &[0xee]);
    assert_eq!(rig.daemon.requests(), [Request::SetConfig { offset: 32, data: vec![0xee] }]);
    assert_eq!(read(32), 0xee);
    switch.store(true, Ordering::Relaxed);
    rig.device.bar_write(0x2000 + 32, &[0x11]);
    assert_eq!(read(32), 0xee, "refused");
    rig.daemon.requests();
    rig.device.bar_write(0x2000 + 59, &[1, 2]);
    rig.device.bar_write(0x2000 + 4000, &[1]);
    rig.device.bar_write(0x2000, &[]);
    assert_eq!(rig.daemon.requests(), [], "beyond the end");
}

#[test]
fn without_acks_and_protocol_features_a_device_starts_and_stops() {
    let fakes = [
        Fake { protocol: ProtocolFeatures::CONFIG | ProtocolFeatures::MQ, ..Fake::blk() },
        Fake { protocol: ProtocolFeatures::CONFIG, queues: 9, ..Fake::blk() },
    ];
    for fake in fakes {
        let rig = rig(fake, |_| Twist::Regular);
        assert_eq!(rig.start(), RUNNING);
        rig.reset();
        assert_eq!(rig.start(), RUNNING);
        let fences = rig.daemon.requests().iter().filter(|r| r.code() == Code::GetFeatures).count();
        assert_eq!(fences, 2);
    }
}

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backends::proto::{Code, Inflight, ProtocolFeatures, Reply, Request, VringFd};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::kvm::irq::IrqRouter;
use crate::pci::common::F_VERSION_1;
use crate::pci::testing::test_vm;
use crate::vhost::address::{USER_BASE, regions};
use crate::vhost::link::{DEADLINES, Deadlines};
use crate::vhost::testing::{Daemon, Fake, INFLIGHT_BYTES, PATIENCE, Twist, memfd, start};
use crate::vhost::{DeviceSpec, connect_within};

const STATUS: u64 = 0x14;
const RUNNING: u8 = 0x0f;
const NEEDS_RESET: u8 = 0x40;
/// Where the first ring is; the second 16 KiB above it.
const RINGS: u64 = 0x10_0000;
/// For tests of what is mute.
const IMPATIENT: Deadlines = Deadlines { run: Duration::from_secs(1), drain: Duration::from_secs(1) };
/// A vCPU that waited for a daemon to be given up would have waited for longer.
const MOMENT: Duration = Duration::from_millis(900);

struct Rig {
    device: Arc<VhostPciDevice>,
    daemon: Daemon,
    /// The first daemon's connection.
    stream: UnixStream,
    listener: UnixListener,
    ram: Arc<GuestRam>,
    _dir: tempfile::TempDir,
}

fn rig(fake: Fake, script: impl FnMut(&Request) -> Twist + Send + 'static) -> Rig {
    rig_within(fake, DEADLINES, script)
}

/// With daemons that have this long for their answers.
fn rig_within(
    fake: Fake,
    deadlines: Deadlines,
    script: impl FnMut(&Request) -> Twist + Send + 'static,
) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (spec, ram): (DeviceSpec, _) = (
        format!("blk,socket={}", path.display()).parse().unwrap(),
        Arc::new(GuestRam::new(2 << 20).unwrap()),
    );
    let (device, (daemon, stream)) = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| accept(&listener, fake, script));
        let vm = test_vm();
        let irq = Arc::new(IrqRouter::new(Arc::clone(&vm)));
        let device = connect_within(&spec, &ram, &vm, &irq, deadlines).and_then(start);
        (device.unwrap(), accepted.join().unwrap())
    });
    device.place(0xc000_8000);
    daemon.requests();
    Rig { device, daemon, stream, listener, ram, _dir: dir }
}

fn accept(
    listener: &UnixListener,
    fake: Fake,
    script: impl FnMut(&Request) -> Twist + Send + 'static,
) -> (Daemon, UnixStream) {
    wait_readable(listener);
    let stream = listener.accept().unwrap().0;
    (Daemon::serve(stream.try_clone().unwrap(), fake, script), stream)
}

fn wait_readable(fd: &impl AsFd) {
    let timeout = rustix::event::Timespec::try_from(PATIENCE).unwrap();
    let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1));
}

/// Waits until that is so.
#[track_caller]
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A daemon that is regular until the switch is thrown, and then does `twist` to requests of `code`.
fn switched(
    code: Code,
    twist: impl Fn() -> Twist + Send + 'static,
) -> (Arc<AtomicBool>, impl FnMut(&Request) -> Twist + Send) {
    let switch = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&switch);
    let script = move |request: &Request| {
        if seen.load(Ordering::Relaxed) && request.code() == code { twist() } else { Twist::Regular }
    };
    (switch, script)
}

impl Rig {
    fn status(&self) -> u8 {
        let mut data = [0];
        self.device.bar_read(STATUS, &mut data);
        data[0]
    }

    /// What a driver does up to DRIVER_OK, with two rings of 64 entries.
    fn start_at(&self, at: u64) {
        self.start_queues(2, at, F_VERSION_1);
    }

    fn start_queues(&self, queues: u16, at: u64, features: u64) {
        self.device.bar_write(0x08, &1u32.to_le_bytes());
        self.device.bar_write(0x0c, &u32::try_from(features >> 32).unwrap().to_le_bytes());
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

    /// Starts a driver and waits until the daemon has heard of it.
    fn start(&self) {
        self.start_at(RINGS);
        self.settle(RUNNING);
    }

    /// Waits until the daemon agrees, and the driver reads this status.
    #[track_caller]
    fn settle(&self, status: u8) {
        eventually("the daemon agrees", || self.device.agreement.is_at_rest());
        eventually(&format!("status {status:#x}"), || self.status() == status);
    }

    fn reset(&self) {
        self.device.bar_write(STATUS, &[0]);
        eventually("status 0", || self.status() == 0);
    }

    fn set_index(&self, area: u64, index: u16) {
        self.ram.memory().write_obj(index, GuestAddress(area + 2)).unwrap();
    }

    fn events(&self, queue: u16) -> (Arc<crate::kvm::event::Event>, Arc<crate::kvm::event::Event>) {
        let (wish, _) = self.device.agreement.wish().unwrap();
        let ring = &wish.queues[&queue].ring;
        (Arc::clone(&ring.kick), Arc::clone(&ring.call))
    }

    /// Ends the first daemon's connection and takes the next one.
    fn replace(
        &self,
        fake: Fake,
        script: impl FnMut(&Request) -> Twist + Send + 'static,
    ) -> (Daemon, UnixStream) {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        accept(&self.listener, fake, script)
    }

    fn wait_returned(&self, times: u64) {
        eventually("the daemon is back", || {
            let link = self.device.link();
            link.connected && link.returns == times && self.device.agreement.is_at_rest()
        });
    }
}

fn vring(index: u32) -> VringFd {
    VringFd { index: u8::try_from(index).unwrap(), has_fd: true }
}

fn bases(requests: &[Request]) -> Vec<u32> {
    let base = |request: &Request| match request {
        Request::SetVringBase { base, .. } => Some(*base),
        _ => None,
    };
    requests.iter().filter_map(base).collect()
}

#[test]
fn driver_ok_hands_memory_and_rings_to_the_daemon() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    rig.start();
    let heard: Vec<_> = rig.daemon.heard.try_iter().collect();
    let requests: Vec<_> = heard.iter().map(|(request, _)| request.clone()).collect();
    assert_eq!(requests[0], Request::SetFeatures(F_VERSION_1 | 1 << 30));
    let Request::SetMemTable(table) = &requests[1] else { panic!("{requests:?}") };
    assert_eq!(table, &regions(&rig.ram));
    assert_eq!((table[0].guest_addr, table[0].size_bytes, table[0].mmap_offset), (0, 2 << 20, 0));
    for index in 0..2u32 {
        let at = USER_BASE + RINGS + u64::from(index) * 0x4000;
        let of_ring = &requests[2 + index as usize * 7..][..7];
        assert_eq!(of_ring[0], Request::SetVringNum { index, num: 64 });
        assert_eq!(of_ring[1], Request::SetVringBase { index, base: 0 });
        let Request::SetVringAddr(addr) = &of_ring[2] else { panic!("{of_ring:?}") };
        assert_eq!((addr.descriptor, addr.available, addr.used), (at, at + 0x1000, at + 0x2000));
        assert_eq!(of_ring[3], Request::SetVringCall(vring(index)));
        assert_eq!(of_ring[4], Request::SetVringErr(vring(index)));
        assert_eq!(of_ring[5], Request::SetVringKick(vring(index)));
        assert_eq!(of_ring[6], Request::SetVringEnable { index, enable: 1 });
    }
    assert_eq!(requests.len(), 16);
    rig.reset();
    let stops = rig.daemon.requests();
    assert_eq!(stops, [Request::GetVringBase { index: 0 }, Request::GetVringBase { index: 1 }]);
    rig.start();
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
    rig.ram.memory().read_slice(&mut seen, GuestAddress(0x3000)).unwrap();
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
        rig.start();
    }
}

const F_PACKED: u64 = F_RING_PACKED;

fn packed() -> Fake {
    Fake { features: Fake::blk().features | F_PACKED, ..Fake::blk() }
}

#[test]
fn packed_rings_begin_with_their_wrap_counters_set() {
    let rig = rig(packed(), |_| Twist::Regular);
    rig.start_queues(2, RINGS, F_VERSION_1 | F_PACKED);
    rig.settle(RUNNING);
    assert_eq!(bases(&rig.daemon.requests()), [0x8000_8000; 2]);
}

#[test]
fn a_daemon_that_refuses_a_ring_can_be_asked_again() {
    let (switch, script) = switched(Code::SetVringNum, || Twist::Reply(Code::SetVringNum, Reply::U64(1)));
    let rig = rig(Fake::blk(), script);
    switch.store(true, Ordering::Relaxed);
    rig.start_at(RINGS);
    rig.settle(RUNNING | NEEDS_RESET);
    switch.store(false, Ordering::Relaxed);
    rig.reset();
    rig.start();
}

const TWISTS: [fn() -> Twist; 5] = [
    || Twist::Mute,
    || Twist::HangUp,
    || Twist::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
    || Twist::Reply(Code::GetFeatures, Reply::U64(0)),
    || Twist::Bytes(vec![0; 5]),
];

#[test]
fn m01_a_daemon_that_goes_mute_or_mad_keeps_no_vcpu_waiting_and_the_next_one_serves() {
    for code in [Code::SetMemTable, Code::SetVringKick, Code::GetVringBase] {
        for twist in TWISTS {
            let (switch, script) = switched(code, twist);
            let rig = rig_within(Fake::blk(), IMPATIENT, script);
            switch.store(true, Ordering::Relaxed);
            let start = Instant::now();
            rig.start_at(RINGS);
            assert_eq!(rig.status(), RUNNING);
            assert!(start.elapsed() < MOMENT, "{code:?}: {:?}", start.elapsed());
            if code == Code::GetVringBase {
                rig.settle(RUNNING);
                let start = Instant::now();
                rig.device.bar_write(STATUS, &[0]);
                assert!(start.elapsed() < MOMENT, "{code:?}: {:?}", start.elapsed());
            }
            // The connection is closed, so the daemon's side ends.
            let (daemon, _) = accept(&rig.listener, Fake::blk(), |_| Twist::Regular);
            rig.daemon.join();
            eventually("the next daemon serves", || {
                rig.device.link().connected && rig.device.agreement.is_at_rest()
            });
            let started = daemon.requests().iter().any(|r| r.code() == Code::SetVringEnable);
            assert_eq!(started, code != Code::GetVringBase, "{code:?}");
        }
    }
}

#[test]
fn m01_a_greeting_that_fails_is_tried_again() {
    for code in [Code::GetFeatures, Code::GetQueueNum] {
        for twist in TWISTS {
            let rig = rig_within(Fake::blk(), IMPATIENT, |_| Twist::Regular);
            rig.start();
            let twisted = move |request: &Request| {
                if request.code() == code { twist() } else { Twist::Regular }
            };
            let _bad = rig.replace(Fake::blk(), twisted);
            let _good = accept(&rig.listener, Fake::blk(), |_| Twist::Regular);
            rig.wait_returned(1);
            assert_eq!(rig.status(), RUNNING);
        }
    }
}

#[test]
fn m02_a_daemon_that_is_another_is_not_taken() {
    let less: [Fake; 5] = [
        Fake { features: Fake::blk().features & !(1 << 9), ..Fake::blk() },
        Fake { queues: 1, ..Fake::blk() },
        Fake { config: vec![0; 61], ..Fake::blk() },
        Fake { protocol: ProtocolFeatures::empty(), ..Fake::blk() },
        Fake::rng(),
    ];
    for fake in less {
        let rig = rig(Fake::blk(), |_| Twist::Regular);
        rig.start();
        let (bad, _) = rig.replace(fake.clone(), |_| Twist::Regular);
        let more = Fake { features: Fake::blk().features | 1 << 10, queues: 3, ..Fake::blk() };
        let (good, _) = accept(&rig.listener, more, |_| Twist::Regular);
        rig.wait_returned(1);
        let codes: Vec<_> = bad.requests().iter().map(Request::code).collect();
        assert!(!codes.contains(&Code::SetMemTable), "it gets no memory of the guest: {fake:?}");
        assert!(good.requests().contains(&Request::SetFeatures(F_VERSION_1 | 1 << 30)));
    }
}

#[test]
fn m02_a_daemon_that_refuses_what_the_one_before_took_is_not_taken() {
    for code in [Code::SetFeatures, Code::SetVringNum, Code::SetVringKick] {
        let rig = rig(Fake::blk(), |_| Twist::Regular);
        rig.start();
        let refuse = move |request: &Request| match request.code() == code {
            true => Twist::Reply(code, Reply::U64(1)),
            false => Twist::Regular,
        };
        let _bad = rig.replace(Fake::blk(), refuse);
        let _good = accept(&rig.listener, Fake::blk(), |_| Twist::Regular);
        rig.wait_returned(2);
        assert_eq!(rig.status(), RUNNING, "the driver knows nothing");
    }
}

#[test]
fn m03_a_queue_goes_on_at_its_used_index_and_is_kicked_and_called_once() {
    let in_order = Fake { features: Fake::blk().features | 1 << 35, ..Fake::blk() };
    let rig = rig(in_order.clone(), |_| Twist::Regular);
    rig.start();
    assert_eq!(bases(&rig.daemon.requests()), [0, 0]);
    let link = rig.device.link();
    assert!(link.connected && link.returns == 0);
    rig.set_index(RINGS + 0x1000, 0xfff9);
    rig.set_index(RINGS + 0x2000, 0xfff0);
    let (kick, call) = rig.events(0);
    assert!(!kick.take() && !call.take());
    let (daemon, _) = rig.replace(in_order, |_| Twist::Regular);
    rig.wait_returned(1);
    assert_eq!(bases(&daemon.requests()), [0xfff0, 0]);
    eventually("kick and call", || kick.is_raised() && call.is_raised());
    assert!(rig.device.link().since > link.since);
    assert_eq!(rig.status(), RUNNING);
    rig.reset();
    rig.start();
    assert_eq!(bases(&daemon.requests()), [0, 0], "a driver begins at the beginning");
}

#[test]
fn m03_without_an_account_of_what_is_in_flight_the_driver_begins_anew() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    rig.start();
    rig.set_index(RINGS + 0x1000, 8);
    rig.set_index(RINGS + 0x2000, 8);
    let (daemon, stream) = rig.replace(Fake::blk(), |_| Twist::Regular);
    rig.wait_returned(1);
    assert_eq!(bases(&daemon.requests()), [8, 0], "nothing was in flight");
    assert_eq!(rig.status(), RUNNING);
    rig.set_index(RINGS + 0x1000, 9);
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    let (_daemon, _) = accept(&rig.listener, Fake::blk(), |_| Twist::Regular);
    rig.wait_returned(2);
    rig.settle(RUNNING | NEEDS_RESET);
    rig.reset();
    rig.start();
}

fn tracking(fake: Fake) -> Fake {
    Fake { protocol: fake.protocol | ProtocolFeatures::INFLIGHT_SHMFD, ..fake }
}

#[test]
fn what_is_in_flight_is_handed_to_the_next_daemon() {
    for (fake, features, base) in [(Fake::blk(), 0, 5), (packed(), F_PACKED, 0x8000_8000)] {
        let rig = rig(tracking(fake.clone()), |_| Twist::Regular);
        rig.start_queues(2, RINGS, F_VERSION_1 | features);
        rig.settle(RUNNING);
        rig.set_index(RINGS + 0x1000, 9);
        rig.set_index(RINGS + 0x2000, 5);
        let region = set_inflight(&rig.daemon);
        let mut byte = [0xff];
        rustix::io::pread(&region, &mut byte, 0).unwrap();
        assert_eq!(byte, [0], "a new driver has nothing in flight");
        rustix::io::pwrite(&region, b"marked", 100).unwrap();
        let (daemon, _) = rig.replace(tracking(fake), |_| Twist::Regular);
        rig.wait_returned(1);
        let heard: Vec<_> = daemon.heard.try_iter().collect();
        let requests: Vec<_> = heard.iter().map(|(request, _)| request.clone()).collect();
        assert!(requests.iter().all(|request| request.code() != Code::GetInflightFd));
        assert_eq!(bases(&requests)[0], base);
        let at = requests.iter().position(|r| r.code() == Code::SetInflightFd).unwrap();
        assert!(at < requests.iter().position(|r| r.code() == Code::SetVringNum).unwrap());
        let mut bytes = [0; 6];
        rustix::io::pread(&heard[at].1[0], &mut bytes, 100).unwrap();
        assert_eq!(&bytes, b"marked");
        assert_eq!(rig.status(), RUNNING);
        rig.reset();
        rig.start();
        let fresh = set_inflight(&daemon);
        rustix::io::pread(&fresh, &mut bytes, 100).unwrap();
        assert_eq!(bytes, [0; 6], "nor the next");
    }
}

/// The region that the daemon was told to use last.
fn set_inflight(daemon: &Daemon) -> OwnedFd {
    let is_set = |request: &Request| {
        let Request::SetInflightFd(what) = request else { return false };
        assert_eq!(
            *what,
            Inflight { size_bytes: INFLIGHT_BYTES, mmap_offset: 0, queues: 2, queue_size: 256 }
        );
        true
    };
    daemon.heard.try_iter().find(|(request, _)| is_set(request)).unwrap().1.remove(0)
}

#[test]
fn m04_a_region_that_is_not_there_is_not_used() {
    let offer = |size_bytes, mmap_offset| Inflight { size_bytes, mmap_offset, queues: 2, queue_size: 256 };
    let bad = [
        (offer(8193, 0), vec![8192]),
        (offer(8192, 1), vec![8192]),
        (offer(1, u64::MAX), vec![8192]),
        (offer(0, 0), vec![8192]),
        (offer(8192, 0), vec![]),
        (offer(8192, 0), vec![8192, 8192]),
    ];
    for (reply, files) in bad {
        let (switch, script) = switched(Code::GetInflightFd, move || {
            Twist::Descriptors(Reply::Inflight(reply), files.iter().map(|bytes| memfd(*bytes)).collect())
        });
        switch.store(true, Ordering::Relaxed);
        let rig = rig(tracking(Fake::blk()), script);
        rig.start_at(RINGS);
        let (daemon, _) = accept(&rig.listener, tracking(Fake::blk()), |_| Twist::Regular);
        rig.wait_returned(1);
        assert_eq!(rig.status(), RUNNING);
        set_inflight(&daemon);
        let heard = rig.daemon.requests();
        assert!(heard.iter().all(|request| request.code() != Code::SetVringKick), "{heard:?}");
    }
}

#[test]
fn m05_what_nobody_asked_for_ends_the_connection_only() {
    let storm = vec![0x5a; 1 << 20];
    for bytes in [&storm[..], &storm[..1], &[20, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]] {
        let rig = rig(Fake::blk(), |_| Twist::Regular);
        rig.start();
        rig.stream.set_nonblocking(true).unwrap();
        let _ = std::io::Write::write(&mut &rig.stream, bytes).unwrap();
        let _next = accept(&rig.listener, Fake::blk(), |_| Twist::Regular);
        rig.wait_returned(1);
        assert_eq!(rig.status(), RUNNING);
    }
}

#[test]
fn while_the_daemon_is_away_drivers_come_and_go_and_the_machine_resets() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    rig.start();
    rig.stream.shutdown(std::net::Shutdown::Both).unwrap();
    eventually("it is gone", || !rig.device.link().connected);
    let start = Instant::now();
    rig.device.bar_write(STATUS, &[0]);
    assert_eq!(rig.status(), 0);
    rig.start_at(RINGS);
    assert_eq!(rig.status(), RUNNING);
    let mut config = [0; 4];
    rig.device.bar_read(0x2000, &mut config);
    assert_eq!(config, [0, 1, 2, 3]);
    rig.device.reset();
    rig.device.place(0xc000_8000);
    rig.start_queues(1, RINGS, F_VERSION_1);
    assert!(start.elapsed() < MOMENT);
    let (daemon, _) = accept(&rig.listener, Fake::blk(), |_| Twist::Regular);
    rig.wait_returned(1);
    let requests = daemon.requests();
    assert_eq!(bases(&requests), [0], "the last driver, with its one queue");
    assert_eq!(rig.status(), RUNNING);
}

#[test]
fn a_machine_reset_waits_until_the_daemon_has_drained() {
    let slow = |request: &Request| {
        if request.code() == Code::GetVringBase {
            std::thread::sleep(MOMENT);
        }
        Twist::Regular
    };
    let rig = rig(Fake::blk(), slow);
    rig.start();
    let start = Instant::now();
    rig.device.reset();
    assert!(start.elapsed() > MOMENT * 2, "two queues");
    assert_eq!(rig.device.link().returns, 0, "the daemon has the time");
    assert_eq!(rig.status(), 0);
    rig.start();
}

#[test]
fn a_driver_reads_its_old_status_until_the_daemon_has_drained() {
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
    rig.start();
    let start = Instant::now();
    rig.device.bar_write(STATUS, &[0]);
    draining.recv_timeout(PATIENCE).unwrap();
    assert_eq!(rig.status(), RUNNING);
    assert!(start.elapsed() < MOMENT);
    drained.send(()).unwrap();
    draining.recv_timeout(PATIENCE).unwrap();
    assert_eq!(rig.status(), RUNNING, "one queue is not all");
    drained.send(()).unwrap();
    eventually("status 0", || rig.status() == 0);
    rig.start();
}

#[test]
fn a_daemon_has_more_time_for_more_queues() {
    let slow = |request: &Request| {
        if request.code() == Code::SetVringKick {
            std::thread::sleep(IMPATIENT.run / 5);
        }
        Twist::Regular
    };
    let rig = rig_within(Fake { queues: 8, ..Fake::blk() }, IMPATIENT, slow);
    rig.start_queues(8, RINGS, F_VERSION_1);
    rig.settle(RUNNING);
    assert_eq!(rig.device.link().returns, 0);
}

/// Starts a driver; what the daemon got to tell of errors in its second queue.
fn start_with_error(rig: &Rig) -> OwnedFd {
    rig.start();
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
    rig.settle(RUNNING | NEEDS_RESET);
    let isr = || {
        let mut isr = [0];
        rig.device.bar_read(0x1000, &mut isr);
        isr[0]
    };
    assert_eq!(isr(), 2, "configuration change");
    for _ in 0..100 {
        raise(&error);
    }
    assert_eq!(isr(), 0, "told once");
    rig.reset();
    rig.start();
}

#[test]
fn a_daemon_that_takes_no_error_eventfd_serves_all_the_same() {
    let refuse = |request: &Request| match request.code() {
        Code::SetVringErr => Twist::Reply(Code::SetVringErr, Reply::U64(1)),
        _ => Twist::Regular,
    };
    rig(Fake::blk(), refuse).start();
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
    let write = |at: u64, data: &[u8]| {
        rig.device.bar_write(0x2000 + at, data);
        eventually("the daemon has heard", || rig.device.agreement.is_at_rest());
    };
    write(32, &[0xee]);
    assert_eq!(rig.daemon.requests(), [Request::SetConfig { offset: 32, data: vec![0xee].into() }]);
    assert_eq!(read(32), 0xee);
    switch.store(true, Ordering::Relaxed);
    write(32, &[0x11]);
    assert_eq!(read(32), 0xee, "refused");
    rig.daemon.requests();
    write(59, &[1, 2]);
    write(4000, &[1]);
    write(0, &[]);
    assert_eq!(rig.daemon.requests(), [], "beyond the end");
}

#[test]
fn a_daemon_that_comes_back_is_told_what_was_written_to_configuration_space() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    rig.start();
    rig.device.bar_write(0x2000 + 32, &[1]);
    rig.device.bar_write(0x2000 + 32, &[0]);
    rig.settle(RUNNING);
    let (daemon, _) = rig.replace(Fake::blk(), |_| Twist::Regular);
    rig.wait_returned(1);
    let written: Vec<_> =
        daemon.requests().into_iter().filter(|request| request.code() == Code::SetConfig).collect();
    assert_eq!(written, [Request::SetConfig { offset: 32, data: vec![0].into() }]);
}

#[test]
fn a_configuration_that_is_another_after_the_return_is_told_to_the_driver() {
    let rig = rig(Fake::blk(), |_| Twist::Regular);
    rig.start();
    let mut config = Fake::blk().config;
    config[0] = 0x77;
    let _daemon = rig.replace(Fake { config, ..Fake::blk() }, |_| Twist::Regular);
    rig.wait_returned(1);
    let read = |at: u64| {
        let mut byte = [0];
        rig.device.bar_read(at, &mut byte);
        byte[0]
    };
    assert_eq!(read(0x2000), 0x77);
    eventually("generation", || read(0x15) == 1);
    assert_eq!((read(0x1000), rig.status()), (2, RUNNING));
}

#[test]
fn without_acks_and_protocol_features_a_device_starts_and_stops() {
    let fakes = [
        Fake { protocol: ProtocolFeatures::CONFIG | ProtocolFeatures::MQ, ..Fake::blk() },
        Fake { protocol: ProtocolFeatures::CONFIG, queues: 9, ..Fake::blk() },
    ];
    for fake in fakes {
        let rig = rig(fake, |_| Twist::Regular);
        rig.start();
        rig.reset();
        rig.start();
        let fences = rig.daemon.requests().iter().filter(|r| r.code() == Code::GetFeatures).count();
        assert_eq!(fences, 2);
    }
}

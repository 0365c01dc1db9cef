//! The keeper itself is killed or replaced: what it stored with the service manager is what the next one goes on with.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use backends::proto::{Code, Reply, Request};
use rustix::process::Signal;
use tests::daemon::{Daemon, Launch};
use tests::frontend::Wants;
use tests::guest::format::RingKind;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::machine::{BLK, Device, Machine, RAM_BYTES, RNG};
use tests::manager::{Manager, Packet, sealed};
use tests::random::Random;
use tests::restart::soak::Device as Soaked;
use tests::restart::{Mode, Rig};
use tests::wait;

use super::processes::signal;
use super::untracked;

/// As a unit file would say it.
const MOST: usize = 16;

tests::against_every_daemon! {
    both: [
        n1_a_keeper_that_is_killed_or_replaced_is_not_missed,
        k08_a_message_that_was_not_answered_is_by_the_next_keeper,
    ],
}

fn soaked(device: Device) -> Soaked {
    match device.binary {
        "outboard-rng" => Soaked::Rng,
        "outboard-blk" => Soaked::Blk,
        _ => Soaked::Console,
    }
}

/// Under load: killed, and asked to end as `systemctl restart` does.
fn n1_a_keeper_that_is_killed_or_replaced_is_not_missed(device: Device) {
    for wants in [device.wants(), untracked(device.rings)] {
        let (manager, soaked) = (Manager::new(MOST), soaked(device));
        let launch = manager.of(soaked.launch());
        let mut rig = Rig::start(launch, Mode::Keeper, wants, soaked.queues());
        let mut load = soaked.load(&mut rig, Random::new(11));
        // Now a host's connection to the device has been accepted, and given to be kept.
        load.submit();
        load.drain().unwrap();
        load.check().unwrap();
        for nth in 0..8 {
            for _ in 0..30 {
                load.submit();
                load.reap().unwrap();
            }
            // What the worker has given to be kept is stored with the second message.
            rig.frontend.sync().and_then(|()| rig.frontend.sync()).unwrap();
            manager.settle();
            load.submit();
            let since = Instant::now();
            if nth % 3 == 2 {
                assert_eq!(rig.daemon.stop().code, Some(0));
            } else {
                rig.daemon.kill9();
            }
            rig.gone(&mut *load).unwrap();
            rig.daemon.start_again(manager.stored());
            rig.recover(&mut *load).unwrap();
            load.submit();
            load.wait().unwrap();
            println!("{device:?}: {:?}", since.elapsed());
            load.drain().unwrap();
            load.check().unwrap();
            rig.frontend.sync().unwrap();
        }
        // The front-end that was kept is served like any other, and so is the next one, on the same socket.
        rig.daemon.kill_worker();
        load.submit();
        load.drain().unwrap();
        assert!(!rig.daemon.stderr().contains("no sense"), "{}", rig.daemon.stderr());
    }
}

/// It is read, and the worker has it; then the keeper dies.
fn k08_a_message_that_was_not_answered_is_by_the_next_keeper(device: Device) {
    let manager = Manager::new(MOST);
    let mut machine = device.boot_with(manager.of(device.launch()), &Ram::new(RAM_BYTES), device.wants());
    let mut ring = machine.start_queue().unwrap();
    let features = machine.frontend.ask(Request::GetFeatures).unwrap();
    let enable = Request::SetVringEnable { index: device.queue.into(), enable: 1 };
    for request in [Request::GetFeatures, enable, Request::GetVringBase { index: device.queue.into() }] {
        manager.settle();
        machine.assert_serves(&mut ring);
        signal(machine.daemon.worker_pid(), Signal::STOP);
        machine.frontend.send(&request, &[], true).unwrap();
        manager.await_pending();
        machine.daemon.kill9();
        machine.daemon.start_again(manager.stored());
        let answer = machine.frontend.receive(request.code()).unwrap();
        match request.code() {
            Code::GetFeatures => assert_eq!(answer, features),
            Code::SetVringEnable => assert_eq!(answer, Reply::U64(0)),
            _ => assert!(matches!(answer, Reply::VringState { base, .. } if base == ring.base())),
        }
    }
    machine.frontend.sync().unwrap();
}

fn managed(manager: &Manager, device: Device) -> Machine {
    device.boot_with(manager.of(device.launch()), &Ram::new(RAM_BYTES), device.wants())
}

#[test]
fn front_ends_can_connect_while_there_is_no_keeper() {
    let manager = Manager::new(MOST);
    let mut machine = managed(&manager, RNG);
    machine.start_queue().unwrap();
    manager.settle();
    machine.daemon.kill9();
    let path = machine.daemon.socket().to_owned();
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    machine.daemon.start_again(manager.stored());
    machine.frontend.sync().unwrap();
    assert_eq!(machine.daemon.stop().code, Some(0));
    // Another daemon may take the path of one that is gone, not of one that was taken back.
    machine.daemon.start_again(manager.stored());
    machine.frontend.sync().unwrap();
    let args = ["--socket-path".to_owned(), path.display().to_string()];
    assert_eq!(RNG.launch().args(args).run().code, Some(4));
}

#[test]
fn a_front_end_that_hung_up_is_stored_no_longer() {
    let manager = Manager::new(MOST);
    let mut machine = managed(&manager, RNG);
    machine.start_queue().unwrap();
    manager.settle();
    let held = manager.packets().iter().map(|(_, fds)| fds.len()).sum::<usize>();
    machine.assert_serves_anew();
    manager.settle();
    assert_eq!(manager.packets().iter().map(|(_, fds)| fds.len()).sum::<usize>(), held);
    let socket = machine.daemon.socket().to_owned();
    let Machine { daemon, frontend, .. } = machine;
    drop(frontend);
    // The listener, the counters and the worker's fence are left.
    manager.await_descriptors(3);
    assert_eq!(daemon.terminate().code, Some(0));
    assert!(!socket.exists());
}

#[test]
fn k08_hundreds_of_descriptors_are_stored_in_packets() {
    const SLOTS: u64 = 300;
    const BYTES: u64 = 256 << 10;
    let pieces: Vec<_> = (0..SLOTS).map(|nth| (RAM_BASE + nth * 2 * BYTES, BYTES)).collect();
    let ram = Ram::with(&pieces, Backing::Sealed);
    let manager = Manager::new(MOST);
    let wants = Wants { memory: tests::frontend::Memory::Slots, ..BLK.on(RingKind::Packed).wants() };
    let mut machine = BLK.on(RingKind::Packed).boot_with(manager.of(BLK.launch()), &ram, wants);
    let mut ring = machine.start_queue().unwrap();
    for _ in 0..3 {
        machine.assert_serves(&mut ring);
        manager.settle();
        // What a worker gave since then is stored anew, before the packets of before are let go.
        wait::until(|| manager.packets().len() == 2);
        machine.daemon.kill9();
        machine.daemon.start_again(manager.stored());
        machine.assert_serves(&mut ring);
    }
    for region in ram.regions().iter().skip(200) {
        machine.frontend.remove_region(region.table).unwrap();
    }
}

/// What is wrong with a packet.
type Harm = fn(&mut Packet);

const HARMS: [(&str, Harm); 6] = [
    ("version", |(bytes, _)| bytes[0] ^= 1),
    ("part of more", |(bytes, _)| bytes[6] += 1),
    ("cut short", |(bytes, _)| bytes.truncate(bytes.len() - 3)),
    ("length", |(bytes, _)| bytes[18] ^= 0x40),
    ("kind", |(bytes, _)| bytes[16] = 99),
    ("a descriptor is missing", |(_, fds)| drop(fds.pop())),
];

#[test]
fn a_state_that_makes_no_sense_is_told_once_and_dropped() {
    for (what, harm) in HARMS {
        let manager = Manager::new(MOST);
        let mut machine = managed(&manager, RNG);
        machine.start_queue().unwrap();
        manager.settle();
        machine.daemon.kill9();
        let names: Vec<String> = manager.stored().into_iter().map(|(name, _)| name).collect();
        let harmed = manager.packets().into_iter().map(|mut packet| {
            harm(&mut packet);
            sealed(&packet)
        });
        let harmed: Vec<(String, OwnedFd)> = names.into_iter().zip(harmed).collect();
        manager.replace(harmed);
        machine.daemon.start_again(manager.stored());
        assert!(machine.frontend.hung_up(), "{what}");
        wait::until(|| machine.daemon.stderr().matches("Listening").count() == 2);
        machine.assert_serves_anew();
        let said = machine.daemon.stderr();
        assert_eq!(said.matches("makes no sense").count(), 1, "{what}: {said}");
    }
}

#[test]
fn what_is_no_packet_is_dropped_too() {
    let mut machine = managed(&Manager::new(MOST), RNG);
    machine.daemon.kill9();
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    machine.daemon.start_again(vec![("outboard-keeper-1".into(), file)]);
    machine.daemon.wait_again().unwrap();
    machine.assert_serves_anew();
    assert!(machine.daemon.stderr().contains("makes no sense"));
}

#[test]
fn a_manager_that_stores_nothing_costs_nothing() {
    // None at all, one that has no room, one that is gone.
    let gone = Manager::new(MOST);
    let launch = gone.of(RNG.launch());
    drop(gone);
    let mut machine = RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants());
    machine.assert_restarts();
    assert_eq!(machine.daemon.stderr().matches("Nothing is stored").count(), 1);
    let small = Manager::new(0);
    let mut machine = managed(&small, RNG);
    machine.assert_restarts();
    machine.daemon.kill9();
    assert!(small.stored().is_empty());
    assert!(machine.frontend.hung_up());
}

#[test]
fn a_manager_that_stops_taking_is_told_once_and_brings_back_nothing() {
    let manager = Manager::new(MOST);
    let mut machine = managed(&manager, RNG);
    machine.start_queue().unwrap();
    manager.settle();
    let stored = manager.stored();
    drop(manager);
    machine.frontend.stop(RNG.queue).unwrap();
    let mut ring = machine.frontend.start_new(RNG.queue, 64).unwrap();
    machine.assert_serves(&mut ring);
    assert_eq!(machine.daemon.stderr().matches("does not store for the next keeper").count(), 1);
    // An old state would be a wrong one.
    machine.daemon.kill9();
    machine.daemon.start_again(stored);
    wait::until(|| machine.daemon.stderr().matches("Listening").count() == 2);
    assert!(machine.frontend.hung_up());
    machine.assert_serves_anew();
}

#[test]
fn a_daemon_without_a_keeper_lets_go_of_what_was_stored() {
    let manager = Manager::new(MOST);
    let mut machine = managed(&manager, BLK);
    machine.start_queue().unwrap();
    manager.settle();
    machine.daemon.kill9();
    // The same image, whose lock was stored, too.
    let image = machine.daemon.dir().join("disk.img").display().to_string();
    let launch = Launch::new("outboard-blk").args(["--keeper", "off", "--image", &image]);
    let _daemon = launch.activate_all(manager.stored()).serve().unwrap();
    assert!(machine.frontend.hung_up());
}

#[test]
fn a_worker_is_told_nothing_of_the_manager() {
    let manager = Manager::new(MOST);
    let mut machine = managed(&manager, RNG);
    machine.start_queue().unwrap();
    manager.settle();
    machine.daemon.kill9();
    machine.daemon.start_again(manager.stored());
    machine.frontend.sync().unwrap();
    let worker = machine.daemon.worker_pid();
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("NOTIFY_") && !environment.contains("LISTEN_"), "{environment}");
}

/// What the file of options says decides, not what was bound before; where both are the same nothing is bound again.
#[test]
fn sockets_are_bound_once_and_where_they_are_meant() {
    let manager = Manager::new(MOST);
    let launch = manager.of(Launch::new("outboard-console"));
    let (dir, config) = (launch.dir().to_owned(), launch.dir().join("console.toml"));
    let path = |name: &str| dir.join(name);
    let configure = |socket: &str, port: &str| {
        let text = format!("socket-path = {:?}\nlisten = {:?}\n", path(socket), path(port));
        fs::write(&config, text).unwrap();
    };
    let inode = |name: &str| fs::metadata(path(name)).map(|file| file.ino()).ok();
    configure("a.sock", "a.port");
    let mut daemon = launch
        .args(["--config".to_owned(), config.display().to_string()])
        .start()
        .wait_listening(&path("a.sock"))
        .unwrap();
    let listens = |daemon: &Daemon, nth: usize| {
        wait::until(|| daemon.stderr().matches("Listening").count() == nth);
    };
    // It says so a little after it does.
    listens(&daemon, 1);
    let bound = [inode("a.sock"), inode("a.port")];
    let steps = [("a.sock", "a.port"), ("b.sock", "a.port"), ("b.sock", "b.port"), ("b.sock", "b.port")];
    for (nth, (socket, port)) in (2..).zip(steps) {
        configure(socket, port);
        daemon.kill9();
        daemon.start_again(manager.stored());
        listens(&daemon, nth);
        for name in ["a.sock", "b.sock", "a.port", "b.port"] {
            let meant = name == socket || name == port;
            wait::until(|| UnixStream::connect(path(name)).is_ok() == meant);
        }
        if nth < 3 {
            assert_eq!([inode("a.sock"), inode("a.port")], bound);
        }
    }
    assert_eq!(daemon.stop().code, Some(0));
}

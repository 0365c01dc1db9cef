//! A guest that is moved: every page that a daemon writes is marked in the dirty log, logging begins and ends
//! when it is told, and another daemon goes on where the first one stood.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use backends::session::Direction;
use tests::dirty::{DirtyLog, Snapshot, pages};
use tests::frontend::{Frontend, Memory, Wants};
use tests::guest::blk::{FLUSH, Framing, GET_ID, Request};
use tests::guest::chain::Chain;
use tests::guest::format::RingKind;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::guest::raw::{Desc, INDIRECT, WRITE};
use tests::guest::ring::Ring;
use tests::machine::{BLK, CONSOLE, DISK_SECTORS, Device, Machine, QUEUE_SIZE, RNG};
use tests::wait;

const ENGINES: [&str; 2] = ["io-uring", "epoll"];
const RINGS: [RingKind; 2] = [RingKind::Split, RingKind::Packed];
const PIECE_BYTES: u64 = 1 << 20;

tests::against_every_daemon! {
    both: [
        logging_stops_and_starts_when_it_is_told,
        a_new_log_takes_the_place_of_the_old_one,
        logging_is_switched_under_load_and_nothing_is_lost,
        a_guest_goes_on_with_another_daemon,
        state_that_is_not_this_devices_is_refused,
        state_is_carried_only_while_rings_are_stopped,
    ],
}

/// RAM in many pieces with holes between them, so that what lies in one page shares it with little else.
fn scattered() -> Arc<Ram> {
    let pieces: Vec<_> = (0..12).map(|nth| (RAM_BASE + nth * 2 * PIECE_BYTES, PIECE_BYTES)).collect();
    Ram::with(&pieces, Backing::Sealed)
}

/// A guest on scattered RAM whose writes are logged.
struct Moving {
    machine: Machine,
    log: DirtyLog,
    /// Pages of rings that the device may write at any time: to say when it wants kicks.
    rings: BTreeSet<u64>,
}

impl Moving {
    fn boot(device: Device, engine: &str) -> Moving {
        let ram = scattered();
        let wants = Wants { memory: Memory::Slots, ..device.wants() };
        let mut machine = device.boot_with(device.launch().args(["--engine", engine]), &ram, wants);
        let log = DirtyLog::new(&ram);
        machine.frontend.set_log(&log).unwrap();
        machine.frontend.log_writes(true).unwrap();
        Moving { machine, log, rings: BTreeSet::new() }
    }

    fn start(&mut self, queue: u8, ring: &Ring, base: u32) {
        self.machine.frontend.start(queue, ring, base).unwrap();
        self.machine.frontend.log_ring(queue, ring, true).unwrap();
        self.rings.extend(of_ring(ring));
    }

    /// Has one chain served, and looks at what was written and what was marked until the ring has stopped.
    /// Between the two looks at RAM the driver writes its available ring only.
    #[track_caller]
    fn assert_logged(&mut self, queue: u8, ring: &mut Ring, chain: &Chain, feed: impl FnOnce()) {
        let ram = self.machine.ram();
        let head = ring.add(chain);
        let mut allowed = buffers(ring, head);
        allowed.extend(&self.rings);
        self.log.clear();
        let before = Snapshot::of(&ram);
        ring.publish();
        ring.kick();
        feed();
        wait_answered(ring, 1);
        let base = self.machine.frontend.stop(queue).unwrap();
        let (changed, marked) = (before.changed(&ram), self.log.marked());
        let mut known = marked.clone();
        known.extend(pages(ring.layout().avail, 4));
        assert!(!marked.is_empty(), "nothing was written");
        assert!(changed.is_subset(&known), "{changed:x?} changed, {marked:x?} marked, for {chain:?}");
        assert!(marked.is_subset(&allowed), "{marked:x?} marked, {allowed:x?} may be, for {chain:?}");
        ring.used().unwrap();
        self.start(queue, ring, base);
    }
}

/// Pages of what the device writes of a ring itself.
fn of_ring(ring: &Ring) -> BTreeSet<u64> {
    ring.layout().written_by_device().into_iter().flat_map(|(addr, len)| pages(addr, len)).collect()
}

/// Pages that the device may write for a chain.
fn buffers(ring: &Ring, head: u16) -> BTreeSet<u64> {
    let direct: Vec<Desc> = ring.entries(head).iter().map(|entry| ring.desc(*entry)).collect();
    let all = direct.into_iter().flat_map(|desc| match desc.flags & INDIRECT {
        0 => vec![desc],
        _ => table(ring, desc),
    });
    let writable = all.filter(|desc| desc.flags & WRITE != 0);
    writable.flat_map(|desc| pages(desc.addr, desc.len.into())).collect()
}

fn table(ring: &Ring, outer: Desc) -> Vec<Desc> {
    let bytes = ring.ram().read(outer.addr, usize::try_from(outer.len).unwrap());
    let parse = match ring.shape().kind {
        RingKind::Split => Desc::from_bytes,
        RingKind::Packed => Desc::from_packed_bytes,
    };
    bytes.chunks(16).map(|bytes| parse(bytes.try_into().unwrap())).collect()
}

/// Looks at the ring until `count` chains are finished, and writes nothing meanwhile.
#[track_caller]
fn wait_answered(ring: &Ring, count: usize) {
    let until = wait::deadline();
    while ring.waiting() < count {
        assert!(Instant::now() < until, "{} of {count} chains were answered", ring.waiting());
        std::thread::yield_now();
    }
}

fn everywhere(device: Device, check: impl Fn(Moving)) {
    for engine in ENGINES {
        for rings in RINGS {
            check(Moving::boot(device.on(rings), engine));
        }
    }
}

#[test]
fn pages_that_rng_writes_are_marked() {
    let chains = [
        Chain::new().writable(1),
        Chain::new().readable(b"skipped").writable(64),
        Chain::new().writable(4096).writable(1).writable(9000),
        Chain::new().writable(70_000),
        Chain::new().writable(5000).writable(5000).indirect(),
        Chain::new().at(u64::MAX, 1, true),
    ];
    everywhere(RNG, |mut moving| {
        let mut ring = moving.machine.frontend.new_ring(QUEUE_SIZE);
        moving.start(0, &ring, ring.base());
        for chain in &chains {
            moving.assert_logged(0, &mut ring, chain, || ());
        }
    });
}

#[test]
fn pages_that_blk_writes_are_marked() {
    let requests = [
        Request::read(0, 512),
        Request::read(3, 65_536),
        Request::read(DISK_SECTORS, 8192),
        Request::write(7, &[1; 10_000]),
        Request::bare(FLUSH),
        Request { data_in: 20, ..Request::bare(GET_ID) },
        Request::bare(99),
    ];
    everywhere(BLK, |mut moving| {
        let mut ring = moving.machine.frontend.new_ring(QUEUE_SIZE);
        moving.start(0, &ring, ring.base());
        for request in &requests {
            let usual = Framing::usual(request.data_in);
            let indirect = Framing { indirect: true, ..usual.clone() };
            for framing in [usual, Framing::pieces(3000, 20), indirect] {
                moving.assert_logged(0, &mut ring, &request.chain(&framing), || ());
            }
        }
    });
}

#[test]
fn pages_that_the_console_writes_are_marked() {
    everywhere(CONSOLE, |mut moving| {
        let mut host = UnixStream::connect(moving.machine.daemon.dir().join("port.sock")).unwrap();
        let mut rings = [QUEUE_SIZE; 2].map(|size| moving.machine.frontend.new_ring(size));
        for (queue, ring) in (0..).zip(&rings) {
            moving.start(queue, ring, ring.base());
        }
        let [rx, tx] = &mut rings;
        for _ in 0..5 {
            moving.assert_logged(1, tx, &Chain::new().readable(&[b'x'; 5000]), || ());
            for chain in [Chain::new().writable(9000), Chain::new().writable(3000).writable(5000).indirect()]
            {
                moving.assert_logged(0, rx, &chain, || host.write_all(&[b'y'; 4000]).unwrap());
            }
        }
    });
}

#[test]
fn memory_that_comes_while_logging_is_logged() {
    for device in [RNG, BLK] {
        everywhere(device, |mut moving| {
            let Moving { machine, log, .. } = &mut moving;
            let ram = machine.ram();
            let late = ram.regions()[11].clone();
            machine.frontend.remove_region(late.table).unwrap();
            let mut ring = machine.start_queue().unwrap();
            machine.frontend.log_ring(0, &ring, true).unwrap();
            machine.assert_serves(&mut ring);
            let place = late.table.guest_addr + PIECE_BYTES - 8192;
            ram.claim(place, 8192);
            let header = Request::read(0, 0).header();
            let chain = Chain::new().readable(&header).at(place, 8192, true).writable(513);
            for _ in 0..3 {
                ram.write(place, &[0xaa; 8192]);
                assert_eq!(ring.run(&chain).unwrap().len, 0, "the memory is not there");
                machine.frontend.add_region(late.table, late.fd()).unwrap();
                log.clear();
                assert_eq!(ring.run(&chain).unwrap().len, 8192 + 513, "{device:?}");
                let marked = log.marked();
                assert!(pages(place, 8192).all(|page| marked.contains(&page)), "{device:?}: {marked:x?}");
                assert!(ram.read(place, 8192) != [0xaa; 8192]);
                machine.frontend.remove_region(late.table).unwrap();
            }
            machine.frontend.add_region(late.table, late.fd()).unwrap();
            machine.assert_serves(&mut ring);
        });
    }
}

/// Pages marked while one good request is served.
#[track_caller]
fn marked_by_one(machine: &Machine, ring: &mut Ring, log: &DirtyLog) -> BTreeSet<u64> {
    log.clear();
    machine.assert_serves(ring);
    log.marked()
}

fn logging_stops_and_starts_when_it_is_told(device: Device) {
    let Moving { mut machine, log, .. } = Moving::boot(device, "auto");
    let mut ring = machine.start_queue().unwrap();
    let of_ring = of_ring(&ring);
    for _ in 0..3 {
        assert!(
            marked_by_one(&machine, &mut ring, &log).is_disjoint(&of_ring),
            "the ring is not to be logged"
        );
        machine.frontend.log_ring(device.queue, &ring, true).unwrap();
        assert!(marked_by_one(&machine, &mut ring, &log).is_superset(&of_ring));
        machine.frontend.log_writes(false).unwrap();
        assert_eq!(marked_by_one(&machine, &mut ring, &log), BTreeSet::new(), "LOG_ALL is off");
        machine.frontend.log_writes(true).unwrap();
        assert!(marked_by_one(&machine, &mut ring, &log).is_superset(&of_ring));
        machine.frontend.log_ring(device.queue, &ring, false).unwrap();
    }
    machine.frontend.log_writes(false).unwrap();
    log.clear();
    machine.assert_restarts();
    assert_eq!(log.marked(), BTreeSet::new(), "LOG_ALL is off");
}

fn a_new_log_takes_the_place_of_the_old_one(device: Device) {
    let Moving { mut machine, log: first, .. } = Moving::boot(device, "auto");
    let mut ring = machine.start_queue().unwrap();
    machine.frontend.log_ring(device.queue, &ring, true).unwrap();
    assert!(!marked_by_one(&machine, &mut ring, &first).is_empty());
    let second = DirtyLog::new(&machine.ram());
    machine.frontend.set_log(&second).unwrap();
    first.clear();
    assert!(!marked_by_one(&machine, &mut ring, &second).is_empty());
    assert_eq!(first.marked(), BTreeSet::new());
}

fn logging_is_switched_under_load_and_nothing_is_lost(device: Device) {
    let Moving { mut machine, log, .. } = Moving::boot(device, "auto");
    let mut ring = machine.start_queue().unwrap();
    let request = device.request();
    for round in 0..100 {
        while ring.free() >= request.slots() {
            ring.add(&request);
        }
        ring.notify();
        match round % 4 {
            0 => machine.frontend.log_writes(false).unwrap(),
            1 => machine.frontend.log_writes(true).unwrap(),
            2 => machine.frontend.log_ring(device.queue, &ring, true).unwrap(),
            _ => machine.frontend.set_log(&log).unwrap(),
        }
        assert!(ring.wait_all().unwrap().iter().all(|done| device.accepts(done)));
    }
}

/// Requests that the first daemon has answered, has not looked at, or has never been told of: the second one
/// answers the rest, and nothing twice.
fn a_guest_goes_on_with_another_daemon(device: Device) {
    let ram = scattered();
    let wants = Wants { memory: Memory::Slots, ..device.wants() };
    let mut from = device.boot_with(device.launch(), &ram, wants);
    let to = device.launch().serve().unwrap();
    let mut ring = from.start_queue().unwrap();
    let request = device.request();
    let mut base = ring.base();
    for _ in 0..3 {
        while ring.free() > 3 * request.slots() {
            ring.add(&request);
        }
        ring.notify();
        base = from.frontend.stop(device.queue).unwrap();
        ring.add(&request);
        ring.publish();
        let mut front_end = Frontend::session(to.socket(), &ram, wants).unwrap();
        carry(&mut from.frontend, &mut front_end);
        front_end.start(device.queue, &ring, base).unwrap();
        ring.kick();
        let in_flight = ring.in_flight();
        let done = ring.wait_all().unwrap();
        assert!(done.len() == in_flight && done.iter().all(|done| device.accepts(done)));
        // And back.
        base = front_end.stop(device.queue).unwrap();
        assert_eq!(base, ring.base());
        carry(&mut front_end, &mut from.frontend);
        from.frontend.start(device.queue, &ring, base).unwrap();
        from.assert_serves(&mut ring);
    }
    assert_ne!(base, ring.shape().first_base());
}

/// Saves the device's state here and loads it there.
#[track_caller]
fn carry(from: &mut Frontend, to: &mut Frontend) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    from.carry_state(Direction::Save, writer.as_fd()).unwrap();
    drop(writer);
    let mut state = Vec::new();
    reader.read_to_end(&mut state).unwrap();
    assert!(from.state_is_good().unwrap());
    let (reader, mut writer) = std::io::pipe().unwrap();
    to.carry_state(Direction::Load, reader.as_fd()).unwrap();
    writer.write_all(&state).unwrap();
    drop(writer);
    assert!(to.state_is_good().unwrap());
}

fn state_that_is_not_this_devices_is_refused(device: Device) {
    let mut machine = device.boot();
    for state in [&b"nonsense"[..], &[0; 70_000]] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        machine.frontend.carry_state(Direction::Load, reader.as_fd()).unwrap();
        drop(reader);
        // The daemon may have seen enough before the end.
        let _ = writer.write_all(state);
        drop(writer);
        assert!(!machine.frontend.state_is_good().unwrap());
    }
    // One side that does nothing: given up, and nobody else waits for long.
    let (reader, writer) = std::io::pipe().unwrap();
    machine.frontend.carry_state(Direction::Load, reader.as_fd()).unwrap();
    assert!(!machine.frontend.state_is_good().unwrap());
    drop(writer);
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
}

fn state_is_carried_only_while_rings_are_stopped(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    let refused = machine.frontend.carry_state(Direction::Save, writer.as_fd());
    assert!(refused.as_ref().is_err_and(|e| e.is_refusal()), "{refused:?}");
    machine.assert_serves(&mut ring);
    machine.frontend.stop(device.queue).unwrap();
    machine.frontend.carry_state(Direction::Save, writer.as_fd()).unwrap();
    assert!(machine.frontend.state_is_good().unwrap());
}

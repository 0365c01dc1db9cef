//! Daemons that die with requests in flight, and others that find them in the region that the front-end kept.
//!
//! Whoever serves next may know nothing but the region: the base that the front-end says is wrong here on purpose.

use backends::proto::{Inflight, ProtocolFeatures};
use tests::daemon::Launch;
use tests::frontend::{Frontend, Region};
use tests::guest::blk::{Answer, Framing, IOERR, OK, Request, SECTOR_BYTES};
use tests::guest::format::RingKind;
use tests::guest::memory::{Backing, Ram, memfd};
use tests::guest::ring::{Completion, Ring};
use tests::machine::{BLK, Device, Machine, QUEUE_SIZE, RAM_BYTES};

tests::against_every_daemon! {
    both: [
        a_daemon_killed_with_requests_in_flight_loses_none,
        a_region_of_another_back_end_is_taken_over,
        k09_a_request_that_ends_three_workers_is_answered_with_an_error,
    ],
}

/// Bytes of a write. Flushes of many of them keep the host's disk busy, so that most requests still wait for a turn.
const WRITE_BYTES: usize = 64 << 10;
/// The same in sectors.
const WRITE_SECTORS: u64 = 128;
const FLUSH: u32 = 4;

/// A disk that is suspended in the middle of writes and flushes: each request comes back once in all, from the process
/// that had it or from the one that goes on with the region.
fn a_suspended_disk_goes_on_in_another_process(rings: RingKind) {
    let device = BLK.on(rings);
    let launch = device.launch().args(["--keeper", "off"]);
    let mut machine = device.boot_with(launch, &Ram::new(RAM_BYTES), device.wants());
    assert!(machine.frontend.protocol().contains(ProtocolFeatures::GET_VRING_BASE_INFLIGHT));
    let region = machine.frontend.inflight(queues(device), QUEUE_SIZE).unwrap();
    let mut ring = machine.start_queue().unwrap();
    let mut suspended = 0;
    for round in 0..8u8 {
        let data = vec![round + 1; WRITE_BYTES];
        let mut added = 0;
        for number in 0..10 {
            let write = Request::write(number * WRITE_SECTORS, &data);
            for request in [write, Request::bare(FLUSH)] {
                ring.add(&request.chain(&Framing::usual(0)));
                added += 1;
            }
        }
        ring.notify();
        let base = machine.frontend.stop(device.queue).unwrap();
        let mut back: Vec<Completion> = std::iter::from_fn(|| ring.used().unwrap()).collect();
        let marks = region.marks(rings).len();
        assert!(back.len() + marks <= added, "round {round}: {marks} marks and {back:?}");
        suspended += marks;
        machine.daemon.restart().unwrap();
        machine.frontend =
            Frontend::session(machine.daemon.socket(), &machine.ram(), device.wants()).unwrap();
        machine.frontend.set_inflight(&region).unwrap();
        machine.frontend.start(device.queue, &ring, base).unwrap();
        back.extend(ring.wait_all().unwrap());
        assert_eq!(back.len(), added, "round {round}");
        assert!(back.iter().all(|done| Answer::new(done, 0).status == Some(OK)), "round {round}: {back:?}");
        let image = std::fs::read(machine.daemon.dir().join("disk.img")).unwrap();
        assert!(image.iter().take(10 * data.len()).all(|byte| *byte == round + 1), "round {round}");
    }
    println!("{suspended} of 160 requests were suspended and served by another process");
    assert!(suspended > 0, "nothing was in flight when the disk was suspended");
}

#[test]
fn a_suspended_disk_goes_on_in_another_process_split() {
    a_suspended_disk_goes_on_in_another_process(RingKind::Split);
}

#[test]
fn a_suspended_disk_goes_on_in_another_process_packed() {
    a_suspended_disk_goes_on_in_another_process(RingKind::Packed);
}

/// A base that no front-end of a ring that has worked would say.
fn wrong_base(device: Device) -> u32 {
    if device.rings == RingKind::Packed { 0x8000_8000 } else { 0 }
}

fn queues(device: Device) -> u16 {
    device.queues.into()
}

/// As many requests as the ring takes.
fn fill(device: Device, ring: &mut Ring) {
    let request = device.request();
    while request.slots() <= ring.free() {
        ring.add(&request);
    }
}

fn a_daemon_killed_with_requests_in_flight_loses_none(device: Device) {
    let launch = device.launch().args(["--keeper", "off"]);
    let mut machine = device.boot_with(launch, &Ram::new(RAM_BYTES), device.wants());
    let region = machine.frontend.inflight(queues(device), QUEUE_SIZE).unwrap();
    let mut ring = machine.start_queue().unwrap();
    for round in 0..12 {
        fill(device, &mut ring);
        ring.notify();
        let mut back: Vec<Completion> = (0..round).map(|_| ring.wait_used().unwrap()).collect();
        machine.daemon.restart().unwrap();
        // What came back before the end, and what the guest does in the meantime.
        back.extend(std::iter::from_fn(|| ring.used().unwrap()));
        fill(device, &mut ring);
        ring.publish();
        machine.frontend =
            Frontend::session(machine.daemon.socket(), &machine.ram(), device.wants()).unwrap();
        machine.frontend.set_inflight(&region).unwrap();
        machine.frontend.start(device.queue, &ring, wrong_base(device)).unwrap();
        back.extend(ring.wait_all().unwrap());
        assert!(back.iter().all(|done| device.accepts(done)), "round {round}: {back:?}");
        machine.assert_serves(&mut ring);
    }
    machine.frontend.stop(device.queue).unwrap();
    assert!(region.marks(device.rings).is_empty(), "nothing is in flight");
}

/// Bytes of a queue's part, as every back-end lays them out.
fn part_bytes(rings: RingKind) -> u64 {
    let bytes = match rings {
        RingKind::Split => 16 + 16 * u64::from(QUEUE_SIZE),
        RingKind::Packed => 32 + 32 * u64::from(QUEUE_SIZE),
    };
    bytes.next_multiple_of(64)
}

/// A region without a tail of ours, in which two of the chains in the ring are in flight; the second was taken first.
fn foreign(device: Device, ring: &Ring, heads: [u16; 2]) -> Region {
    let (size_bytes, queues) = (part_bytes(device.rings) * u64::from(device.queues), queues(device));
    let inflight = Inflight { size_bytes, mmap_offset: 0, queues, queue_size: QUEUE_SIZE };
    let region = Region { inflight, fd: memfd(size_bytes, Backing::Unsealed).into() };
    let part = part_bytes(device.rings) * u64::from(device.queue);
    let words = |at: u64, words: &[u16]| {
        region.write(part + at, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
    };
    words(8, &[1, QUEUE_SIZE]);
    match device.rings {
        RingKind::Split => {
            for (head, counter) in heads.into_iter().zip([9u16, 5]) {
                words(16 + 16 * u64::from(head), &[1, 0, 0, 0, counter]);
            }
        }
        RingKind::Packed => {
            let mut entry = 0;
            for (head, counter) in heads.into_iter().zip([9u16, 5]) {
                let (first, slots) = (entry, ring.entries(head));
                for at in slots {
                    let desc = ring.desc(*at);
                    words(32 + 32 * u64::from(entry), &[0, entry + 1]);
                    region.write(part + 32 + 32 * u64::from(entry) + 16, &head.to_le_bytes());
                    words(32 + 32 * u64::from(entry) + 18, &[desc.flags]);
                    region.write(part + 32 + 32 * u64::from(entry) + 20, &desc.len.to_le_bytes());
                    region.write(part + 32 + 32 * u64::from(entry) + 24, &desc.addr.to_le_bytes());
                    entry += 1;
                }
                let count = u16::try_from(slots.len()).unwrap();
                words(32 + 32 * u64::from(first), &[1, first + 1, entry - 1, count, counter]);
            }
            (entry..QUEUE_SIZE).for_each(|at| words(32 + 32 * u64::from(at), &[0, at + 1]));
            // Both free heads, both used places, both laps.
            words(12, &[entry, entry, 0, 0, 0x0101]);
        }
    }
    region
}

fn a_region_of_another_back_end_is_taken_over(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.frontend.new_ring(QUEUE_SIZE);
    let heads = [(); 3].map(|()| ring.add(&device.request()));
    ring.publish();
    let region = foreign(device, &ring, [heads[0], heads[1]]);
    machine.frontend.set_inflight(&region).unwrap();
    machine.frontend.start(device.queue, &ring, wrong_base(device)).unwrap();
    let back = ring.wait_all().unwrap();
    assert!(back.iter().all(|done| device.accepts(done)), "{back:?}");
    let mut order: Vec<u16> = back.iter().map(|done| done.head).collect();
    if device.binary == "outboard-blk" {
        // Its answers come as the host gives them.
        order.sort_unstable_by_key(|head| heads.iter().position(|other| other == head));
        order.swap(0, 1);
    }
    assert_eq!(order, [heads[1], heads[0], heads[2]], "in the order of their counters, then what is new");
    machine.assert_serves(&mut ring);
}

/// Each worker dies as soon as it has taken the request.
fn deadly(launch: Launch, deaths: usize) -> Launch {
    let files: Vec<_> = (0..deaths).map(|n| launch.dir().join(format!("death-{n}"))).collect();
    files.iter().for_each(|file| std::fs::write(file, "").unwrap());
    let points: Vec<_> = files.iter().map(|file| format!("queue.marked={}", file.display())).collect();
    launch.env("OUTBOARD_FAILPOINTS", &points.join(","))
}

fn answer_after(device: Device, deaths: usize) -> (Machine, Ring, Completion) {
    let launch = deadly(device.launch(), deaths);
    let mut machine = device.boot_with(launch, &Ram::new(RAM_BYTES), device.wants());
    machine.frontend.inflight(queues(device), QUEUE_SIZE).unwrap();
    let mut ring = machine.start_queue().unwrap();
    let done = ring.run(&device.request()).unwrap();
    (machine, ring, done)
}

fn k09_a_request_that_ends_three_workers_is_answered_with_an_error(device: Device) {
    let (machine, mut ring, done) = answer_after(device, 2);
    assert!(device.accepts(&done), "two deaths are bad luck: {done:?}");
    machine.assert_serves(&mut ring);
    let (machine, mut ring, done) = answer_after(device, 3);
    match device.binary {
        "outboard-blk" => assert_eq!(Answer::new(&done, SECTOR_BYTES).status, Some(IOERR), "{done:?}"),
        _ => assert_eq!(done.len, 0, "{done:?}"),
    }
    machine.assert_serves(&mut ring);
}

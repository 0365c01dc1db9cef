//! What a queue costs by itself: requests of three descriptors, as a block device has them, taken and given back by one
//! thread that is their driver, too.
//!
//! Variants, run in turn each round: split and packed rings, each without and with an in-flight region. A round is
//! 20,480 requests, 128 made available at a time, short enough not to be interrupted; nothing sleeps, interrupts or crosses a CPU. Output: one JSON object a line and
//! variant, with the least of all rounds, which on a busy machine is what says most.
//!
//! `cargo bench -p backends --bench queue -- [ROUNDS] [VARIANT]`; under `valgrind --tool=callgrind` with one round.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use backends::inflight::Region;
use backends::memory::{Area, Memory};
use backends::notify::Signal;
use backends::proto::MemoryRegion;
use backends::queue::{Queue, QueueSetup, Request};
use backends::ring::{Layout, Ring};
use backends::stats::QueueStats;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const OFFERS: u32 = 160;
const OFFER: u16 = 128;
const SIZE: u16 = 512;
/// Of a request: header, data, status.
const SLOTS: u16 = 3;
/// Guest memory: the parts of the ring, then headers and data.
const RAM_BYTES: u64 = 2 << 20;
const AVAILABLE: usize = 0x4000;
const USED: usize = 0x8000;
const HEADERS: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
/// Descriptor flags (virtio 1.3 §2.7.5, §2.8.1).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const PACKED_AVAIL: u16 = 1 << 7;
const PACKED_USED: u16 = 1 << 15;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let rounds = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(500);
    let only = args.next();
    let all = [
        ("split", false, false),
        ("split tracked", false, true),
        ("packed", true, false),
        ("packed tracked", true, true),
    ];
    let mut variants: Vec<_> = all
        .into_iter()
        .filter(|(name, ..)| only.as_deref().is_none_or(|only| only == *name))
        .map(|variant| (variant, f64::MAX))
        .collect();
    for _ in 0..rounds {
        for ((_, packed, tracked), least) in &mut variants {
            *least = least.min(round(*packed, *tracked));
        }
    }
    for ((name, ..), least) in variants {
        println!("{{\"variant\":\"{name}\",\"ns\":{least:.2}}}");
    }
}

/// Nanoseconds a request.
fn round(packed: bool, tracked: bool) -> f64 {
    let ram = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&ram, RAM_BYTES).expect("a memfd grows");
    let mut driver = Driver::new(&ram, packed);
    let mut queue = queue(ram, packed, tracked);
    let began = Instant::now();
    for _ in 0..OFFERS {
        driver.offer();
        while turn(&mut queue) {}
    }
    let ns = began.elapsed().as_secs_f64() * 1e9;
    let requests = OFFERS * u32::from(OFFER);
    assert_eq!(queue.stats().get(backends::stats::Count::Requests), u64::from(requests));
    ns / f64::from(requests)
}

/// As a worker's. Whether another one is due.
fn turn(queue: &mut Queue) -> bool {
    queue.begin_turn();
    while let Some(request) = queue.next() {
        answer(queue, request);
    }
    queue.flush();
    queue.end_turn(true)
}

fn queue(ram: OwnedFd, packed: bool, tracked: bool) -> Queue {
    let region = MemoryRegion { guest_addr: 0, size_bytes: RAM_BYTES, user_addr: 0, mmap_offset: 0 };
    let memory = Arc::new(Memory::map(vec![(region, ram)]).expect("memory"));
    let layout = Layout {
        size: SIZE,
        descriptor: 0,
        available: AVAILABLE as u64,
        used: USED as u64,
        packed,
        event_idx: false,
    };
    let ring = Ring::new(&memory, &layout, Ring::first_base(packed)).expect("a ring");
    let inflight = tracked.then(|| Region::create(1, SIZE, 1).expect("a region"));
    let setup = QueueSetup {
        index: 0,
        features: 0,
        max_chain_bytes: 1 << 20,
        call: Signal::default(),
        error: Signal::default(),
        stats: QueueStats::default(),
        log: None,
        inflight: inflight.and_then(|region| region.part(0, SIZE, packed)),
    };
    let mut queue = Queue::new(ring, memory, setup);
    queue.recover();
    queue
}

/// As the null device of the tests.
fn answer(queue: &mut Queue, mut request: Request) {
    let room = request.writable_bytes();
    let header = request.read_front::<16>();
    let status = request.take_last_byte().expect("a status");
    assert!(header.is_some());
    status.copy_from(&[0]);
    queue.complete(request, u32::try_from(room).expect("a few pages"));
}

/// The driver's side of the ring.
struct Driver {
    ram: Area,
    packed: bool,
    /// Split: the available index. Packed: the place of the next descriptor.
    next: u16,
    lap: bool,
}

impl Driver {
    fn new(ram: &OwnedFd, packed: bool) -> Driver {
        let ram = Area::map(ram.try_clone().expect("a descriptor"), RAM_BYTES, 0).expect("memory");
        let driver = Driver { ram, packed, next: 0, lap: true };
        if !packed {
            for number in 0..OFFER {
                for (nth, (addr, len, write)) in (0..).zip(buffers(number)) {
                    let at = number * SLOTS + nth;
                    let flags = if nth + 1 < SLOTS { write | NEXT } else { write };
                    let word = u64::from(len) | u64::from(flags) << 32 | u64::from(at + 1) << 48;
                    driver.ram.put_words(usize::from(at) * 16, [addr, word]);
                }
            }
            for at in 0..SIZE {
                driver.ram.put_u16(AVAILABLE + 4 + usize::from(at) * 2, at % OFFER * SLOTS);
            }
        }
        driver
    }

    /// Makes the next requests available; those before have come back.
    fn offer(&mut self) {
        if !self.packed {
            self.next = self.next.wrapping_add(OFFER);
            return self.ram.store_u16(AVAILABLE + 2, self.next, Ordering::Release);
        }
        for number in 0..OFFER {
            for (nth, (addr, len, write)) in (0..).zip(buffers(number)) {
                let chained = if nth + 1 < SLOTS { NEXT } else { 0 };
                let flags = chained | write | if self.lap { PACKED_AVAIL } else { PACKED_USED };
                let word = u64::from(len) | u64::from(number) << 32 | u64::from(flags) << 48;
                self.ram.put_words(usize::from(self.next) * 16, [addr, word]);
                self.next = (self.next + 1) % SIZE;
                self.lap ^= self.next == 0;
            }
        }
    }
}

/// Address, bytes and direction of a request's buffers.
fn buffers(number: u16) -> [(u64, u32, u16); SLOTS as usize] {
    let number = u64::from(number);
    let header = HEADERS + number * 64;
    [(header, 16, 0), (DATA + number * 4096, 4096, WRITE), (header + 16, 1, WRITE)]
}

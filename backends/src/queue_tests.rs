use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::ring::Descriptor;
use crate::stats::{Count, QueueStats};
use crate::testing::Guest;

const DATA: u64 = 0x2_0000;

struct Bench {
    guest: Guest,
    queue: Queue,
    call: std::os::fd::OwnedFd,
    error: std::os::fd::OwnedFd,
    stats: QueueStats,
}

fn bench(size: u16) -> Bench {
    bench_with(size, 0)
}

fn bench_with(size: u16, features: u64) -> Bench {
    let guest = Guest::new(size, false);
    let fd = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let (call, error, stats) = (fd(), fd(), QueueStats::default());
    let setup = QueueSetup {
        index: 0,
        features,
        max_chain_bytes: 1 << 20,
        call: Signal::new(Some(call.try_clone().unwrap())),
        error: Signal::new(Some(error.try_clone().unwrap())),
        stats: stats.clone(),
        log: None,
        inflight: None,
    };
    let queue = Queue::new(Ring::Split(guest.ring(0)), Arc::clone(&guest.memory), setup);
    for index in 0..size {
        guest.descriptor(index, DATA, 8, Descriptor::WRITE, 0);
    }
    Bench { guest, queue, call, error, stats }
}

/// How often an eventfd was raised since the last look.
fn raised(fd: &std::os::fd::OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

impl Bench {
    fn publish(&self, heads: &[u16]) {
        for (at, head) in (0..).zip(heads) {
            self.guest.available(at, *head);
        }
        self.guest.available_index(u16::try_from(heads.len()).unwrap());
    }
}

#[test]
fn a_batch_costs_one_index_and_one_interrupt() {
    let mut b = bench(8);
    b.publish(&[3, 1, 2]);
    while let Some(request) = b.queue.next() {
        b.queue.complete(request, 8);
        assert_eq!(b.guest.used_index(), 0, "nothing shows before the flush");
    }
    b.queue.flush();
    assert_eq!((b.guest.used_index(), raised(&b.call)), (3, 1));
    assert_eq!([b.guest.used(0), b.guest.used(1), b.guest.used(2)], [(3, 8), (1, 8), (2, 8)]);
    b.queue.flush();
    assert_eq!(raised(&b.call), 0, "an empty batch interrupts nobody");
    assert_eq!(b.stats.get(Count::Requests), 3);
}

#[test]
fn a_large_batch_shows_in_parts() {
    let mut b = bench(64);
    b.guest.descriptor(0, DATA, 8, Descriptor::NEXT, 0);
    b.publish(&(0..40).collect::<Vec<u16>>());
    let shown = std::iter::from_fn(|| {
        let request = b.queue.next()?;
        b.queue.complete(request, 8);
        Some(b.guest.used_index())
    });
    let shown: Vec<u16> = shown.collect();
    // The malformed one at the front counts, too.
    assert_eq!((shown[13], shown[14], shown[29], shown[30]), (0, 16, 16, 32));
    b.queue.flush();
    assert_eq!((b.guest.used_index(), raised(&b.call)), (40, 3));
}

#[test]
fn malformed_chains_go_back_and_the_next_is_served() {
    let mut b = bench(8);
    b.guest.descriptor(0, DATA, 8, Descriptor::NEXT, 0);
    b.publish(&[0, 1]);
    let request = b.queue.next().unwrap();
    b.queue.complete(request, 8);
    b.queue.flush();
    assert_eq!([b.guest.used(0), b.guest.used(1)], [(0, 0), (1, 8)]);
    assert_eq!(b.stats.get(Count::Malformed), 1);
}

#[test]
fn in_order_is_kept_by_malformed_chains_too() {
    let mut b = bench_with(8, 1 << virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER);
    b.guest.descriptor(1, DATA, 8, Descriptor::NEXT, 1);
    b.publish(&[0, 1, 2]);
    let (first, third) = (b.queue.next().unwrap(), b.queue.next().unwrap());
    b.queue.complete(third, 3);
    b.queue.flush();
    assert_eq!(b.guest.used_index(), 0, "the malformed one and the third wait for the first");
    b.queue.complete(first, 1);
    b.queue.flush();
    assert_eq!([b.guest.used(0), b.guest.used(1), b.guest.used(2)], [(0, 1), (1, 0), (2, 3)]);
}

#[test]
fn g10_a_head_in_flight_made_available_again_breaks_the_ring() {
    let mut b = bench(8);
    b.publish(&[4, 4, 5]);
    let first = b.queue.next().unwrap();
    assert!(b.queue.next().is_none());
    assert_eq!(b.queue.broken(), Some(RingError::InFlight(4)));
    assert_eq!(raised(&b.error), 1);
    // The first request finishes into memory that is still there, and nothing is written to the ring.
    assert_eq!(first.writable()[0].copy_from(b"finished"), 8);
    b.queue.complete(first, 8);
    b.queue.flush();
    assert_eq!((b.guest.used_index(), raised(&b.call), b.queue.in_flight()), (0, 0, 0));
    assert!(b.queue.next().is_none());
}

#[test]
fn g01_an_index_too_far_ahead_breaks_the_ring() {
    let mut b = bench(8);
    b.guest.available_index(9);
    assert!(b.queue.next().is_none());
    assert!(matches!(b.queue.broken(), Some(RingError::AvailableIndex { .. })));
    assert_eq!(b.stats.get(Count::Broken), 1);
}

#[test]
fn g16_a_turn_takes_no_more_than_its_budget() {
    let mut b = bench(1024);
    let heads: Vec<u16> = (0..1024).collect();
    b.publish(&heads);
    b.queue.begin_turn();
    let mut taken = 0;
    while let Some(request) = b.queue.next() {
        b.queue.complete(request, 0);
        taken += 1;
    }
    assert_eq!(taken, TURN_BUDGET);
    assert!(b.queue.end_turn(true), "another turn is due");
}

#[test]
fn a_full_descriptor_and_a_broken_pipe_stop_nobody() {
    let full = eventfd(0, EventfdFlags::empty()).unwrap();
    let signal = Signal::new(Some(full.try_clone().unwrap()));
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    signal.raise();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    Signal::new(Some(writer)).raise();
    Signal::default().raise();
}

#[test]
#[should_panic(expected = "was dropped")]
fn a_request_cannot_be_dropped_by_accident() {
    let mut b = bench(8);
    b.publish(&[0]);
    drop(b.queue.next());
}

#[test]
fn memory_outlives_requests_of_a_dropped_queue() {
    let mut b = bench(8);
    b.publish(&[0]);
    let request = b.queue.next().unwrap();
    drop(b.queue);
    let memory = Arc::downgrade(&b.guest.memory);
    drop(b.guest);
    assert_eq!(request.writable()[0].copy_from(b"mapped"), 6);
    assert!(memory.upgrade().is_some(), "leaked on purpose");
    // Nobody is left to give it back to.
    let _kept = std::mem::ManuallyDrop::new(request);
}

#[test]
fn a_turn_ends_after_so_many_bytes() {
    let mut b = bench(8);
    // A megabyte of the same memory each, and the limit of a chain.
    for index in 0..8 {
        b.guest.descriptor(index, 0, 1 << 20, Descriptor::WRITE, 0);
    }
    b.queue.begin_turn();
    b.queue.budget_bytes = 3 << 20;
    b.publish(&[0, 1, 2, 3, 4, 5]);
    let taken: Vec<_> = std::iter::from_fn(|| b.queue.next()).collect();
    assert_eq!(taken.len(), 3);
    assert!(b.queue.end_turn(true), "another turn is due");
    taken.into_iter().for_each(|request| b.queue.complete(request, 0));
}

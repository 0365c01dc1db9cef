use std::convert::Infallible;
use std::time::Instant;

use super::*;
use crate::device::Turn;
use crate::notify::Signal;
use crate::queue::QueueSetup;
use crate::ring::{Descriptor, Ring};
use crate::testing::Guest;

/// Longer than any wait that ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// Completes at once; its queue 0 asks for a turn in every turn, so its worker never sleeps.
struct Restless;

impl Device for Restless {
    type Handler = Restless;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<Restless> {
        Ok(Restless)
    }
}

impl Handler for Restless {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, _: &mut Io<'_, Infallible>) -> Turn {
        while let Some(request) = queue.next() {
            queue.complete(request, 8);
        }
        if queue.index() == 0 {
            queue.wake();
        }
        Turn::Drained
    }

    fn complete(
        &mut self,
        _: &mut Queue,
        op: Infallible,
        _: Result<u32, rustix::io::Errno>,
        _: &mut Io<'_, Infallible>,
    ) {
        match op {}
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// A guest whose ring of 8 is served as queue `index`, with some requests in it, and never kicked.
fn served(workers: &mut Workers<Restless>, index: u16, requests: u16) -> Guest {
    let guest = Guest::new(8, false);
    (0..8).for_each(|head| {
        guest.descriptor(head, 0x2_0000, 8, Descriptor::WRITE, 0);
        guest.available(head, head);
    });
    guest.available_index(requests);
    let setup = QueueSetup {
        index,
        features: 0,
        max_chain_bytes: 1 << 20,
        call: Signal::default(),
        error: Signal::default(),
        stats: Arc::default(),
        log: None,
    };
    let queue = Queue::new(Ring::Split(guest.ring(0)), Arc::clone(&guest.memory), setup);
    workers.start(queue, Arc::new(event())).unwrap();
    guest
}

fn reaches(guest: &Guest, used: u16) -> bool {
    let until = Instant::now() + PATIENCE;
    while guest.used_index() != used && Instant::now() < until {
        std::thread::yield_now();
    }
    guest.used_index() == used
}

#[test]
fn a_driver_that_is_asked_not_to_notify_is_looked_after_beside_a_busy_one() {
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        let mut workers = Workers::new(Arc::new(Restless), engine);
        let _busy = served(&mut workers, 0, 0);
        let quiet = served(&mut workers, 1, 0);
        for index in 1..=8 {
            quiet.available_index(index);
            assert!(reaches(&quiet, index), "request {index} is not served");
        }
        assert_eq!(quiet.used_flags(), 1, "a worker that never sleeps needs no notification");
        assert_eq!(workers.stop(1, PATIENCE), Some(8));
    }
}

#[test]
fn a_driver_is_asked_to_notify_when_its_worker_sleeps() {
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        let mut workers = Workers::new(Arc::new(Restless), engine);
        let quiet = served(&mut workers, 1, 1);
        assert!(reaches(&quiet, 1));
        let until = Instant::now() + PATIENCE;
        while quiet.used_flags() != 0 {
            assert!(Instant::now() < until, "it is never asked");
            std::thread::yield_now();
        }
        assert_eq!(workers.stop(1, PATIENCE), Some(1));
    }
}

//! Calls of one queue that are over in the turn of another, since queues of one worker share its layers; and calls of a
//! queue that is suspended.
//!
//! The device runs in this process, on a real socket and real rings. Its one volume holds a call until another one has
//! come, so that each request waits for one of another queue; or until the queue stops.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use backends::kept::Kept;
use backends::server::{Endpoint, Server, Settings};
use outboard_blk::call::Call;
use outboard_blk::device::Blk as Device;
use outboard_blk::graph::live::Live;
use outboard_blk::graph::{Graph, Host, Layer, Release, Step, Volume};
use outboard_blk::op::{Bounds, Keeps};
use rustix::io::Errno;
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{Answer, DISCARD, Framing, OK, Request};
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;

#[derive(Debug)]
struct Pairs;

#[derive(Default)]
struct PairsLayer(Option<Call>);

impl Volume for Pairs {
    fn keeps(&self, _: &[Keeps]) -> Result<Keeps, String> {
        Ok(Keeps::plain(1 << 20, 512))
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(PairsLayer::default()))
    }
}

impl Layer for PairsLayer {
    fn submit(&mut self, call: Call, host: &mut Host<'_>) -> Step {
        match self.0.take() {
            Some(first) => {
                host.go(Step::Up(first, Ok(())));
                Step::Up(call, Ok(()))
            }
            None => {
                self.0 = Some(call);
                Step::Held
            }
        }
    }

    fn release(&mut self, queue: u16, _: Release, host: &mut Host<'_>) {
        if let Some(call) = self.0.take_if(|call| call.queue() == queue) {
            host.go(Step::Up(call, Err(Errno::IO)));
        }
    }
}

/// A disk of this volume, and whoever drives it.
fn serve(leaf: Arc<dyn Volume>, queues: u16) -> (Frontend, JoinHandle<()>) {
    let (here, there) = UnixStream::pair().unwrap();
    let (asked, never) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let graph = Graph::of_leaf("leaf", "debug/leaf", leaf).unwrap();
        let device = Device::new(Live::unwritten(graph), &Kept::default(), queues, "").unwrap();
        let mut server = Server::new(device, Settings::default(), &Kept::default()).unwrap();
        server.serve(Endpoint::Connected(there), asked.as_fd()).unwrap();
        drop(never);
    });
    let mut frontend = Frontend::on(here, &Ram::new(16 << 20)).unwrap();
    frontend.handshake(Wants::default()).unwrap();
    (frontend, server)
}

#[test]
fn what_is_over_in_the_turn_of_another_queue_is_answered() {
    // More queues than workers: the first and the last are served by the same.
    let queues = u16::try_from(std::thread::available_parallelism().unwrap().get()).unwrap() + 1;
    let (mut frontend, server) = serve(Arc::new(Pairs), queues);
    let last = u8::try_from(queues - 1).unwrap();
    let mut rings = [0, last].map(|index| frontend.start_new(index, 64).unwrap());
    let read = Request::read(0, 512).chain(&Framing::usual(512));
    for turn in 0..1000 {
        // Each of them is the first now and then.
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        for ring in order {
            rings[ring].add(&read);
            rings[ring].notify();
        }
        for ring in &mut rings {
            let done = ring.wait_all().unwrap();
            assert_eq!(done.len(), 1);
            assert_eq!(Answer::new(&done[0], 512).status, Some(OK), "{turn}");
        }
    }
    // What is held when its queue stops comes back.
    rings[0].add(&read);
    rings[0].notify();
    frontend.stop(0).unwrap();
    drop(frontend);
    server.join().unwrap();
}

/// Holds each call until its queue is suspended, by when it is done.
#[derive(Debug, Default)]
struct Late(Arc<AtomicUsize>);

#[derive(Default)]
struct LateLayer(Arc<AtomicUsize>, Vec<Call>);

impl Volume for Late {
    fn keeps(&self, _: &[Keeps]) -> Result<Keeps, String> {
        let bounds = Some(Bounds { max_bytes: 1 << 20, align_bytes: 512 });
        Ok(Keeps { discard: bounds, ..Keeps::plain(1 << 20, 512) })
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(LateLayer(Arc::clone(&self.0), Vec::new())))
    }
}

impl Layer for LateLayer {
    fn submit(&mut self, call: Call, _: &mut Host<'_>) -> Step {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.push(call);
        Step::Held
    }

    fn release(&mut self, _: u16, _: Release, host: &mut Host<'_>) {
        self.1.drain(..).for_each(|call| host.go(Step::Up(call, Ok(()))));
    }
}

#[test]
fn a_suspended_queue_begins_no_range_any_more() {
    let begun = Arc::default();
    let (mut frontend, server) = serve(Arc::new(Late(Arc::clone(&begun))), 1);
    let region = frontend.inflight(1, 64).unwrap();
    let mut ring = frontend.start_new(0, 64).unwrap();
    let discard = Request::ranges(DISCARD, &[(0, 8, 0), (8, 8, 0), (16, 8, 0)]);
    ring.add(&discard.chain(&Framing::usual(0)));
    ring.notify();
    let until = tests::wait::deadline();
    while begun.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < until, "nothing comes");
        std::thread::yield_now();
    }
    frontend.stop(0).unwrap();
    assert!(ring.used().unwrap().is_none());
    assert_eq!((region.marks(RingKind::Split).len(), begun.load(Ordering::Relaxed)), (1, 1));
    drop(frontend);
    server.join().unwrap();
}

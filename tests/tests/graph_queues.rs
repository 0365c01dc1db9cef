//! Calls of one queue that are over in the turn of another: queues of one worker share its layers.
//!
//! The device runs in this process, on a real socket and real rings. Its one volume holds a call until another one has
//! come, so that each request waits for one of another queue.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use backends::kept::Kept;
use backends::server::{Endpoint, Server, Settings};
use outboard_blk::call::Call;
use outboard_blk::device::Blk as Device;
use outboard_blk::graph::live::Live;
use outboard_blk::graph::{Graph, Host, Layer, Release, Step, Volume};
use outboard_blk::op::Keeps;
use rustix::io::Errno;
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{Answer, Framing, OK, Request};
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

#[test]
fn what_is_over_in_the_turn_of_another_queue_is_answered() {
    // More queues than workers: the first and the last are served by the same.
    let queues = u16::try_from(std::thread::available_parallelism().unwrap().get()).unwrap() + 1;
    let (here, there) = UnixStream::pair().unwrap();
    let (asked, never) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let graph = Graph::of_leaf("pairs", "debug/pairs", Arc::new(Pairs)).unwrap();
        let device = Device::new(Live::unwritten(graph), &Kept::default(), queues, "").unwrap();
        let mut server = Server::new(device, Settings::default(), &Kept::default()).unwrap();
        server.serve(Endpoint::Connected(there), asked.as_fd()).unwrap();
        drop(never);
    });
    let mut frontend = Frontend::on(here, &Ram::new(16 << 20)).unwrap();
    frontend.handshake(Wants::default()).unwrap();
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

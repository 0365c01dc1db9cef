//! A request that kills whoever serves it (K09): after three deaths with it as the oldest, it is answered instead.

use std::fs::File;
use std::os::unix::net::UnixStream;

use tests::guest::blk::{Answer, Framing, IOERR, OK, Request};
use tests::guest::chain::Chain;
use tests::guest::ring::{Completion, Ring};
use tests::restart::soak::Device;
use tests::restart::{Fault, Load, Mode, Rig};

use crate::{Cell, armed};

/// Deaths that a request may cause.
const DEATHS: usize = 3;

/// Requests one by one, on the last ring that the device has.
struct OneByOne {
    rings: Vec<Ring>,
    at: usize,
}

impl OneByOne {
    fn ring(&mut self) -> &mut Ring {
        &mut self.rings[self.at]
    }
}

impl Load for OneByOne {
    fn rings(&self) -> Vec<&Ring> {
        self.rings.iter().collect()
    }

    fn outstanding(&self) -> usize {
        self.rings[self.at].in_flight()
    }

    fn submit(&mut self) {}

    fn reap(&mut self) -> Result<usize, Fault> {
        Ok(0)
    }

    fn wait(&mut self) -> Result<usize, Fault> {
        Ok(0)
    }

    fn check(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

/// Where the device is when it dies of a request, and that request.
fn deadly(device: Device) -> (&'static str, Chain) {
    match device {
        Device::Blk | Device::BlkGraph => {
            ("blk.submitted", Request::write(0, &[7; 512]).chain(&Framing::usual(0)))
        }
        Device::Rng => ("rng.filled", Chain::new().writable(64)),
        Device::Console => ("console.written", Chain::new().readable(b"deadly")),
    }
}

/// How the device says that it gave up: by a status if it has one, otherwise the chain comes back empty.
fn given_up(device: Device, done: &Completion) -> bool {
    match device {
        Device::Blk | Device::BlkGraph => Answer::new(done, 0).status == Some(IOERR),
        Device::Rng | Device::Console => done.len == 0,
    }
}

fn k09_three_deaths_by_one_request_and_no_more(cell: Cell) {
    let (point, chain) = deadly(cell.device);
    let (launch, points) = armed(cell, &[point; DEATHS]);
    let mut rig = Rig::start(launch, cell.mode, cell.wants(), cell.device.queues());
    let at = usize::from(cell.device == Device::Console);
    let mut load = OneByOne { rings: rig.start_rings(), at };
    let mut client = client(&rig, cell);
    serves(&mut load, cell);
    points.iter().for_each(|point| drop(File::create(point).unwrap()));
    load.ring().add(&chain);
    let mut watch = rig.watch();
    load.ring().notify();
    for death in 1..=DEATHS {
        if cell.mode == Mode::Reconnect {
            assert!(watch.wait(), "{cell:?}: it lives");
            // A client that is there before the rings start: what they hold is written at once.
            rig.daemon.restart().unwrap();
            client = self::client(&rig, cell);
            watch = rig.watch();
            // It may die before the last word of the session.
            let resumed = rig.resume(&mut load);
            assert!(death < DEATHS || resumed.is_ok(), "{cell:?}: {resumed:?}");
        }
    }
    let done = load.ring().wait_used().unwrap_or_else(|error| panic!("{cell:?}: {error}"));
    assert!(given_up(cell.device, &done), "{cell:?}: {done:?}");
    assert!(points.iter().all(|point| !point.exists()), "{cell:?}: fewer deaths than it may cause");
    serves(&mut load, cell);
    drop(client);
}

/// Somebody who reads what the guest says.
fn client(rig: &Rig, cell: Cell) -> Option<UnixStream> {
    let port = rig.daemon.dir().join("port.sock");
    (cell.device == Device::Console).then(|| UnixStream::connect(port).unwrap())
}

/// The next request is served.
#[track_caller]
fn serves(load: &mut OneByOne, cell: Cell) {
    let request = match cell.device {
        Device::Blk | Device::BlkGraph => Request::write(8, &[1; 512]).chain(&Framing::usual(0)),
        other => deadly(other).1,
    };
    let done = load.ring().run(&request).unwrap_or_else(|error| panic!("{cell:?}: {error}"));
    let right = match cell.device {
        Device::Blk | Device::BlkGraph => Answer::new(&done, 0).status == Some(OK),
        Device::Rng => done.len == 64,
        Device::Console => done.len == 0,
    };
    assert!(right, "{cell:?}: {done:?}");
}

crate::matrix! {
    blk Blk: [k09_three_deaths_by_one_request_and_no_more],
    rng Rng: [k09_three_deaths_by_one_request_and_no_more],
    console Console: [k09_three_deaths_by_one_request_and_no_more],
}

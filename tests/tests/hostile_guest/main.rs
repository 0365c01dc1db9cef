//! What a guest may do to a ring, and that nobody but itself suffers (cases G and GP of the threat model).
//!
//! Each case runs against every daemon, on split and on packed rings, and ends with the next good request being
//! answered: on the same ring where the bad chain is given back with length 0, on a restarted ring and for a
//! fresh front-end where the ring breaks.

use std::sync::atomic::{AtomicBool, Ordering};

use tests::guest::chain::Chain;
use tests::guest::raw::{Desc, WRITE};
use tests::guest::ring::Ring;
use tests::machine::{Device, Machine};

mod chains;
mod indices;
mod turns;

/// A guest that has been served once.
fn running(device: Device) -> (Machine, Ring) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    (machine, ring)
}

/// The ring breaks, and is not written to any more; it can be set up again, and so can a whole session.
#[track_caller]
fn assert_breaks(machine: &mut Machine, ring: &Ring) {
    ring.kick();
    assert!(ring.wait_broken(), "{:?}: the ring is not broken", machine.device);
    let broken = ring.written_by_device();
    assert_eq!(ring.waiting(), 0, "a broken ring was answered");
    ring.kick();
    machine.frontend.sync().unwrap();
    assert!(ring.written_by_device() == broken, "a broken ring was written to");
    machine.assert_restarts();
    machine.assert_serves_anew();
}

/// The chain comes back with length 0, and the ring goes on.
#[track_caller]
fn assert_dropped(machine: &Machine, ring: &mut Ring, chain: &Chain) {
    let head = ring.add(chain);
    assert_comes_back_empty(machine, ring, head);
}

/// What was added comes back with length 0, and the ring goes on.
#[track_caller]
fn assert_comes_back_empty(machine: &Machine, ring: &mut Ring, head: u16) {
    ring.notify();
    let done = ring.wait_used().unwrap();
    assert_eq!((done.head, done.len), (head, 0), "{:?}", machine.device);
    machine.assert_serves(ring);
}

/// A chain is answered as the device's good request is.
#[track_caller]
fn assert_accepted(machine: &Machine, ring: &mut Ring, chain: &Chain) {
    let done = ring.run(chain).unwrap();
    assert!(machine.device.accepts(&done), "{:?}: {done:?} for {chain:?}", machine.device);
}

/// Room for a device to write, in RAM.
fn buffer(ring: &Ring) -> Desc {
    Desc::new(ring.ram().take(64, 1), 64, WRITE)
}

/// Runs `work` again and again in a second thread until `story` is over, well or not.
fn beside(mut work: impl FnMut() + Send, story: impl FnOnce()) {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                work();
            }
        });
        let _end = End(&over);
        story();
    });
}

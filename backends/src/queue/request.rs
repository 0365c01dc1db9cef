//! A request in flight: a value that cannot be lost.
//!
//! In: a chain that was taken from a ring. Out: its buffers, as the chain it derefs to; at the end the queue takes it
//! back. Promises: one that is dropped instead is told of, by a panic in a debug build.

use std::ops::{Deref, DerefMut};

use crate::chain::Chain;
use crate::log::{self, Class};
use crate::ring::Taken;

/// A request in flight: the head that must go back, and its buffers.
///
/// It cannot be dropped by accident: only [`Queue::complete`] and [`Queue::abandon`] end it. A debug build
/// panics where one is lost, a release build logs it.
// A box, which the queue uses again: requests go from hand to hand, and a word does that faster.
#[derive(Debug)]
#[must_use = "a request must be completed or abandoned"]
pub struct Request(pub(super) Box<Flight>);

#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) taken: Taken,
    pub(super) chain: Chain,
    /// When, on the queue's clock.
    pub(super) taken_ns: u64,
    /// Buffers it counts for, however many it has consumed.
    pub(super) segments: usize,
    /// Its number among requests that go back in order.
    pub(super) number: u64,
    /// It is marked in the in-flight region already.
    pub(super) marked: bool,
    /// Handed out and not given back.
    pub(super) out: bool,
}

impl Deref for Request {
    type Target = Chain;
    fn deref(&self) -> &Chain {
        &self.0.chain
    }
}

impl DerefMut for Request {
    fn deref_mut(&mut self) -> &mut Chain {
        &mut self.0.chain
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.out && !std::thread::panicking() {
            debug_assert!(false, "request {:?} was dropped", self.taken);
            log::line!(error, Class::RequestLost, request = ?self.taken, "A request was dropped instead of given back");
        }
    }
}

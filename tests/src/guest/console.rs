//! A driver for the console's first port (virtio 1.3 §5.3): queue 0 receives, queue 1 transmits.

use std::time::Instant;

use super::chain::Chain;
use super::ring::{Completion, Ring, RingError};
use crate::wait;

/// The console driver.
#[derive(Debug)]
pub struct Console {
    /// Host to guest (receiveq of port 0).
    pub rx: Ring,
    /// Guest to host (transmitq of port 0).
    pub tx: Ring,
}

impl Console {
    /// A driver on these rings, with nothing posted to receive into.
    pub fn new(rx: Ring, tx: Ring) -> Console {
        Console { rx, tx }
    }

    /// Sends one buffer and waits until the device has taken it.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn send(&mut self, bytes: &[u8]) -> Result<Completion, RingError> {
        self.tx.run(&Chain::new().readable(bytes))
    }

    /// Posts `count` buffers of `len` bytes to receive into.
    ///
    /// # Panics
    /// The receive ring has no room for them.
    pub fn post(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            self.rx.add_writable(len);
        }
        self.rx.notify();
    }

    /// Receives at least `want` bytes, posting each buffer again as it comes back.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn receive(&mut self, want: usize, buffer_len: u32) -> Result<Vec<u8>, RingError> {
        self.receive_until(want, buffer_len, wait::deadline())
    }

    /// As [`Console::receive`] with a deadline of the caller's.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn receive_until(
        &mut self,
        want: usize,
        buffer_len: u32,
        until: Instant,
    ) -> Result<Vec<u8>, RingError> {
        let mut bytes = Vec::new();
        while bytes.len() < want {
            if self.rx.in_flight() == 0 {
                self.post(1, buffer_len);
            }
            bytes.extend(self.rx.wait_used_until(until)?.data);
        }
        Ok(bytes)
    }
}

//! A driver for the entropy device (virtio 1.3 §5.4): one queue, all of it writable.

use super::chain::Chain;
use super::ring::{Ring, RingError};

/// The entropy driver.
#[derive(Debug)]
pub struct Rng {
    /// Its only queue.
    pub ring: Ring,
}

impl Rng {
    /// A driver on this ring.
    pub fn new(ring: Ring) -> Rng {
        Rng { ring }
    }

    /// One request for `len` bytes; the device may give fewer.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn fill(&mut self, len: u32) -> Result<Vec<u8>, RingError> {
        Ok(self.ring.run(&Chain::new().writable(len))?.data)
    }
}

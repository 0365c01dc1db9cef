//! Counters that the data path writes and everybody may read.
//!
//! Each queue owns one [`QueueStats`] and is its only writer, once a batch; readers see values that are each
//! true, though not of one instant.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one queue has done since the daemon started.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Requests completed.
    pub requests: AtomicU64,
    /// Bytes that devices reported as written to or read from the guest.
    pub bytes: AtomicU64,
    /// Chains given back because they were malformed.
    pub malformed: AtomicU64,
    /// Requests that an earlier process had in flight: served again, so that what they did outside is done twice.
    pub replayed: AtomicU64,
    /// Times the driver was interrupted.
    pub interrupts: AtomicU64,
    /// Times the ring was broken by its driver.
    pub broken: AtomicU64,
}

/// Adds for the only writer: no locked instruction.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

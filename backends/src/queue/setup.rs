//! What makes a queue, besides its ring: limits, eventfds, and where things are written down.

use std::sync::Arc;

use crate::inflight::Part;
use crate::memory::dirty::DirtyLog;
use crate::notify::Signal;
use crate::stats::QueueStats;

/// What makes a queue, besides its ring.
#[derive(Debug)]
pub struct QueueSetup {
    /// Number in the device.
    pub index: u16,
    /// Features that driver and device agreed on.
    pub features: u64,
    /// Most bytes of one chain.
    pub max_chain_bytes: u64,
    /// Raised when used buffers want an interrupt.
    pub call: Signal,
    /// Raised when the ring is broken.
    pub error: Signal,
    /// Where it counts.
    pub stats: QueueStats,
    /// Where writes to guest memory are logged, while the guest is being moved.
    pub log: Option<WriteLog>,
    /// Where its requests in flight are marked, if somebody keeps that.
    pub inflight: Option<Part>,
}

/// A dirty log, and what of the ring itself is written there.
#[derive(Debug)]
pub struct WriteLog {
    /// The bitmap.
    pub pages: Arc<DirtyLog>,
    /// Guest-physical parts of the ring that the device writes; empty when ring writes are not to be logged.
    pub ring: Vec<(u64, u64)>,
}

impl WriteLog {
    /// What was written lies at the front of the writable buffers.
    pub(super) fn mark_data(&self, buffers: &[(u64, u32)], written_bytes: u32) {
        let mut left = written_bytes;
        for (addr, len) in buffers.iter().take_while(|_| written_bytes > 0) {
            self.pages.mark(*addr, u64::from(left.min(*len)));
            left = left.saturating_sub(*len);
        }
    }

    pub(super) fn mark_ring(&self) {
        self.ring.iter().for_each(|(addr, len)| self.pages.mark(*addr, *len));
    }
}

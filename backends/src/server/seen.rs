//! What is known of the connected front-end, for whoever asks from another thread.
//!
//! In: the session and what its messages did, after each of them. Out: a copy as of then. The lock is held for no longer
//! than it takes to copy, by the thread of the messages and by whoever asks; the data path knows nothing of it.

use std::sync::{Arc, Mutex, PoisonError};

use super::FrontEnd;
use crate::proto::ProtocolFeatures;
use crate::session::Session;

/// A front-end.
#[derive(Clone, Debug)]
pub struct View {
    /// When it connected, in milliseconds of Unix time.
    pub connected_ms: u64,
    /// Features that the driver accepted.
    pub features: u64,
    /// Protocol features of the session; behind a keeper, of the keeper's with us.
    pub protocol: ProtocolFeatures,
    /// Guest memory: guest-physical address and bytes of each region.
    pub regions: Vec<(u64, u64)>,
    /// Requests in flight are marked in a shared region.
    pub inflight: bool,
    /// Pages that are written to are logged.
    pub dirty_log: bool,
}

/// The front-end that is connected now, if one is. Copies are the same.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<Option<View>>>);

impl Seen {
    /// As of the last message.
    pub fn now(&self) -> Option<View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, connected_ms: u64, session: &Session, front_end: &FrontEnd) {
        let (features, protocol) = session.negotiated();
        let regions = front_end.memory.areas().collect();
        let (inflight, dirty_log) = (front_end.inflight.is_some(), front_end.log.is_some());
        self.put(Some(View { connected_ms, features, protocol, regions, inflight, dirty_log }));
    }

    pub(super) fn put(&self, view: Option<View>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

//! A limit that an operator can change while it holds.
//!
//! In: a new limit, from the control thread. Out: for the worker, at its next look, buckets that are full by the new one;
//! what was owed by the old one is forgiven. A worker that waits for the old one is woken: it watches the bell.
//! Promises: a look that finds nothing new is one load.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::{Limit, Throttle};
use crate::control::metrics::{Exposition, Kind};

/// A device's limit.
#[derive(Debug)]
pub struct LiveLimit {
    limit: Mutex<Option<Limit>>,
    changes: AtomicU64,
    waits: AtomicU64,
    bell: OwnedFd,
}

impl LiveLimit {
    /// One that begins like this; nobody has changed it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(limit: Option<Limit>) -> io::Result<LiveLimit> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(LiveLimit { limit: Mutex::new(limit), changes: AtomicU64::new(0), waits: AtomicU64::new(0), bell })
    }

    /// As it is now.
    pub fn get(&self) -> Option<Limit> {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is this from now on.
    pub fn set(&self, limit: Option<Limit>) {
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        self.changes.fetch_add(1, Ordering::Release);
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// A queue waits for it.
    pub fn waits(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// What it is and how often it was in the way, for Prometheus. No limit is infinite.
    pub fn metrics(&self, text: &mut Exposition) {
        let limit = self.get();
        let mut rate = |name, help, rate: Option<u64>| {
            let rate = rate.map_or_else(|| "+Inf".into(), |rate| rate.to_string());
            text.single(name, Kind::Gauge, help, rate);
        };
        let (bytes, ops) = limit.map_or((None, None), |limit| (limit.bytes, limit.ops));
        rate("outboard_limit_bytes_per_second", "Bytes that the guest may have.", bytes);
        rate("outboard_limit_requests_per_second", "Requests that the guest may make.", ops);
        let waits = self.waits.load(Ordering::Relaxed);
        text.single(
            "outboard_limit_waits_total",
            Kind::Counter,
            "Times a queue waited for its limit.",
            waits,
        );
    }

    /// Readable after a change, for the worker that is to look again.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The bell was heard.
    pub fn heard(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }
}

/// The buckets of one worker, by a limit that may change.
#[derive(Debug)]
pub struct LiveThrottle {
    throttle: Throttle,
    changes: u64,
}

impl LiveThrottle {
    /// Full buckets.
    pub fn new(limit: &LiveLimit, now: Instant) -> LiveThrottle {
        let changes = limit.changes.load(Ordering::Acquire);
        LiveThrottle { throttle: Throttle::new(limit.get(), now), changes }
    }

    /// The buckets as of now.
    pub fn at(&mut self, limit: &LiveLimit, now: Instant) -> &mut Throttle {
        if self.changes != limit.changes.load(Ordering::Acquire) {
            *self = LiveThrottle::new(limit, now);
        }
        &mut self.throttle
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_forgives_what_was_owed_and_rings() {
        let now = Instant::now();
        let slow = Limit { bytes: Some(1), ops: None, burst: Duration::from_millis(1) };
        let live = LiveLimit::new(Some(slow)).unwrap();
        let mut throttle = LiveThrottle::new(&live, now);
        throttle.at(&live, now).charge(1000, now);
        assert!(throttle.at(&live, now).closed_until(now).is_some());
        assert!(rustix::io::read(live.bell(), &mut [0; 8]).is_err());
        live.set(Some(Limit { bytes: Some(2), ..slow }));
        assert_eq!(throttle.at(&live, now).closed_until(now), None);
        throttle.at(&live, now).charge(1000, now);
        assert_eq!(throttle.at(&live, now).closed_until(now), Some(now + Duration::from_millis(499_999)));
        live.heard();
        assert!(rustix::io::read(live.bell(), &mut [0; 8]).is_err());
        live.set(None);
        assert_eq!((throttle.at(&live, now).closed_until(now), live.get()), (None, None));
    }
}

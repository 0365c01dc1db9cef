//! How a queue begins after another worker, and how it ends.
//!
//! In: the queue's part of an in-flight region, if there is one. Out: the requests that a worker before us had taken,
//! first of all; those that ended it several times apart from them. A queue that ends gives back what is left of them,
//! or leaves it marked when it is only suspended.

use super::{Queue, Request};
use crate::inflight::Recovered;
use crate::log::{self, Class};
use crate::ring::RingError;
use crate::stats::Count;

impl Queue {
    /// The ring is served from now on. Goes on where a worker before us ended, if somebody kept what it had in flight. Called once, when nobody else
    /// serves the ring any more. A region that makes no sense breaks the ring.
    pub fn recover(&mut self) {
        self.setup.stats.started(&self.ring);
        let Some(part) = &self.setup.inflight else { return };
        self.known = part.is_known();
        match part.recover(&mut self.ring) {
            Ok(Recovered { tracker, replays, poisoned }) => {
                (self.tracker, self.poisoned) = (Some(tracker), poisoned && !replays.is_empty());
                self.setup.stats.add(Count::Replayed, replays.len() as u64);
                if !replays.is_empty() {
                    let (queue, count) = (self.setup.index, replays.len());
                    log::line!(
                        info,
                        Class::RequestsReplayed,
                        queue,
                        count,
                        "Requests that were in flight when another process ended are served again"
                    );
                }
                self.replays = replays;
            }
            Err(corrupt) => self.break_ring(RingError::Inflight(corrupt)),
        }
    }

    /// Whether requests of a worker before us are not handed out yet.
    pub fn has_replays(&self) -> bool {
        !self.replays.is_empty()
    }

    /// The next request that must not be tried again: it is to be answered with an error.
    pub(crate) fn next_poisoned(&mut self) -> Option<Request> {
        if !self.poisoned {
            return None;
        }
        let request = self.next_replay();
        self.poisoned = self.has_replays();
        request
    }

    /// The next request of a worker before us, and no other.
    fn next_replay(&mut self) -> Option<Request> {
        let closing = std::mem::replace(&mut self.closing, true);
        let request = self.next_any();
        self.closing = closing;
        request
    }

    /// No new request from now on; those of a worker before us still come.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// As [`Queue::close`], and those of a worker before us are left to the next, if they are marked anywhere: `true`.
    pub(crate) fn suspend(&mut self) -> bool {
        self.close();
        self.suspended = self.tracker.is_some();
        if self.suspended {
            self.replays.clear();
        }
        self.suspended
    }

    /// Whether requests that are not over are to be kept ([`Queue::keep`]) instead of waited for.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Gives back, as if malformed, what nobody wants to serve again. Nothing is in flight.
    pub(crate) fn abandon_replays(&mut self) {
        while self.has_replays() && self.broken.is_none() {
            self.begin_turn();
            while let Some(request) = self.next_replay() {
                self.abandon(request);
            }
        }
    }

    /// The ring came to rest. What its driver broke is not served again.
    pub(crate) fn end(&self) {
        self.setup.stats.stopped();
        match &self.setup.inflight {
            Some(part) if self.broken.is_some() => part.forget(),
            Some(part) => part.rest(),
            None => {}
        }
    }

    /// Lets go of a request that stays marked in the in-flight region: whoever serves the ring next serves it.
    pub fn keep(&mut self, Request(mut flight): Request) {
        self.release(&mut flight);
        self.store(flight);
    }
}

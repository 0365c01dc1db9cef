//! How long requests take, with few looks at the clock.
//!
//! In: the beginning and end of turns, requests taken and completed, batches published. Out: a queue's latency
//! histogram. The clock is read for the first request of a turn and after a batch is published; a batch that took less
//! than [`QUICK_NS`] is timed with the one after it, so that devices which answer at once do not spend a fifteenth of their time
//! looking at the clock. Promises: a latency is wrong by that much at most.

use std::time::Instant;

use crate::stats::{Moments, QueueStats};

const QUICK_NS: u64 = 1000;

/// A queue's clock, and the requests that were completed since it was last read.
#[derive(Debug)]
pub(super) struct Timing {
    began: Instant,
    in_turn: bool,
    /// The moment at hand, since the queue began. 0: not looked at yet in this turn, or outside of turns.
    now_ns: u64,
    /// The last batch of this turn took next to nothing.
    quick: bool,
    requests: u64,
    moments: Moments,
}

impl Default for Timing {
    fn default() -> Timing {
        let moments = Moments::default();
        Timing { began: Instant::now(), in_turn: false, now_ns: 0, quick: false, requests: 0, moments }
    }
}

impl Timing {
    pub(super) fn begin_turn(&mut self) {
        (self.in_turn, self.now_ns) = (true, 0);
    }

    pub(super) fn end_turn(&mut self) {
        (self.in_turn, self.now_ns, self.quick) = (false, 0, false);
    }

    /// A request was taken: when.
    #[inline]
    pub(super) fn taken_ns(&mut self) -> u64 {
        if self.now_ns == 0 { self.read_ns() } else { self.now_ns }
    }

    /// A request was completed.
    #[inline]
    pub(super) fn completed(&mut self, taken_ns: u64) {
        self.moments.push(taken_ns, self.requests);
        self.requests = self.requests.wrapping_add(1);
    }

    /// A part of a batch was published, and there is more to come.
    pub(super) fn part_published(&mut self, stats: &QueueStats) {
        if std::mem::take(&mut self.quick) {
            return;
        }
        let before_ns = self.now_ns;
        self.published(stats);
        self.quick = self.in_turn && self.now_ns.saturating_sub(before_ns) < QUICK_NS;
    }

    /// All that was completed is published.
    pub(super) fn published(&mut self, stats: &QueueStats) {
        if self.requests > 0 {
            let (now_ns, requests) = (self.read_ns(), std::mem::take(&mut self.requests));
            stats.measured(&mut self.moments, requests, now_ns);
        }
    }

    fn read_ns(&mut self) -> u64 {
        let now_ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.now_ns = if self.in_turn { now_ns } else { 0 };
        now_ns
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn serve(timing: &mut Timing, requests: u64) {
        for _ in 0..requests {
            let taken_ns = timing.taken_ns();
            timing.completed(taken_ns);
        }
    }

    #[test]
    fn a_request_is_timed_from_its_turn_to_its_publication() {
        let (mut timing, stats) = (Timing::default(), QueueStats::default());
        timing.begin_turn();
        let taken_ns = timing.taken_ns();
        timing.end_turn();
        std::thread::sleep(Duration::from_millis(3));
        timing.completed(taken_ns);
        // Beside it, one that is taken late.
        serve(&mut timing, 1);
        timing.published(&stats);
        let latency = stats.latency();
        assert_eq!(latency.count(), 2);
        assert!(latency.max_ns() >= 3_000_000 && latency.sum_ns() < 2 * latency.max_ns(), "{latency:?}");
    }

    #[test]
    fn quick_batches_are_timed_two_by_two_and_none_is_left_out() {
        let (mut timing, stats) = (Timing::default(), QueueStats::default());
        timing.begin_turn();
        let mut waited = 0;
        for _ in 0..1000 {
            serve(&mut timing, 1);
            timing.part_published(&stats);
            assert!(timing.requests < 2, "two parts of a batch are timed together, not more");
            waited += timing.requests;
        }
        assert!(waited > 0, "no empty request took less than a microsecond");
        timing.published(&stats);
        assert_eq!((timing.requests, stats.latency().count()), (0, 1000));
        // Outside of turns nothing is known of how long the last batch took.
        timing.end_turn();
        serve(&mut timing, 1);
        timing.part_published(&stats);
        assert_eq!((timing.requests, stats.latency().count()), (0, 1001));
    }
}

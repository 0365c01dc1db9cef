//! How soon a worker that died is followed by the next: at once, unless they die one after the other.
//!
//! A burst of [`BURST`] deaths costs nothing; after that one in [`REFILL`] is free, and the others wait, each twice
//! as long as the one before, at most [`LONGEST`], until none has died for so long that a whole burst is free again. A
//! worker that cannot even start is tried again after 1, 2, 4 ... ms.

use std::time::{Duration, Instant};

const BURST: u32 = 20;
const REFILL: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(1);

/// Counts deaths.
#[derive(Debug)]
pub(super) struct Pace {
    free: u32,
    /// When `free` was right.
    since: Instant,
    after_death: Duration,
    after_failure: Duration,
}

impl Pace {
    /// No worker has died yet.
    pub(super) fn new(now: Instant) -> Pace {
        Pace { free: BURST, since: now, after_death: Duration::ZERO, after_failure: Duration::ZERO }
    }

    /// How long to wait after a worker died.
    pub(super) fn died(&mut self, now: Instant) -> Duration {
        while self.free < BURST && now.saturating_duration_since(self.since) >= REFILL {
            self.free += 1;
            self.since += REFILL;
        }
        if self.free == BURST {
            // Quiet for long: what was before is forgotten.
            (self.since, self.after_death) = (now, Duration::ZERO);
        }
        if let Some(left) = self.free.checked_sub(1) {
            self.free = left;
            return Duration::ZERO;
        }
        self.after_death = next(self.after_death);
        self.after_death
    }

    /// How long to wait after a worker did not start.
    pub(super) fn failed(&mut self) -> Duration {
        self.after_failure = next(self.after_failure);
        self.after_failure
    }

    /// A worker has started.
    pub(super) fn started(&mut self) {
        self.after_failure = Duration::ZERO;
    }
}

fn next(delay: Duration) -> Duration {
    (delay * 2).clamp(Duration::from_millis(1), LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_deaths_are_free_and_then_delays_grow_to_a_second() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!((0..20).all(|_| pace.died(now).is_zero()));
        let delays: Vec<u128> = (0..12).map(|_| pace.died(now).as_millis()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
    }

    #[test]
    fn five_a_second_are_free_for_ever() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!((0..200).all(|nth| pace.died(now + REFILL * nth).is_zero()));
    }

    #[test]
    fn deaths_without_end_settle_at_the_rate_that_is_free() {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace::new(start), start);
        for _ in 0..200 {
            // As fast as a worker can be started.
            now += pace.died(now) + Duration::from_millis(5);
        }
        assert!(now - start > REFILL * 140, "200 deaths in {:?}", now - start);
        assert!(pace.died(now + REFILL * 21).is_zero());
    }

    #[test]
    fn failures_to_start_are_counted_apart_and_forgotten() {
        let mut pace = Pace::new(Instant::now());
        assert_eq!([pace.failed(), pace.failed(), pace.failed()].map(|d| d.as_millis()), [1, 2, 4]);
        pace.started();
        assert_eq!(pace.failed().as_millis(), 1);
    }
}

//! How fast a counter counts: from two answers and the time between them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// An answer, and when it came.
#[derive(Clone, Debug)]
pub struct Sample<T> {
    /// On a clock that nobody sets.
    pub at: Instant,
    /// On the clock that answers tell times by: seconds since 1970.
    pub unix_s: f64,
    /// The answer.
    pub value: T,
}

impl<T> Sample<T> {
    /// An answer that has just come.
    pub fn now(value: T) -> Sample<T> {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Sample { at: Instant::now(), unix_s, value }
    }
}

/// What came a second. `None` if that cannot be said: the counter began anew, or no time has passed.
pub fn per_second(now: f64, before: f64, elapsed: Duration) -> Option<f64> {
    (now >= before && !elapsed.is_zero()).then(|| (now - before) / elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_time_and_a_counter_that_grows() {
        assert_eq!(per_second(1500.0, 1000.0, Duration::from_secs(2)), Some(250.0));
        assert_eq!(per_second(7.0, 7.0, Duration::from_millis(1)), Some(0.0));
        assert_eq!(per_second(1.0, 2.0, Duration::from_secs(1)), None);
        assert_eq!(per_second(2.0, 1.0, Duration::ZERO), None);
    }
}

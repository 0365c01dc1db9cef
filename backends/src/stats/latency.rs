//! How long requests took: a histogram of four buckets an octave, filled a batch at a time.
//!
//! In: for each batch the moments at which its requests were taken, and the moment at which it was published. Out: a
//! [`Latency`]. The clock is read when the first request of a turn is taken and when a batch is published, never for a
//! request; requests that share a moment are counted as one. What is measured is a request's time in the daemon, from
//! the look at the ring that found it to its place in the used ring: not how long it lay there before.
//!
//! Promises: a value lies less than a fifth beside what was measured (a bucket is a quarter of an octave at most); nothing is
//! allocated; a request more of the same moment is one comparison.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::add;

/// Buckets an octave, and the bits that number them.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 2;
/// From here on everything is one bucket: 68 s.
const OCTAVES: usize = 36;
/// Buckets of a histogram.
pub const BUCKETS: usize = OCTAVES << STEP_BITS;
/// Moments of a batch at most: it is published when it has so many requests.
const MOMENTS: usize = 16;

/// The bucket of a latency: below 4 ns its own, above that numbered by its highest three bits.
#[inline]
fn bucket(ns: u64) -> usize {
    let octave = u64::from((ns | (STEPS - 1)).ilog2().saturating_sub(STEP_BITS - 1));
    let step = ns >> octave.saturating_sub(1) & (STEPS - 1);
    usize::try_from(octave * STEPS + step).map_or(BUCKETS - 1, |at| at.min(BUCKETS - 1))
}

/// The least latency that is above this bucket's.
fn end(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    match (next / STEPS, next % STEPS) {
        (0, step) => step,
        (octave, step) => (STEPS + step) << (octave - 1),
    }
}

/// When the requests of a batch were taken: runs of the same moment.
#[derive(Debug)]
pub(crate) struct Moments {
    /// A moment in nanoseconds, and how many requests of the batch came before the first of it.
    runs: [(u64, u64); MOMENTS],
    len: usize,
    newest_ns: u64,
}

impl Default for Moments {
    fn default() -> Moments {
        Moments { runs: [(0, 0); MOMENTS], len: 0, newest_ns: u64::MAX }
    }
}

impl Moments {
    /// One more request, taken at `moment_ns`, after `before` others of the batch.
    #[inline]
    pub(crate) fn push(&mut self, moment_ns: u64, before: u64) {
        if moment_ns != self.newest_ns {
            self.begin(moment_ns, before);
        }
    }

    /// Where there is room for no more the newest moment stands for them: only a broken ring is not published.
    fn begin(&mut self, moment_ns: u64, before: u64) {
        self.newest_ns = moment_ns;
        if let Some(run) = self.runs.get_mut(self.len) {
            *run = (moment_ns, before);
            self.len += 1;
        }
    }

    /// Counts the `requests` of the batch as done at `now_ns`, and forgets them. `histogram`: sum, greatest, buckets.
    pub(crate) fn settle(&mut self, now_ns: u64, requests: u64, histogram: &[AtomicU64]) {
        let Some([sum, greatest, buckets @ ..]) = histogram.first_chunk::<{ Latency::WORDS }>() else {
            return;
        };
        let mut after = requests;
        for (moment, before) in self.runs.iter().take(self.len).rev() {
            let (ns, count) = (now_ns.saturating_sub(*moment), after.saturating_sub(*before));
            add(sum, ns.saturating_mul(count));
            if let Some(bucket) = buckets.get(bucket(ns)) {
                add(bucket, count);
            }
            if ns > greatest.load(Relaxed) {
                greatest.store(ns, Relaxed);
            }
            after = *before;
        }
        (self.len, self.newest_ns) = (0, u64::MAX);
    }
}

/// How long requests took, as read at some moment.
#[derive(Clone, Debug)]
pub struct Latency {
    sum_ns: u64,
    max_ns: u64,
    buckets: [u64; BUCKETS],
}

impl Latency {
    /// Words in which it is kept.
    pub const WORDS: usize = 2 + BUCKETS;

    /// One more request, counted by the only one who writes to these words.
    pub fn record(words: &[AtomicU64], ns: u64) {
        let mut moments = Moments::default();
        moments.push(0, 0);
        moments.settle(ns, 1, words);
    }

    /// What was counted in these words.
    pub fn read(words: &[AtomicU64]) -> Latency {
        let word = |at: usize| words.get(at).map_or(0, |word| word.load(Relaxed));
        Latency { sum_ns: word(0), max_ns: word(1), buckets: std::array::from_fn(|at| word(2 + at)) }
    }

    /// Requests that were measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Nanoseconds of all requests together.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The longest so far.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// What `percent` of the requests took no longer than; `None` without requests.
    pub fn percentile_ns(&self, percent: u8) -> Option<u64> {
        let wanted = (u128::from(self.count()) * u128::from(percent)).div_ceil(100).max(1);
        let mut seen = 0;
        let at = self.buckets.iter().position(|count| {
            seen += u128::from(*count);
            seen >= wanted
        })?;
        Some(end(at).saturating_sub(1).min(self.max_ns))
    }

    /// For each power of two from 1 µs to 17 s its nanoseconds, and how many requests took less: the buckets of a
    /// Prometheus histogram, all but `+Inf`.
    pub fn octaves(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut below = 0_u64;
        let ends = self.buckets.iter().enumerate().filter_map(move |(at, count)| {
            below = below.wrapping_add(*count);
            let end = end(at);
            end.is_power_of_two().then_some((end, below))
        });
        ends.filter(|(end, _)| (1 << 10..=1 << 34).contains(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(runs: &[(u64, u64)]) -> Latency {
        let words: Vec<_> = (0..Latency::WORDS).map(|_| AtomicU64::new(0)).collect();
        for (ns, count) in runs {
            let mut moments = Moments::default();
            (0..*count).for_each(|before| moments.push(5, before));
            moments.settle(5 + ns, *count, &words);
        }
        Latency::read(&words)
    }

    #[test]
    fn buckets_touch_and_are_a_quarter_of_an_octave_wide() {
        let mut from = 0;
        for at in 0..BUCKETS - 1 {
            let end = end(at);
            assert_eq!((bucket(from), bucket(end - 1)), (at, at), "{from}..{end}");
            assert!(end - from == 1 || (end - from) * 4 <= from, "{from}..{end}");
            from = end;
        }
        assert!(from > 60_000_000_000);
        assert_eq!((bucket(from), bucket(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn percentiles_are_what_was_measured() {
        let latency = measured(&[(1_000, 60), (50_000, 39), (9_000_000, 1)]);
        assert_eq!((latency.count(), latency.max_ns()), (100, 9_000_000));
        assert_eq!(latency.sum_ns(), 60 * 1_000 + 39 * 50_000 + 9_000_000);
        let near = |percent, ns: u64| {
            let got = latency.percentile_ns(percent).unwrap();
            assert!((ns..ns + ns / 4).contains(&got), "{percent} %: {got}");
        };
        near(50, 1_000);
        near(60, 1_000);
        near(61, 50_000);
        near(99, 50_000);
        assert_eq!(latency.percentile_ns(100), Some(9_000_000));
        assert_eq!(measured(&[]).percentile_ns(50), None);
    }

    #[test]
    fn a_batch_of_many_moments_counts_each() {
        let words: Vec<_> = (0..Latency::WORDS).map(|_| AtomicU64::new(0)).collect();
        let mut moments = Moments::default();
        for (before, moment) in (0..).zip([100, 100, 200, 100, 300]) {
            moments.push(moment, before);
        }
        moments.settle(300, 5, &words);
        moments.settle(1_000_000, 0, &words);
        let latency = Latency::read(&words);
        assert_eq!((latency.count(), latency.sum_ns(), latency.max_ns()), (5, 700, 200));
        // More moments than a batch has: none is lost.
        (0..40).for_each(|moment| moments.push(moment, moment));
        moments.settle(40, 40, &words);
        assert_eq!(Latency::read(&words).count(), 45);
    }

    #[test]
    fn octaves_count_what_took_less() {
        let latency = measured(&[(1_000, 1), (1_024, 2), (3_000_000, 4)]);
        let octaves: Vec<_> = latency.octaves().collect();
        assert_eq!(octaves[..2], [(1 << 10, 1), (1 << 11, 3)]);
        assert_eq!(octaves.last(), Some(&(1 << 34, 7)));
        assert_eq!(octaves.len(), 25);
    }
}

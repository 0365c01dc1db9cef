//! Buckets that many take from: workers of a daemon, and daemons that map the same file.
//!
//! ```text
//!            empty                         full
//!              |◄────────── burst ──────────►|            taken from while there is anything in it; a debt is paid
//!  ── debt ────┴─────────────────────────────┴──► time    before the next
//!
//! word 0  MAGIC        1  bytes        2  operations      moments at which the buckets are full, in ns of CLOCK_MONOTONIC
//! ```
//! In: the time, and what somebody takes. Out: when there is something again. Promises: nobody waits for another one to
//! write; what a daemon took that was killed is paid for by time alone. A moment further away than any debt can be, of
//! another boot or of somebody's invention, counts as now: nobody is locked out for ever.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use backends::memory::words::Words;
use rustix::time::{ClockId, clock_gettime};

/// Words of the buckets.
pub const WORDS: usize = 8;
const MAGIC: u64 = u64::from_le_bytes(*b"OBTHROT1");
const BYTES: usize = 1;
const OPS: usize = 2;
const NS_PER_S: u64 = 1_000_000_000;
/// Most that anybody owes: what is more is forgiven.
const DEBT_NS: u64 = 3600 * NS_PER_S;

/// What flows into them.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes a second.
    pub bytes: Option<u64>,
    /// Operations a second.
    pub ops: Option<u64>,
    /// How long an empty one takes to fill.
    pub burst: Duration,
}

/// Both buckets.
#[derive(Debug)]
pub struct Buckets {
    words: Words,
    rates: Rates,
    burst_ns: u64,
}

impl Buckets {
    /// Those in these words; words of another layout are begun afresh.
    pub fn new(words: Words, rates: Rates) -> Buckets {
        if let [magic, rest @ ..] = &*words
            && magic.swap(MAGIC, Relaxed) != MAGIC
        {
            rest.iter().for_each(|word| word.store(0, Relaxed));
        }
        Buckets { words, rates, burst_ns: u64::try_from(rates.burst.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Until when nothing may be taken; `None`: now.
    #[inline]
    pub fn closed_until(&self, now: u64) -> Option<u64> {
        let limited =
            [(BYTES, self.rates.bytes), (OPS, self.rates.ops)].into_iter().filter(|(_, rate)| rate.is_some());
        let open = limited.filter_map(|(at, _)| {
            let full = sane(self.words.get(at)?.load(Relaxed), now);
            Some(full.saturating_sub(self.burst_ns))
        });
        open.max().filter(|at| *at > now)
    }

    /// One operation of so many bytes.
    #[inline]
    pub fn charge(&self, bytes: u64, now: u64) {
        for (at, rate, amount) in [(BYTES, self.rates.bytes, bytes), (OPS, self.rates.ops, 1)] {
            if let (Some(rate), Some(word)) = (rate, self.words.get(at)) {
                take(word, time(amount, rate), now);
            }
        }
    }
}

/// How long `amount` takes to flow in; rounded so that the rate is never exceeded.
fn time(amount: u64, rate: u64) -> u64 {
    let ns = u128::from(amount).saturating_mul(NS_PER_S.into()).div_ceil(u128::from(rate).max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn take(word: &AtomicU64, ns: u64, now: u64) {
    let owed = |full: u64| sane(full, now).max(now).saturating_add(ns.min(DEBT_NS / 2));
    let _ = word.fetch_update(Relaxed, Relaxed, |full| Some(owed(full)));
}

fn sane(full: u64, now: u64) -> u64 {
    if full > now.saturating_add(DEBT_NS) { now } else { full }
}

/// The clock that all have in common, told from the worker's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    ns: u64,
}

impl Default for Clock {
    fn default() -> Clock {
        let (instant, time) = (Instant::now(), clock_gettime(ClockId::Monotonic));
        let part = |part: i64| u64::try_from(part).unwrap_or(0);
        Clock { instant, ns: part(time.tv_sec).saturating_mul(NS_PER_S).saturating_add(part(time.tv_nsec)) }
    }
}

impl Clock {
    /// A moment as a number.
    pub fn ns(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.instant).as_nanos();
        self.ns.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// And back.
    pub fn instant(&self, ns: u64) -> Instant {
        let since = Duration::from_nanos(ns.saturating_sub(self.ns));
        self.instant.checked_add(since).unwrap_or(self.instant)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn buckets(bytes: Option<u64>, ops: Option<u64>, burst_ms: u64) -> Buckets {
        Buckets::new(Words::own(WORDS), Rates { bytes, ops, burst: Duration::from_millis(burst_ms) })
    }

    #[test]
    fn a_debt_is_paid_before_the_next() {
        let buckets = buckets(Some(1000), None, 10);
        let now = 5 * NS_PER_S;
        assert_eq!(buckets.closed_until(now), None);
        buckets.charge(2000, now);
        assert_eq!(buckets.closed_until(now), Some(now + 1_990_000_000));
        assert_eq!(buckets.closed_until(now + 1_990_000_000), None);
    }

    #[test]
    fn no_moment_locks_anybody_out() {
        let buckets = buckets(None, Some(1), 1);
        let now = 5 * NS_PER_S;
        buckets.words[OPS].store(u64::MAX, Relaxed);
        assert_eq!(buckets.closed_until(now), None);
        buckets.charge(1, now);
        assert!(buckets.closed_until(now).unwrap() < now + NS_PER_S);
        let huge = super::tests::buckets(Some(1), None, 1);
        (0..5).for_each(|_| huge.charge(u64::MAX, now));
        assert!(huge.closed_until(now).is_none_or(|until| until <= now + DEBT_NS));
    }

    #[test]
    fn words_of_something_else_are_begun_afresh_and_others_go_on() {
        let rates = Rates { bytes: None, ops: Some(1), burst: Duration::from_millis(1) };
        let (_, fd) = Words::create("group", WORDS).unwrap();
        let words = || Words::shared(fd.try_clone().unwrap(), WORDS).unwrap();
        words()[OPS].store(9 * NS_PER_S, Relaxed);
        let one = Buckets::new(words(), rates);
        assert_eq!(one.closed_until(NS_PER_S), None);
        one.charge(0, NS_PER_S);
        let other = Buckets::new(words(), rates);
        assert_eq!(other.closed_until(NS_PER_S), Some(2 * NS_PER_S - 1_000_000));
    }

    #[test]
    fn the_clock_of_all_runs_with_the_workers() {
        let clock = Clock::default();
        let later = clock.instant + Duration::from_millis(7);
        assert_eq!(clock.ns(later), clock.ns + 7_000_000);
        assert_eq!(clock.instant(clock.ns(later)), later);
    }

    proptest! {
        /// However many take whatever they may, together they get no more than is promised.
        #[test]
        fn no_more_than_the_rate(
            rate in 1_000..1_u64 << 40,
            burst_ms in 1..2000_u64,
            requests in prop::collection::vec((1..1_u64 << 16, 0..50_u64), 1..300),
        ) {
            let start = 7 * NS_PER_S;
            let (buckets, mut now, mut moved) = (buckets(Some(rate), None, burst_ms), start, 0_u128);
            for (bytes, pause_ms) in requests {
                now += pause_ms * 1_000_000;
                now = buckets.closed_until(now).unwrap_or(now);
                prop_assert_eq!(buckets.closed_until(now), None);
                let time = u128::from(now - start) + u128::from(burst_ms) * 1_000_000;
                prop_assert!(moved * u128::from(NS_PER_S) <= u128::from(rate) * time);
                buckets.charge(bytes, now);
                moved += u128::from(bytes);
            }
        }
    }
}

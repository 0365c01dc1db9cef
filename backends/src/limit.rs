//! How much of its host a guest may use: `--limit bytes=1M,ops=1000,burst_ms=20`.
//!
//! In: a [`Limit`] from the command line, the time, and what each request has moved. Out: whether a request may be taken
//! now, and if not, when. Two token buckets, one of bytes and one of requests, both a moment of the monotonic clock:
//! that at which the bucket is full again.
//!
//! ```text
//!            empty                         full
//!              |◄────────── burst ──────────►|            a request is taken while there is anything in the bucket;
//!  ── debt ────┴─────────────────────────────┴──► time    it may leave a debt, which is paid before the next
//! ```
//! Promises: over any time, no more than rate x (time + burst) and one request; a queue that waits costs nothing,
//! its requests stay in the ring, its driver is not asked to notify, and it stops at once when asked to. A guest gains
//! nothing by resetting its device or its front-end by coming back: the buckets are the worker's.
//! Refuses: a limit of nothing, and what is no limit.

mod live;

use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

use crate::control::{Change, ChangeError};
pub use live::{LiveLimit, LiveThrottle};

const DEFAULT_BURST: Duration = Duration::from_millis(100);
const MAX_BURST_MS: u64 = 60_000;
const NANOS_PER_S: u128 = 1_000_000_000;

/// What a worker's requests may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes a second.
    pub bytes: Option<u64>,
    /// Requests a second.
    pub ops: Option<u64>,
    /// How long a guest that was idle may go on as fast as it can, in time at the limit.
    pub burst: Duration,
}

/// Why a limit is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LimitError {
    /// Not `KEY=VALUE` with a known key.
    #[error("`{0}` is none of bytes=N, ops=N and burst_ms=N; give them like bytes=1M,ops=1000,burst_ms=20")]
    Unknown(String),
    /// A value that is no number, or zero.
    #[error("bytes={0}: give bytes a second, 1 or more, also as in 64K, 1M or 2G")]
    Bytes(String),
    /// A value that is no number, or zero.
    #[error("ops={0}: give requests a second, 1 or more")]
    Ops(String),
    /// A value that is no number, or out of range.
    #[error("burst_ms={0}: give milliseconds from 1 to {MAX_BURST_MS}")]
    Burst(String),
    /// A key more than once.
    #[error("{0}= is there twice; give it once")]
    Twice(String),
    /// Only a burst.
    #[error("it limits nothing; give bytes=N or ops=N or both")]
    Nothing,
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Limit, LimitError> {
        let (mut bytes, mut ops, mut burst) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| LimitError::Unknown(part.into()))?;
            let twice = match key {
                "bytes" => bytes.replace(size(value).ok_or_else(|| LimitError::Bytes(value.into()))?),
                "ops" => ops.replace(count(value).ok_or_else(|| LimitError::Ops(value.into()))?),
                "burst_ms" => {
                    let ms = count(value).filter(|ms| *ms <= MAX_BURST_MS);
                    burst.replace(ms.ok_or_else(|| LimitError::Burst(value.into()))?)
                }
                _ => return Err(LimitError::Unknown(part.into())),
            };
            if twice.is_some() {
                return Err(LimitError::Twice(key.into()));
            }
        }
        if bytes.is_none() && ops.is_none() {
            return Err(LimitError::Nothing);
        }
        Ok(Limit { bytes, ops, burst: burst.map_or(DEFAULT_BURST, Duration::from_millis) })
    }
}

impl Limit {
    /// The limit that an operator asks for.
    ///
    /// # Errors
    /// A value out of range, or nothing is limited.
    pub fn from_change(change: &Change<'_>) -> Result<Limit, ChangeError> {
        change.only(&["bytes", "ops", "burst_ms"])?;
        let [bytes, ops] = ["bytes", "ops"].map(|name| change.number(name, 1..=u64::MAX));
        let (bytes, ops, burst) = (bytes?, ops?, change.number("burst_ms", 1..=MAX_BURST_MS)?);
        if bytes.is_none() && ops.is_none() {
            return Err(change.refused_whole("bytes or ops or both, or null for no limit"));
        }
        Ok(Limit { bytes, ops, burst: burst.map_or(DEFAULT_BURST, Duration::from_millis) })
    }

    /// The same as [`Limit::from_change`] takes it.
    pub fn to_json(&self) -> Value {
        let burst_ms = u64::try_from(self.burst.as_millis()).unwrap_or(MAX_BURST_MS);
        json!({ "bytes": self.bytes, "ops": self.ops, "burst_ms": burst_ms })
    }
}

fn count(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number| *number > 0)
}

/// A number of bytes, or of KiB, MiB or GiB.
fn size(text: &str) -> Option<u64> {
    let units = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30)];
    let unit = units.into_iter().find_map(|(letter, unit)| Some((text.strip_suffix(letter)?, unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    count(number)?.checked_mul(unit)
}

/// The buckets of one worker; without a limit they never hold anything up.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
}

impl Throttle {
    /// Full buckets.
    pub fn new(limit: Option<Limit>, now: Instant) -> Throttle {
        let bucket = |rate: fn(&Limit) -> Option<u64>| {
            let limit = limit.as_ref()?;
            Some(Bucket { rate: rate(limit)?, burst: limit.burst, full_at: now })
        };
        Throttle { bytes: bucket(|limit| limit.bytes), ops: bucket(|limit| limit.ops) }
    }

    /// When the next request may be taken; `None`: now.
    pub fn closed_until(&self, now: Instant) -> Option<Instant> {
        let buckets = [self.bytes, self.ops].into_iter().flatten();
        buckets.filter_map(|bucket| bucket.full_at.checked_sub(bucket.burst)).filter(|at| *at > now).max()
    }

    /// A request was taken and moved this many bytes.
    pub fn charge(&mut self, bytes: u64, now: Instant) {
        for (bucket, amount) in [(&mut self.bytes, bytes), (&mut self.ops, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(amount, now);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// What flows into it in a second.
    rate: u64,
    /// How long it takes to fill.
    burst: Duration,
    full_at: Instant,
}

impl Bucket {
    /// Takes `amount` out; rounded so that the rate is never exceeded.
    fn take(&mut self, amount: u64, now: Instant) {
        let nanos = (u128::from(amount) * NANOS_PER_S).div_ceil(u128::from(self.rate));
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.full_at.max(now);
        // A debt that the clock cannot hold, of centuries, is forgiven.
        self.full_at = from.checked_add(time).unwrap_or(from);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_read() {
        let limit = |bytes, ops, ms| Ok(Limit { bytes, ops, burst: Duration::from_millis(ms) });
        assert_eq!("bytes=1M,ops=1000,burst_ms=20".parse(), limit(Some(1 << 20), Some(1000), 20));
        assert_eq!("ops=7".parse(), limit(None, Some(7), 100));
        assert_eq!("burst_ms=60000,bytes=3".parse(), limit(Some(3), None, 60_000));
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        use LimitError::*;
        let refused = |text: &str| text.parse::<Limit>().unwrap_err();
        for text in ["", "fast", "byte=1", "bytes=1,", "bytes=1 ,x=2"] {
            assert!(matches!(refused(text), Unknown(_) | Bytes(_)), "{text}");
        }
        for value in ["0", "-1", "1.5", "1T", "M", "", "0K", "99999999999G"] {
            assert_eq!(refused(&format!("bytes={value}")), Bytes(value.into()));
        }
        for value in ["0", "1K", "x", ""] {
            assert_eq!(refused(&format!("ops={value}")), Ops(value.into()));
        }
        for value in ["0", "60001", "20ms"] {
            assert_eq!(refused(&format!("ops=1,burst_ms={value}")), Burst(value.into()));
        }
        assert_eq!(refused("ops=1,ops=2"), Twice("ops".into()));
        assert_eq!(refused("burst_ms=20"), Nothing);
    }

    #[test]
    fn an_operator_gets_the_limit_that_was_asked_for() {
        let change = |body: &Value| Limit::from_change(&Change::new(body.as_object().unwrap()));
        let whole = json!({ "bytes": 1 << 20, "ops": null, "burst_ms": 20 });
        assert_eq!(change(&whole).unwrap(), "bytes=1M,burst_ms=20".parse().unwrap());
        assert_eq!(change(&whole).unwrap().to_json(), whole);
        assert_eq!(change(&json!({ "ops": 7 })).unwrap(), "ops=7".parse().unwrap());
        for (body, told) in [
            (json!({ "ops": 0 }), "ops: 0 is refused; give a number, 1 or more"),
            (
                json!({ "ops": 1, "burst_ms": 60_001 }),
                "burst_ms: 60001 is refused; give a number from 1 to 60000",
            ),
            (json!({ "op": 1 }), "op: there is no such setting; set bytes, ops, burst_ms"),
            (json!({}), ": {} is refused; give bytes or ops or both, or null for no limit"),
        ] {
            assert_eq!(change(&body).unwrap_err().to_string(), told);
        }
    }

    #[test]
    fn without_a_limit_nothing_is_held_up() {
        let now = Instant::now();
        let mut throttle = Throttle::new(None, now);
        throttle.charge(u64::MAX, now);
        assert_eq!(throttle.closed_until(now), None);
    }

    #[test]
    fn a_debt_is_paid_before_the_next_request() {
        let now = Instant::now();
        let limit = Limit { bytes: Some(1000), ops: None, burst: Duration::from_millis(10) };
        let mut throttle = Throttle::new(Some(limit), now);
        throttle.charge(2000, now);
        assert_eq!(throttle.closed_until(now), Some(now + Duration::from_millis(1990)));
        assert_eq!(throttle.closed_until(now + Duration::from_millis(1990)), None);
        throttle.charge(u64::MAX, now);
        assert!(throttle.closed_until(now + Duration::from_secs(1 << 32)).is_some());
    }

    proptest! {
        /// A guest that takes whatever it may, whenever it looks, gets no more than is promised.
        #[test]
        fn no_more_than_the_rate(
            rate in 1..1u64 << 40,
            burst_ms in 1..2000u64,
            requests in prop::collection::vec((1..1u64 << 20, 0..50u64), 1..300),
        ) {
            let start = Instant::now();
            let limit = Limit { bytes: Some(rate), ops: None, burst: Duration::from_millis(burst_ms) };
            let (mut throttle, mut now, mut moved) = (Throttle::new(Some(limit), start), start, 0u128);
            for (bytes, pause_ms) in requests {
                now += Duration::from_millis(pause_ms);
                now = throttle.closed_until(now).unwrap_or(now);
                prop_assert_eq!(throttle.closed_until(now), None);
                let time = (now - start).as_nanos() + u128::from(burst_ms) * 1_000_000;
                prop_assert!(moved * NANOS_PER_S <= u128::from(rate) * time, "{moved} in {:?}", now - start);
                throttle.charge(bytes, now);
                moved += u128::from(bytes);
            }
        }

        /// And no less, but for the rounding of a nanosecond a request.
        #[test]
        fn no_less_than_the_rate(rate in 1..1u64 << 30, sizes in prop::collection::vec(1..1u64 << 20, 1..300)) {
            let start = Instant::now();
            let limit = Limit { bytes: Some(rate), ops: None, burst: Duration::from_millis(1) };
            let (mut throttle, mut now) = (Throttle::new(Some(limit), start), start);
            for bytes in &sizes {
                now = throttle.closed_until(now).unwrap_or(now);
                throttle.charge(*bytes, now);
            }
            let due = u128::from(sizes[..sizes.len() - 1].iter().sum::<u64>()) * NANOS_PER_S / u128::from(rate);
            let rounding = u128::try_from(sizes.len()).unwrap();
            prop_assert!((now - start).as_nanos() <= due + rounding);
        }
    }
}

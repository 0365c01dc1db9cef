//! A request that ends its server again and again.
//!
//! After the parts of a region of ours there is a tail, which no other back-end knows:
//!
//! ```text
//!  0 magic u64
//! 64 + 32 * queue:
//!     0 head u16      the oldest request in flight at the last start that found any
//!     2 deaths u16    starts in a row that found this one
//!     8 counter u64   its counter: the same head may carry another request
//!    16 first_ms u64  CLOCK_MONOTONIC of the first of them
//! ```
//! In: the oldest request that a starting ring finds. Out: whether it was found for the third time within a minute. Then
//! what was in flight is not tried again, but answered with an error: one bad request must not take the device away for
//! ever. A ring that comes to rest in peace clears its record.

use rustix::time::{ClockId, clock_gettime};

use super::Bytes;
use crate::memory::Area;

/// "Outboard" in ASCII, and the version of what follows.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"Outbrd\0\x01");
pub(super) const HEADER_BYTES: usize = 64;
pub(super) const RECORD_BYTES: usize = 32;
/// Deaths after which nobody tries again, if they fall within this time.
const MAX_DEATHS: u16 = 3;
const WINDOW_MS: u64 = 60_000;

const HEAD: usize = 0;
const DEATHS: usize = 2;
const COUNTER: usize = 8;
const FIRST_MS: usize = 16;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    head: u16,
    deaths: u16,
    counter: u64,
    first_ms: u64,
}

impl Record {
    fn read(bytes: &[u8]) -> Record {
        let bytes = Bytes(bytes);
        let (head, deaths) = (bytes.u16(HEAD), bytes.u16(DEATHS));
        Record { head, deaths, counter: bytes.u64(COUNTER), first_ms: bytes.u64(FIRST_MS) }
    }

    /// The record after one more death.
    fn after_death(self, (counter, head): (u64, u16), now_ms: u64) -> Record {
        let again = (self.counter, self.head) == (counter, head) && self.deaths > 0;
        if again && now_ms.checked_sub(self.first_ms).is_some_and(|age| age < WINDOW_MS) {
            return Record { deaths: self.deaths.saturating_add(1), ..self };
        }
        Record { head, deaths: 1, counter, first_ms: now_ms }
    }
}

/// A ring starts and finds `oldest` (counter and head) in flight. Whether that one has ended too many of us.
pub(super) fn died(record: &Area, oldest: Option<(u64, u16)>) -> bool {
    let Some(oldest) = oldest else {
        clear(record);
        return false;
    };
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let now_ms =
        seconds.saturating_mul(1000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000);
    let next = Record::read(&record.snapshot(RECORD_BYTES)).after_death(oldest, now_ms);
    // A death between these stores makes a record of nothing, which begins anew.
    record.put_u16(DEATHS, 0);
    record.put_u16(HEAD, next.head);
    record.put_u64(COUNTER, next.counter);
    record.put_u64(FIRST_MS, next.first_ms);
    record.put_u16(DEATHS, next.deaths);
    next.deaths >= MAX_DEATHS
}

/// Whatever is in flight has not ended anybody.
pub(super) fn clear(record: &Area) {
    record.put_u16(DEATHS, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Record = Record { head: 0, deaths: 0, counter: 0, first_ms: 0 };

    fn after(record: Record, deaths: &[(u64, u16, u64)]) -> u16 {
        deaths.iter().fold(record, |r, (counter, head, now)| r.after_death((*counter, *head), *now)).deaths
    }

    #[test]
    fn k09_only_deaths_in_a_row_with_the_same_request_within_a_minute_count() {
        assert_eq!(after(NOBODY, &[(0, 0, 5)]), 1);
        assert_eq!(after(NOBODY, &[(7, 2, 5), (7, 2, 6), (7, 2, 60_004)]), 3);
        assert_eq!(after(NOBODY, &[(7, 2, 5), (7, 2, 6), (7, 2, 60_005)]), 1, "too long ago");
        assert_eq!(after(NOBODY, &[(7, 2, 5), (8, 2, 6), (8, 2, 7)]), 2, "the same head, another request");
        assert_eq!(after(NOBODY, &[(7, 2, 5), (7, 3, 6)]), 1);
        assert_eq!(after(NOBODY, &[(7, 2, 500), (7, 2, 5)]), 1, "the clock of another boot");
    }
}

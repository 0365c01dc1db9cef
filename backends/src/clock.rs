//! The time of day, for what people are told; waiting goes by the monotonic clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::Rfc3339Timestamp;

/// The last second that a date of four digits has.
const END_OF_9999: Duration = Duration::from_secs(253_402_300_799);

/// Milliseconds of Unix time. A clock before 1970 is at its beginning.
pub(crate) fn unix_ms() -> u64 {
    u64::try_from(unix().as_millis()).unwrap_or(u64::MAX)
}

/// Date and time (RFC 3339), to microseconds.
pub(crate) fn stamp() -> Rfc3339Timestamp {
    at(unix())
}

/// A moment of Unix time, or the last one that can be written.
pub(crate) fn at(unix: Duration) -> Rfc3339Timestamp {
    humantime::format_rfc3339_micros(UNIX_EPOCH + unix.min(END_OF_9999))
}

fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clock_can_be_told() {
        assert_eq!(at(Duration::ZERO).to_string(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(Duration::MAX).to_string(), "9999-12-31T23:59:59.000000Z");
    }
}

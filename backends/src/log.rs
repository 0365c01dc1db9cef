//! Log lines that others can cause: at most one a second and class, the others counted.
//!
//! A front-end or a guest that does the same wrong thing a million times gets one line a second with the
//! number of lines left out. What a guest wrote into its memory is never logged.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// The gate of one class of lines.
#[derive(Debug, Default)]
pub struct Gate {
    last: Option<Instant>,
    left_out: u64,
}

impl Gate {
    /// Whether a line may be written now, and how many were left out since the last one.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// A gate that threads share, for lines that many queues can cause. The lock is taken only to log.
#[derive(Debug, Default)]
pub struct SharedGate(Mutex<Gate>);

impl SharedGate {
    /// A gate that lets the next line through.
    pub const fn new() -> SharedGate {
        SharedGate(Mutex::new(Gate { last: None, left_out: 0 }))
    }

    /// As [`Gate::pass`], now.
    pub fn pass(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pass(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_rest_counted() {
        let (mut gate, start) = (Gate::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(gate.pass(at(0)), Some(0));
        assert_eq!([gate.pass(at(1)), gate.pass(at(999))], [None, None]);
        assert_eq!(gate.pass(at(1000)), Some(2));
        assert_eq!(gate.pass(at(2500)), Some(0));
    }
}

//! Counters of a volume, which each of its layers counts up by itself.
//!
//! In: a lane for each worker, and what it adds. Out: the sums, at any time. Promises: to count is a load and a store, with
//! nobody else writing there; a lane whose worker is gone stays in the sums.

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
use std::sync::{Arc, Mutex, PoisonError};

/// Counters of one worker.
#[derive(Debug)]
pub struct Lane(Arc<[AtomicU64]>);

impl Lane {
    /// Adds to a counter; one that there is not counts nothing.
    #[inline]
    pub fn add(&self, counter: usize, count: u64) {
        if let Some(word) = self.0.get(counter) {
            word.store(word.load(Relaxed).wrapping_add(count), Relaxed);
        }
    }

    /// Some of the counters, to be counted up by somebody else in the same thread.
    pub fn words(&self, from: usize, count: usize) -> &[AtomicU64] {
        from.checked_add(count).and_then(|end| self.0.get(from..end)).unwrap_or_default()
    }
}

/// Counters of a volume.
#[derive(Debug)]
pub struct Tally {
    counters: usize,
    lanes: Mutex<Vec<Arc<[AtomicU64]>>>,
}

impl Tally {
    /// So many counters.
    pub fn new(counters: usize) -> Tally {
        Tally { counters, lanes: Mutex::default() }
    }

    /// Counters for one more worker: those of one that is gone, if there is one.
    pub fn lane(&self) -> Lane {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(idle) = lanes.iter().find(|lane| Arc::strong_count(lane) == 1) {
            return Lane(Arc::clone(idle));
        }
        let lane: Arc<[AtomicU64]> = (0..self.counters).map(|_| AtomicU64::new(0)).collect();
        lanes.push(Arc::clone(&lane));
        Lane(lane)
    }

    /// Each counter of all lanes, taken together by `with`, as a sum or the greatest.
    pub fn read(&self, counter: usize, with: fn(u64, u64) -> u64) -> u64 {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.iter().filter_map(|lane| lane.get(counter)).fold(0, |all, word| with(all, word.load(Relaxed)))
    }

    /// The sum of a counter.
    pub fn sum(&self, counter: usize) -> u64 {
        self.read(counter, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_summed_and_those_of_workers_that_went_are_used_again() {
        let tally = Tally::new(2);
        let (one, other) = (tally.lane(), tally.lane());
        one.add(0, 3);
        other.add(0, 4);
        other.add(1, 9);
        other.add(2, 1);
        assert_eq!((tally.sum(0), tally.sum(1), tally.sum(2)), (7, 9, 0));
        assert_eq!(tally.read(0, u64::max), 4);
        drop(other);
        tally.lane().add(0, 1);
        assert_eq!((tally.sum(0), tally.lanes.lock().unwrap().len()), (8, 2));
        assert_eq!((one.words(1, 1).len(), one.words(1, 2).len()), (1, 0));
    }
}

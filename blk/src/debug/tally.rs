//! Counters of a volume, which each of its layers counts up by itself.
//!
//! ```text
//! │ lane 0: counters │ lane 1: counters │ ... │        a lane is one worker's; one whose worker is gone is the next one's
//! ```
//! In: a lane for each worker, and what it adds. Out: the sums, at any time. The words may be a file that the keeper has
//! ([`Tally::kept`]): then the next worker process goes on where this one was. Promises: to count is a load and a store, with
//! nobody else writing there; no sum ever goes back.

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

use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use backends::memory::words::Words;

use crate::graph::registry::Made;

/// Workers that count for themselves: more than a daemon has, also while it goes from one graph to another. Those beyond
/// share the last lane, and may miss some.
const LANES: usize = 64;
/// Under which name the keeper has the words of a volume.
const NAME: &str = "tally";

/// Counters of one worker.
#[derive(Debug)]
pub struct Lane {
    words: Arc<Words>,
    first: usize,
    counters: usize,
    /// Somebody has it.
    _taken: Arc<()>,
}

impl Lane {
    /// Adds to a counter; one that there is not counts nothing.
    #[inline]
    pub fn add(&self, counter: usize, count: u64) {
        if let Some(word) = self.words(counter, 1).first() {
            word.store(word.load(Relaxed).wrapping_add(count), Relaxed);
        }
    }

    /// Some of the counters, to be counted up by somebody else in the same thread.
    #[inline]
    pub fn words(&self, from: usize, count: usize) -> &[AtomicU64] {
        let end = from.checked_add(count).filter(|end| *end <= self.counters);
        let range = end.and_then(|end| Some(self.first.checked_add(from)?..self.first.checked_add(end)?));
        range.and_then(|range| self.words.get(range)).unwrap_or_default()
    }
}

/// Counters of a volume.
#[derive(Debug)]
pub struct Tally {
    words: Arc<Words>,
    counters: usize,
    /// One for each lane that was ever taken.
    lanes: Mutex<Vec<Arc<()>>>,
}

impl Tally {
    /// So many counters, which end with this process.
    pub fn new(counters: usize) -> Tally {
        Tally::of(Words::own(counters.saturating_mul(LANES)), counters)
    }

    /// The same, which go on in the next one. Where the host has no memory for that, they do not.
    pub fn kept(made: &Made<'_>, counters: usize) -> Tally {
        let count = counters.saturating_mul(LANES);
        let before = made.take(NAME);
        let again = before.as_ref().and_then(|fd| Words::of(fd.try_clone().ok()?, count));
        let created = || {
            let (words, fd) = Words::create(NAME, count).ok()?;
            made.keep(NAME, fd.as_fd());
            Some(words)
        };
        Tally::of(again.or_else(created).unwrap_or_else(|| Words::own(count)), counters)
    }

    fn of(words: Words, counters: usize) -> Tally {
        Tally { words: Arc::new(words), counters, lanes: Mutex::default() }
    }

    /// Counters for one more worker: those of one that is gone, if there is one.
    pub fn lane(&self) -> Lane {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = lanes.iter().position(|lane| Arc::strong_count(lane) == 1);
        let at = idle.unwrap_or(lanes.len()).min(LANES.saturating_sub(1));
        if at == lanes.len() {
            lanes.push(Arc::default());
        }
        let taken = lanes.get(at).map(Arc::clone).unwrap_or_default();
        let (words, first) = (Arc::clone(&self.words), at.saturating_mul(self.counters));
        Lane { words, first, counters: self.counters, _taken: taken }
    }

    /// A counter of each lane, taken together by `with`, as a sum or the greatest.
    pub fn read(&self, counter: usize, with: fn(u64, u64) -> u64) -> u64 {
        if counter >= self.counters {
            return 0;
        }
        let lanes = self.words.chunks(self.counters).filter_map(|lane| lane.get(counter));
        lanes.fold(0, |all, word| with(all, word.load(Relaxed)))
    }

    /// The sum of a counter.
    pub fn sum(&self, counter: usize) -> u64 {
        self.read(counter, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use backends::opened::Opened;

    use super::*;
    use crate::graph::options::Values;

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

    #[test]
    fn the_next_process_goes_on_with_what_the_keeper_has() {
        let (_, fd) = Words::create(NAME, 2 * LANES).unwrap();
        let worker = |counters| {
            let mut opened = Opened::default();
            opened.insert("blk.v.tally", fd.try_clone().unwrap());
            let (kept, _made) = opened.into_kept();
            let values = Values::default();
            Tally::kept(&Made { volume: "v", values: &values, subvolumes: &[], kept: &kept }, counters)
        };
        worker(2).lane().add(1, 5);
        let next = worker(2);
        next.lane().add(1, 2);
        assert_eq!((next.sum(0), next.sum(1)), (0, 7));
        // Another version's counters say nothing here.
        assert_eq!(worker(3).sum(1), 0);
    }

    #[test]
    fn more_workers_than_lanes_share_the_last() {
        let tally = Tally::new(1);
        let lanes: Vec<Lane> = (0..LANES + 2).map(|_| tally.lane()).collect();
        lanes.iter().for_each(|lane| lane.add(0, 1));
        assert_eq!(tally.sum(0), LANES as u64 + 2);
    }
}

//! `debug/io-stats`: how many operations of each kind pass, how large they are, and how long those below take.
//!
//! In: any operation. Out: the same. The counters are those of this place in the graph: two of them, above and below a
//! translator, show what it costs. The clock is read once for all that a worker does at a time, so that a time below some
//! microseconds is that of the batch. Counters go on over the death of a worker. Keeps what is below keeps. Promises: to count is a few additions to words of
//! the worker's own.

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

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use backends::stats::Latency;
use serde_json::{Map, Value, json};

use super::tally::{Lane, Tally};
use crate::call::Call;
use crate::features::only;
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Outcome, Step, Volume};
use crate::op::{Keeps, OpKind};

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "debug/io-stats",
    about: "What is below, with counters and times of each kind of operation",
    subvolumes: 1..=1,
    options: &[],
    prepare: None,
    make: |made| Ok(Arc::new(IoStats { tally: Tally::kept(made, COUNTERS) })),
};

/// Counters of a kind of operation.
const DONE: usize = 0;
const FAILED: usize = 1;
const BYTES: usize = 2;
const LATENCY: usize = 3;
const WORDS: usize = LATENCY + Latency::WORDS;
const COUNTERS: usize = WORDS.saturating_mul(OpKind::ALL.len());
/// The greatest of a latency's words, which is no sum.
const GREATEST: usize = LATENCY + 1;

/// A place where operations are counted.
#[derive(Debug)]
pub struct IoStats {
    tally: Tally,
}

impl Default for IoStats {
    fn default() -> IoStats {
        IoStats { tally: Tally::new(COUNTERS) }
    }
}

/// Where the counters of a kind begin.
const fn first(kind: OpKind) -> usize {
    (kind as usize).saturating_mul(WORDS)
}

impl IoStats {
    fn sum(&self, kind: OpKind, counter: usize) -> u64 {
        let with = if counter == GREATEST { u64::max } else { u64::wrapping_add };
        self.tally.read(first(kind).saturating_add(counter), with)
    }

    fn of(&self, kind: OpKind) -> Value {
        let words: Vec<AtomicU64> = (LATENCY..WORDS).map(|at| AtomicU64::new(self.sum(kind, at))).collect();
        let latency = Latency::read(&words);
        let us = |ns: Option<u64>| ns.and_then(|ns| ns.checked_div(1000));
        json!({
            "done": self.sum(kind, DONE),
            "failed": self.sum(kind, FAILED),
            "bytes": self.sum(kind, BYTES),
            "mean_us": us(latency.sum_ns().checked_div(latency.count())),
            "p50_us": us(latency.percentile_ns(50)),
            "p99_us": us(latency.percentile_ns(99)),
            "max_us": us(Some(latency.max_ns())),
        })
    }
}

impl Volume for IoStats {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        only(below)
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(Counting { lane: self.tally.lane(), begin: Instant::now() }))
    }

    fn state(&self) -> Map<String, Value> {
        let seen = |kind: &OpKind| self.sum(*kind, DONE).wrapping_add(self.sum(*kind, FAILED)) > 0;
        let kinds = OpKind::ALL.into_iter().filter(seen);
        kinds.map(|kind| (kind.name().to_owned(), self.of(kind))).collect()
    }
}

struct Counting {
    lane: Lane,
    begin: Instant,
}

impl Counting {
    fn now(&self, host: &mut Host<'_>) -> u64 {
        let since: Duration = host.now().saturating_duration_since(self.begin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Layer for Counting {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        call.push(self.now(host));
        Step::Down(call)
    }

    fn complete(&mut self, mut call: Call, outcome: Outcome, host: &mut Host<'_>) -> Step {
        let (then, now, first) = (call.pop(), self.now(host), first(call.kind()));
        if outcome.is_ok() {
            self.lane.add(first.saturating_add(DONE), 1);
            self.lane.add(first.saturating_add(BYTES), call.op().range().map_or(0, |(_, bytes)| bytes));
        } else {
            self.lane.add(first.saturating_add(FAILED), 1);
        }
        let words = self.lane.words(first.saturating_add(LATENCY), Latency::WORDS);
        Latency::record(words, now.saturating_sub(then));
        Step::Up(call, outcome)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::debug::delay_gen::{self, DelayGen};
    use crate::op::Op;
    use crate::testing::{Disk, Ram, stack, values};

    #[test]
    fn each_kind_is_counted_with_its_bytes_and_errors() {
        let ram = Ram::new(1 << 20, 512);
        let graph = stack(vec![ram.volume(), Box::new(IoStats::default())]);
        let (mut one, mut other) = (Disk::new(&graph), Disk::new(&graph));
        one.write(0, &[1; 4096]).unwrap();
        other.write(4096, &[1; 512]).unwrap();
        ram.fail(OpKind::Write, Some(Errno::IO));
        one.write(0, &[1; 512]).unwrap_err();
        one.run(Op::Flush).unwrap();
        drop(other);
        let state = graph.part(1).unwrap().volume.state();
        let number = |kind: &str, name: &str| state[kind][name].as_u64().unwrap();
        assert_eq!(state.keys().collect::<Vec<_>>(), ["flush", "write"]);
        assert_eq!(
            (number("write", "done"), number("write", "failed"), number("write", "bytes")),
            (2, 1, 4608)
        );
        assert_eq!((number("flush", "done"), number("flush", "bytes")), (1, 0));
    }

    #[test]
    fn times_are_those_below() {
        let slow = values(delay_gen::OPTIONS, &[("ops", "flush"), ("delay", "20ms")]).unwrap();
        let slow = DelayGen::new(&slow).unwrap();
        let volumes: Vec<Box<dyn Volume>> = vec![
            Ram::new(1 << 20, 512).volume(),
            Box::new(IoStats::default()),
            Box::new(slow),
            Box::new(IoStats::default()),
        ];
        let graph = stack(volumes);
        let mut disk = Disk::new(&graph);
        (0..3).for_each(|_| disk.run(Op::Flush).unwrap());
        let state = |volume| graph.part(volume).unwrap().volume.state()["flush"].clone();
        let (below, above) = (state(1), state(3));
        for name in ["mean_us", "p50_us", "p99_us", "max_us"] {
            // A bucket is a fifth wide.
            assert!(above[name].as_u64().unwrap() >= 16_000, "{name}: {above}");
            assert!(below[name].as_u64().unwrap() < above[name].as_u64().unwrap(), "{name}: {below}");
        }
        assert_eq!((&below["done"], &above["done"]), (&3.into(), &3.into()));
    }
}

//! The table of a daemon's queues.
//!
//! In: the queues, and those of an earlier look. Out: columns. Those that change stand first, so that they stay together
//! where the table has to be broken; those for trouble are there only when there was some.

use std::time::Duration;

use super::answer::{Latency, Queue};
use super::rates::per_second;
use super::screen::{Column, NOTHING, Table, units};

/// A number of a queue that only grows.
type Counter = fn(&Queue) -> u64;

/// Queues now, and before.
pub struct Queues<'a> {
    /// Now.
    pub now: &'a [Queue],
    /// At an earlier look, and how long ago that was.
    pub before: Option<(&'a [Queue], Duration)>,
}

impl Queues<'_> {
    /// A row for each.
    pub fn table(&self) -> Table {
        if self.now.is_empty() {
            return Table::default();
        }
        let columns = [
            Some(Column::numbers("QUEUE", self.now, |queue| queue.index.to_string())),
            Some(Column::words("STATE", self.now, |queue| queue.state.clone())),
            Some(self.count("IN FLIGHT", |queue| queue.in_flight)),
            self.rate("REQ/S", |queue| queue.requests, units::quantity),
            self.rate("BYTES/S", |queue| queue.bytes, units::size),
            Some(self.time("P50", |latency| latency.p50)),
            Some(self.time("P99", |latency| latency.p99)),
            Some(self.time("MAX", |latency| latency.max)),
            Some(self.count("REQUESTS", |queue| queue.requests)),
            Some(Column::numbers("BYTES", self.now, |queue| units::bytes(queue.bytes))),
            Some(self.count("INTERRUPTS", |queue| queue.interrupts)),
            self.rate("INT/S", |queue| queue.interrupts, units::quantity),
            Some(Column::words("RING", self.now, |queue| queue.layout.clone().unwrap_or(NOTHING.to_owned()))),
            Some(self.count("SIZE", |queue| queue.size)),
            self.trouble("MALFORMED", |queue| queue.malformed),
            self.trouble("REPLAYED", |queue| queue.replayed),
            self.trouble("BROKEN", |queue| queue.broken_times),
        ];
        Table(columns.into_iter().flatten().collect())
    }

    fn count(&self, head: &'static str, counter: Counter) -> Column {
        Column::numbers(head, self.now, |queue| units::count(counter(queue)))
    }

    fn trouble(&self, head: &'static str, counter: Counter) -> Option<Column> {
        self.now.iter().any(|queue| counter(queue) > 0).then(|| self.count(head, counter))
    }

    fn time(&self, head: &'static str, of: fn(&Latency) -> f64) -> Column {
        Column::numbers(head, self.now, |queue| {
            queue.latency_us.as_ref().map_or(NOTHING.to_owned(), |latency| units::latency(of(latency)))
        })
    }

    /// What came a second, if there was an earlier look.
    fn rate(&self, head: &'static str, counter: Counter, unit: fn(f64) -> String) -> Option<Column> {
        let (before, elapsed) = self.before?;
        let rate = |queue: &Queue| {
            let earlier = before.iter().find(|earlier| earlier.index == queue.index)?;
            per_second(units::float(counter(queue)), units::float(counter(earlier)), elapsed)
        };
        Some(Column::numbers(head, self.now, |queue| rate(queue).map_or(NOTHING.to_owned(), unit)))
    }
}

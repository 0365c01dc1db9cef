//! `debug/trace`: the last operations that came by, and how they went.
//!
//! In: any operation of `ops`. Out: the same. The last `size` of each worker that came up are remembered, with the time they took, and
//! shown by `graph show`; with `log` each is a line of the log as well, at level debug. Keeps what is below keeps.
//! Promises: memory for so many and no more; nobody waits for who looks.

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

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{ops, shown};
use crate::call::Call;
use crate::features::only;
use crate::graph::options::{Bad, Preset, Setting, Type, Values};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Outcome, Sees, Step, Volume};
use crate::op::{Keeps, Op, OpSet};

/// What can be set.
pub const OPTIONS: &[Setting] = &[
    super::OPS,
    Setting {
        name: "size",
        kind: Type::Number(1..=65_536),
        preset: Preset::Is("64"),
        about: "How many operations of each worker are remembered",
    },
    Setting {
        name: "log",
        kind: Type::Bool,
        preset: Preset::Is("off"),
        about: "Each is a line of the log, at level debug: slow",
    },
];

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "debug/trace",
    about: "What is below, with a memory of the last operations",
    subvolumes: 1..=1,
    options: OPTIONS,
    prepare: None,
    make: |made| Ok(Arc::new(Trace::new(made.values)?)),
};

/// An operation that is over.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Duration,
    took: Duration,
    queue: u16,
    op: Op,
    outcome: Outcome,
}

impl Seen {
    fn to_json(self) -> Value {
        let (offset, bytes) = self.op.range().unzip();
        json!({
            "at_s": self.at.as_secs_f64(),
            "took_us": u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
            "queue": self.queue,
            "op": self.op.kind().name(),
            "offset": offset,
            "bytes": bytes,
            "error": self.outcome.err().map(|errno| errno.to_string()),
        })
    }
}

type Ring = Mutex<VecDeque<Seen>>;

/// A place where operations are remembered.
#[derive(Debug)]
pub struct Trace {
    ops: OpSet,
    size: usize,
    log: bool,
    begin: Instant,
    /// One for each worker that is there.
    rings: Mutex<Vec<Weak<Ring>>>,
}

impl Trace {
    /// As the options say.
    ///
    /// # Errors
    /// Which of them makes no sense.
    pub fn new(values: &Values) -> Result<Trace, Bad> {
        let size = values.number("size").and_then(|size| usize::try_from(size).ok()).unwrap_or(64);
        let (ops, log) = (ops(values)?, values.bool("log"));
        Ok(Trace { ops, size, log, begin: Instant::now(), rings: Mutex::default() })
    }

    /// All that is remembered, in the order of time.
    fn all(&self) -> Vec<Seen> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let rings: Vec<Arc<Ring>> = rings.iter().filter_map(Weak::upgrade).collect();
        let copy = |ring: &Arc<Ring>| ring.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all: Vec<Seen> = rings.iter().flat_map(copy).collect();
        all.sort_by_key(|seen| seen.at);
        all
    }
}

impl Volume for Trace {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        only(below)
    }

    fn sees(&self) -> Sees {
        Sees { down: self.ops, up: self.ops }
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        let ring = Arc::new(Mutex::new(VecDeque::with_capacity(self.size)));
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.retain(|ring| ring.strong_count() > 0);
        rings.push(Arc::downgrade(&ring));
        Ok(Box::new(Remembering { ring, size: self.size, log: self.log, begin: self.begin }))
    }

    fn state(&self) -> Map<String, Value> {
        let last: Vec<Value> = self.all().into_iter().map(Seen::to_json).collect();
        let members = [("ops", shown(self.ops).into()), ("last", Value::from(last))];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }
}

struct Remembering {
    /// Ours but for those who look, now and then.
    ring: Arc<Ring>,
    size: usize,
    log: bool,
    begin: Instant,
}

impl Remembering {
    fn now(&self, host: &mut Host<'_>) -> Duration {
        host.now().saturating_duration_since(self.begin)
    }

    fn remember(&self, seen: Seen) {
        // Who looks has it for the time of a copy; what is over meanwhile is forgotten rather than waited for.
        let Ok(mut ring) = self.ring.try_lock() else { return };
        if ring.len() >= self.size {
            ring.pop_front();
        }
        ring.push_back(seen);
    }
}

impl Layer for Remembering {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        call.push(u64::try_from(self.now(host).as_nanos()).unwrap_or(u64::MAX));
        Step::Down(call)
    }

    fn complete(&mut self, mut call: Call, outcome: Outcome, host: &mut Host<'_>) -> Step {
        let (then, at) = (Duration::from_nanos(call.pop()), self.now(host));
        let seen = Seen { at, took: at.saturating_sub(then), queue: call.queue(), op: call.op(), outcome };
        if self.log {
            tracing::debug!(op = ?seen.op, queue = seen.queue, took = ?seen.took, ?outcome, "An operation is over");
        }
        self.remember(seen);
        Step::Up(call, outcome)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::op::OpKind;
    use crate::testing::{Disk, Ram, stack, values};

    #[test]
    fn the_last_ones_are_remembered_with_how_they_went() {
        let ram = Ram::new(1 << 20, 512);
        let trace = Trace::new(&values(OPTIONS, &[("ops", "write read"), ("size", "2")]).unwrap()).unwrap();
        let graph = stack(vec![ram.volume(), Box::new(trace)]);
        let mut disk = Disk::new(&graph);
        disk.write(0, &[1; 512]).unwrap();
        disk.write(4096, &[1; 1024]).unwrap();
        ram.fail(OpKind::Read, Some(Errno::IO));
        disk.read(512, 512).unwrap_err();
        disk.run(Op::Flush).unwrap();
        let state = graph.part(1).unwrap().volume.state();
        let [write, read] = state["last"].as_array().unwrap().as_slice() else { panic!("{state:?}") };
        assert_eq!(
            (&write["op"], &write["offset"], &write["bytes"]),
            (&"write".into(), &4096.into(), &1024.into())
        );
        assert_eq!((&write["error"], &write["queue"]), (&Value::Null, &0.into()));
        assert_eq!((&read["op"], &read["offset"]), (&"read".into(), &512.into()));
        assert!(read["error"].as_str().unwrap().contains("Input/output error"));
        assert!(write["at_s"].as_f64().unwrap() <= read["at_s"].as_f64().unwrap());
        drop(disk);
        assert_eq!(graph.part(1).unwrap().volume.state()["last"], Value::Array(vec![]));
    }
}

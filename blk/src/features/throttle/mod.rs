//! `features/throttle`: no more than so many bytes and operations a second.
//!
//! In: any operation. Out: the same, when the buckets ([`bucket`]) are not empty; those that come before that wait in their
//! order. Reads, writes and zeroes count their bytes, every operation but a question for extents counts as one. Keeps what
//! is below keeps. All workers of a volume have the same buckets; with `group`, a small file, so have other volumes,
//! of this daemon and of others: together they get what one alone would. Promises: over any time no more than
//! rate x (time + burst) and one operation a worker; a queue that stops waits for nothing.
//! Refuses: to limit nothing; a group that is a file of something else.

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

mod bucket;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::memory::words::Words;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::{Map, Value};

use self::bucket::{Buckets, Clock, Rates, WORDS};
use super::only;
use crate::call::Call;
use crate::debug::tally::{Lane, Tally};
use crate::graph::options::{Bad, Preset, Setting, Type, Values};
use crate::graph::registry::{Kind, Made, Openings, Purpose};
use crate::graph::{Host, Layer, Release, Sees, Step, Volume};
use crate::op::{Keeps, Op, OpKind, OpSet};

/// What can be set.
pub const OPTIONS: &[Setting] = &[
    Setting {
        name: "bytes",
        kind: Type::Size(1..=u64::MAX),
        preset: Preset::Absent,
        about: "Bytes a second",
    },
    Setting {
        name: "ops",
        kind: Type::Number(1..=1_000_000_000),
        preset: Preset::Absent,
        about: "Operations a second",
    },
    Setting {
        name: "burst",
        kind: Type::Duration(Duration::from_millis(1)..=Duration::from_secs(60)),
        preset: Preset::Is("100ms"),
        about: "How long who was idle may go on as fast as it can, in time at the limit",
    },
    Setting {
        name: "group",
        kind: Type::Path,
        preset: Preset::Absent,
        about: "File by which volumes share one limit, of this daemon and others; it is made if it is not there",
    },
];

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "features/throttle",
    about: "What is below, at no more than so many bytes and operations a second",
    subvolumes: 1..=1,
    options: OPTIONS,
    prepare: Some(prepare),
    make: |made| Ok(Arc::new(Throttle::make(made)?)),
};

/// Name of the descriptor.
const GROUP: &str = "group";
/// Exit code of what the host does not let us do.
const HOST: u8 = 1;
const GROUP_BYTES: u64 = (WORDS * size_of::<u64>()) as u64;
const SEEN: OpSet = OpSet::of(&[
    OpKind::Read,
    OpKind::Write,
    OpKind::Flush,
    OpKind::Discard,
    OpKind::Zeroes,
    OpKind::SecureErase,
]);
const WAITED: usize = 0;

/// Opens the file of the group.
fn prepare(values: &Values, openings: &mut Openings<'_>) -> Result<(), Bad> {
    let Some(path) = values.path(GROUP) else { return Ok(()) };
    let failed = |error: io::Error| {
        Bad::option(GROUP, format!("cannot use it: {error}; give a file that this user may write"))
            .with_code(HOST)
    };
    match openings.purpose {
        Purpose::Serve => openings.insert(GROUP, open_group(path).map_err(failed)?),
        Purpose::Look => {
            let (_, fd) = Words::create(GROUP, WORDS).map_err(failed)?;
            openings.insert(GROUP, fd);
        }
    }
    Ok(())
}

/// The file of a group, new or used by others.
fn open_group(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)?;
    let about = file.metadata()?;
    match about.len() {
        _ if !about.is_file() => return Err(io::Error::other("it is no regular file")),
        0 => file.set_len(GROUP_BYTES)?,
        GROUP_BYTES => {}
        bytes => return Err(io::Error::other(format!("it is a file of something else, of {bytes} bytes"))),
    }
    Ok(file)
}

/// A file that somebody has cut short since it was opened gets its length again: a disk is not to end by that.
fn whole(fd: OwnedFd) -> Option<File> {
    let file = File::from(fd);
    if file.metadata().ok()?.len() < GROUP_BYTES {
        file.set_len(GROUP_BYTES).ok()?;
    }
    Some(file)
}

/// A limit.
#[derive(Debug)]
pub struct Throttle {
    buckets: Arc<Buckets>,
    rates: Rates,
    group: Option<String>,
    tally: Tally,
}

impl Throttle {
    /// A limit that nobody shares.
    pub fn new(bytes: Option<u64>, ops: Option<u64>, burst: Duration) -> Throttle {
        Throttle::on(Words::own(WORDS), Rates { bytes, ops, burst })
    }

    fn on(words: Words, rates: Rates) -> Throttle {
        let buckets = Arc::new(Buckets::new(words, rates));
        Throttle { buckets, rates, group: None, tally: Tally::new(1) }
    }

    fn make(made: &Made<'_>) -> Result<Throttle, Bad> {
        let (values, burst) = (made.values, made.values.duration("burst"));
        let rates = Rates {
            bytes: values.number("bytes"),
            ops: values.number("ops"),
            burst: burst.unwrap_or(Duration::from_millis(100)),
        };
        if rates.bytes.is_none() && rates.ops.is_none() {
            return Err(Bad::volume("it limits nothing; add option bytes or option ops"));
        }
        let Some(path) = values.path(GROUP) else { return Ok(Throttle::on(Words::own(WORDS), rates)) };
        let words = made.take(GROUP).and_then(|fd| Words::shared(whole(fd)?.into(), WORDS));
        let words =
            words.ok_or_else(|| Bad::option(GROUP, "it cannot be mapped; remove it, and start again"))?;
        Ok(Throttle { group: Some(path.display().to_string()), ..Throttle::on(words, rates) })
    }
}

impl Volume for Throttle {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        only(below)
    }

    fn sees(&self) -> Sees {
        Sees { down: SEEN, up: OpSet::NONE }
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        let (buckets, lane) = (Arc::clone(&self.buckets), self.tally.lane());
        Ok(Box::new(Waiting { buckets, clock: Clock::default(), waiting: VecDeque::new(), lane }))
    }

    fn state(&self) -> Map<String, Value> {
        let members: [(&str, Value); 5] = [
            ("bytes", self.rates.bytes.into()),
            ("ops", self.rates.ops.into()),
            ("burst_s", self.rates.burst.as_secs_f64().into()),
            ("group", self.group.clone().into()),
            ("waited", self.tally.sum(WAITED).into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }
}

struct Waiting {
    buckets: Arc<Buckets>,
    clock: Clock,
    waiting: VecDeque<Call>,
    lane: Lane,
}

/// Bytes that count.
fn bytes_of(op: Op) -> u64 {
    match op {
        Op::Read { bytes, .. } | Op::Write { bytes, .. } | Op::Zeroes { bytes, .. } => bytes,
        Op::Flush | Op::Discard { .. } | Op::SecureErase { .. } | Op::Extents { .. } => 0,
    }
}

impl Waiting {
    fn pay(&self, call: &Call, now: Instant) {
        self.buckets.charge(bytes_of(call.op()), self.clock.ns(now));
    }

    /// Sends on as many as may go.
    fn pump(&mut self, host: &mut Host<'_>) {
        let now = host.now();
        while let Some(call) = self.waiting.pop_front() {
            if let Some(until) = self.buckets.closed_until(self.clock.ns(now)) {
                self.waiting.push_front(call);
                return host.arm(self.clock.instant(until));
            }
            self.pay(&call, now);
            host.go(Step::Down(call));
        }
    }
}

impl Layer for Waiting {
    fn submit(&mut self, call: Call, host: &mut Host<'_>) -> Step {
        let now = host.now();
        let closed = || self.buckets.closed_until(self.clock.ns(now));
        if host.is_stopping(call.queue()) || (self.waiting.is_empty() && closed().is_none()) {
            self.pay(&call, now);
            return Step::Down(call);
        }
        self.lane.add(WAITED, 1);
        self.waiting.push_back(call);
        if self.waiting.len() == 1 {
            self.pump(host);
        }
        Step::Held
    }

    fn expired(&mut self, host: &mut Host<'_>) {
        self.pump(host);
    }

    fn release(&mut self, queue: u16, how: Release, host: &mut Host<'_>) {
        let now = host.now();
        for call in std::mem::take(&mut self.waiting) {
            match how {
                _ if call.queue() != queue => self.waiting.push_back(call),
                Release::Cancel => host.go(Step::Up(call, Err(Errno::CANCELED))),
                Release::Go => {
                    self.pay(&call, now);
                    host.go(Step::Down(call));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;

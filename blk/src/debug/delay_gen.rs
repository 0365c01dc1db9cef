//! `debug/delay-gen`: calls that take longer: what becomes of a guest whose disk is slow.
//!
//! In: any operation. Out: the same after `delay`, and after up to `random` more, which brings them in another order: of the
//! operations of `ops` a share of `percent`. Keeps what is below keeps. Promises: no worker waits meanwhile, and a queue
//! that stops does not either.

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

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::{Map, Value};

use super::tally::{Lane, Tally};
use super::{Random, ops, shown};
use crate::call::Call;
use crate::features::only;
use crate::graph::options::{Bad, Preset, Setting, Type, Values};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Release, Sees, Step, Volume};
use crate::op::{Keeps, OpSet};

const LONGEST: Duration = Duration::from_secs(3600);

/// What can be set.
pub const OPTIONS: &[Setting] = &[
    super::OPS,
    Setting {
        name: "delay",
        kind: Type::Duration(Duration::ZERO..=LONGEST),
        preset: Preset::Is("10ms"),
        about: "How much longer they take",
    },
    Setting {
        name: "random",
        kind: Type::Duration(Duration::ZERO..=LONGEST),
        preset: Preset::Is("0"),
        about: "Up to so much more, by chance",
    },
    Setting {
        name: "percent",
        kind: Type::Percent,
        preset: Preset::Is("100"),
        about: "Share of the operations that is delayed",
    },
    Setting {
        name: "seed",
        kind: Type::Number(0..=u64::MAX),
        preset: Preset::Is("1"),
        about: "Another number delays others",
    },
];
/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "debug/delay-gen",
    about: "What is below, but some operations take longer",
    subvolumes: 1..=1,
    options: OPTIONS,
    prepare: None,
    make: |made| Ok(Arc::new(DelayGen::new(made.values)?)),
};
/// What a share is counted in.
const WHOLE: u64 = 1_000_000;
const SEEN: usize = 0;
const DELAYED: usize = 1;

#[derive(Clone, Copy, Debug)]
struct Settings {
    ops: OpSet,
    delay: Duration,
    random: Duration,
    millionths: u64,
    seed: u64,
}

/// Calls that take longer.
#[derive(Debug)]
pub struct DelayGen {
    settings: Settings,
    workers: AtomicU64,
    tally: Tally,
}

impl DelayGen {
    /// As the options say.
    ///
    /// # Errors
    /// Which of them makes no sense.
    pub fn new(values: &Values) -> Result<DelayGen, Bad> {
        let settings = Settings {
            ops: ops(values)?,
            delay: values.duration("delay").unwrap_or_default(),
            random: values.duration("random").unwrap_or_default(),
            millionths: values.millionths("percent").map_or(WHOLE, u64::from),
            seed: values.number("seed").unwrap_or(1),
        };
        Ok(DelayGen { settings, workers: AtomicU64::new(0), tally: Tally::new(2) })
    }
}

impl Volume for DelayGen {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        only(below)
    }

    fn sees(&self) -> Sees {
        Sees { down: self.settings.ops, up: OpSet::NONE }
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        let random = Random::new(self.settings.seed, self.workers.fetch_add(1, Ordering::Relaxed));
        let (waiting, lane) = (BTreeMap::new(), self.tally.lane());
        Ok(Box::new(Delaying { settings: self.settings, random, waiting, begun: 0, lane }))
    }

    fn state(&self) -> Map<String, Value> {
        let time = |time: Duration| Value::from(time.as_secs_f64());
        let members: [(&str, Value); 6] = [
            ("ops", shown(self.settings.ops).into()),
            ("delay_s", time(self.settings.delay)),
            ("random_s", time(self.settings.random)),
            ("millionths", self.settings.millionths.into()),
            ("seen", self.tally.sum(SEEN).into()),
            ("delayed", self.tally.sum(DELAYED).into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }
}

struct Delaying {
    settings: Settings,
    random: Random,
    /// By the moment at which they go on; the second number tells apart those of the same moment.
    waiting: BTreeMap<(Instant, u64), Call>,
    begun: u64,
    lane: Lane,
}

impl Delaying {
    fn time(&mut self) -> Duration {
        let most = u64::try_from(self.settings.random.as_nanos()).unwrap_or(u64::MAX);
        self.settings.delay.saturating_add(Duration::from_nanos(self.random.below(most)))
    }

    fn arm(&self, host: &mut Host<'_>) {
        if let Some(((at, _), _)) = self.waiting.first_key_value() {
            host.arm(*at);
        }
    }
}

impl Layer for Delaying {
    fn submit(&mut self, call: Call, host: &mut Host<'_>) -> Step {
        self.lane.add(SEEN, 1);
        let chosen = self.random.below(WHOLE) < self.settings.millionths;
        if !chosen || host.is_stopping(call.queue()) {
            return Step::Down(call);
        }
        self.lane.add(DELAYED, 1);
        let time = self.time();
        let Some(at) = host.now().checked_add(time) else { return Step::Down(call) };
        self.begun = self.begun.wrapping_add(1);
        self.waiting.insert((at, self.begun), call);
        self.arm(host);
        Step::Held
    }

    fn expired(&mut self, host: &mut Host<'_>) {
        let now = host.now();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key().0 <= now) {
            host.go(Step::Down(first.remove()));
        }
        self.arm(host);
    }

    fn release(&mut self, queue: u16, how: Release, host: &mut Host<'_>) {
        for (_, call) in self.waiting.extract_if(.., |_, call| call.queue() == queue) {
            host.go(match how {
                Release::Go => Step::Down(call),
                Release::Cancel => Step::Up(call, Err(Errno::CANCELED)),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::op::Op;
    use crate::testing::{Disk, Ram, stack, values};

    fn graph(options: &[(&str, &str)]) -> (Ram, Graph) {
        let ram = Ram::new(1 << 20, 512);
        let slow = DelayGen::new(&values(OPTIONS, options).unwrap()).unwrap();
        (ram.clone(), stack(vec![ram.volume(), Box::new(slow)]))
    }

    #[test]
    fn only_what_is_meant_takes_longer_and_no_less_than_that() {
        let (_, graph) = graph(&[("ops", "flush"), ("delay", "30ms")]);
        let mut disk = Disk::new(&graph);
        let begin = Instant::now();
        let flush = disk.begin(Op::Flush, &[]);
        disk.write(0, &[1; 512]).unwrap();
        assert!(disk.done(flush).is_none());
        assert_eq!(disk.wait(flush).outcome, Ok(()));
        assert!(begin.elapsed() >= Duration::from_millis(30));
        let state = graph.part(1).unwrap().volume.state();
        assert_eq!(
            (&state["seen"], &state["delayed"], &state["ops"]),
            (&1.into(), &1.into(), &"flush".into())
        );
    }

    #[test]
    fn chance_brings_calls_in_another_order_and_loses_none() {
        let (ram, graph) = graph(&[("delay", "0"), ("random", "20ms")]);
        let mut disk = Disk::new(&graph);
        let discard = |at: u64| Op::Discard { offset: at * 512, bytes: 512 };
        let begun: Vec<u64> = (0..50).map(|at| disk.begin(discard(at), &[])).collect();
        begun.into_iter().for_each(|call| assert_eq!(disk.wait(call).outcome, Ok(())));
        let mut came = ram.places();
        assert!(!came.is_sorted());
        came.sort_unstable();
        assert_eq!(came, (0..50).map(|at| at * 512).collect::<Vec<_>>());
    }

    #[test]
    fn a_queue_that_stops_does_not_wait() {
        for (how, outcome) in [(Release::Go, Ok(())), (Release::Cancel, Err(Errno::CANCELED))] {
            let (ram, graph) = graph(&[("delay", "1h")]);
            let mut disk = Disk::new(&graph);
            let held = disk.begin(Op::Flush, &[]);
            assert!(disk.done(held).is_none());
            disk.stop(how);
            assert_eq!(disk.done(held).unwrap().outcome, outcome);
            let late = disk.begin(Op::Flush, &[]);
            assert_eq!(disk.done(late).unwrap().outcome, Ok(()));
            assert_eq!(ram.seen().len(), if outcome.is_ok() { 2 } else { 1 });
        }
    }
}

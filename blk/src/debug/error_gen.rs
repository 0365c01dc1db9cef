//! `debug/error-gen`: calls that fail, though nothing is wrong: what becomes of a guest whose disk is bad.
//!
//! In: any operation. Out: the same, or its failure with the error of `error`: of the operations of `ops` every Nth, or a
//! share, by numbers that are the same for the same `seed`. Nothing below sees a call that failed here. Keeps what is
//! below keeps. Refuses to be told neither how often nor what share.

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
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use serde_json::{Map, Value};

use super::tally::{Lane, Tally};
use super::{Random, ops, shown};
use crate::call::Call;
use crate::features::only;
use crate::graph::options::{Bad, Preset, Setting, Type, Values};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Sees, Step, Volume};
use crate::op::{Keeps, OpSet};

/// What can be set.
pub const OPTIONS: &[Setting] = &[
    super::OPS,
    Setting {
        name: "percent",
        kind: Type::Percent,
        preset: Preset::Absent,
        about: "Share of the operations that fails",
    },
    Setting {
        name: "every",
        kind: Type::Number(1..=u64::MAX),
        preset: Preset::Absent,
        about: "Each Nth operation of a worker fails, instead of a share",
    },
    Setting {
        name: "error",
        kind: Type::Enum(&["EIO", "ENOSPC", "EROFS", "ETIMEDOUT", "ENODEV"]),
        preset: Preset::Is("EIO"),
        about: "How they fail",
    },
    Setting {
        name: "seed",
        kind: Type::Number(0..=u64::MAX),
        preset: Preset::Is("1"),
        about: "Another number makes others fail",
    },
];
/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "debug/error-gen",
    about: "What is below, but some operations fail",
    subvolumes: 1..=1,
    options: OPTIONS,
    prepare: None,
    make: |made| Ok(Arc::new(ErrorGen::new(made.values)?)),
};
/// What a share is counted in.
const WHOLE: u64 = 1_000_000;
const SEEN: usize = 0;
const FAILED: usize = 1;

/// How often a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    Millionths(u64),
    Every(u64),
}

/// Calls that fail.
#[derive(Debug)]
pub struct ErrorGen {
    ops: OpSet,
    rate: Rate,
    error: Errno,
    name: &'static str,
    seed: u64,
    workers: AtomicU64,
    tally: Tally,
}

impl ErrorGen {
    /// As the options say.
    ///
    /// # Errors
    /// Which of them makes no sense.
    pub fn new(values: &Values) -> Result<ErrorGen, Bad> {
        let rate = match (values.millionths("percent"), values.number("every")) {
            (Some(share), None) => Rate::Millionths(share.into()),
            (None, Some(every)) => Rate::Every(every),
            (None, None) => return Err(Bad::volume("nothing fails; add option percent or option every")),
            (Some(_), Some(_)) => {
                return Err(Bad::option("every", "there is option percent as well; leave one of them out"));
            }
        };
        let name = values.word("error").unwrap_or("EIO");
        let error = match name {
            "ENOSPC" => Errno::NOSPC,
            "EROFS" => Errno::ROFS,
            "ETIMEDOUT" => Errno::TIMEDOUT,
            "ENODEV" => Errno::NODEV,
            _ => Errno::IO,
        };
        let seed = values.number("seed").unwrap_or(1);
        let (workers, tally) = (AtomicU64::new(0), Tally::new(2));
        Ok(ErrorGen { ops: ops(values)?, rate, error, name, seed, workers, tally })
    }
}

impl Volume for ErrorGen {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        only(below)
    }

    fn sees(&self) -> Sees {
        Sees { down: self.ops, up: OpSet::NONE }
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        let random = Random::new(self.seed, self.workers.fetch_add(1, Ordering::Relaxed));
        Ok(Box::new(Failing { rate: self.rate, error: self.error, random, seen: 0, lane: self.tally.lane() }))
    }

    fn state(&self) -> Map<String, Value> {
        let rate = match self.rate {
            Rate::Millionths(share) => ("millionths", share.into()),
            Rate::Every(every) => ("every", every.into()),
        };
        let members: [(&str, Value); 5] = [
            ("ops", shown(self.ops).into()),
            rate,
            ("error", self.name.into()),
            ("seen", self.tally.sum(SEEN).into()),
            ("failed", self.tally.sum(FAILED).into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }
}

struct Failing {
    rate: Rate,
    error: Errno,
    random: Random,
    seen: u64,
    lane: Lane,
}

impl Layer for Failing {
    fn submit(&mut self, call: Call, _: &mut Host<'_>) -> Step {
        self.seen = self.seen.wrapping_add(1);
        self.lane.add(SEEN, 1);
        let fails = match self.rate {
            Rate::Millionths(share) => self.random.below(WHOLE) < share,
            Rate::Every(every) => self.seen.is_multiple_of(every),
        };
        if !fails {
            return Step::Down(call);
        }
        self.lane.add(FAILED, 1);
        Step::Up(call, Err(self.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::testing::{Disk, Ram, stack, values};

    fn disk(options: &[(&str, &str)]) -> (Ram, crate::graph::Graph) {
        let ram = Ram::new(1 << 20, 512);
        let faulty = ErrorGen::new(&values(OPTIONS, options).unwrap()).unwrap();
        (ram.clone(), stack(vec![ram.volume(), Box::new(faulty)]))
    }

    #[test]
    fn every_third_write_fails_and_is_not_done() {
        let (ram, graph) = disk(&[("ops", "write"), ("every", "3"), ("error", "ENOSPC")]);
        let mut disk = Disk::new(&graph);
        let outcomes: Vec<_> = (0..7).map(|at| disk.write(at * 512, &[1; 512])).collect();
        for (at, outcome) in outcomes.into_iter().enumerate() {
            let failed = at % 3 == 2;
            assert_eq!(outcome, if failed { Err(Errno::NOSPC) } else { Ok(()) }, "{at}");
            assert_eq!(ram.bytes(at * 512, 512) == [1; 512], !failed, "{at}");
        }
        assert!((0..9).all(|_| disk.run(Op::Flush).is_ok()));
        let state = graph.part(1).unwrap().volume.state();
        assert_eq!(
            Value::Object(state),
            serde_json::json!({
                "ops": "write", "every": 3, "error": "ENOSPC", "seen": 7, "failed": 2
            })
        );
    }

    #[test]
    fn a_share_fails_the_same_for_the_same_seed() {
        let run = |seed| {
            let (_, graph) = disk(&[("percent", "10"), ("seed", seed)]);
            let mut disk = Disk::new(&graph);
            (0..2000).map(|_| disk.run(Op::Flush).is_err()).collect::<Vec<_>>()
        };
        let first = run("1");
        let failed = first.iter().filter(|failed| **failed).count();
        assert!((140..260).contains(&failed), "{failed}");
        assert_eq!(first, run("1"));
        assert_ne!(first, run("2"));
    }

    #[test]
    fn how_often_must_be_said_once() {
        let refused =
            |options: &[(&str, &str)]| ErrorGen::new(&values(OPTIONS, options).unwrap()).unwrap_err();
        assert_eq!(refused(&[]), Bad::volume("nothing fails; add option percent or option every"));
        let both = Bad::option("every", "there is option percent as well; leave one of them out");
        assert_eq!(refused(&[("percent", "1"), ("every", "1")]), both);
    }
}

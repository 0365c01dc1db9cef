//! Live changes, as the control socket has them.
//!
//! | request | answer |
//! |---|---|
//! | `GET /graph` | the text in service, each volume with its counters ([`Picture`]), how the last change went |
//! | `PUT /graph` | 202 with the number of a change: the gate is closed for it ([`super::gate`]) |
//! | `PUT /graph/hold` | a volume holds calls back, or no longer ([`super::Volume::hold`]); what it tells of itself |
//!
//! A change is the text of a graph, with what was opened for volumes that are new (as descriptors, by the names that
//! `descriptors` lists), and the number of the change before, so that nobody undoes what he has not seen. Whoever asked for it
//! looks again until `change.state` is `done` or `refused`. Promises: nothing waits here; what was refused has changed
//! nothing; what is done outlives this process.

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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backends::control::metrics::{Exposition, Kind};
use backends::control::{Answer, Call, Method, Route};
use backends::kept::Kept;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::{GraphError, Shown as Word};
use super::gate::{Gate, Settled};
use super::live::{self, Live};
use super::plan::Plan;
use super::show::Picture;

/// Name under which the keeper has the text of the graph.
pub const TEXT: &str = "blk.graph";
/// Where volumes are told to hold calls back.
pub const HOLD: &str = "/graph/hold";
/// Most descriptors of one change.
const MAX_DESCRIPTORS: usize = 32;
/// What can be asked.
pub const ROUTES: [Route; 3] = [
    Route::new(Method::Get, "/graph"),
    Route::new(Method::Put, HOLD),
    Route { method: Method::Put, path: "/graph", descriptors: MAX_DESCRIPTORS },
];
/// Upper bounds of the pauses that are counted, in seconds.
const BOUNDS: [f64; 10] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.1, 1.0];

/// What is sent for a change.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The text.
    pub text: String,
    /// Where it came from, for messages.
    pub file: String,
    /// The change before.
    pub after: u64,
    /// What the descriptors are, by `VOLUME.WHAT`, in their order.
    pub descriptors: Vec<String>,
}

/// Which volume is to hold calls back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Its name.
    pub volume: String,
    /// From now on, or no longer.
    pub held: bool,
}

/// What is answered of the graph.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shown {
    /// How the last change went.
    pub change: Last,
    /// The text in service.
    pub text: String,
    /// Its volumes.
    #[serde(flatten)]
    pub picture: Picture,
}

/// How a change went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Last {
    /// 0: there was none yet.
    pub number: u64,
    /// Where it stands.
    pub state: Stage,
    /// Why it was refused.
    pub error: Option<String>,
    /// How long no request was begun for it, in microseconds.
    pub pause_us: u64,
}

/// Where a change stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// There was none yet.
    #[default]
    None,
    /// Requests are waited for.
    Pending,
    /// The new graph serves.
    Done,
    /// The old one goes on.
    Refused,
}

/// The graph of a daemon, as its control thread has it.
#[derive(Debug)]
pub struct Changes {
    gate: Arc<Gate>,
    kept: Kept,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last: Last,
    /// The text of the change that is under way.
    record: Option<OwnedFd>,
    done: u64,
    refused: u64,
    /// Pauses up to each bound, and beyond all of them.
    pauses: [u64; BOUNDS.len()],
    sum: Duration,
}

impl Changes {
    /// Of the graph behind this gate.
    pub fn new(gate: Arc<Gate>, kept: Kept) -> Changes {
        let number = live::last_number(gate.live().gifts());
        let last = Last { number, ..Last::default() };
        Changes { gate, kept, told: Mutex::new(Told { last, ..Told::default() }) }
    }

    /// Readable when [`Changes::rung`] has something to do.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.gate.bell()
    }

    /// Answers a request for one of [`ROUTES`].
    pub fn call(&self, call: Call) -> Answer {
        if call.route.method == Method::Get {
            return self.show();
        }
        if call.route.path == HOLD {
            return self.hold(&call.body);
        }
        let wanted = match serde_json::from_slice(&call.body) {
            Ok(wanted) => wanted,
            Err(error) => {
                return Answer::error(
                    422,
                    format_args!("The change makes no sense: {error}; use outboard-blk graph apply"),
                );
            }
        };
        self.begin(wanted, call.fds).unwrap_or_else(|refusal| refusal)
    }

    fn show(&self) -> Answer {
        let live = self.gate.live();
        let picture = Picture::of(live.plan(), live.graph(), true);
        let shown = Shown { change: self.told().last.clone(), text: live.text(), picture };
        Answer::json(&serde_json::to_value(shown).unwrap_or_default())
    }

    /// Closes or opens a volume. Workers do it when they hear the bell: asking again shows how far they are.
    fn hold(&self, body: &[u8]) -> Answer {
        let wanted: Hold = match serde_json::from_slice(body) {
            Ok(wanted) => wanted,
            Err(error) => return Answer::error(422, format_args!("{error}; give volume and held")),
        };
        let live = self.gate.live();
        let name = Word(&wanted.volume);
        let Some((_, part)) = live.graph().volumes().find(|(_, part)| part.name == wanted.volume) else {
            return Answer::error(422, format_args!("There is no volume {name}; give one of graph show"));
        };
        if !part.volume.hold(wanted.held) {
            let kind = part.kind;
            return Answer::error(
                422,
                format_args!("Volume {name} is a {kind}, which holds nothing back; give a features/quiesce"),
            );
        }
        self.gate.ring_all();
        Answer::json(&Value::Object(part.volume.state()))
    }

    /// Closes the gate for a change.
    fn begin(&self, wanted: Wanted, fds: Vec<OwnedFd>) -> Result<Answer, Answer> {
        let mut told = self.told();
        if told.last.number != wanted.after || told.last.state == Stage::Pending {
            return Err(Answer::error(
                409,
                "The graph was changed by somebody else meanwhile; look at it (graph show) and try again",
            ));
        }
        if wanted.descriptors.len() != fds.len() {
            return Err(Answer::error(
                422,
                "Not as many descriptors came as were named; use outboard-blk graph apply",
            ));
        }
        let number = told.last.number.saturating_add(1);
        let file = Path::new(&wanted.file);
        let refuse = |error: GraphError| Answer::error(422, error.of(file));
        let given: BTreeMap<String, OwnedFd> = wanted.descriptors.into_iter().zip(fds).collect();
        let plan = Plan::parse(&wanted.text).map_err(refuse)?;
        let live = self.gate.live();
        let next = live.next(plan, given, number, &self.kept).map_err(refuse)?;
        let record = record(&next.record()).map_err(|error| {
            self.let_go(&next, &live);
            Answer::error(
                500,
                format_args!(
                    "The graph cannot be kept for the next worker: {error}; free memory or descriptors"
                ),
            )
        })?;
        told.record = Some(record);
        told.last = Last { number, state: Stage::Pending, ..Last::default() };
        drop(told);
        self.gate.close(Arc::new(next), Instant::now());
        Ok(Answer::accepted(&json!({ "change": number })))
    }

    /// Settles what can be settled. When to come again, whoever rings.
    pub fn rung(&self, now: Instant) -> Option<Instant> {
        let mut told = self.told();
        let record = told.record.as_ref();
        let settled = self.gate.settle(now, |_| {
            let kept = record.map_or(Ok(()), |record| self.kept.commit(TEXT, record.as_fd()));
            kept.map_err(|error| format!("the keeper does not take the new graph: {error}; try again"))
        });
        if let Some(settled) = settled {
            told.settle(&settled);
            drop(told);
            self.let_go(&settled.retired, &self.gate.live());
        }
        self.gate.deadline()
    }

    /// What only the one has is not needed any more.
    fn let_go(&self, retired: &Live, live: &Live) {
        retired.volumes_without(live).for_each(|(_, volume)| volume.let_go());
        let gone = retired.gifts().iter().filter(|gift| !live.gifts().contains(gift));
        gone.for_each(|gift| self.kept.drop(gift));
    }

    /// Numbers for `GET /metrics`.
    pub fn count(&self, text: &mut Exposition) {
        let told = self.told();
        text.family("outboard_blk_graph_changes_total", Kind::Counter, "Live changes of the graph.")
            .sample(&[("outcome", &"done")], told.done)
            .sample(&[("outcome", &"refused")], told.refused);
        let help = "How long no request was begun because the graph was changed.";
        text.family("outboard_blk_graph_pause_seconds", Kind::Histogram, help).histogram(
            &[],
            BOUNDS.into_iter().zip(told.pauses),
            told.sum.as_secs_f64(),
            told.done.saturating_add(told.refused),
        );
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn settle(&mut self, Settled { outcome, pause, .. }: &Settled) {
        let done = outcome.is_ok();
        self.record = None;
        self.done = self.done.saturating_add(u64::from(done));
        self.refused = self.refused.saturating_add(u64::from(!done));
        for (bound, count) in BOUNDS.into_iter().zip(&mut self.pauses) {
            *count = count.saturating_add(u64::from(pause.as_secs_f64() <= bound));
        }
        self.sum = self.sum.saturating_add(*pause);
        self.last.state = if done { Stage::Done } else { Stage::Refused };
        self.last.error = outcome.clone().err();
        self.last.pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
    }
}

/// A file with this text that can be passed on.
fn record(text: &str) -> io::Result<OwnedFd> {
    let file = memfd_create(TEXT, MemfdFlags::CLOEXEC)?;
    match rustix::io::pwrite(&file, text.as_bytes(), 0)? == text.len() {
        true => Ok(file),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

//! The graph: what a disk is made of, from its top volume down to its leaves.
//!
//! ```text
//!   device ──call──►  top ──► volume ──► ... ──► leaf ──► engine
//!          ◄─outcome─     ◄──        ◄──     ◄──      ◄──
//! ```
//! Each volume has two halves. Its [`Volume`] is shared by all workers: options, what it keeps, counters. Its [`Layer`]
//! belongs to one worker: what passes there and what is held back, without a lock. Each worker has a whole [`tree`] of
//! layers of its own. A call goes down by [`Layer::submit`] and comes up by [`Layer::complete`]; what a layer answers, a
//! [`Step`], says where it goes next. Volumes that have nothing to say to an operation ([`Sees`]) are left out of its way
//! when the tree is built.
//!
//! What an operator writes becomes that in steps: words and their lines ([`volfile`]), who stands on whom
//! ([`structure`]), values of declared types ([`options`]).
//!
//! In: volumes with their subvolumes ([`build`]). Out: the disk. Refuses what does not fit together, by the volume's name.

pub mod build;
pub mod change;
pub mod error;
pub mod gate;
pub mod kinds;
pub mod live;
pub mod options;
pub mod plan;
pub mod registry;
pub mod runner;
pub mod show;
pub mod structure;
pub mod tree;
pub mod volfile;

use std::fmt::Debug;
use std::io;

use rustix::io::Errno;
use serde_json::{Map, Value};

use crate::call::Call;
use crate::op::{Keeps, OpSet};
pub use build::Graph;
pub use tree::{Host, Tree};

/// How a call went: all of it, or an error that is told to the driver as one.
pub type Outcome = Result<(), Errno>;

/// Where a call goes next.
#[derive(Debug)]
#[must_use = "a call goes on, or is held on purpose"]
pub enum Step {
    /// To the first subvolume.
    Down(Call),
    /// To this subvolume, counted from 0.
    To(usize, Call),
    /// Back to whoever sent it.
    Up(Call, Outcome),
    /// Nowhere now: the layer has it, or the engine.
    Held,
}

/// Which operations a layer wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sees {
    /// On their way down. A leaf sees all, whatever is said here, and so does a volume with several subvolumes.
    pub down: OpSet,
    /// On their way up.
    pub up: OpSet,
}

impl Sees {
    /// All that go down, none that come up.
    pub const DOWN: Sees = Sees { down: OpSet::ALL, up: OpSet::NONE };
    /// All, both ways.
    pub const BOTH: Sees = Sees { down: OpSet::ALL, up: OpSet::ALL };
    /// None.
    pub const NOTHING: Sees = Sees { down: OpSet::NONE, up: OpSet::NONE };
}

/// What becomes of the calls of a queue that stops and are held by a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// They go on now.
    Go,
    /// They come up as cancelled ([`Errno::CANCELED`]): their requests stay in flight for whoever serves the ring next.
    Cancel,
}

/// A volume, as all workers share it.
pub trait Volume: Send + Sync + Debug {
    /// What it keeps, given what its subvolumes do, in their order. Called when the graph is built, and again when one
    /// of them has grown.
    ///
    /// # Errors
    /// What does not fit, and the cure.
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String>;

    /// What its layers see.
    fn sees(&self) -> Sees {
        Sees::BOTH
    }

    /// Its layer for one worker.
    ///
    /// # Errors
    /// The host has no memory or descriptor left.
    fn layer(&self) -> io::Result<Box<dyn Layer>>;

    /// Looks again at how large it is: what it is made of may have grown.
    fn look_again(&self) {}

    /// The graph has taken the size that was found: workers that follow this one have to begin with it.
    fn took(&self) {}

    /// Makes all completed writes durable, for somebody who is no worker. Only leaves have something to do.
    ///
    /// # Errors
    /// The host has lost some.
    fn make_durable(&self) -> Outcome {
        Ok(())
    }

    /// Holds calls back from now on, or no longer; its layers are rung after that ([`Layer::rung`]). `false`: it is none
    /// that can.
    fn hold(&self, is_held: bool) -> bool {
        let _ = is_held;
        false
    }

    /// Another one serves in its place: what others may want is free for them from now on, a lock above all.
    fn let_go(&self) {}

    /// What it counts and how it is set, for people.
    fn state(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// A volume's part in one worker.
pub trait Layer: Send {
    /// A call on its way down.
    fn submit(&mut self, call: Call, host: &mut Host<'_>) -> Step;

    /// A call on its way up, or one of the layer's own.
    fn complete(&mut self, call: Call, outcome: Outcome, host: &mut Host<'_>) -> Step {
        let _ = host;
        Step::Up(call, outcome)
    }

    /// The engine's answer to what [`Host::submit`] began. Only leaves have any.
    fn answered(&mut self, call: Call, answer: Result<u32, Errno>, host: &mut Host<'_>) -> Step {
        let _ = host;
        Step::Up(call, answer.map(drop))
    }

    /// Its timer has gone off ([`Host::arm`]).
    fn expired(&mut self, host: &mut Host<'_>) {
        let _ = host;
    }

    /// Somebody changed what the workers share.
    fn rung(&mut self, host: &mut Host<'_>) {
        let _ = host;
    }

    /// This queue stops: lets go of its calls, by [`Host::go`]. Those that come later find [`Host::is_stopping`].
    fn release(&mut self, queue: u16, how: Release, host: &mut Host<'_>) {
        let _ = (queue, how, host);
    }
}

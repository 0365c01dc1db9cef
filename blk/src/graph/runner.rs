//! A graph without a guest: one call after another, for tools and for tests of translators.
//!
//! In: a graph and an operation with bytes of our own. Out: its outcome, when it is over. Promises: nothing of a call is
//! left in the graph or the engine when it returns.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use backends::engine::{self, Alarm, Engine, EngineKind, Event};
use backends::memory::Segment;
use rustix::io::Errno;

use super::tree::Outside;
use super::{Graph, Outcome, Release, Tree};
use crate::call::Call;
use crate::op::{Extent, Op};

/// The queue that its calls are said to be of.
const QUEUE: u16 = 0;

/// One worker's layers with an engine of their own.
pub struct Runner {
    tree: Tree,
    engine: Engine<Call>,
}

impl Outside for Engine<Call> {
    fn submit(&mut self, _: u16, fd: RawFd, op: engine::Op, call: Call) {
        Engine::submit(self, fd, op, call);
    }

    fn arm(&mut self, volume: u16, at: Instant) {
        Engine::arm(self, Alarm(volume.into()), at);
    }

    fn disarm(&mut self, volume: u16) {
        Engine::disarm(self, Alarm(volume.into()));
    }
}

impl Runner {
    /// Layers and an engine for the calling thread.
    ///
    /// # Errors
    /// The host has none of what they need left.
    pub fn new(graph: &Graph) -> io::Result<Runner> {
        Ok(Runner { tree: Tree::of(graph)?, engine: Engine::new(EngineKind::Auto)? })
    }

    /// Carries out one operation on `data`.
    pub fn run(&mut self, op: Op, data: &[Segment]) -> Outcome {
        self.extent(op, data).0
    }

    /// The same, with the answer to [`Op::Extents`].
    pub fn extent(&mut self, op: Op, data: &[Segment]) -> (Outcome, Option<Extent>) {
        self.begin(op, data);
        loop {
            if let Some(over) = self.finished() {
                return over;
            }
            if let Err(error) = self.work(true) {
                return (Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)), None);
            }
        }
    }

    /// Begins an operation; [`Runner::finished`] tells when it is over.
    pub fn begin(&mut self, op: Op, data: &[Segment]) {
        self.tree.start(QUEUE);
        let call = self.tree.pool().piece(QUEUE, op, data.iter().copied());
        self.tree.begin(call, &mut self.engine);
    }

    /// An operation that is over.
    pub fn finished(&mut self) -> Option<(Outcome, Option<Extent>)> {
        let (call, outcome) = self.tree.finished()?;
        let extent = call.extent();
        self.tree.pool().end(call);
        Some((outcome, extent))
    }

    /// Does what there is to do; first sleeps until there is something, if `sleep`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn work(&mut self, sleep: bool) -> io::Result<()> {
        self.engine.wait(sleep)?;
        self.tree.woke();
        while let Some(event) = self.engine.event() {
            match event {
                Event::Done(call, answer) => self.tree.answered(call, answer, &mut self.engine),
                Event::Expired(Alarm(volume)) => {
                    self.tree.expired(volume.try_into().unwrap_or(u16::MAX), &mut self.engine);
                }
                Event::Ready(_) | Event::Deaf(_) => {}
            }
        }
        Ok(())
    }

    /// Somebody changed what the workers share.
    pub fn ring(&mut self) {
        self.tree.rung(&mut self.engine);
    }

    /// The queue of all calls stops.
    pub fn stop(&mut self, how: Release) {
        self.tree.stop(QUEUE, how, &mut self.engine);
    }
}

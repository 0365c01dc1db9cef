//! The graph in one worker: who has a call, and who gets it next.
//!
//! In: calls of the device ([`Tree::begin`]), answers of the engine, timers, bells. Out: calls that are over, with their
//! outcome ([`Tree::finished`]). A call is carried from layer to layer by one loop, not by layers that call each other: a
//! deep graph takes no deeper stack, and what a layer answers is all it can do. The way of each kind of operation is worked out
//! beforehand, past those who do not see it.
//! Promises: a call is with exactly one layer, the engine, or the list of those that are over; nothing is allocated for
//! it, locked, or asked of the kernel. Refuses nothing.

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
use std::os::fd::RawFd;
use std::time::Instant;

use backends::engine;
use backends::memory::Segment;
use rustix::io::Errno;

use super::{Graph, Layer, Outcome, Release, Step};
use crate::call::{Call, Pool};
use crate::op::{Op, OpKind};

/// What carries out what leaves ask for: the engine of the worker.
pub trait Outside {
    /// Begins an operation; the answer goes to [`Tree::answered`].
    fn submit(&mut self, queue: u16, fd: RawFd, op: engine::Op, call: Call);

    /// Has [`Tree::expired`] called at this moment, once; one that is armed already is moved.
    fn arm(&mut self, volume: u16, at: Instant);

    /// The timer is not wanted any more.
    fn disarm(&mut self, volume: u16);
}

/// Where an operation of each kind goes; `None`: out of the graph.
type Ways = [Option<u16>; OpKind::ALL.len()];

struct Node {
    layer: Box<dyn Layer>,
    /// From here to each subvolume.
    down: Vec<Ways>,
    /// From here back.
    up: Ways,
}

/// A worker's layers.
pub struct Tree {
    nodes: Vec<Node>,
    /// From the device.
    top: Ways,
    desk: Desk,
    finished: Vec<(Call, Outcome)>,
}

/// What layers share.
#[derive(Default)]
struct Desk {
    pool: Pool,
    /// Calls that were held and go on.
    going: VecDeque<(u16, Step)>,
    /// Queues that stop.
    stopping: Vec<u16>,
    now: Option<Instant>,
}

impl Tree {
    /// Layers of their own for a worker.
    ///
    /// # Errors
    /// The host has no memory or descriptor left.
    pub fn of(graph: &Graph) -> io::Result<Tree> {
        let ways = |from: fn(&Graph, u16, OpKind) -> Option<u16>, volume| {
            OpKind::ALL.map(|kind| from(graph, volume, kind))
        };
        let nodes = graph.volumes().map(|(volume, part)| {
            let down = part.subvolumes.iter().map(|below| ways(Graph::enter, *below)).collect();
            Ok(Node { layer: part.volume.layer()?, down, up: ways(Graph::leave, volume) })
        });
        Ok(Tree {
            nodes: nodes.collect::<io::Result<Vec<_>>>()?,
            top: ways(Graph::enter, graph.top()),
            desk: Desk::default(),
            finished: Vec::new(),
        })
    }

    /// Calls for requests are made here.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.desk.pool
    }

    /// The worker woke up: time has passed.
    pub fn woke(&mut self) {
        self.desk.now = None;
    }

    /// A call of the device's goes in at the top.
    #[inline]
    pub fn begin(&mut self, call: Call, outside: &mut dyn Outside) {
        match self.top.get(call.kind().number()) {
            Some(Some(volume)) => self.enter(*volume, call, outside),
            _ => self.finished.push((call, Err(Errno::OPNOTSUPP))),
        }
        self.go_on(outside);
    }

    /// The engine has answered.
    pub fn answered(&mut self, call: Call, answer: Result<u32, Errno>, outside: &mut dyn Outside) {
        let volume = call.leaf();
        self.at(volume, outside, |layer, host| layer.answered(call, answer, host));
    }

    /// A layer's timer has gone off.
    pub fn expired(&mut self, volume: u16, outside: &mut dyn Outside) {
        self.at(volume, outside, |layer, host| {
            layer.expired(host);
            Step::Held
        });
    }

    /// Somebody changed what the workers share.
    pub fn rung(&mut self, outside: &mut dyn Outside) {
        self.each(outside, |layer, host| layer.rung(host));
    }

    /// This queue stops: nothing of it is held any longer.
    pub fn stop(&mut self, queue: u16, how: Release, outside: &mut dyn Outside) {
        if !self.desk.stopping.contains(&queue) {
            self.desk.stopping.push(queue);
        }
        self.each(outside, |layer, host| layer.release(queue, how, host));
    }

    /// This queue begins.
    pub fn start(&mut self, queue: u16) {
        self.desk.stopping.retain(|stopping| *stopping != queue);
    }

    /// A call that is over.
    #[inline]
    pub fn finished(&mut self) -> Option<(Call, Outcome)> {
        self.finished.pop()
    }

    fn each(&mut self, outside: &mut dyn Outside, act: impl Fn(&mut dyn Layer, &mut Host<'_>)) {
        for volume in (0..self.nodes.len()).filter_map(|at| u16::try_from(at).ok()) {
            self.at(volume, outside, |layer, host| {
                act(layer, host);
                Step::Held
            });
        }
    }

    /// Has a layer act, and carries on what comes of it.
    #[inline]
    fn at(
        &mut self,
        volume: u16,
        outside: &mut dyn Outside,
        act: impl FnOnce(&mut dyn Layer, &mut Host<'_>) -> Step,
    ) {
        if let Some(node) = self.nodes.get_mut(usize::from(volume)) {
            let step = act(&mut *node.layer, &mut Host { volume, desk: &mut self.desk, outside });
            self.carry(volume, step, outside);
        }
        self.go_on(outside);
    }

    #[inline]
    fn enter(&mut self, volume: u16, call: Call, outside: &mut dyn Outside) {
        let Some(node) = self.nodes.get_mut(usize::from(volume)) else { return };
        let step = node.layer.submit(call, &mut Host { volume, desk: &mut self.desk, outside });
        self.carry(volume, step, outside);
    }

    /// Carries calls on that were held.
    #[inline]
    fn go_on(&mut self, outside: &mut dyn Outside) {
        while let Some((volume, step)) = self.desk.going.pop_front() {
            self.carry(volume, step, outside);
        }
    }

    /// Carries a call from volume to volume until somebody keeps it.
    // What a layer answers is taken apart where it was returned: moved as a whole, it would be written in words and read
    // back at once as something larger, for which the processor waits longer than for everything else here.
    fn carry(&mut self, volume: u16, step: Step, outside: &mut dyn Outside) {
        let mut visit = self.next(volume, step);
        while let Some(Visit { volume, call, outcome }) = visit {
            let Some(node) = self.nodes.get_mut(usize::from(volume)) else { return };
            let mut host = Host { volume, desk: &mut self.desk, outside };
            let step = match outcome {
                None => node.layer.submit(call, &mut host),
                Some(outcome) => node.layer.complete(call, outcome, &mut host),
            };
            visit = self.next(volume, step);
        }
    }

    /// Where a call goes from a volume, if nobody keeps it and it is not over.
    #[inline(always)]
    fn next(&mut self, volume: u16, step: Step) -> Option<Visit> {
        let node = self.nodes.get(usize::from(volume))?;
        let (next, call, outcome) = match step {
            Step::Held => return None,
            Step::Down(call) => (below(node, 0, &call), call, None),
            Step::To(subvolume, call) => (below(node, subvolume, &call), call, None),
            Step::Up(call, outcome) => {
                let next = node.up.get(call.kind().number()).copied().flatten();
                (next, call, Some(outcome))
            }
        };
        match next {
            Some(volume) => Some(Visit { volume, call, outcome }),
            None => {
                // Down from a leaf leads nowhere.
                self.finished.push((call, outcome.unwrap_or(Err(Errno::OPNOTSUPP))));
                None
            }
        }
    }
}

/// A call on its way to a volume: up, if there is an outcome.
struct Visit {
    volume: u16,
    call: Call,
    outcome: Option<Outcome>,
}

#[inline]
fn below(node: &Node, subvolume: usize, call: &Call) -> Option<u16> {
    node.down.get(subvolume)?.get(call.kind().number()).copied().flatten()
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("volumes", &self.nodes.len()).finish_non_exhaustive()
    }
}

/// What a layer can ask for.
pub struct Host<'a> {
    volume: u16,
    desk: &'a mut Desk,
    outside: &'a mut dyn Outside,
}

impl Host<'_> {
    /// The time: one look at the clock for all that happens at once.
    pub fn now(&mut self) -> Instant {
        *self.desk.now.get_or_insert_with(Instant::now)
    }

    /// Has [`Layer::expired`] called at this moment, once; a layer has one timer, and arming it again moves it.
    pub fn arm(&mut self, at: Instant) {
        self.outside.arm(self.volume, at);
    }

    /// The timer is not wanted any more.
    pub fn disarm(&mut self) {
        self.outside.disarm(self.volume);
    }

    /// A call that the layer held goes on, after the layer has returned.
    pub fn go(&mut self, step: Step) {
        self.desk.going.push_back((self.volume, step));
    }

    /// A call of the layer's own, to be sent on by [`Host::go`]. It comes up to [`Layer::complete`] of the same layer, if
    /// that sees its kind, and ends there by [`Host::end`].
    pub fn piece(&mut self, queue: u16, op: Op, data: impl IntoIterator<Item = Segment>) -> Call {
        self.desk.pool.piece(queue, op, data)
    }

    /// A call of the layer's own is over.
    pub fn end(&mut self, call: Call) {
        debug_assert!(call.pending().is_none(), "somebody waits for it");
        self.desk.pool.end(call);
    }

    /// This queue stops: nothing of it may wait for anything but the host.
    pub fn is_stopping(&self, queue: u16) -> bool {
        self.desk.stopping.contains(&queue)
    }

    /// Begins an operation of the engine on the call's data; the answer goes to [`Layer::answered`].
    pub fn submit(&mut self, fd: RawFd, op: engine::Op, mut call: Call) -> Step {
        call.set_leaf(self.volume);
        self.outside.submit(call.queue(), fd, op, call);
        Step::Held
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;

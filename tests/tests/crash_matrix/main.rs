//! The crash matrix: each daemon dies at each point of a request's way, and a guest notices nothing but time.
//!
//! A [`Story`] is one such death: a guest under verified I/O, a failpoint, the death there, the session brought back by
//! the keeper or by a front-end that connects again, and the end of the story, which is always the same: every head
//! comes back once (N1), the disk holds what it may (N2, N3), interrupts are waited for and come (N4), and descriptors,
//! mappings, threads and memory are as they were (N5).

mod guests;
mod messages;
mod points;
mod poison;

use std::fs::{self, File};
use std::path::PathBuf;

use backends::proto::ProtocolFeatures;
use tests::daemon::{Counts, Launch};
use tests::frontend::Wants;
use tests::guest::format::RingKind;
use tests::random::Random;
use tests::restart::soak::Device;
use tests::restart::{Load, Mode, Rig};

/// Rounds of traffic before and after.
const ROUNDS: usize = 5;

/// A place in the matrix.
#[derive(Clone, Copy, Debug)]
struct Cell {
    device: Device,
    rings: RingKind,
    mode: Mode,
}

impl Cell {
    /// With a keeper the front-end knows nothing of in-flight regions: the keeper has one of its own.
    fn wants(&self) -> Wants {
        let protocol = match self.mode {
            Mode::Keeper => ProtocolFeatures::all() - ProtocolFeatures::INFLIGHT_SHMFD,
            Mode::Reconnect => ProtocolFeatures::all(),
        };
        Wants { protocol: Some(protocol), ..Wants::on(self.rings) }
    }
}

/// Makes a test of each function `fn case(cell: Cell)`, in modules named by daemon, kind of ring and mode; for the disk
/// also over a graph of five layers, unless it is `image` only.
#[macro_export]
macro_rules! matrix {
    ($($daemon:ident $device:ident $($mode:ident)*: [$($case:ident),* $(,)?]),* $(,)?) => {
        $(mod $daemon {
            mod split { $crate::matrix!(@ $device Split [$($mode)*] [$($case)*]); }
            mod packed { $crate::matrix!(@ $device Packed [$($mode)*] [$($case)*]); }
        })*
    };
    (@ Blk $rings:ident [] $cases:tt) => {
        $crate::matrix!(@ Blk $rings [reconnect] $cases);
        $crate::matrix!(@ Blk $rings [keeper] $cases);
        $crate::matrix!(@ BlkGraph $rings [graph_reconnect] $cases);
        $crate::matrix!(@ BlkGraph $rings [graph_keeper] $cases);
    };
    (@ Blk $rings:ident [image] $cases:tt) => {
        $crate::matrix!(@ Blk $rings [reconnect] $cases);
        $crate::matrix!(@ Blk $rings [keeper] $cases);
    };
    (@ $device:ident $rings:ident [] $cases:tt) => {
        $crate::matrix!(@ $device $rings [reconnect] $cases);
        $crate::matrix!(@ $device $rings [keeper] $cases);
    };
    (@ $device:ident $rings:ident [keeper] [$($case:ident)*]) => {
        mod keeper { $(#[test] fn $case() { $crate::matrix!(# $case $device $rings Keeper) })* }
    };
    (@ $device:ident $rings:ident [reconnect] [$($case:ident)*]) => {
        mod reconnect { $(#[test] fn $case() { $crate::matrix!(# $case $device $rings Reconnect) })* }
    };
    (@ $device:ident $rings:ident [graph_keeper] [$($case:ident)*]) => {
        mod graph_keeper { $(#[test] fn $case() { $crate::matrix!(# $case $device $rings Keeper) })* }
    };
    (@ $device:ident $rings:ident [graph_reconnect] [$($case:ident)*]) => {
        mod graph_reconnect { $(#[test] fn $case() { $crate::matrix!(# $case $device $rings Reconnect) })* }
    };
    (# $case:ident $device:ident $rings:ident $mode:ident) => {
        super::super::super::$case($crate::Cell {
            device: tests::restart::soak::Device::$device,
            rings: tests::guest::format::RingKind::$rings,
            mode: tests::restart::Mode::$mode,
        })
    };
}

/// A guest whose daemon dies at named points.
struct Story {
    cell: Cell,
    rig: Rig,
    load: Box<dyn Load>,
    points: Vec<PathBuf>,
    before: Vec<Counts>,
}

/// A daemon that will die at these points, once for each and in any order, when their files are there.
fn armed(cell: Cell, points: &[&str]) -> (Launch, Vec<PathBuf>) {
    let launch = cell.device.launch();
    let files: Vec<_> = (0..points.len()).map(|nth| launch.dir().join(format!("death{nth}"))).collect();
    let list: Vec<_> =
        points.iter().zip(&files).map(|(name, file)| format!("{name}={}", file.display())).collect();
    (launch.env("OUTBOARD_FAILPOINTS", &list.join(",")), files)
}

impl Story {
    /// A guest that has had some traffic, and is at rest.
    fn begin(cell: Cell, points: &[&str]) -> Story {
        let (launch, points) = armed(cell, points);
        let rig = Rig::start(launch, cell.mode, cell.wants(), cell.device.queues());
        Story::of(cell, rig, points)
    }

    fn of(cell: Cell, mut rig: Rig, points: Vec<PathBuf>) -> Story {
        let load = cell.device.load(&mut rig, Random::from_env());
        let mut story = Story { cell, rig, load, points, before: Vec::new() };
        story.traffic();
        story.before = story.rig.counts();
        story
    }

    /// Requests go on for a while, all of them right.
    #[track_caller]
    fn traffic(&mut self) {
        for _ in 0..ROUNDS {
            self.load.submit();
            self.load.wait().unwrap_or_else(|fault| panic!("{:?}: {fault}", self.cell));
        }
        self.rest();
    }

    /// All comes back, and is right.
    #[track_caller]
    fn rest(&mut self) {
        let back = self.load.drain().and_then(|()| self.load.check());
        back.unwrap_or_else(|fault| panic!("{:?}: {fault}", self.cell));
    }

    /// Dies at each of its points in turn while `act` is done, and is brought back each time.
    #[track_caller]
    fn dies(&mut self, mut act: impl FnMut(&mut Story)) {
        for at in 0..self.points.len() {
            self.rest();
            let watch = self.rig.watch();
            File::create(&self.points[at]).unwrap();
            act(self);
            assert!(watch.wait(), "{:?}: it did not reach {}", self.cell, self.points[at].display());
            self.comes_back();
        }
    }

    /// The daemon is dead: the session comes back.
    #[track_caller]
    fn comes_back(&mut self) {
        let back = self.rig.gone(&mut *self.load).and_then(|()| self.rig.recover(&mut *self.load));
        back.unwrap_or_else(|fault| panic!("{:?}: {fault}", self.cell));
    }

    /// Everything is as if nothing had happened.
    #[track_caller]
    fn ends_well(mut self) {
        self.rest();
        self.traffic();
        assert!(self.points.iter().all(|file| !file.exists()), "{:?}: a death did not happen", self.cell);
        same_counts(self.cell, &self.before, &self.rig.counts());
    }
}

/// N5.
#[track_caller]
fn same_counts(cell: Cell, before: &[Counts], after: &[Counts]) {
    cell.device.same_counts(before, after, false).unwrap_or_else(|fault| panic!("{cell:?}: {fault}"));
}

/// Takes the file of a point away again, where the point need not have been reached.
fn disarm(file: &PathBuf) {
    let _ = fs::remove_file(file);
}

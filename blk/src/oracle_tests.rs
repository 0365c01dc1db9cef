//! Any tree of translators behaves as one row of bytes: what was written last is read, zeros are zeros, and what was
//! discarded is anything. Several operations are under way at a time, and leaves end theirs in any order.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use backends::memory::own::Buffer;
use proptest::prelude::*;

use crate::cipher::Key;
use crate::debug::delay_gen::{self, DelayGen};
use crate::debug::io_stats::IoStats;
use crate::debug::trace::{self, Trace};
use crate::features::crypt::Crypt;
use crate::features::map::{Map, Range};
use crate::features::offset::Offset;
use crate::features::throttle::Throttle;
use crate::graph::build::Part;
use crate::graph::{Graph, Volume};
use crate::op::{ExtentKind, Keeps, Op, OpKind};
use crate::testing::{Disk, Ram, part, pieces, random, values};

/// All sizes are multiples of this, so that any block fits.
const PAGE: u64 = 4096;

/// A tree.
#[derive(Clone, Debug)]
enum Shape {
    Leaf { pages: u64, block: u32, late: Option<u64>, plain: bool },
    Offset(Box<Shape>, u64, u64),
    Concatenated(Vec<Shape>),
    Ranges(Vec<Shape>),
    Crypt(Box<Shape>, u32, u64),
    Slow(Box<Shape>, u64),
    Throttled(Box<Shape>),
    Watched(Box<Shape>),
}

fn block() -> impl Strategy<Value = u32> {
    prop_oneof![Just(512_u32), Just(4096)]
}

fn leaf() -> impl Strategy<Value = Shape> {
    (2..40_u64, block(), prop::option::of(any::<u64>()), any::<bool>())
        .prop_map(|(pages, block, late, plain)| Shape::Leaf { pages, block, late, plain })
}

fn shape() -> impl Strategy<Value = Shape> {
    leaf().prop_recursive(5, 12, 3, |inner| {
        let one = inner.clone().prop_map(Box::new);
        let many = prop::collection::vec(inner, 1..4);
        prop_oneof![
            (one.clone(), any::<u64>(), any::<u64>())
                .prop_map(|(shape, start, size)| Shape::Offset(shape, start, size)),
            many.clone().prop_map(Shape::Concatenated),
            many.prop_map(Shape::Ranges),
            (one.clone(), block(), 1..4_u64)
                .prop_map(|(shape, sector, memory)| Shape::Crypt(shape, sector, memory)),
            (one.clone(), any::<u64>()).prop_map(|(shape, seed)| Shape::Slow(shape, seed)),
            one.clone().prop_map(Shape::Throttled),
            one.prop_map(Shape::Watched),
        ]
    })
}

/// The volumes of a shape, the last one its top.
#[derive(Default)]
struct Garden(Vec<Part>);

impl Garden {
    fn add(&mut self, volume: Box<dyn Volume>, below: &[(u16, Keeps)]) -> (u16, Keeps) {
        let numbers = below.iter().map(|(number, _)| *number).collect();
        let keeps: Vec<Keeps> = below.iter().map(|(_, keeps)| *keeps).collect();
        let (number, kept) = (u16::try_from(self.0.len()).unwrap(), volume.keeps(&keeps).unwrap());
        self.0.push(part(number, volume, numbers));
        (number, kept)
    }

    fn plant(&mut self, shape: &Shape) -> (u16, Keeps) {
        match shape {
            Shape::Leaf { pages, block, late, plain } => {
                let ram = Ram::new(pages * PAGE, *block);
                let ram = if *plain { Ram::keeping(Keeps::plain(pages * PAGE, *block)) } else { ram };
                self.add(late.map_or(ram.clone(), |seed| ram.late(seed)).volume(), &[])
            }
            Shape::Offset(below, start, size) => {
                let below = self.plant(below);
                let pages = below.1.size_bytes / PAGE;
                let start = start % pages;
                let size = size % (pages - start) + 1;
                self.add(Box::new(Offset::new(start * PAGE, Some(size * PAGE))), &[below])
            }
            Shape::Concatenated(below) => {
                let below: Vec<_> = below.iter().map(|shape| self.plant(shape)).collect();
                self.add(Box::new(Map::new(None)), &below)
            }
            Shape::Ranges(below) => {
                let below: Vec<_> = below.iter().map(|shape| self.plant(shape)).collect();
                self.add(Box::new(Map::new(Some(halves(&below)))), &below)
            }
            Shape::Crypt(below, sector, memory) => {
                let key = Key::parse(&(1..65).collect::<Vec<u8>>()).unwrap();
                let below = self.plant(below);
                self.add(Box::new(Crypt::new(key, *sector, memory << 17)), &[below])
            }
            Shape::Slow(below, seed) => {
                let options =
                    [("delay", "0"), ("random", "100us"), ("percent", "50"), ("seed", &seed.to_string())];
                let slow = DelayGen::new(&values(delay_gen::OPTIONS, &options).unwrap()).unwrap();
                let below = self.plant(below);
                self.add(Box::new(slow), &[below])
            }
            Shape::Throttled(below) => {
                let below = self.plant(below);
                let throttle = Throttle::new(Some(1 << 32), Some(1_000_000), Duration::from_millis(1));
                self.add(Box::new(throttle), &[below])
            }
            Shape::Watched(below) => {
                let below = self.plant(below);
                let stats = self.add(Box::new(IoStats::default()), &[below]);
                let trace = Trace::new(&values(trace::OPTIONS, &[("size", "4")]).unwrap()).unwrap();
                self.add(Box::new(trace), &[stats])
            }
        }
    }
}

/// Second halves of all, then first halves of all from the last on.
fn halves(below: &[(u16, Keeps)]) -> Vec<Range> {
    let half = |keeps: &Keeps| keeps.size_bytes / PAGE / 2 * PAGE;
    let second = below.iter().enumerate().map(|(at, (_, keeps))| {
        let offset = half(keeps);
        Range { below: at, offset, bytes: keeps.size_bytes - offset }
    });
    let first =
        below.iter().enumerate().map(|(at, (_, keeps))| Range { below: at, offset: 0, bytes: half(keeps) });
    second.chain(first.rev().filter(|range| range.bytes > 0)).collect()
}

/// An operation that is under way.
struct Begun {
    call: u64,
    op: Op,
    buffer: Option<Buffer>,
}

/// A disk, and what it should hold; [`None`] may be anything.
struct Oracle {
    disk: Disk,
    keeps: Keeps,
    holds: Vec<Option<u8>>,
    begun: VecDeque<Begun>,
    seed: u64,
}

impl Oracle {
    fn new(graph: &Graph, seed: u64) -> Oracle {
        let keeps = graph.disk();
        let holds = vec![None; usize::try_from(keeps.size_bytes).unwrap()];
        Oracle { disk: Disk::new(graph), keeps, holds, begun: VecDeque::new(), seed: seed | 1 }
    }

    /// Begins an operation, after those that touch the same bytes.
    fn begin(&mut self, op: Op) {
        if op == Op::Flush || self.begun.len() > 8 || self.begun.iter().any(|begun| overlap(begun.op, op)) {
            self.settle();
        }
        let bytes = match op {
            Op::Read { bytes, .. } | Op::Write { bytes, .. } => usize::try_from(bytes).unwrap(),
            _ => 0,
        };
        let mut buffer = (bytes > 0).then(|| Buffer::new(bytes).unwrap());
        if let (Op::Write { .. }, Some(buffer)) = (op, &mut buffer) {
            for word in buffer.bytes_mut().chunks_mut(8) {
                self.seed = random(self.seed);
                word.copy_from_slice(&self.seed.to_le_bytes()[..word.len()]);
            }
        }
        self.seed = random(self.seed);
        let data = buffer.as_ref().map_or_else(Vec::new, |buffer| pieces(buffer, bytes, self.seed));
        let call = self.disk.begin(op, &data);
        self.begun.push_back(Begun { call, op, buffer });
    }

    /// Waits for all, and looks at what they did.
    fn settle(&mut self) {
        while let Some(Begun { call, op, mut buffer }) = self.begun.pop_front() {
            let done = self.disk.wait(call);
            assert_eq!((done.op, done.outcome), (op, Ok(())));
            let Some((offset, bytes)) = op.range() else { continue };
            let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(offset + bytes).unwrap());
            let place = &mut self.holds[from..to];
            let data = buffer.as_mut().map_or(&[][..], |buffer| &buffer.bytes_mut()[..place.len()]);
            match op {
                Op::Write { .. } => place.iter_mut().zip(data).for_each(|(holds, byte)| *holds = Some(*byte)),
                Op::Read { .. } => {
                    let wrong =
                        place.iter().zip(data).position(|(holds, byte)| holds.is_some_and(|is| is != *byte));
                    assert_eq!(wrong.map(|at| from + at), None, "{op:?} reads something else there");
                }
                Op::Zeroes { .. } => place.fill(Some(0)),
                Op::Discard { .. } | Op::SecureErase { .. } => place.fill(None),
                Op::Extents { .. } => {
                    let extent = done.extent.unwrap();
                    assert!(
                        extent.bytes >= self.keeps.block_bytes.into() && extent.bytes <= bytes,
                        "{op:?}: {extent:?}"
                    );
                    let told = &place[..usize::try_from(extent.bytes).unwrap()];
                    let is_zero = told.iter().all(|holds| holds.is_none_or(|byte| byte == 0));
                    assert!(is_zero || extent.kind == ExtentKind::Data, "{op:?}: {extent:?}");
                }
                Op::Flush => {}
            }
        }
    }
}

fn overlap(one: Op, other: Op) -> bool {
    let (Some((a, bytes_a)), Some((b, bytes_b))) = (one.range(), other.range()) else { return true };
    a < b + bytes_b && b < a + bytes_a
}

/// What a driver may ask for, out of any numbers.
fn op(kind: OpKind, place: u64, length: u64, keeps: &Keeps) -> Op {
    let block = u64::from(keeps.block_bytes);
    let blocks = keeps.size_bytes / block;
    let first = place % blocks;
    let (offset, bytes) = (first * block, (length % (blocks - first).min(300) + 1) * block);
    let (fua, unmap) = (keeps.fua && length.is_multiple_of(3), keeps.unmap && length.is_multiple_of(2));
    match kind {
        OpKind::Read => Op::Read { offset, bytes },
        OpKind::Write => Op::Write { offset, bytes, fua },
        OpKind::Flush => Op::Flush,
        OpKind::Discard => Op::Discard { offset, bytes },
        OpKind::Zeroes => Op::Zeroes { offset, bytes, unmap },
        OpKind::SecureErase => Op::SecureErase { offset, bytes },
        OpKind::Extents => Op::Extents { offset, bytes },
    }
}

/// How many trees had an operation of each kind: a test that asks for nothing shows nothing.
static ASKED: [AtomicU64; OpKind::ALL.len()] = [const { AtomicU64::new(0) }; OpKind::ALL.len()];

fn check(shape: &Shape, ops: &[(usize, u64, u64)], seed: u64) {
    let mut garden = Garden::default();
    garden.plant(shape);
    let graph = Graph::new(garden.0).unwrap();
    let mut oracle = Oracle::new(&graph, seed);
    let keeps = oracle.keeps;
    let all = (0, keeps.size_bytes);
    oracle.begin(Op::Write { offset: all.0, bytes: all.1, fua: false });
    for (kind, place, length) in ops {
        let kind = OpKind::ALL[kind % OpKind::ALL.len()];
        if keeps.ops().has(kind) {
            ASKED[kind.number()].fetch_add(1, Relaxed);
            oracle.begin(op(kind, *place, *length, &keeps));
        }
    }
    oracle.begin(Op::Read { offset: all.0, bytes: all.1 });
    oracle.settle();
}

#[test]
fn any_tree_behaves_as_one_row_of_bytes() {
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 200, ..ProptestConfig::default() });
    let ops = prop::collection::vec((0..OpKind::ALL.len(), any::<u64>(), any::<u64>()), 1..50);
    runner
        .run(&(shape(), ops, any::<u64>()), |(shape, ops, seed)| {
            check(&shape, &ops, seed);
            Ok(())
        })
        .unwrap();
    assert!(ASKED.iter().all(|asked| asked.load(Relaxed) > 0), "{ASKED:?}");
}

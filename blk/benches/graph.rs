//! What a graph costs by itself: its layers in this thread, over a leaf that does nothing.
//!
//! In: how many rounds. Out: one JSON object a line and round: `hop_ns`, what a volume adds to a call that it looks at
//! both ways and passes on, and `crypt_mbps`, how much `features/crypt` carries in a second of CPU time, 4 KiB at a time,
//! reads and writes in turn. Both are the best of short slices that are interleaved: whoever runs beside us costs most of
//! them something, and none of them all.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::sync::Arc;

use backends::memory::Segment;
use backends::memory::own::Buffer;
use outboard_blk::call::Call;
use outboard_blk::cipher::{KEY_BYTES, Key};
use outboard_blk::features::crypt::Crypt;
use outboard_blk::graph::build::{Misfit, Part};
use outboard_blk::graph::runner::Runner;
use outboard_blk::graph::{Graph, Host, Layer, Step, Volume};
use outboard_blk::op::{Keeps, Op};
use outboard_blk::storage::null::Null;
use rustix::time::{ClockId, clock_gettime};

const DISK_BYTES: u64 = 1 << 30;
const BLOCK_BYTES: u64 = 4096;
/// Volumes that pass everything on.
const HOPS: u16 = 16;
/// Calls of a slice: some milliseconds of the slowest.
const CALLS: u64 = 2000;
const SLICES: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let buffer = Buffer::new(4096)?;
    let data = [buffer.segment(4096)];
    let key = Key::parse(&(0..=u8::MAX).take(KEY_BYTES).collect::<Vec<_>>())?;
    let mut leaf = runner(Vec::new())?;
    let mut deep = runner((0..HOPS).map(|_| Arc::new(Pass) as Arc<dyn Volume>).collect())?;
    let mut crypt = runner(vec![Arc::new(Crypt::new(key, 4096, 1 << 20))])?;
    for round in 0..rounds {
        let mut least = [f64::MAX; 3];
        for _ in 0..SLICES {
            let slices = [
                slice(&mut leaf, &data, false),
                slice(&mut deep, &data, false),
                slice(&mut crypt, &data, true),
            ];
            least = std::array::from_fn(|at| slices[at].min(least[at]));
        }
        let [leaf_ns, deep_ns, crypt_ns] = least;
        let (hop_ns, mbps) = ((deep_ns - leaf_ns) / f64::from(HOPS), BLOCK_BYTES as f64 * 1e3 / crypt_ns);
        println!("{{\"round\":{round},\"hop_ns\":{hop_ns:.2},\"crypt_mbps\":{mbps:.0}}}");
    }
    Ok(())
}

/// A worker's layers of these volumes, over a leaf that does nothing.
fn runner(volumes: Vec<Arc<dyn Volume>>) -> Result<Runner, Box<dyn Error>> {
    let leaf: Arc<dyn Volume> = Arc::new(Null { size_bytes: DISK_BYTES, block_bytes: 4096 });
    let all = std::iter::once(leaf).chain(volumes);
    let part = |(number, volume): (u16, _)| Part {
        name: format!("volume-{number}"),
        kind: "bench",
        volume,
        subvolumes: number.checked_sub(1).into_iter().collect(),
    };
    let graph: Result<Graph, Misfit> = Graph::new((0..).zip(all).map(part).collect());
    Ok(Runner::new(&graph?)?)
}

/// Nanoseconds of CPU time a call.
fn slice(runner: &mut Runner, data: &[Segment], reads: bool) -> f64 {
    let began = cpu_ns();
    for number in 0..CALLS {
        let offset = number * BLOCK_BYTES % DISK_BYTES;
        let op = match reads && number % 2 == 0 {
            true => Op::Read { offset, bytes: BLOCK_BYTES },
            false => Op::Write { offset, bytes: BLOCK_BYTES, fua: false },
        };
        runner.begin(op, data);
        assert!(runner.finished().is_some_and(|(outcome, _)| outcome.is_ok()), "the leaf answers at once");
    }
    (cpu_ns() - began) / CALLS as f64
}

/// Of this thread.
fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Looks at all that passes, and changes nothing.
#[derive(Clone, Copy, Debug)]
struct Pass;

impl Volume for Pass {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        below.first().copied().ok_or_else(|| "it stands on nothing".to_owned())
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(Pass))
    }
}

impl Layer for Pass {
    fn submit(&mut self, call: Call, _: &mut Host<'_>) -> Step {
        Step::Down(call)
    }
}

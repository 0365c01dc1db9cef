//! A disk for tests of translators: [`Ram`] below them, a [`Disk`] above, no guest and no files.
//!
//! [`Ram`] is as strict as a leaf may be: a call that it did not promise to take, or that leaves it, ends the test. It
//! uses up the data of a call, as leaves do; a late one ends calls in any order, some time after they came.
//! [`Disk`] sees to it that layers leave nothing in a call: no word, and the operation as it was.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backends::engine::{Alarm, Engine, EngineKind, Event};
use backends::memory::Segment;
use backends::memory::own::Buffer;
use backends::opened::Opened;
use rustix::io::Errno;

use crate::call::Call;
use crate::features::cut::{gather, scatter};
use crate::graph::build::{Misfit, Part};
use crate::graph::error::GraphError;
use crate::graph::options::{Bad, Setting, Values};
use crate::graph::registry::{Kind, Made, Openings, Purpose};
use crate::graph::volfile::VolumeText;
use crate::graph::{Graph, Host, Layer, Outcome, Release, Step, Tree, Volume};
use crate::op::{Bounds, Extent, ExtentKind, Keeps, Op, OpKind};

/// What a discarded byte reads as: not what anybody wrote.
const FORGOTTEN: u8 = 0xdd;
const QUEUE: u16 = 0;
/// Longer than any test takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);
const WATCHDOG: Alarm = Alarm(u32::MAX >> 16);
/// A word that no layer pushes by chance: it must come up as it was.
const MARK: u64 = 0x5eed_0000_0000_0000;

/// A volume for each line of parts, the last one on top.
pub fn stack(volumes: Vec<Box<dyn Volume>>) -> Graph {
    try_stack(volumes).unwrap()
}

/// The same of volumes that may not fit.
pub fn try_stack(volumes: Vec<Box<dyn Volume>>) -> Result<Graph, Misfit> {
    let below = |number: u16| number.checked_sub(1).into_iter().collect();
    Graph::new((0..).zip(volumes).map(|(number, volume)| part(number, volume, below(number))).collect())
}

/// A volume with its place among others.
pub fn part(number: u16, volume: Box<dyn Volume>, subvolumes: Vec<u16>) -> Part {
    Part { name: format!("v{number}"), kind: "debug/test", volume: volume.into(), subvolumes }
}

/// A leaf in memory.
#[derive(Clone, Debug)]
pub struct Ram {
    keeps: Keeps,
    /// Seed of the order in which calls end; 0: as they come, at once.
    late: u64,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: Vec<u8>,
    seen: Vec<Op>,
    failing: BTreeMap<usize, Errno>,
    unflushed: usize,
}

impl Ram {
    /// One that keeps all there is to keep, full of ones.
    pub fn new(size_bytes: u64, block_bytes: u32) -> Ram {
        let bounds = Some(Bounds { max_bytes: 1 << 30, align_bytes: block_bytes });
        Ram::keeping(Keeps {
            flush: true,
            fua: true,
            unmap: true,
            extents: true,
            discard: bounds,
            zeroes: bounds,
            secure_erase: bounds,
            ..Keeps::plain(size_bytes, block_bytes)
        })
    }

    /// One that keeps this.
    pub fn keeping(keeps: Keeps) -> Ram {
        let bytes = vec![u8::MAX; usize::try_from(keeps.size_bytes).unwrap()];
        Ram { keeps, late: 0, shared: Arc::new(Mutex::new(Shared { bytes, ..Shared::default() })) }
    }

    /// The same, but its calls end later and in an order of their own.
    pub fn late(self, seed: u64) -> Ram {
        Ram { late: seed | 1, ..self }
    }

    /// For a graph; `self` goes on showing what is in it.
    pub fn volume(&self) -> Box<dyn Volume> {
        Box::new(self.clone())
    }

    /// What it holds.
    pub fn bytes(&self, offset: usize, count: usize) -> Vec<u8> {
        self.shared.lock().unwrap().bytes[offset..offset + count].to_vec()
    }

    /// Changes what it holds behind everybody's back.
    pub fn tamper(&self, offset: usize, bytes: &[u8]) {
        self.shared.lock().unwrap().bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Kinds of all calls that came.
    pub fn seen(&self) -> Vec<OpKind> {
        self.shared.lock().unwrap().seen.iter().map(Op::kind).collect()
    }

    /// Where the calls that have a place went to.
    pub fn places(&self) -> Vec<u64> {
        let shared = self.shared.lock().unwrap();
        shared.seen.iter().filter_map(|op| Some(op.range()?.0)).collect()
    }

    /// The last call that came.
    pub fn last(&self) -> Option<Op> {
        self.shared.lock().unwrap().seen.last().copied()
    }

    /// Calls that changed it since it was flushed.
    pub fn unflushed(&self) -> usize {
        self.shared.lock().unwrap().unflushed
    }

    /// Calls of this kind fail from now on, or do not any more.
    pub fn fail(&self, kind: OpKind, errno: Option<Errno>) {
        let failing = &mut self.shared.lock().unwrap().failing;
        match errno {
            Some(errno) => failing.insert(kind.number(), errno),
            None => failing.remove(&kind.number()),
        };
    }
}

impl Volume for Ram {
    fn keeps(&self, _: &[Keeps]) -> Result<Keeps, String> {
        Ok(self.keeps)
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(RamLayer { ram: self.clone(), waiting: Vec::new(), random: self.late }))
    }
}

struct RamLayer {
    ram: Ram,
    waiting: Vec<Call>,
    random: u64,
}

impl RamLayer {
    fn perform(&self, call: &mut Call) -> Outcome {
        let shared = &mut *self.ram.shared.lock().unwrap();
        if let Some(errno) = shared.failing.get(&call.kind().number()) {
            return Err(*errno);
        }
        let (offset, bytes) = call.op().range().unwrap_or((0, 0));
        let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(offset + bytes).unwrap());
        let place = &mut shared.bytes[from..to];
        let block = usize::try_from(self.ram.keeps.block_bytes).unwrap();
        match call.op() {
            Op::Read { .. } => scatter(place, call.data()),
            Op::Write { .. } => gather(call.data(), place),
            Op::Flush => shared.unflushed = 0,
            Op::Discard { .. } => place.fill(FORGOTTEN),
            Op::Zeroes { .. } | Op::SecureErase { .. } => place.fill(0),
            Op::Extents { .. } => call.set_extent(extent(place, block)),
        }
        shared.unflushed += usize::from(call.op().alters());
        call.advance(usize::try_from(bytes).unwrap());
        Ok(())
    }

    fn check(&self, call: &Call) {
        let (op, keeps) = (call.op(), self.ram.keeps);
        assert!(keeps.ops().has(op.kind()), "{op:?} was not promised");
        let (offset, bytes) = op.range().unwrap_or((0, 0));
        let block = u64::from(keeps.block_bytes);
        assert!(offset.is_multiple_of(block) && bytes.is_multiple_of(block), "{op:?} cuts blocks of {block}");
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= keeps.size_bytes),
            "{op:?} leaves the disk"
        );
        if matches!(op, Op::Read { .. } | Op::Write { .. }) {
            let data: usize = call.data().iter().map(Segment::len).sum();
            assert_eq!(data as u64, bytes, "{op:?}: other data than it says");
        }
    }
}

/// Blocks that are alike, from the first on.
fn extent(place: &[u8], block: usize) -> Extent {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let first = place.chunks(block).next().is_some_and(is_zero);
    let blocks = place.chunks(block).take_while(|block| is_zero(block) == first).count();
    let kind = if first { ExtentKind::Zero } else { ExtentKind::Data };
    Extent { kind, bytes: (blocks * block) as u64 }
}

impl Layer for RamLayer {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        self.check(&call);
        self.ram.shared.lock().unwrap().seen.push(call.op());
        if self.ram.late == 0 {
            let outcome = self.perform(&mut call);
            return Step::Up(call, outcome);
        }
        self.waiting.push(call);
        let now = host.now();
        host.arm(now);
        Step::Held
    }

    fn expired(&mut self, host: &mut Host<'_>) {
        self.random = random(self.random);
        let at = usize::try_from(self.random % self.waiting.len().max(1) as u64).unwrap();
        if at < self.waiting.len() {
            let mut call = self.waiting.swap_remove(at);
            let outcome = self.perform(&mut call);
            host.go(Step::Up(call, outcome));
        }
        if !self.waiting.is_empty() {
            let now = host.now();
            host.arm(now);
        }
    }

    fn release(&mut self, queue: u16, how: Release, host: &mut Host<'_>) {
        if how == Release::Cancel {
            for call in self.waiting.extract_if(.., |call| call.queue() == queue) {
                host.go(Step::Up(call, Err(Errno::CANCELED)));
            }
        }
    }
}

/// The next of a row of numbers (xorshift64).
pub fn random(mut seed: u64) -> u64 {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^ seed << 17
}

/// How a call came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// As it was when it came up.
    pub op: Op,
    /// How it went.
    pub outcome: Outcome,
    /// What was answered.
    pub extent: Option<Extent>,
}

/// One worker's layers.
pub struct Disk {
    tree: Tree,
    engine: Engine<Call>,
    begun: u64,
    done: BTreeMap<u64, Done>,
    last: Option<Op>,
}

impl Disk {
    /// Layers for the calling thread.
    pub fn new(graph: &Graph) -> Disk {
        let mut tree = Tree::of(graph).unwrap();
        tree.start(QUEUE);
        let engine = Engine::new(EngineKind::Auto).unwrap();
        Disk { tree, engine, begun: 0, done: BTreeMap::new(), last: None }
    }

    /// Begins an operation; [`Disk::wait`] knows it by the number.
    pub fn begin(&mut self, op: Op, data: &[Segment]) -> u64 {
        self.begun += 1;
        self.tree.woke();
        let mut call = self.tree.pool().piece(QUEUE, op, data.iter().copied());
        call.push(MARK | self.begun);
        self.tree.begin(call, &mut self.engine);
        self.collect();
        self.begun
    }

    /// How it went, if it is over.
    pub fn done(&mut self, number: u64) -> Option<Done> {
        self.done.remove(&number)
    }

    /// Waits until it is over.
    pub fn wait(&mut self, number: u64) -> Done {
        self.until(|disk| disk.done.contains_key(&number));
        self.done.remove(&number).unwrap()
    }

    /// Works until this is so.
    pub fn until(&mut self, mut is_so: impl FnMut(&mut Disk) -> bool) {
        Engine::arm(&mut self.engine, WATCHDOG, Instant::now() + DEADLINE);
        while !is_so(self) {
            self.work(true);
        }
        Engine::disarm(&mut self.engine, WATCHDOG);
    }

    /// Does what there is to do, after a sleep if `sleep`.
    pub fn work(&mut self, sleep: bool) {
        self.engine.wait(sleep).unwrap();
        self.tree.woke();
        while let Some(event) = self.engine.event() {
            match event {
                Event::Done(call, answer) => self.tree.answered(call, answer, &mut self.engine),
                Event::Expired(WATCHDOG) => panic!("something was not over in time"),
                Event::Expired(Alarm(volume)) => {
                    self.tree.expired(volume.try_into().unwrap(), &mut self.engine);
                }
                Event::Ready(_) | Event::Deaf(_) => {}
            }
        }
        self.collect();
    }

    fn collect(&mut self) {
        while let Some((mut call, outcome)) = self.tree.finished() {
            let mark = call.pop();
            assert_eq!(mark & MARK, MARK, "a layer left a word in {:?}", call.op());
            self.last = Some(call.op());
            self.done.insert(mark & !MARK, Done { op: call.op(), outcome, extent: call.extent() });
            self.tree.pool().end(call);
        }
    }

    /// Carries out an operation without data, or on data that are zeros.
    pub fn run(&mut self, op: Op) -> Outcome {
        self.answer(op).outcome
    }

    /// The same, with all that is answered.
    pub fn answer(&mut self, op: Op) -> Done {
        let bytes = match op {
            Op::Read { bytes, .. } | Op::Write { bytes, .. } => usize::try_from(bytes).unwrap(),
            _ => 0,
        };
        let buffer = (bytes > 0).then(|| Buffer::new(bytes).unwrap());
        let data: Vec<Segment> = buffer.iter().map(|buffer| buffer.segment(bytes)).collect();
        let number = self.begin(op, &data);
        let done = self.wait(number);
        assert_eq!(done.op, op, "it came up as another");
        done
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = Buffer::new(bytes).unwrap();
        let op = Op::Read { offset, bytes: bytes as u64 };
        let number = self.begin(op, &pieces(&buffer, bytes, offset));
        let done = self.wait(number);
        assert_eq!(done.op, op, "it came up as another");
        done.outcome.map(|()| buffer.bytes_mut()[..bytes].to_vec())
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        let buffer = Buffer::new(data.len()).unwrap();
        buffer.segment(data.len()).copy_from(data);
        let op = Op::Write { offset, bytes: data.len() as u64, fua: false };
        let number = self.begin(op, &pieces(&buffer, data.len(), offset));
        let done = self.wait(number);
        assert_eq!(done.op, op, "it came up as another");
        done.outcome
    }

    /// The operation that came up last.
    pub fn last(&self) -> Option<Op> {
        self.last
    }

    /// Somebody changed what the workers share.
    pub fn ring(&mut self) {
        self.tree.rung(&mut self.engine);
        self.collect();
    }

    /// The queue of all calls stops.
    pub fn stop(&mut self, how: Release) {
        self.tree.stop(QUEUE, how, &mut self.engine);
        self.collect();
    }

    /// The queue begins again.
    pub fn start(&mut self) {
        self.tree.start(QUEUE);
    }
}

/// A buffer's first bytes as a driver may cut them: at odd places.
pub fn pieces(buffer: &Buffer, bytes: usize, seed: u64) -> Vec<Segment> {
    let (mut whole, mut data, mut seed) = (buffer.segment(bytes), Vec::new(), seed | 1);
    while !whole.is_empty() {
        seed = random(seed);
        data.push(whole.take_front(usize::try_from(seed % 5000).unwrap()));
    }
    data
}

/// Options as a file would have them.
pub fn values(settings: &'static [Setting], options: &[(&str, &str)]) -> Result<Values, GraphError> {
    let mut text = VolumeText::new("v", "debug/test");
    text.options
        .extend((1..).zip(options).map(|(line, (key, value))| ((*key).into(), (*value).into(), line)));
    text.values(settings)
}

/// A volume of a kind, prepared and made as a daemon does it.
pub fn made<T>(kind: &Kind, values: &Values, make: fn(&Made<'_>) -> Result<T, Bad>) -> Result<T, Bad> {
    let mut opened = Opened::default();
    let mut openings = Openings { volume: "v", purpose: Purpose::Serve, opened: &mut opened };
    kind.prepare.map_or(Ok(()), |prepare| prepare(values, &mut openings))?;
    let (kept, _made) = opened.into_kept();
    make(&Made { volume: "v", values, subvolumes: &["below"], kept: &kept })
}

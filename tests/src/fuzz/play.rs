//! A driver's life on one ring, whatever its kind: what is written to it, and what the device makes of that.
//!
//! In: records of a hostile driver. The queue under test and a [`Format`], which knows the ring another way, are asked
//! the same. Promises that are looked at: exactly the well-formed chains are handed out, with the bytes that a slow
//! walk finds; others go back with length 0 and are counted; each is used once, in order where that was agreed;
//! requests in flight are counted and bounded; interrupts come exactly when wanted; writes are logged; memory holds
//! what it should and nothing else was touched; a broken ring is left alone; the next well-formed request completes.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use backends::memory::dirty::DirtyLog;
use backends::notify::Signal;
use backends::queue::{Queue, QueueSetup, Request, WriteLog};
use backends::ring::{Layout, Ring};
use backends::stats::{Count, QueueStats};

use super::shadow::{RING, RING_BYTES, Shadow};
use super::walk::{Buffers, Rules};
use super::{Input, pattern};
use crate::event::Event;
use crate::guest::memory::{Backing, memfd};
use crate::guest::raw::{Desc, WRITE};

const MAX_RECORDS: usize = 128;
/// A turn takes 256 requests; the last one is kept for the one that must complete.
const MAX_TAKEN: usize = 180;
const MAX_BATCH: usize = 16;
const LOG_BYTES: usize = 128;
/// Parts of the ring, far from each other.
pub(super) const DESCRIPTORS: u64 = RING;
pub(super) const AVAILABLE: u64 = RING + 0x800;
pub(super) const USED: u64 = RING + 0x1000;
/// Indirect tables, across two regions.
const TABLES: u64 = 0x10_1f80;
/// Buffers are near these.
const LANDMARKS: [u64; 9] = [0x10_0000, 0x10_1ff0, 0x10_2000, 0x10_3ff0, TABLES, RING, USED, 0, u64::MAX - 8];
const LENGTHS: [u32; 8] = [0, 1, 16, 64, 0x100, 0x1000, 0x10000, u32::MAX];

/// What is negotiated.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) rules: Rules,
    pub(super) event_idx: bool,
    in_order: bool,
    logged: bool,
}

/// What the next entry of the ring is.
pub(super) enum Next {
    Nothing,
    Broken,
    Chain { id: u16, slots: u16, buffers: Buffers },
}

/// A kind of ring: where the device should be in it, and what it should write.
pub(super) trait Format {
    const PACKED: bool;
    const SIZES: &'static [u16];
    /// A ring that begins, or goes on at some place that the input says.
    fn new(terms: Terms, shadow: &mut Shadow, input: &mut Input<'_>) -> Self;
    /// Its SET_VRING_BASE.
    fn base(&self) -> u32;
    /// A descriptor as it stands in memory; whatever else its flags have comes from the input.
    fn encode(&self, desc: Desc, input: &mut Input<'_>) -> [u8; 16];
    /// What only this kind has: indices, event areas.
    fn driver(&mut self, shadow: &mut Shadow, input: &mut Input<'_>);
    fn take(&mut self, shadow: &Shadow) -> Next;
    fn push(&mut self, shadow: &mut Shadow, id: u16, slots: u16, written: u32);
    /// `true`: an interrupt is wanted.
    fn publish(&mut self, shadow: &mut Shadow) -> bool;
    /// Makes one descriptor the next chain.
    fn offer(&mut self, shadow: &mut Shadow, desc: Desc);
    /// What was used last: id and length.
    fn last_used(&self, shadow: &Shadow) -> (u32, u32);
}

/// What is owed for a chain that was taken.
struct Owed {
    id: u16,
    slots: u16,
    /// Its number, counted from the first.
    number: usize,
    buffers: Vec<Desc>,
}

struct Play<F> {
    terms: Terms,
    shadow: Shadow,
    format: F,
    queue: Queue,
    stats: QueueStats,
    call: Event,
    error: Event,
    log: std::fs::File,
    dirty: [u8; LOG_BYTES],
    flight: Vec<(Request, Owed)>,
    /// Ids that the driver has not got back, and those of them whose used elements wait to be published.
    owned: Vec<u16>,
    filled: Vec<u16>,
    /// Oldest first: id, entries, and the length once it is known.
    order: VecDeque<(u16, u16, Option<u32>)>,
    /// Number of the oldest in `order`.
    oldest: usize,
    taken: usize,
    batch: usize,
    malformed: u64,
    interrupts: u64,
    broken: bool,
}

/// Any driver's life.
pub(super) fn play<F: Format>(data: &[u8]) {
    let mut input = Input(data);
    let terms = terms::<F>(&mut input);
    let mut play = Play::<F>::new(terms, Shadow::new(), &mut input);
    for _ in 0..MAX_RECORDS {
        if input.is_empty() {
            break;
        }
        play.record(&mut input);
        play.check();
    }
    play.finishes();
    let mut play = if play.broken { play.set_up_again() } else { play };
    play.serves();
    play.stands_in_the_log();
}

fn terms<F: Format>(input: &mut Input<'_>) -> Terms {
    let (size, bits) = (input.pick(F::SIZES), input.u8());
    let bytes = input.pick(&[0x10000, 0x800, 0x10]);
    let rules = Rules { size, bytes, indirect: bits & 1 == 0 };
    Terms { rules, event_idx: bits & 2 != 0, in_order: bits & 4 != 0, logged: bits & 8 != 0 }
}

fn shared(event: &Event) -> Signal {
    let fd: OwnedFd = event.as_fd().try_clone_to_owned().unwrap_or_else(|e| panic!("dup: {e}"));
    Signal::new(Some(fd))
}

impl<F: Format> Play<F> {
    fn new(terms: Terms, mut shadow: Shadow, input: &mut Input<'_>) -> Play<F> {
        let format = F::new(terms, &mut shadow, input);
        let (call, error, stats) = (Event::new(), Event::new(), QueueStats::default());
        let log = memfd(LOG_BYTES as u64, Backing::Sealed);
        let queue = queue::<F>(terms, &shadow, format.base(), &log, (&call, &error), &stats);
        Play {
            terms,
            shadow,
            format,
            queue,
            stats,
            call,
            error,
            log,
            dirty: [0; LOG_BYTES],
            flight: Vec::new(),
            owned: Vec::new(),
            filled: Vec::new(),
            order: VecDeque::new(),
            oldest: 0,
            taken: 0,
            batch: 0,
            malformed: 0,
            interrupts: 0,
            broken: false,
        }
    }

    fn record(&mut self, input: &mut Input<'_>) {
        match input.u8() % 9 {
            0 | 1 => self.describe(DESCRIPTORS, self.terms.rules.size, input),
            2 => self.describe(TABLES, 24, input),
            3 | 4 => self.format.driver(&mut self.shadow, input),
            5 => (0..=input.u8() % 4).for_each(|_| self.take()),
            6 => self.complete(usize::from(input.u8()), input.u16()),
            7 => self.flush(),
            _ => {
                let at = input.u16() % (RING_BYTES - 16);
                let count = input.u8() % 16;
                let bytes = input.bytes(count.into());
                self.shadow.write(RING + u64::from(at), bytes);
            }
        }
    }

    /// Writes one descriptor of a table of `count`.
    fn describe(&mut self, table: u64, count: u16, input: &mut Input<'_>) {
        let index = u64::from(input.u8()) % u64::from(count);
        let addr = input.pick(&LANDMARKS).wrapping_add(input.u8().into());
        let len = input.pick(&LENGTHS).wrapping_add(u32::from(input.u8() & 0xf));
        let desc = Desc { addr, len, flags: (input.u8() & 7).into(), next: input.u8().into() };
        let bytes = self.format.encode(desc, input);
        self.shadow.write(table + 16 * index, &bytes);
    }

    fn take(&mut self) {
        if self.taken > MAX_TAKEN {
            return;
        }
        let (expected, got) = (self.next(), self.queue.next());
        assert_eq!(got.is_some(), expected.is_some(), "a chain was handed out: {:?}", self.queue.broken());
        let (Some(request), Some(owed)) = (got, expected) else { return };
        let part = |write: bool| owed.buffers.iter().filter(move |desc| (desc.flags & WRITE != 0) == write);
        let bytes = |write| part(write).flat_map(|desc| self.pieces(desc)).collect::<Vec<_>>();
        assert_eq!(contents(request.readable()), bytes(false));
        assert_eq!(contents(request.writable()), bytes(true));
        let sum = |write| part(write).map(|desc| u64::from(desc.len)).sum::<u64>();
        assert_eq!((request.readable_bytes(), request.writable_bytes()), (sum(false), sum(true)));
        assert_eq!(request.bytes(), sum(false) + sum(true));
        self.flight.push((request, owed));
    }

    fn pieces(&self, desc: &Desc) -> Vec<Vec<u8>> {
        let pieces = self.shadow.pieces(desc.addr, desc.len).unwrap_or_default();
        pieces.into_iter().map(<[u8]>::to_vec).collect()
    }

    /// The next well-formed chain there should be; what comes before it goes back.
    fn next(&mut self) -> Option<Owed> {
        while !self.broken {
            let (id, slots, buffers) = match self.format.take(&self.shadow) {
                Next::Chain { id, slots, buffers } => (id, slots, buffers),
                Next::Nothing => return None,
                Next::Broken => {
                    self.broken = true;
                    return None;
                }
            };
            // Once more what is in flight already.
            self.broken = self.owned.contains(&id);
            if self.broken {
                return None;
            }
            self.owned.push(id);
            let number = self.taken;
            self.taken += 1;
            self.order.push_back((id, slots, None));
            match buffers {
                Some(buffers) => return Some(Owed { id, slots, number, buffers }),
                None => {
                    self.malformed += 1;
                    self.given_back(&Owed { id, slots, number, buffers: Vec::new() }, 0);
                }
            }
        }
        None
    }

    /// Finishes one of the requests in flight, having written to its buffers; or gives it up.
    fn complete(&mut self, which: usize, written: u16) {
        let Some(which) = which.checked_rem(self.flight.len()) else { return };
        let (mut request, owed) = self.flight.swap_remove(which);
        if written == u16::MAX {
            self.queue.abandon(request);
            self.malformed += 1;
            return self.given_back(&owed, 0);
        }
        let room = request.writable_bytes().min(written.into());
        let answer: Vec<u8> = (0..room).map(|place| !pattern(place)).collect();
        assert_eq!(request.write_front(&answer), Some(()));
        let mut rest = &answer[..];
        for desc in owed.buffers.iter().filter(|desc| desc.flags & WRITE != 0) {
            let (here, later) = rest.split_at(rest.len().min(desc.len as usize));
            self.shadow.expect(desc.addr, here);
            self.mark(desc.addr, here.len());
            rest = later;
        }
        let written = u32::try_from(room).unwrap_or(u32::MAX);
        self.queue.complete(request, written);
        self.given_back(&owed, written);
    }

    /// The dirty log should have these bytes, if they are logged.
    fn mark(&mut self, addr: u64, len: usize) {
        for page in (addr..).take(len).map(|addr| addr >> 12).filter(|_| self.terms.logged) {
            self.dirty[(page >> 3) as usize] |= 1 << (page & 7);
        }
    }

    /// What a chain given back should look like in the ring.
    fn given_back(&mut self, owed: &Owed, written: u32) {
        self.batch += 1;
        if self.broken {
            return;
        }
        if let Some((_, _, length)) = self.order.get_mut(owed.number - self.oldest) {
            *length = Some(written);
        }
        if !self.terms.in_order {
            self.push(owed.id, owed.slots, written);
        }
        while let Some((id, slots, Some(written))) = self.order.front().copied() {
            self.order.pop_front();
            self.oldest += 1;
            if self.terms.in_order {
                self.push(id, slots, written);
            }
        }
        if self.batch >= MAX_BATCH {
            self.published();
        }
    }

    fn push(&mut self, id: u16, slots: u16, written: u32) {
        self.format.push(&mut self.shadow, id, slots, written);
        self.filled.push(id);
    }

    fn published(&mut self) {
        if std::mem::take(&mut self.batch) == 0 || self.broken {
            return;
        }
        self.interrupts += u64::from(self.format.publish(&mut self.shadow));
        let filled = std::mem::take(&mut self.filled);
        self.owned.retain(|id| !filled.contains(id));
    }

    fn flush(&mut self) {
        self.queue.flush();
        self.published();
        let counted = [Count::Malformed, Count::Interrupts].map(|count| self.stats.get(count));
        assert_eq!(counted, [self.malformed, self.interrupts], "malformed chains, interrupts");
    }

    fn check(&self) {
        assert_eq!(self.queue.broken().is_some(), self.broken, "{:?}", self.queue.broken());
        assert_eq!(self.stats.get(Count::Broken), u64::from(self.broken));
        assert_eq!(usize::from(self.queue.in_flight()), self.flight.len());
        assert!(self.queue.in_flight() <= self.terms.rules.size);
        self.shadow.check();
    }

    /// Everything in flight is finished, and everybody was told.
    fn finishes(&mut self) {
        while !self.flight.is_empty() {
            self.complete(0, 1);
        }
        self.flush();
        self.check();
        assert_eq!(self.call.take(), self.interrupts, "interrupts");
        assert_eq!(self.error.take(), u64::from(self.broken), "the error eventfd");
    }

    /// The driver begins anew after it broke its ring.
    fn set_up_again(self) -> Play<F> {
        let Play { terms, mut shadow, queue, log, dirty, .. } = self;
        drop(queue);
        shadow.write(RING, &[0; RING_BYTES as usize]);
        let mut play = Play::<F>::new(terms, shadow, &mut Input(&[]));
        let stands = rustix::io::pwrite(&play.log, &before(&log), 0).is_ok();
        assert!(stands, "the log goes on");
        play.dirty = dirty;
        play
    }

    /// A request by the book completes.
    fn serves(&mut self) {
        let desc = Desc { addr: 0x10_1ffc, len: 8, flags: WRITE, next: 0 };
        self.format.offer(&mut self.shadow, desc);
        (self.taken, self.order, self.oldest) = (0, VecDeque::new(), 0);
        self.take();
        assert_eq!(self.flight.len(), 1, "a well-formed request is not served");
        let id = self.flight[0].1.id;
        self.complete(0, 8);
        self.flush();
        self.check();
        assert_eq!(self.format.last_used(&self.shadow), (id.into(), 8));
    }

    fn stands_in_the_log(&self) {
        assert_eq!(before(&self.log), self.dirty, "the dirty log");
    }
}

fn before(log: &std::fs::File) -> [u8; LOG_BYTES] {
    let mut bytes = [0; LOG_BYTES];
    let read = rustix::io::pread(log, &mut bytes, 0);
    assert_eq!(read, Ok(bytes.len()));
    bytes
}

fn queue<F: Format>(
    terms: Terms,
    shadow: &Shadow,
    base: u32,
    log: &std::fs::File,
    (call, error): (&Event, &Event),
    stats: &QueueStats,
) -> Queue {
    let user = |addr| shadow.ram.user_addr(addr);
    let Terms { rules, event_idx, in_order, logged } = terms;
    let layout = Layout {
        size: rules.size,
        descriptor: user(DESCRIPTORS),
        available: user(AVAILABLE),
        used: user(USED),
        packed: F::PACKED,
        event_idx,
    };
    let ring = Ring::new(&shadow.memory, &layout, base).unwrap_or_else(|| panic!("{layout:?} {base:#x}"));
    let fd = log.try_clone().unwrap_or_else(|e| panic!("dup: {e}"));
    let pages = DirtyLog::map(fd.into(), LOG_BYTES as u64, 0).unwrap_or_else(|e| panic!("log: {e}"));
    let setup = QueueSetup {
        index: 0,
        features: u64::from(rules.indirect) << 28 | u64::from(in_order) << 35,
        max_chain_bytes: rules.bytes,
        call: shared(call),
        error: shared(error),
        stats: stats.clone(),
        log: logged.then(|| WriteLog { pages: Arc::new(pages), ring: Vec::new() }),
        inflight: None,
    };
    Queue::new(ring, Arc::clone(&shadow.memory), setup)
}

fn contents(segments: &[backends::memory::Segment]) -> Vec<Vec<u8>> {
    let bytes = |segment: &backends::memory::Segment| {
        let mut bytes = vec![0; segment.len()];
        segment.copy_to(&mut bytes);
        bytes
    };
    segments.iter().map(bytes).collect()
}

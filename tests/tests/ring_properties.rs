//! Driver double against device, on both kinds of ring and both engines: whatever a driver does that is allowed,
//! and whatever it does to a single chain that is not, every head comes back exactly once, with the right length
//! and the right bytes. (That nothing comes twice, beside its buffer or out of a promised order is seen by the
//! double itself.)

use std::collections::HashMap;

use backends::engine::EngineKind;
use backends::server::Settings;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tests::echo::Echo;
use tests::frontend::{F_EVENT_IDX, F_INDIRECT_DESC, Frontend, Wants};
use tests::guest::chain::Chain;
use tests::guest::format::RingKind;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::guest::ring::{Interrupts, Ring};
use tests::served::Served;

const RAM_BYTES: u64 = 4 << 20;
/// Most buffers of a chain, either way.
const MOST: usize = 6;

/// A driver's life.
#[derive(Clone, Debug)]
struct Story {
    rings: RingKind,
    engine: EngineKind,
    event_idx: bool,
    indirect: bool,
    in_order: bool,
    /// Entries; rounded up to a power of two where rings are split.
    size: u16,
    /// How far from its end the ring begins (split: the index; packed: a lap).
    from_end: u16,
    seed: u64,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Add(Plan),
    /// Shows what was added, and kicks if the device wants that.
    Notify,
    /// Kicks whatever there is.
    Kick,
    /// Takes back all that was shown, hearing of it in this way.
    Reap(Interrupts),
    /// Takes back what is there by now.
    Look,
    /// Stops the ring and starts it where it stood.
    Restart,
}

/// A chain.
#[derive(Clone, Debug)]
struct Plan {
    readable: Vec<u16>,
    writable: Vec<u16>,
    framing: Framing,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Direct,
    Indirect,
    /// Only legal in split rings.
    After(usize),
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A readable buffer after a writable one.
    Order,
    /// A buffer outside RAM.
    Outside,
}

impl Plan {
    fn bytes(&self) -> Vec<u8> {
        let bytes = self.readable.iter().map(|len| usize::from(*len)).sum();
        (0..=255).cycle().skip(bytes % 251).take(bytes).collect()
    }

    fn chain(&self) -> Chain {
        let (mut chain, bytes) = (Chain::new(), self.bytes());
        let mut rest = &bytes[..];
        for len in &self.readable {
            let (here, later) = rest.split_at((*len).into());
            (chain, rest) = (chain.readable(here), later);
        }
        chain = self.writable.iter().fold(chain, |chain, len| chain.writable((*len).into()));
        chain = match self.fault {
            Fault::None => chain,
            Fault::Order => chain.writable(1).readable(b"x"),
            Fault::Outside => chain.at(RAM_BASE + RAM_BYTES - 1, 2, true),
        };
        match self.framing {
            Framing::Direct => chain,
            Framing::Indirect => chain.indirect(),
            Framing::After(direct) => chain.indirect_after(direct),
        }
    }

    fn buffers(&self) -> usize {
        let more = [0, 2, 1][self.fault as usize];
        self.readable.len() + self.writable.len() + more
    }

    /// What must come back: the bytes, as far as they fit, or nothing of a chain that breaks a rule.
    fn answer(&self, story: &Story, ring: &Ring) -> Vec<u8> {
        let table_from = match self.framing {
            Framing::Direct => None,
            Framing::Indirect => Some(0),
            Framing::After(direct) => Some(direct),
        };
        let table_from = table_from.filter(|from| *from < self.buffers());
        let mixed = story.rings == RingKind::Packed && table_from.is_some_and(|from| from > 0);
        let too_long = self.buffers() > usize::from(ring.layout().size);
        if self.fault != Fault::None || mixed || too_long || (table_from.is_some() && !story.indirect) {
            return Vec::new();
        }
        let room = self.writable.iter().map(|len| usize::from(*len)).sum();
        self.bytes().into_iter().take(room).collect()
    }
}

/// One ring of an echoing device, and what is owed for each chain.
struct Play<'a> {
    story: &'a Story,
    frontend: Frontend,
    ring: Ring,
    owed: HashMap<u16, Vec<u8>>,
    _served: Served,
}

impl<'a> Play<'a> {
    fn new(story: &'a Story) -> Play<'a> {
        let echo = Echo::new(story.seed, story.in_order);
        let (served, socket) = Served::new(echo, Settings { engine: story.engine, ..Settings::default() });
        let half = RAM_BYTES / 2;
        let ram = Ram::with(&[(RAM_BASE, half), (RAM_BASE + half, half)], Backing::Sealed);
        let mut frontend = Frontend::on(socket, &ram).unwrap();
        let without = |feature: u64, on: bool| if on { u64::MAX } else { !feature };
        let features: u64 = without(F_EVENT_IDX, story.event_idx) & without(F_INDIRECT_DESC, story.indirect);
        let wants = Wants { features, in_order: story.in_order, ..Wants::on(story.rings) };
        frontend.handshake(wants).unwrap();
        let ring = frontend.new_ring_at(story.ring_size(), story.base());
        frontend.start(0, &ring, ring.base()).unwrap();
        Play { story, frontend, ring, owed: HashMap::new(), _served: served }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add(plan) => self.add(plan),
            Step::Notify => self.ring.notify(),
            Step::Kick => self.ring.kick(),
            Step::Reap(interrupts) => self.reap(*interrupts),
            Step::Look => while self.take() {},
            Step::Restart => self.restart(),
        }
    }

    fn add(&mut self, plan: &Plan) {
        let chain = plan.chain();
        // A chain without any entry is none.
        if chain.slots() == 0 || chain.slots() > self.ring.free() {
            return;
        }
        let head = self.ring.add(&chain);
        assert_eq!(self.owed.insert(head, plan.answer(self.story, &self.ring)), None);
    }

    /// Takes back one chain, if there is one.
    fn take(&mut self) -> bool {
        let done = self.ring.used().unwrap();
        done.is_some_and(|done| {
            self.check(done.head, done.len, &done.data);
            true
        })
    }

    fn check(&mut self, head: u16, len: u32, data: &[u8]) {
        let owed = self.owed.remove(&head).expect("a chain that came back before");
        assert_eq!((len as usize, data), (owed.len(), &owed[..]));
    }

    fn reap(&mut self, interrupts: Interrupts) {
        self.ring.notify();
        let count = u16::try_from(self.ring.in_flight()).unwrap();
        self.ring.set_interrupts(match interrupts {
            Interrupts::After(_) => Interrupts::After(count.max(1)),
            other => other,
        });
        while self.ring.in_flight() > 0 {
            let done = self.ring.wait_used().unwrap();
            self.check(done.head, done.len, &done.data);
            if interrupts != Interrupts::Never {
                // What was asked for has come; the rest is waited for as usual.
                self.ring.set_interrupts(Interrupts::Always);
            }
        }
    }

    fn restart(&mut self) {
        let base = self.frontend.stop(0).unwrap();
        while self.take() {}
        assert_eq!(self.ring.in_flight(), self.owed.len());
        self.frontend.start(0, &self.ring, base).unwrap();
    }

    fn end(mut self) {
        self.reap(Interrupts::Always);
        let base = self.frontend.stop(0).unwrap();
        assert_eq!((base, self.ring.waiting()), (self.ring.base(), 0));
        assert_eq!((self.owed.len(), self.ring.free()), (0, usize::from(self.story.ring_size())));
    }
}

impl Story {
    fn ring_size(&self) -> u16 {
        if self.rings == RingKind::Packed { self.size } else { self.size.next_power_of_two() }
    }

    fn base(&self) -> u32 {
        match self.rings {
            RingKind::Split => u32::from(self.from_end.wrapping_neg()),
            RingKind::Packed => {
                let size = self.size;
                let lap = u16::from(self.from_end % 2 == 1) << 15;
                let place = u32::from((size - 1 - self.from_end % size) | lap);
                place << 16 | place
            }
        }
    }

    fn play(&self) {
        let mut play = Play::new(self);
        self.steps.iter().for_each(|step| play.step(step));
        play.end();
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let lengths = || prop::collection::vec(prop_oneof![Just(0), 1..20_u16, 1..5000_u16], 0..=MOST);
    let framing = prop_oneof![
        3 => Just(Framing::Direct),
        2 => Just(Framing::Indirect),
        1 => (0..=MOST).prop_map(Framing::After)
    ];
    let fault = prop_oneof![8 => Just(Fault::None), 1 => Just(Fault::Order), 1 => Just(Fault::Outside)];
    (lengths(), lengths(), framing, fault).prop_map(|(readable, writable, framing, fault)| Plan {
        readable,
        writable,
        framing,
        fault,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let interrupts =
        prop_oneof![Just(Interrupts::Always), Just(Interrupts::Never), Just(Interrupts::After(1))];
    prop_oneof![
        12 => plan().prop_map(Step::Add),
        4 => Just(Step::Notify),
        1 => Just(Step::Kick),
        2 => interrupts.prop_map(Step::Reap),
        2 => Just(Step::Look),
        1 => Just(Step::Restart),
    ]
}

fn story() -> impl Strategy<Value = Story> {
    let rings = prop_oneof![Just(RingKind::Split), Just(RingKind::Packed)];
    let engine = prop_oneof![Just(EngineKind::IoUring), Just(EngineKind::Epoll)];
    let size = prop_oneof![1..=8_u16, 1..=100_u16];
    let ways = (rings, engine, any::<[bool; 3]>());
    (ways, size, 0..40_u16, any::<u64>(), prop::collection::vec(step(), 1..60)).prop_map(
        |((rings, engine, [event_idx, indirect, in_order]), size, from_end, seed, steps)| Story {
            rings,
            engine,
            event_idx,
            indirect,
            in_order,
            size,
            from_end,
            seed,
            steps,
        },
    )
}

/// Plays stories; says the smallest one that goes wrong.
fn play_many(rng: TestRng, cases: u32) {
    // A story in which nothing comes back takes its whole deadline: few tries are made to shorten it.
    let config = Config { cases, failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&story(), |story| {
        story.play();
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn every_head_comes_back_once_in_the_usual_stories() {
    play_many(TestRng::deterministic_rng(RngAlgorithm::ChaCha), 200);
}

#[test]
fn every_head_comes_back_once_in_stories_that_are_new_each_time() {
    play_many(TestRng::from_seed(RngAlgorithm::ChaCha, &rand_seed()), 200);
}

/// From the host; a failure prints the whole story, so the seed need not be known.
fn rand_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).unwrap();
    seed
}

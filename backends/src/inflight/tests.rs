//! Workers killed after every store, on rings in every state that small rings can be in.
//!
//! A driver written from the specification makes chains available and takes them back; a queue serves them by a script,
//! and at some store the process is dead: what comes after does not happen. The driver goes on for a while by itself.
//! Then another queue recovers, perhaps dies over it, and another one serves. Every chain must come back exactly once,
//! and be handed out in the order in which it was made available.

use std::collections::VecDeque;
use std::sync::Arc;

use super::*;
use crate::notify::Signal;
use crate::queue::{Queue, QueueSetup, Request};
use crate::ring::Layout;
use crate::stats::QueueStats;
use crate::testing::{GUEST_BASE, Guest, die_after, rise};

const DATA: u64 = 0x2_0000;
const F_EVENT_IDX: u64 = 1 << 29;
const F_PACKED: u64 = 1 << 34;
const F_IN_ORDER: u64 = 1 << 35;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// The driver's side of a ring of either kind.
struct Driver {
    guest: Guest,
    features: u64,
    size: u16,
    /// Split: indices that run freely. Packed: places, and the bit of their lap.
    next: u16,
    used: u16,
    lap: bool,
    used_lap: bool,
    /// By id: entries of the chain that is out; 0: none.
    slots: Vec<u16>,
    /// Ids that are out, in the order in which they were made available.
    out: VecDeque<u16>,
}

impl Driver {
    /// `start`: split, the indices that the ring begins with.
    fn new(features: u64, size: u16, start: u16) -> Driver {
        let guest = Guest::new(size, features & F_EVENT_IDX != 0);
        let (lap, used_lap, out) = (true, true, VecDeque::new());
        let slots = vec![0; usize::from(size)];
        let mut driver = Driver { guest, features, size, next: 0, used: 0, lap, used_lap, slots, out };
        if !driver.is_packed() {
            (driver.next, driver.used) = (start, start);
            driver.guest.available_index(start);
            driver.guest.set_used_index(start);
        }
        driver
    }

    fn is_packed(&self) -> bool {
        self.features & F_PACKED != 0
    }

    fn queue(&self, region: &Region, base: u32) -> Queue {
        let layout = Layout { packed: self.is_packed(), ..self.guest.layout() };
        let setup = QueueSetup {
            index: 0,
            features: self.features,
            max_chain_bytes: 1 << 20,
            call: Signal::default(),
            error: Signal::default(),
            stats: QueueStats::default(),
            log: None,
            inflight: region.part(0, self.size, layout.packed),
        };
        let ring = Ring::new(&self.guest.memory, &layout, base).unwrap();
        Queue::new(ring, Arc::clone(&self.guest.memory), setup)
    }

    fn room(&self) -> u16 {
        self.size - self.slots.iter().sum::<u16>()
    }

    /// Makes a chain of `slots` buffers available; split ones have one.
    fn offer(&mut self, slots: u16) {
        let id = (0..self.size).find(|id| self.slots[usize::from(*id)] == 0).unwrap();
        self.slots[usize::from(id)] = slots;
        self.out.push_back(id);
        if !self.is_packed() {
            self.guest.descriptor(id, DATA, 8, WRITE, 0);
            self.guest.available(self.next, id);
            self.next = self.next.wrapping_add(1);
            return self.guest.available_index(self.next);
        }
        for nth in 1..=slots {
            let lap = if self.lap { AVAIL } else { USED };
            let chained = if nth < slots { NEXT } else { 0 };
            let mut bytes = (GUEST_BASE + DATA).to_le_bytes().to_vec();
            bytes.extend(8u32.to_le_bytes());
            bytes.extend([id.to_le_bytes(), (lap | chained | WRITE).to_le_bytes()].concat());
            self.guest.write(16 * u64::from(self.next), &bytes);
            advance(&mut self.next, &mut self.lap, 1, self.size);
        }
    }

    /// The next used id, if there is one; it must be out.
    fn reap(&mut self) -> Option<u16> {
        let id = if self.is_packed() { self.reap_packed()? } else { self.reap_split()? };
        let slots = std::mem::take(&mut self.slots[usize::from(id)]);
        assert!(slots > 0, "{id} came back and was not out");
        if self.is_packed() {
            advance(&mut self.used, &mut self.used_lap, slots, self.size);
        }
        self.out.retain(|other| *other != id);
        Some(id)
    }

    fn reap_split(&mut self) -> Option<u16> {
        if self.guest.used_index() == self.used {
            return None;
        }
        let (id, _) = self.guest.used(self.used);
        self.used = self.used.wrapping_add(1);
        Some(u16::try_from(id).unwrap())
    }

    fn reap_packed(&mut self) -> Option<u16> {
        let entry: [u8; 16] = self.guest.read(16 * u64::from(self.used));
        let flags = u16::from_le_bytes([entry[14], entry[15]]);
        let used = (flags & AVAIL != 0) == self.used_lap && (flags & USED != 0) == self.used_lap;
        used.then(|| u16::from_le_bytes([entry[12], entry[13]]))
    }
}

fn advance(at: &mut u16, lap: &mut bool, by: u16, size: u16) {
    *at += by;
    if *at >= size {
        (*at, *lap) = (*at - size, !*lap);
    }
}

/// What a script says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Offer(u16),
    Take,
    Complete(usize),
    Flush,
    Reap,
}

/// A driver and what serves it.
struct World {
    driver: Driver,
    region: Region,
    queue: Queue,
    held: Vec<Request>,
}

impl World {
    /// `laps` chains of `slots` have gone through the ring before.
    fn new(features: u64, size: u16, start: u16, warm: (u16, u16)) -> World {
        let driver = Driver::new(features, size, start);
        let region = Region::create(1, size, 1).unwrap();
        let base = if driver.is_packed() { Ring::first_base(true) } else { start.into() };
        let mut queue = driver.queue(&region, base);
        queue.recover();
        let mut world = World { driver, region, queue, held: Vec::new() };
        let (count, slots) = warm;
        for _ in 0..count {
            world.driver.offer(slots);
            world.serve_all();
        }
        world
    }

    fn step(&mut self, step: Step) {
        match step {
            // Without an answer from a dead device a script may have no room for it.
            Step::Offer(slots) if slots > self.driver.room() => {}
            Step::Offer(slots) => self.driver.offer(slots),
            Step::Take => self.held.extend(self.queue.next()),
            Step::Complete(nth) => {
                let request = self.held.remove(nth);
                self.queue.complete(request, 8);
            }
            Step::Flush => self.queue.flush(),
            Step::Reap => while self.driver.reap().is_some() {},
        }
    }

    /// The steps that make sense now.
    fn steps(&self, last: Option<Step>) -> Vec<Step> {
        let mut steps = Vec::new();
        let longest = if self.driver.is_packed() { 2 } else { 1 };
        steps.extend((1..=longest.min(self.driver.room())).map(Step::Offer));
        if self.driver.out.len() > self.held.len() {
            steps.push(Step::Take);
        }
        steps.extend((0..self.held.len()).map(Step::Complete));
        if matches!(last, Some(Step::Complete(_))) {
            steps.push(Step::Flush);
        }
        if last == Some(Step::Flush) {
            steps.push(Step::Reap);
        }
        steps
    }

    /// The process dies: nothing it still does has an effect. Stores that it could still have done.
    fn die(&mut self) -> usize {
        die_at(0, |left| {
            self.held.drain(..).for_each(|request| self.queue.complete(request, 0));
            self.queue.flush();
            left
        })
    }

    /// Another process takes over.
    fn recover(&mut self) {
        // What a front-end says that knows no better.
        let base = if self.driver.is_packed() { Ring::first_base(true) } else { 0 };
        self.queue = self.driver.queue(&self.region, base);
        self.queue.recover();
        assert_eq!(self.queue.broken(), None);
    }

    /// Another process takes over, serves what it can in some other order, and dies after so many stores.
    fn live_again(&mut self, stores: usize) -> usize {
        die_after(stores);
        self.recover();
        self.queue.begin_turn();
        self.held.extend(std::iter::from_fn(|| self.queue.next()));
        while let Some(request) = self.held.pop() {
            self.queue.complete(request, 8);
            if self.held.len().is_multiple_of(2) {
                self.queue.flush();
            }
        }
        self.die()
    }

    /// Serves whatever there is, in the order in which it was made available.
    fn serve_all(&mut self) {
        let expected: Vec<u16> = self.driver.out.iter().copied().collect();
        self.queue.begin_turn();
        let mut back = Vec::new();
        while let Some(request) = self.queue.next() {
            self.queue.complete(request, 8);
            self.queue.flush();
            back.extend(std::iter::from_fn(|| self.driver.reap()));
        }
        assert_eq!(back, expected);
        assert_eq!(self.queue.broken(), None);
        assert!(self.driver.out.is_empty());
    }
}

/// Runs `life` with so many stores left, and brings back to life.
fn die_at<T>(stores: usize, life: impl FnOnce(usize) -> T) -> T {
    let left = rise();
    die_after(stores);
    let value = life(left);
    rise();
    value
}

/// All scripts that begin like this and go on for `length` steps.
fn scripts(make: &impl Fn() -> World, begin: &[Step], length: usize) -> Vec<Vec<Step>> {
    let mut scripts = vec![begin.to_vec()];
    for _ in 0..length {
        let longer = |script: Vec<Step>| {
            let mut world = make();
            script.iter().for_each(|step| world.step(*step));
            let steps = world.steps(script.last().copied());
            world.die();
            steps.into_iter().map(move |step| [script.as_slice(), &[step]].concat())
        };
        scripts = scripts.into_iter().flat_map(longer).collect();
    }
    scripts
}

/// Dies after every store of a script; `again`: whoever takes over dies after every store of his life, too.
fn cut_everywhere(make: &impl Fn() -> World, script: &[Step], again: bool) {
    for cut in 0.. {
        let mut left = 0;
        for second in 0.. {
            let mut world = make();
            die_after(cut);
            script.iter().for_each(|step| world.step(*step));
            left = world.die();
            // The guest lives on, or is as slow as can be.
            if cut % 2 == 1 {
                while world.driver.reap().is_some() {}
                (0..world.driver.room()).for_each(|_| world.driver.offer(1));
            }
            let over = !again || world.live_again(second) > 0;
            world.recover();
            world.serve_and_go_on(script, (cut, second));
            if over {
                break;
            }
        }
        if left > 0 {
            return;
        }
    }
}

impl World {
    fn serve_and_go_on(&mut self, script: &[Step], cuts: (usize, usize)) {
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while self.driver.reap().is_some() {}
            self.serve_all();
            for _ in 0..3 {
                (0..self.driver.room()).for_each(|_| self.driver.offer(1));
                self.serve_all();
            }
        }));
        if let Err(panic) = told {
            eprintln!("after {cuts:?} stores of {script:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// What the scripts of a test have in common.
struct Scripts {
    features: u64,
    size: u16,
    /// Split: where the indices begin.
    start: u16,
    /// How many chains of how many entries have gone through the ring before.
    warm: (u16, u16),
    begin: &'static [Step],
    /// Steps after `begin`: all that there are.
    length: usize,
}

impl Scripts {
    fn cut(&self, again: bool) {
        let make = || World::new(self.features, self.size, self.start, self.warm);
        for script in scripts(&make, self.begin, self.length) {
            cut_everywhere(&make, &script, again);
        }
    }
}

const TWO_OUT: &[Step] = &[Step::Offer(1), Step::Offer(1), Step::Take, Step::Take];
const LONG_OUT: &[Step] = &[Step::Offer(2), Step::Offer(1), Step::Take, Step::Take];
const ALL: Scripts = Scripts { features: 0, size: 2, start: 0, warm: (0, 1), begin: &[], length: 6 };

#[test]
fn split_cut_after_every_store() {
    for (start, count) in [(0, 0), (u16::MAX, 0), (0, 1), (u16::MAX, 1)] {
        Scripts { start, warm: (count, 1), ..ALL }.cut(false);
    }
    Scripts { size: 4, start: u16::MAX - 1, length: 5, ..ALL }.cut(false);
    Scripts { size: 4, begin: TWO_OUT, length: 4, ..ALL }.cut(false);
}

#[test]
fn split_cut_twice() {
    Scripts { features: F_EVENT_IDX, size: 4, start: u16::MAX, warm: (3, 1), begin: TWO_OUT, length: 3 }
        .cut(true);
}

#[test]
fn split_in_order_cut_after_every_store() {
    Scripts { features: F_IN_ORDER, size: 4, ..ALL }.cut(false);
    Scripts { features: F_IN_ORDER, size: 4, begin: TWO_OUT, length: 3, ..ALL }.cut(true);
}

#[test]
fn packed_cut_after_every_store() {
    let all = Scripts { features: F_PACKED, length: 5, ..ALL };
    for warm in (0..5).map(|count| (count, 1)).chain([(1, 2), (3, 2)]) {
        Scripts { warm, ..all }.cut(false);
    }
    for warm in [(0, 1), (2, 1), (4, 1), (2, 2)] {
        Scripts { size: 3, warm, ..all }.cut(false);
        Scripts { size: 3, warm, begin: LONG_OUT, length: 4, ..all }.cut(false);
    }
}

#[test]
fn packed_cut_twice() {
    for warm in [(0, 1), (2, 2), (4, 2)] {
        Scripts { features: F_PACKED | F_EVENT_IDX, size: 3, start: 0, warm, begin: LONG_OUT, length: 3 }
            .cut(true);
    }
}

#[test]
fn packed_in_order_cut_after_every_store() {
    let features = F_PACKED | F_IN_ORDER;
    Scripts { features, size: 4, warm: (3, 1), length: 5, ..ALL }.cut(false);
    Scripts { features, size: 4, warm: (3, 1), begin: LONG_OUT, length: 3, ..ALL }.cut(true);
}

//! Counters that the data path writes, everybody may read, and the next worker goes on with.
//!
//! ```text
//! word 0        LAYOUT: the shape of what follows
//!      1        queues
//!      2 ..     sessions
//!     16 ..     a queue: counts, the ring, requests in flight, latency     and the next queue
//! ```
//! In: a batch's sums from each [`crate::queue::Queue`], once a batch. Out: [`Stats`], which anybody who holds one may read at any
//! time. The words are a file that the keeper keeps under the name [`NAME`]: a worker goes on where the one before was,
//! so that no total ever goes back, whatever ends a worker. Each queue has one writer. Readers see values that are each
//! true, though not of one instant. Promises: nothing is allocated, locked or added atomically to count.
//! Refuses: a file of another layout (another version of the program made it): counting begins afresh.

mod latency;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::kept::Kept;
use crate::memory::words::Words;
use crate::ring::Ring;
pub(crate) use latency::Moments;
pub use latency::{BUCKETS, Latency};

/// Under which name the keeper keeps the file.
pub const NAME: &str = "stats";
/// Changes with the meaning of any word.
const LAYOUT: u64 = u64::from_le_bytes(*b"OBSTATS1");
const QUEUES: usize = 1;
const SESSIONS: usize = 2;
const HEADER_WORDS: usize = 16;
/// Words of a queue.
const COUNTS: usize = 8;
const RING: usize = COUNTS;
const IN_FLIGHT: usize = RING + 1;
const LATENCY: usize = IN_FLIGHT + 1;
const QUEUE_WORDS: usize = LATENCY + Latency::WORDS;

/// What is counted of a queue since the daemon started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Requests completed.
    Requests,
    /// Bytes that devices reported as written to or read from the guest.
    Bytes,
    /// Chains given back because they were malformed.
    Malformed,
    /// Requests that an earlier process had in flight: served again, so that what they did outside is done twice.
    Replayed,
    /// Times the driver was interrupted.
    Interrupts,
    /// Times the ring was broken by its driver.
    Broken,
}

/// What a ring is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not served.
    #[default]
    Stopped,
    /// Served.
    Running,
    /// Its driver broke it; it is not touched until it is set up again.
    Broken,
}

/// A ring that is or was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// What it is doing.
    pub state: State,
    /// Packed, not split. Of the last ring where it is stopped.
    pub packed: bool,
    /// Entries; 0 where no ring was ever started.
    pub size: u16,
}

impl RingStats {
    fn to_word(self) -> u64 {
        self.state as u64 | u64::from(self.packed) << 8 | u64::from(self.size) << 16
    }

    fn from_word(word: u64) -> RingStats {
        let state = match word & 0xff {
            1 => State::Running,
            2 => State::Broken,
            _ => State::Stopped,
        };
        RingStats { state, packed: word >> 8 & 1 != 0, size: u16::try_from(word >> 16 & 0xffff).unwrap_or(0) }
    }
}

/// All counters of a daemon.
#[derive(Clone, Debug)]
pub struct Stats {
    words: Arc<Words>,
    queues: u16,
}

impl Stats {
    /// Counters that end with this process.
    pub fn own(queues: u16) -> Stats {
        Stats::new(Words::own(words(queues)), queues)
    }

    /// Those that a worker before this one left with the keeper, or new ones that it gets.
    ///
    /// # Errors
    /// The host has no descriptor or memory left.
    pub fn kept(kept: &Kept, queues: u16) -> io::Result<Stats> {
        let found = kept.take(NAME).and_then(|fd| Words::of(fd, words(queues)));
        let known = |words: &Words| header(words) == [LAYOUT, u64::from(queues)];
        if let Some(words) = found.filter(known) {
            return Ok(Stats::new(words, queues));
        }
        let (words, fd) = Words::create(NAME, words(queues))?;
        kept.keep(NAME, fd.as_fd());
        Ok(Stats::new(words, queues))
    }

    fn new(words: Words, queues: u16) -> Stats {
        for (word, value) in words.iter().zip([LAYOUT, u64::from(queues)]) {
            word.store(value, Relaxed);
        }
        let stats = Stats { words: Arc::new(words), queues };
        // Whatever a worker before us served, nobody serves it now.
        stats.queues().for_each(|queue| queue.stopped());
        stats
    }

    /// Those of each queue, in their order.
    pub fn queues(&self) -> impl Iterator<Item = QueueStats> {
        (0..self.queues).filter_map(|index| self.queue(index))
    }

    /// Those of one queue.
    pub fn queue(&self, index: u16) -> Option<QueueStats> {
        let first = usize::from(index).checked_mul(QUEUE_WORDS)?.checked_add(HEADER_WORDS)?;
        (index < self.queues).then(|| QueueStats { words: Arc::clone(&self.words), first })
    }

    /// The sum of all queues.
    pub fn total(&self, count: Count) -> u64 {
        self.queues().fold(0, |sum, queue| sum.wrapping_add(queue.get(count)))
    }

    /// Front-ends that were served since the daemon started.
    pub fn sessions(&self) -> u64 {
        self.words.get(SESSIONS).map_or(0, |word| word.load(Relaxed))
    }

    pub(crate) fn session_began(&self) {
        if let Some(word) = self.words.get(SESSIONS) {
            add(word, 1);
        }
    }
}

fn words(queues: u16) -> usize {
    usize::from(queues) * QUEUE_WORDS + HEADER_WORDS
}

fn header(words: &Words) -> [u64; 2] {
    [0, QUEUES].map(|at| words.get(at).map_or(0, |word| word.load(Relaxed)))
}

/// What was given back to a driver at a time.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) used: u64,
    pub(crate) bytes: u64,
    pub(crate) malformed: u64,
}

/// Counters of one queue.
#[derive(Clone, Debug)]
pub struct QueueStats {
    words: Arc<Words>,
    first: usize,
}

impl Default for QueueStats {
    /// Counters that nobody else sees.
    fn default() -> QueueStats {
        QueueStats { words: Arc::new(Words::own(QUEUE_WORDS)), first: 0 }
    }
}

impl QueueStats {
    #[inline]
    fn words(&self) -> Option<&[AtomicU64; QUEUE_WORDS]> {
        self.words.get(self.first..)?.first_chunk()
    }

    fn load(&self, at: usize) -> u64 {
        self.words().and_then(|words| words.get(at)).map_or(0, |word| word.load(Relaxed))
    }

    #[inline]
    fn store(&self, at: usize, value: u64) {
        if let Some(word) = self.words().and_then(|words| words.get(at)) {
            word.store(value, Relaxed);
        }
    }

    /// How often that happened.
    pub fn get(&self, count: Count) -> u64 {
        self.load(count as usize)
    }

    /// The ring, as it is now.
    pub fn ring(&self) -> RingStats {
        RingStats::from_word(self.load(RING))
    }

    /// Requests in flight after the last batch.
    pub fn in_flight(&self) -> u16 {
        u16::try_from(self.load(IN_FLIGHT)).unwrap_or(u16::MAX)
    }

    /// How long completed requests took.
    pub fn latency(&self) -> Latency {
        Latency::read(self.words().and_then(|words| words.get(LATENCY..)).unwrap_or_default())
    }

    #[inline]
    pub(crate) fn add(&self, count: Count, by: u64) {
        if let Some(word) = self.words().and_then(|words| words.get(count as usize)) {
            add(word, by);
        }
    }

    #[inline]
    pub(crate) fn set_in_flight(&self, requests: u16) {
        self.store(IN_FLIGHT, u64::from(requests));
    }

    pub(crate) fn started(&self, ring: &Ring) {
        let packed = matches!(ring, Ring::Packed(_));
        self.store(RING, RingStats { state: State::Running, packed, size: ring.size() }.to_word());
        self.set_in_flight(0);
    }

    pub(crate) fn broke(&self) {
        self.add(Count::Broken, 1);
        self.store(RING, RingStats { state: State::Broken, ..self.ring() }.to_word());
    }

    pub(crate) fn stopped(&self) {
        self.store(RING, RingStats { state: State::Stopped, ..self.ring() }.to_word());
        self.set_in_flight(0);
    }

    /// A batch was published.
    #[inline]
    pub(crate) fn published(&self, batch: &Batch, in_flight: u16) {
        if let Some(words) = self.words() {
            add(&words[Count::Requests as usize], batch.used);
            add(&words[Count::Bytes as usize], batch.bytes);
            add(&words[Count::Malformed as usize], batch.malformed);
            words[IN_FLIGHT].store(u64::from(in_flight), Relaxed);
        }
    }

    /// A batch of so many requests was published at `now_ns`.
    #[inline]
    pub(crate) fn measured(&self, moments: &mut Moments, requests: u64, now_ns: u64) {
        if let Some(words) = self.words() {
            moments.settle(now_ns, requests, &words[LATENCY..]);
        }
    }
}

/// Adds for the only writer: no locked instruction.
#[inline]
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::channel::{Channel, Note};

    /// What a keeper does with its worker's gifts.
    fn hand_on(keeper: &Channel, to: &Channel) -> usize {
        let mut gifts = 0;
        while let Ok(Some((Note::Keep(name), fds))) = keeper.try_recv() {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            to.send(&Note::Kept(name), &fds).unwrap();
            gifts += 1;
        }
        gifts
    }

    /// A worker's counters, and its keeper's end of the channel.
    fn worker(before: Option<&Channel>, queues: u16) -> (Stats, Channel) {
        let (keeper, channel) = Channel::pair().unwrap();
        let gifts = before.map(|before| hand_on(before, &keeper));
        assert!(gifts.is_none_or(|gifts| gifts == 1), "{gifts:?}");
        (Stats::kept(&Kept::by(&Arc::new(channel)), queues).unwrap(), keeper)
    }

    #[test]
    fn totals_go_on_in_the_next_worker_and_its_rings_are_stopped() {
        let (stats, keeper) = worker(None, 3);
        let queue = stats.queue(2).unwrap();
        queue.add(Count::Requests, 7);
        queue.store(RING, RingStats { state: State::Running, packed: true, size: 256 }.to_word());
        queue.set_in_flight(5);
        let mut moments = Moments::default();
        moments.push(0, 0);
        queue.measured(&mut moments, 1, 1_000);
        stats.session_began();
        let (next, _) = worker(Some(&keeper), 3);
        let again = next.queue(2).unwrap();
        assert_eq!((again.get(Count::Requests), next.total(Count::Requests), next.sessions()), (7, 7, 1));
        assert_eq!((again.latency().count(), again.latency().max_ns()), (1, 1_000));
        assert_eq!(again.ring(), RingStats { state: State::Stopped, packed: true, size: 256 });
        assert_eq!((again.in_flight(), next.queue(1).unwrap().get(Count::Requests)), (0, 0));
        assert!(next.queue(3).is_none());
    }

    #[test]
    fn counters_of_another_shape_are_begun_afresh() {
        let (stats, keeper) = worker(None, 3);
        stats.queue(0).unwrap().add(Count::Bytes, 7);
        let (fewer, keeper_of_fewer) = worker(Some(&keeper), 2);
        assert_eq!(fewer.total(Count::Bytes), 0);
        fewer.queue(0).unwrap().add(Count::Bytes, 7);
        fewer.words[0].store(LAYOUT + 1, Relaxed);
        assert_eq!(worker(Some(&keeper_of_fewer), 2).0.total(Count::Bytes), 0);
    }

    #[test]
    fn queues_do_not_share_a_word() {
        let stats = Stats::own(2);
        for queue in stats.queues() {
            queue.words().unwrap().iter().for_each(|word| add(word, 1));
        }
        assert!(stats.words[HEADER_WORDS..].iter().all(|word| word.load(Relaxed) == 1));
    }
}

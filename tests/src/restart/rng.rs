//! Requests for random bytes: as many as promised, written to the last, and never the same twice.

use std::collections::{BTreeMap, HashSet};

use super::load::{Fault, Load, of_queue};
use crate::guest::chain::{Chain, POISON};
use crate::guest::ring::{Completion, Ring};
use crate::random::Random;

/// Requests in flight.
const DEPTH: usize = 32;
/// Most bytes that the device gives to one request.
const MOST_BYTES: u32 = 64 * 1024;
/// Bytes that cannot be equal by chance.
const WORD: usize = 16;

/// The guest.
#[derive(Debug)]
pub struct RngLoad {
    ring: Ring,
    /// What each request in flight asks for.
    asked: BTreeMap<u16, u32>,
    /// First and last word of each answer so far.
    seen: HashSet<[u8; WORD]>,
    random: Random,
}

impl RngLoad {
    /// A guest with this ring.
    pub fn new(ring: Ring, random: Random) -> RngLoad {
        RngLoad { ring, asked: BTreeMap::new(), seen: HashSet::new(), random }
    }

    /// Mostly short, some longer than the device gives.
    fn next_len(&mut self) -> u32 {
        let most = if self.random.below(50) == 0 { 2 * MOST_BYTES } else { 512 };
        u32::try_from(1 + self.random.below(most.into())).unwrap_or(1)
    }

    fn settle(&mut self, done: &Completion) -> Result<(), Fault> {
        let wrong = |what: String| Err(Fault::Answer(format!("request {}: {what}", done.head)));
        let Some(asked) = self.asked.remove(&done.head) else { return wrong("was not made".into()) };
        if done.len != asked.min(MOST_BYTES) {
            return wrong(format!("{} bytes where {asked} were asked for", done.len));
        }
        if done.data.windows(WORD).any(|word| word == [POISON; WORD]) {
            return wrong("bytes that were not written".into());
        }
        let words = [done.data.first_chunk::<WORD>(), done.data.last_chunk::<WORD>().filter(|_| asked >= 32)];
        match words.into_iter().flatten().find(|word| !self.seen.insert(**word)) {
            Some(word) => wrong(format!("bytes that were given before: {word:02x?}")),
            None => Ok(()),
        }
    }
}

impl Load for RngLoad {
    fn rings(&self) -> Vec<&Ring> {
        vec![&self.ring]
    }

    fn outstanding(&self) -> usize {
        self.ring.in_flight()
    }

    fn submit(&mut self) {
        while self.ring.in_flight() < DEPTH {
            let len = self.next_len();
            let head = self.ring.add(&Chain::new().writable(len));
            self.asked.insert(head, len);
        }
        self.ring.notify();
    }

    fn reap(&mut self) -> Result<usize, Fault> {
        let mut count = 0;
        while let Some(done) = of_queue(0, self.ring.used())? {
            self.settle(&done)?;
            count += 1;
        }
        Ok(count)
    }

    fn wait(&mut self) -> Result<usize, Fault> {
        let done = of_queue(0, self.ring.wait_used())?;
        self.settle(&done)?;
        Ok(1 + self.reap()?)
    }

    fn check(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

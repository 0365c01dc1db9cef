//! What was in flight when a worker died: a region of shared memory that outlives it (vhost-user "Inflight I/O
//! tracking").
//!
//! ```text
//! queue 0 | queue 1 | ... | queue N     each part as `split` or `packed` draws it, and a multiple of 64 bytes long
//! tail                                  only in regions of ours, see `poison`
//! ```
//! In: a region that we made (GET_INFLIGHT_FD) or that a front-end kept (SET_INFLIGHT_FD). Out: a [`Part`] for each ring
//! that starts; what is made of it is where the ring goes on, the requests to serve again, and a
//! tracker that marks what is taken from then on. How long a part is follows from the kind of ring and the queue size
//! alone, so that regions of other back-ends can be taken over. Ours are as long as packed rings need, and serve both.
//!
//! Promises: whenever the process ends, what a part says is true after the store that was the last one: each request that
//! was taken and not given back is marked. The driver's view (used index, used flags) decides what was given back.
//! Reading a part back is a function over its bytes. Nothing is allocated, and no fence added, per request.
//! Refuses: regions that do not fit their file; a content that cannot have come from this ring breaks the ring, and
//! nothing of it is served again.

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

pub(crate) mod packed;
mod poison;
mod region;
mod split;

use std::collections::VecDeque;

use thiserror::Error;

use crate::descriptor::Descriptor;
use crate::memory::Area;
use crate::ring::{Ring, Taken};

pub use region::{Region, RegionError};

/// Where a part's version is, with the number of entries after it.
const VERSION: usize = 8;
const DESC_NUM: usize = 10;
/// The only version, as the word there has it.
const HEADER: u64 = 1;

/// Why what a part says is not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Corrupt {
    /// Neither unused nor version 1.
    #[error("version {0}")]
    Version(u16),
    /// More entries than the part has, or fewer than the ring.
    #[error("{0} entries")]
    Entries(u16),
    /// A mark that is neither 0 nor 1, an entry that the ring does not have, a chain without its end.
    #[error("entry {0} makes no sense")]
    Entry(u16),
    /// The used index moved by more than the queue is long, or is no place in the ring.
    #[error("the used index makes no sense")]
    UsedIndex,
    /// A list that loops, leaves the part or meets another.
    #[error("a list loops or leaves the region")]
    List,
}

/// A request to serve again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replay {
    pub(crate) taken: Taken,
    /// Packed: its descriptors, with ids in `next`. The ring may not have them any more.
    pub(crate) descriptors: Vec<Descriptor>,
}

/// A queue's share of a region.
#[derive(Clone, Debug)]
pub struct Part {
    area: Area,
    /// Its record in the tail, in a region of ours.
    record: Option<Area>,
}

/// How a ring starts with a part.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) tracker: Tracker,
    pub(crate) replays: VecDeque<Replay>,
    /// The oldest of them ended this program again and again: they are not to be tried any more.
    pub(crate) poisoned: bool,
}

impl Part {
    /// Somebody has served this queue with the part.
    pub(crate) fn is_known(&self) -> bool {
        Bytes(&self.area.snapshot(DESC_NUM)).u16(VERSION) != 0
    }

    /// Makes the ring go on where the part says, or the part where the ring stands if it says nothing.
    pub(crate) fn recover(&self, ring: &mut Ring) -> Result<Recovered, Corrupt> {
        match ring {
            Ring::Split(ring) => {
                let (size, used) = (ring.size(), ring.reload());
                let bytes = self.snapshot(split::HEADER_BYTES, split::ENTRY_BYTES);
                let state = split::read(&bytes, size, used, ring.outstanding())?;
                let marks = split::Marks::new(self.area.clone(), size, used, state.as_ref());
                let heads = state.as_ref().map(|state| state.heads.as_slice()).unwrap_or_default();
                if state.is_some() {
                    // A queue has at most 32768 heads.
                    let count = u16::try_from(heads.len()).unwrap_or(u16::MAX);
                    ring.resume(used.wrapping_add(count));
                }
                let replay =
                    |head: u16| Replay { taken: Taken { id: head, slots: 1 }, descriptors: Vec::new() };
                let replays = heads.iter().map(|(_, head)| replay(*head)).collect();
                let oldest = heads.first().map(|(counter, head)| (*counter, *head));
                Ok(self.judged(Tracker::Split(marks), replays, oldest))
            }
            Ring::Packed(ring) => {
                let bytes = self.snapshot(packed::HEADER_BYTES, packed::ENTRY_BYTES);
                let mut state = packed::read(&bytes, ring.size(), |place| ring.is_used(place))?;
                if let Some(state) = &state {
                    let slots = state.chains.iter().map(|chain| chain.replay.taken.slots);
                    ring.resume(state.used, slots.fold(0, u16::wrapping_add));
                }
                let chains = state.as_mut().map(|state| state.chains.as_mut_slice()).unwrap_or_default();
                let oldest = chains.first().map(|chain| (chain.counter, chain.entry));
                let replays = chains.iter().map(|chain| chain.replay.clone()).collect();
                let marks = packed::Marks::new(self.area.clone(), ring.size(), ring.used_place(), state);
                Ok(self.judged(Tracker::Packed(Box::new(marks)), replays, oldest))
            }
        }
    }

    /// As much of the part as has entries.
    fn snapshot(&self, header_bytes: usize, entry_bytes: usize) -> Vec<u8> {
        let entries = Bytes(&self.area.snapshot(header_bytes)).u16(DESC_NUM);
        self.area.snapshot(usize::from(entries).saturating_mul(entry_bytes).saturating_add(header_bytes))
    }

    fn judged(&self, tracker: Tracker, replays: VecDeque<Replay>, oldest: Option<(u64, u16)>) -> Recovered {
        let poisoned = self.record.as_ref().is_some_and(|record| poison::died(record, oldest));
        Recovered { tracker, replays, poisoned }
    }

    /// The ring came to rest: whatever is marked was not the end of the process.
    pub(crate) fn rest(&self) {
        if let Some(record) = &self.record {
            poison::clear(record);
        }
    }

    /// Nothing is known of this queue any more.
    pub(crate) fn forget(&self) {
        self.rest();
        let entries = usize::from(Bytes(&self.area.snapshot(packed::HEADER_BYTES)).u16(DESC_NUM));
        self.area.put_u32(VERSION, 0);
        // As much as either kind uses; what is beyond was never written.
        let bytes = entries
            .saturating_mul(packed::ENTRY_BYTES)
            .saturating_add(packed::HEADER_BYTES)
            .min(self.area.len());
        (0..bytes).step_by(8).for_each(|at| self.area.put_u64(at, 0));
    }
}

/// Marks what a running ring has in flight.
#[derive(Debug)]
pub(crate) enum Tracker {
    Split(split::Marks),
    Packed(Box<packed::Marks>),
}

impl Tracker {
    /// A request was taken.
    #[inline]
    pub(crate) fn mark(&mut self, taken: Taken) {
        match self {
            Tracker::Split(marks) => marks.mark(taken.id),
            Tracker::Packed(marks) => marks.mark(),
        }
    }

    /// The ring is about to be published, with used elements for these heads or ids.
    #[inline]
    pub(crate) fn announce(&mut self, ring: &Ring, used: &[u16]) {
        match (self, ring) {
            (Tracker::Split(marks), _) => marks.announce(used),
            (Tracker::Packed(marks), Ring::Packed(ring)) => marks.announce(ring.used_place(), used),
            (Tracker::Packed(_), Ring::Split(_)) => {}
        }
    }

    /// The ring was published.
    #[inline]
    pub(crate) fn settle(&mut self, ring: &Ring, used: &[u16]) {
        match (self, ring) {
            (Tracker::Split(marks), Ring::Split(ring)) => marks.settle(ring.used_index(), used),
            (Tracker::Packed(marks), _) => marks.settle(used),
            (Tracker::Split(_), Ring::Packed(_)) => {}
        }
    }

    /// What copies a packed ring's descriptors.
    #[inline]
    pub(crate) fn packed(&mut self) -> Option<&mut packed::Marks> {
        match self {
            Tracker::Split(_) => None,
            Tracker::Packed(marks) => Some(marks),
        }
    }
}

/// The bytes of a part, fetched once. Past their end there are zeros.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.field(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.field(at))
    }

    /// The number of entries, and which of them are marked; `None` when the part was not used.
    fn marked(&self, size: u16, header_bytes: usize, entry_bytes: usize) -> Result<Option<Marked>, Corrupt> {
        match self.u16(VERSION) {
            0 => return Ok(None),
            1 => {}
            other => return Err(Corrupt::Version(other)),
        }
        let entries = self.u16(DESC_NUM);
        let mut heads = Vec::new();
        for at in 0..entries {
            let place = usize::from(at).saturating_mul(entry_bytes).saturating_add(header_bytes);
            match self.0.get(place) {
                Some(0) => {}
                Some(1) => heads.push(at),
                Some(_) => return Err(Corrupt::Entry(at)),
                None => return Err(Corrupt::Entries(entries)),
            }
        }
        // Without marks the number is one of another ring, perhaps; it is written anew.
        if entries < size && !heads.is_empty() {
            return Err(Corrupt::Entries(entries));
        }
        Ok(Some(Marked { entries, heads }))
    }
}

/// The entries of a part.
struct Marked {
    entries: u16,
    heads: Vec<u16>,
}

#[cfg(test)]
mod tests;

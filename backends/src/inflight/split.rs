//! The part of a split ring in the in-flight region (vhost-user "Inflight I/O tracking").
//!
//! ```text
//!  0 features u64          0
//!  8 version u16           1; 0: nothing is known of this queue
//! 10 desc_num u16          entries below
//! 12 last_batch_head u16   the head that was used last; its entry's `next` leads to the one before
//! 14 used_idx u16          the used ring's index after the last batch whose marks were cleared
//! 16 + 16 * head:
//!     0 inflight u8        1: taken, and not known to have been used
//!     6 next u16           links the heads of the last batch
//!     8 counter u64        the order in which heads were taken
//! ```
//! A head is marked when it is taken. When a batch is given back its heads are linked, the used index is published
//! (the one store that decides), the marks are cleared, and `used_idx` follows. So a difference between `used_idx` and
//! the used ring's index says how many heads of the list were published though they are still marked.
//!
//! In: the bytes of a part, and the ring's indices. Out: which heads are to be served again, in their order.
//! Refuses, as [`Corrupt`]: a difference or a list that cannot have come from this ring, and more marks than the driver
//! has made available.

use super::{Bytes, Corrupt, HEADER, Marked, VERSION};
use crate::memory::Area;

/// Bytes before the entries, and of an entry.
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const ENTRY_BYTES: usize = 16;
const LAST_BATCH: usize = 12;
const USED_IDX: usize = 14;
/// Fields of an entry.
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// What a part says about a ring, made consistent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Heads to serve again, with their counters, in the order in which they were taken.
    pub(super) heads: Vec<(u64, u16)>,
    /// Heads that are marked though they were used.
    pub(super) stale: Vec<u16>,
}

/// Reads a part; `used` is the index of the used ring, and the driver's is `outstanding` ahead of it. `None` when
/// nothing is known of the ring.
pub(super) fn read(part: &[u8], size: u16, used: u16, outstanding: u16) -> Result<Option<State>, Corrupt> {
    let bytes = Bytes(part);
    let marked = bytes.marked(size, HEADER_BYTES, ENTRY_BYTES)?;
    let Some(Marked { entries, heads: mut marked }) = marked else { return Ok(None) };
    if marked.is_empty() {
        // Nothing of the last batch is left to clear. Whatever the index was, the ring may be another one by now.
        return Ok(Some(State::default()));
    }
    let (stale, published) = last_batch(&bytes, entries, used)?;
    marked.retain(|head| !published.get(usize::from(*head)).is_some_and(|published| *published));
    if let Some(head) = marked.iter().find(|head| **head >= size) {
        return Err(Corrupt::Entry(*head));
    }
    if marked.len() > usize::from(outstanding) {
        return Err(Corrupt::UsedIndex);
    }
    let counter = |head: &u16| bytes.u64(entry(*head).wrapping_add(COUNTER));
    let mut heads: Vec<_> = marked.iter().map(|head| (counter(head), *head)).collect();
    heads.sort_unstable();
    Ok(Some(State { heads, stale }))
}

/// The heads that were published after `used_idx` was stored last, as a list and by head.
fn last_batch(bytes: &Bytes<'_>, entries: u16, used: u16) -> Result<(Vec<u16>, Vec<bool>), Corrupt> {
    let count = used.wrapping_sub(bytes.u16(USED_IDX));
    if count > entries {
        return Err(Corrupt::UsedIndex);
    }
    let mut heads = Vec::new();
    let mut seen = vec![false; usize::from(entries)];
    let mut next = bytes.u16(LAST_BATCH);
    for _ in 0..count {
        match seen.get_mut(usize::from(next)) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Corrupt::List),
        }
        heads.push(next);
        next = bytes.u16(entry(next).wrapping_add(NEXT));
    }
    Ok((heads, seen))
}

#[inline]
fn entry(head: u16) -> usize {
    usize::from(head).wrapping_mul(ENTRY_BYTES).wrapping_add(HEADER_BYTES)
}

/// Keeps the marks of a running ring.
#[derive(Debug)]
pub(crate) struct Marks {
    part: Area,
    counter: u64,
    last: u16,
}

impl Marks {
    /// Goes on from `state`, or begins; `used` is the index of the used ring. Each store leaves a part that
    /// [`read`] takes for the same.
    pub(super) fn new(part: Area, size: u16, used: u16, state: Option<&State>) -> Marks {
        let stale = state.map(|state| state.stale.as_slice()).unwrap_or_default();
        stale.iter().for_each(|head| part.put_u8(entry(*head), 0));
        let heads = state.map(|state| state.heads.as_slice()).unwrap_or_default();
        if heads.is_empty() {
            // Nothing is marked now, or nobody vouches for it. The ring may be longer than the one before.
            (0..size).for_each(|head| part.put_u64(entry(head), 0));
            part.put_u64(VERSION, HEADER | u64::from(size) << 16 | u64::from(used) << 48);
        } else {
            part.put_u16(USED_IDX, used);
        }
        let counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Marks { part, counter, last: 0 }
    }

    #[inline]
    pub(super) fn mark(&mut self, head: u16) {
        let entry = entry(head);
        self.part.put_u64(entry.wrapping_add(COUNTER), self.counter);
        self.part.put_u8(entry, 1);
        self.counter = self.counter.wrapping_add(1);
    }

    /// Links the batch; the used index is published after this.
    #[inline]
    pub(super) fn announce(&mut self, batch: &[u16]) {
        for head in batch {
            self.part.put_u16(entry(*head).wrapping_add(NEXT), self.last);
            self.last = *head;
        }
        self.part.put_u16(LAST_BATCH, self.last);
    }

    /// The used index was published as `used`: nothing of the batch is in flight any more.
    #[inline]
    pub(super) fn settle(&mut self, used: u16, batch: &[u16]) {
        for head in batch {
            self.part.put_u8(entry(*head), 0);
        }
        self.part.put_u16(USED_IDX, used);
    }
}

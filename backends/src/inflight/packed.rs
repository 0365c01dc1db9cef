//! The part of a packed ring in the in-flight region (vhost-user "Inflight I/O tracking").
//!
//! ```text
//!  0 features u64              0
//!  8 version u16               1; 0: nothing is known of this queue
//! 10 desc_num u16              entries below
//! 12 free_head u16             first entry that is free      16 used_idx u16       20 used_wrap_counter u8
//! 14 old_free_head u16         the same before the batch     18 old_used_idx u16   21 old_used_wrap_counter u8
//! 32 + 32 * entry:
//!     0 inflight u8            1: first entry of a chain that was taken, and is not known to have been used
//!     2 next u16               links free entries, and the entries of a chain; `desc_num` ends the free ones
//!     4 last u16, 6 num u16    last entry of the chain, entries of the chain
//!     8 counter u64            the order in which chains were taken
//!    16 id u16, flags u16, len u32, addr u64: the descriptor, since used ones overwrite those of the ring
//! ```
//! Entries are taken from the front of the free list: a chain is copied into them, and one store of both free heads
//! takes them off it. When a batch is given back its entries are put at the front again and the used place moves on,
//! with the `old_` fields still as before; then the ring's flags are published (the one store that decides), the marks
//! are cleared, and the `old_` fields follow. A part whose fields differ from the `old_` ones is taken for what the
//! ring shows: published, or not. Marks of free entries mean nothing.
//!
//! In: the bytes of a part, and whether the ring's entry at a place was used. Out: which chains are to be served again,
//! in their order. Refuses, as [`Corrupt`]: lists that loop or leave the part, chains that share entries or ids.

use super::{Bytes, Corrupt, Marked, Replay, VERSION};
use crate::descriptor::Descriptor;
use crate::memory::Area;
use crate::ring::Taken;

/// Bytes before the entries, and of an entry.
pub(super) const HEADER_BYTES: usize = 32;
pub(super) const ENTRY_BYTES: usize = 32;
/// Both free heads in four bytes, both used places in eight.
const FREE: usize = 12;
const OLD_FREE: usize = 14;
const USED: usize = 16;
/// Fields of an entry.
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const DESCRIPTOR: usize = 16;
const ADDR: usize = 24;

/// A place in the ring with the bit of its lap in bit 15, as ring bases have it.
pub(crate) type Place = u16;

/// What a part says about a ring, made consistent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Where the device writes its next used entry.
    pub(super) used: Place,
    /// Chains to serve again, in the order in which they were taken.
    pub(super) chains: Vec<Saved>,
    /// Entries that are marked and free.
    stale: Vec<u16>,
    free: u16,
    /// The links of all entries.
    next: Vec<u16>,
}

/// A chain that the region remembers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) counter: u64,
    pub(super) entry: u16,
    last: u16,
    pub(super) replay: Replay,
}

/// Reads a part; `is_used` tells whether the entry of the ring at a place was given back in that place's lap or after
/// it. `None` when nothing is known of the ring.
pub(super) fn read(
    part: &[u8],
    size: u16,
    is_used: impl Fn(Place) -> bool,
) -> Result<Option<State>, Corrupt> {
    let bytes = Bytes(part);
    let Some(Marked { entries, heads: marked }) = bytes.marked(size, HEADER_BYTES, ENTRY_BYTES)? else {
        return Ok(None);
    };
    let (new, old) = places(bytes.u64(USED));
    let published = new != old && is_used(old);
    let (used, free) = if published { (new, bytes.u16(FREE)) } else { (old, bytes.u16(OLD_FREE)) };
    if used & 0x7fff >= size {
        return Err(Corrupt::UsedIndex);
    }
    if marked.is_empty() {
        return Ok(Some(State { used, ..State::default() }));
    }
    let next = (0..entries).map(|at| bytes.u16(entry(at).wrapping_add(NEXT))).collect();
    let mut walk =
        Walk { bytes, next, seen: vec![false; usize::from(entries)], ids: vec![false; usize::from(size)] };
    walk.free(free)?;
    let (stale, taken): (Vec<_>, Vec<_>) = marked.into_iter().partition(|at| walk.is_seen(*at));
    let mut chains = taken.into_iter().map(|at| walk.chain(at)).collect::<Result<Vec<_>, _>>()?;
    if chains.iter().map(|chain| u32::from(chain.replay.taken.slots)).sum::<u32>() > u32::from(size) {
        return Err(Corrupt::List);
    }
    chains.sort_unstable_by_key(|chain| (chain.counter, chain.entry));
    Ok(Some(State { used, chains, stale, free, next: walk.next }))
}

/// The used place and the old one.
// Each field is cut out of its own bits, so nothing is lost.
#[allow(clippy::cast_possible_truncation)]
fn places(word: u64) -> (Place, Place) {
    let place = |at: u16, wrap: u8| (at & 0x7fff) | u16::from(wrap & 1) << 15;
    (place(word as u16, (word >> 32) as u8), place((word >> 16) as u16, (word >> 40) as u8))
}

fn places_word(new: Place, old: Place) -> u64 {
    let (at, wrap) = (|place: Place| u64::from(place & 0x7fff), |place: Place| u64::from(place >> 15));
    at(new) | at(old) << 16 | wrap(new) << 32 | wrap(old) << 40
}

/// Goes along the lists of a part, and finds each entry at most once.
struct Walk<'a> {
    bytes: Bytes<'a>,
    next: Vec<u16>,
    seen: Vec<bool>,
    /// By buffer id: a chain has it.
    ids: Vec<bool>,
}

impl Walk<'_> {
    fn see(&mut self, at: u16) -> Result<(), Corrupt> {
        match self.seen.get_mut(usize::from(at)) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Corrupt::List),
        }
        Ok(())
    }

    fn is_seen(&self, at: u16) -> bool {
        self.seen.get(usize::from(at)).is_some_and(|seen| *seen)
    }

    fn after(&self, at: u16) -> u16 {
        self.next.get(usize::from(at)).copied().unwrap_or(u16::MAX)
    }

    /// The free list, to the first link that leaves the part.
    fn free(&mut self, mut at: u16) -> Result<(), Corrupt> {
        while usize::from(at) < self.seen.len() {
            self.see(at)?;
            at = self.after(at);
        }
        Ok(())
    }

    fn chain(&mut self, head: u16) -> Result<Saved, Corrupt> {
        let field = |offset: usize| entry(head).wrapping_add(offset);
        let (last, slots) = (self.bytes.u16(field(LAST)), self.bytes.u16(field(NUM)));
        let mut descriptors = Vec::new();
        let (mut at, mut end) = (head, head);
        for _ in 0..slots {
            self.see(at)?;
            descriptors.push(self.descriptor(at));
            end = at;
            at = self.after(at);
        }
        let id = descriptors.last().map_or(u16::MAX, |descriptor| descriptor.next);
        match self.ids.get_mut(usize::from(id)) {
            Some(has) if !*has && end == last => *has = true,
            _ => return Err(Corrupt::Entry(head)),
        }
        let replay = Replay { taken: Taken { id, slots }, descriptors };
        Ok(Saved { counter: self.bytes.u64(field(COUNTER)), entry: head, last, replay })
    }

    /// Its id is in `next`, as the ring gives it.
    fn descriptor(&self, at: u16) -> Descriptor {
        let place = entry(at);
        let word = self.bytes.u64(place.wrapping_add(DESCRIPTOR));
        // Each field is cut out of its own bits, so nothing is lost.
        #[allow(clippy::cast_possible_truncation)]
        let (next, flags, len) = (word as u16, (word >> 16) as u16, (word >> 32) as u32);
        Descriptor { addr: self.bytes.u64(place.wrapping_add(ADDR)), len, flags, next }
    }
}

#[inline]
fn entry(at: u16) -> usize {
    usize::from(at).wrapping_mul(ENTRY_BYTES).wrapping_add(HEADER_BYTES)
}

/// Keeps the marks of a running ring.
#[derive(Debug)]
pub(crate) struct Marks {
    part: Area,
    size: u16,
    counter: u64,
    used: Place,
    /// First free entry, and the links of all: our own copy, since the region is anybody's.
    free: u16,
    next: Box<[u16]>,
    /// By buffer id: where its chain is.
    chains: Box<[Held]>,
    /// First free entry after the chain that was read and is not marked.
    after: u16,
}

/// Entries of a chain.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    first: u16,
    last: u16,
}

/// A chain that is being read from the ring: its last entry so far, and the free one after that.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taking {
    last: u16,
    after: u16,
}

impl Marks {
    /// Goes on from `state`, or begins at `used`. Each store leaves a part that [`read`] takes for the same.
    pub(super) fn new(part: Area, size: u16, used: Place, state: Option<State>) -> Marks {
        let (known, state) = (state.is_some(), state.unwrap_or(State { used, ..State::default() }));
        state.stale.iter().for_each(|at| part.put_u8(entry(*at), 0));
        let mut marks = Marks {
            part,
            size,
            counter: state.chains.last().map_or(0, |chain| chain.counter.wrapping_add(1)),
            used: state.used,
            free: state.free,
            next: state.next.into_boxed_slice(),
            chains: vec![Held::default(); usize::from(size)].into_boxed_slice(),
            after: state.free,
        };
        if known {
            marks.store_free(marks.free);
            marks.part.put_u64(USED, places_word(marks.used, marks.used));
        }
        if state.chains.is_empty() {
            marks.link_all();
        }
        for Saved { entry: first, last, replay, .. } in &state.chains {
            marks.hold(replay.taken.id, Held { first: *first, last: *last });
        }
        marks
    }

    /// All entries are free: links them, from the first to the last.
    fn link_all(&mut self) {
        self.next = (1..=self.size).collect();
        for (at, next) in (0..).zip(&self.next) {
            self.part.put_u64(entry(at), u64::from(*next) << 16);
        }
        self.free = 0;
        self.store_free(0);
        self.part.put_u64(USED, places_word(self.used, self.used));
        // What was above may be of a longer ring or of none: from here on it counts.
        self.part.put_u32(VERSION, u32::from(self.size) << 16 | 1);
    }

    fn store_free(&self, old: u16) {
        self.part.put_u32(FREE, u32::from(self.free) | u32::from(old) << 16);
    }

    fn hold(&mut self, id: u16, held: Held) {
        if let Some(place) = self.chains.get_mut(usize::from(id)) {
            *place = held;
        }
    }

    /// A chain is about to be read from the ring.
    #[inline]
    pub(crate) fn begin(&self) -> Taking {
        Taking { last: self.free, after: self.free }
    }

    /// Copies the chain's next descriptor. `None`: no entry is free, so the driver made more available than the ring has.
    // By value: what changes with each descriptor stays in registers.
    #[inline]
    pub(crate) fn record(&self, taking: Taking, [addr, rest]: [u64; 2]) -> Option<Taking> {
        let last = taking.after;
        let after = *self.next.get(usize::from(last))?;
        // The ring has length, id, flags; the region id, flags, length.
        self.part.put_words(entry(last).wrapping_add(DESCRIPTOR), [rest.rotate_left(32), addr]);
        Some(Taking { last, after })
    }

    /// The chain was read to its end: its entries are filled. They stay on the free list until it is marked.
    #[inline(always)]
    pub(crate) fn end(&mut self, id: u16, slots: u16, taking: Taking) {
        let Taking { last, after } = taking;
        let first = self.free;
        let next = self.next.get(usize::from(first)).copied().unwrap_or(0);
        let word = 1 | u64::from(next) << 16 | u64::from(last) << 32 | u64::from(slots) << 48;
        self.part.put_words(entry(first), [word, self.counter]);
        self.hold(id, Held { first, last });
        self.after = after;
    }

    /// Marks the chain that was read: one store takes its entries off the free list.
    #[inline]
    pub(super) fn mark(&mut self) {
        self.counter = self.counter.wrapping_add(1);
        self.free = self.after;
        self.store_free(self.free);
    }

    /// Gives back the entries of the batch; `used` is where the ring is after it. The ring is published after this.
    #[inline]
    pub(super) fn announce(&mut self, used: Place, batch: &[u16]) {
        let (old_free, old_used) = (self.free, std::mem::replace(&mut self.used, used));
        // From the last: then chains that were taken one after the other are linked as they were before.
        for id in batch.iter().rev() {
            let Some(held) = self.chains.get(usize::from(*id)) else { continue };
            let Some(next) = self.next.get_mut(usize::from(held.last)) else { continue };
            if *next != self.free {
                *next = self.free;
                self.part.put_u16(entry(held.last).wrapping_add(NEXT), self.free);
            }
            self.free = held.first;
        }
        self.store_free(old_free);
        self.part.put_u64(USED, places_word(used, old_used));
    }

    /// The ring was published: nothing of the batch is in flight any more.
    #[inline]
    pub(super) fn settle(&mut self, batch: &[u16]) {
        for id in batch {
            if let Some(held) = self.chains.get(usize::from(*id)) {
                self.part.put_u8(entry(held.first), 0);
            }
        }
        self.store_free(self.free);
        self.part.put_u64(USED, places_word(self.used, self.used));
    }
}

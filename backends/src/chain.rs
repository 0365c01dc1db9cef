//! From a head to buffers: one walk over a descriptor chain.
//!
//! In: a head, the descriptor table, guest memory. Out: a [`Chain`] of [`Segment`]s, readable ones first, or
//! [`Malformed`] with the rule that was broken. Promises, once [`Chain::load`] has returned `Ok`:
//! every descriptor was fetched exactly once; every segment lies in guest memory; readable segments come
//! before writable ones (virtio 1.3 §2.7.4.2); there is at least one byte; no more descriptors than the queue
//! has entries were followed (§2.7.5.3.1), so a loop ends there. Refuses everything else, as a value different
//! from a clean end. Zero-length descriptors are passed over.

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

use thiserror::Error;

use crate::descriptor::{Descriptor, Table};
use crate::memory::{Memory, Segment};

/// Most segments of a chain: twice what the longest queue's longest chain has in one region.
const MAX_CHAIN_SEGMENTS: usize = 1 << 16;

/// The rule of the specification that a chain broke.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// `next` names no descriptor of its table (virtio 1.3 §2.7.5).
    #[error("Next descriptor is outside its table")]
    Next,
    /// More descriptors than the queue has entries: a loop, or a chain too long (§2.7.5.3.1).
    #[error("Chain is longer than the queue")]
    TooLong,
    /// A buffer that is not wholly in guest memory.
    #[error("Buffer is outside guest memory")]
    Outside,
    /// A readable descriptor after a writable one (§2.7.4.2).
    #[error("Readable descriptor after a writable one")]
    Order,
    /// An indirect table that is empty, no multiple of 16 bytes, outside memory, nested, continued, or was not negotiated (§2.7.5.3).
    #[error("Indirect table is not allowed here")]
    Indirect,
    /// No byte at all.
    #[error("Chain has no buffer")]
    Empty,
    /// More bytes than the device takes.
    #[error("Chain has more bytes than the device takes")]
    TooManyBytes,
}

/// Limits for a walk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most descriptors: the queue size.
    pub descriptors: u16,
    /// Most bytes of the whole chain.
    pub bytes: u64,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Remember the guest addresses that may be written, for the dirty log.
    pub log: bool,
}

/// The buffers of one request. Keeps its room when cleared, so that a queue's chains stop allocating.
#[derive(Debug, Default)]
pub struct Chain {
    segments: Vec<Segment>,
    /// First readable segment not yet consumed.
    front: usize,
    /// First writable segment not yet consumed.
    split: usize,
    /// First writable segment; readable ones end here.
    first_writable: usize,
    /// Bytes of all buffers as they came.
    bytes: u64,
    /// Guest-physical addresses and lengths of writable buffers, while a dirty log is kept.
    logged: Vec<(u64, u32)>,
}

impl Chain {
    /// Forgets the buffers.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.logged.clear();
        (self.front, self.split, self.first_writable, self.bytes) = (0, 0, 0, 0);
    }

    /// Walks the chain at `head` of a split ring; `self` is cleared first.
    ///
    /// # Errors
    /// [`Malformed`]; `self` then holds nothing of use.
    #[inline]
    pub fn load(
        &mut self,
        table: &impl Table,
        head: u16,
        memory: &Memory,
        limits: Limits,
    ) -> Result<(), Malformed> {
        let mut loading = self.begin(memory, limits);
        let mut index = head;
        loop {
            let descriptor = table.descriptor(index).ok_or(Malformed::Next)?;
            loading.add(descriptor, Links::Followed)?;
            if !descriptor.has(Descriptor::NEXT) {
                return loading.end();
            }
            index = descriptor.next;
        }
    }

    /// Begins to load descriptors that somebody else walks.
    #[inline]
    pub fn begin<'a>(&'a mut self, memory: &'a Memory, limits: Limits) -> Loading<'a> {
        self.clear();
        let Limits { descriptors: left, bytes, .. } = limits;
        Loading { chain: self, memory, limits, left, bytes, writable: false }
    }

    #[cold]
    fn log(&mut self, descriptor: Descriptor) {
        self.logged.push((descriptor.addr, descriptor.len));
    }

    /// Where it may have been written to, if that was to be remembered.
    pub(crate) fn logged(&self) -> &[(u64, u32)] {
        &self.logged
    }

    /// Bytes of all its buffers as they came, consumed or not.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Buffers it holds.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Gives back room for more than `segments` buffers.
    #[inline]
    pub fn shrink(&mut self, segments: usize) {
        if self.segments.capacity().max(self.logged.capacity()) > segments {
            self.segments.shrink_to(segments);
            self.logged.shrink_to(segments);
        }
    }

    /// What the device may read and has not consumed.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(self.front..self.first_writable).unwrap_or_default()
    }

    /// What the device may write and has not consumed.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.split..).unwrap_or_default()
    }

    pub(crate) fn readable_mut(&mut self) -> (&mut usize, &mut [Segment]) {
        (&mut self.front, self.segments.get_mut(..self.first_writable).unwrap_or_default())
    }

    pub(crate) fn writable_mut(&mut self) -> (&mut usize, &mut Vec<Segment>) {
        (&mut self.split, &mut self.segments)
    }
}

/// How an indirect table is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// By NEXT and `next`, from the first descriptor (split, virtio 1.3 §2.7.5.3).
    Followed,
    /// All of it, one after the other (packed, §2.8.7).
    None,
}

/// A chain that is being loaded, and what is left of its limits.
#[derive(Debug)]
pub struct Loading<'a> {
    chain: &'a mut Chain,
    memory: &'a Memory,
    limits: Limits,
    left: u16,
    bytes: u64,
    /// A writable buffer has come.
    writable: bool,
}

impl Loading<'_> {
    /// Takes a descriptor, plain or indirect.
    ///
    /// # Errors
    /// [`Malformed`]
    #[inline(always)]
    pub fn add(&mut self, descriptor: Descriptor, links: Links) -> Result<(), Malformed> {
        if descriptor.has(Descriptor::INDIRECT) {
            // §2.7.5.3.1, §2.8.7: a descriptor is never both INDIRECT and NEXT; WRITE is ignored.
            if !self.limits.indirect || descriptor.has(Descriptor::NEXT) {
                return Err(Malformed::Indirect);
            }
            return self.table(descriptor, links);
        }
        self.buffer(descriptor)
    }

    /// Goes through an indirect table.
    fn table(&mut self, outer: Descriptor, links: Links) -> Result<(), Malformed> {
        let table = IndirectTable::new(outer, self.memory).ok_or(Malformed::Indirect)?;
        let mut index = 0;
        loop {
            let mut descriptor = table.descriptor(index).ok_or(Malformed::Next)?;
            if links == Links::None {
                descriptor = descriptor.as_packed();
            } else if descriptor.has(Descriptor::INDIRECT) {
                return Err(Malformed::Indirect);
            }
            self.buffer(descriptor)?;
            index = match links {
                Links::Followed if descriptor.has(Descriptor::NEXT) => descriptor.next,
                // A table over the limit has ended the walk before the index could wrap.
                Links::None if u32::from(index).wrapping_add(1) < table.entries => index.wrapping_add(1),
                _ => return Ok(()),
            };
        }
    }

    /// Appends one buffer.
    #[inline(always)]
    fn buffer(&mut self, descriptor: Descriptor) -> Result<(), Malformed> {
        self.left = self.left.checked_sub(1).ok_or(Malformed::TooLong)?;
        self.bytes = self.bytes.checked_sub(u64::from(descriptor.len)).ok_or(Malformed::TooManyBytes)?;
        match (self.writable, descriptor.has(Descriptor::WRITE)) {
            (true, false) => return Err(Malformed::Order),
            (false, true) => {
                self.writable = true;
                self.chain.first_writable = self.chain.segments.len();
            }
            _ => {}
        }
        if self.limits.log && self.writable {
            self.chain.log(descriptor);
        }
        match self.memory.translate_one(descriptor.addr, descriptor.len) {
            Some(segment) if descriptor.len > 0 => self.chain.segments.push(segment),
            _ => self.pieces(descriptor)?,
        }
        Ok(())
    }

    /// A buffer of many regions, of none, or empty. It becomes as many segments as it has regions: some hundred, if a
    /// front-end wants that.
    #[inline(never)]
    fn pieces(&mut self, descriptor: Descriptor) -> Result<(), Malformed> {
        if !self.memory.translate(descriptor.addr, descriptor.len, &mut self.chain.segments) {
            return Err(Malformed::Outside);
        }
        if self.chain.segments.len() > MAX_CHAIN_SEGMENTS { Err(Malformed::TooLong) } else { Ok(()) }
    }

    /// That was all of it.
    ///
    /// # Errors
    /// [`Malformed::Empty`]
    #[inline]
    pub fn end(self) -> Result<(), Malformed> {
        let chain = self.chain;
        if chain.segments.is_empty() {
            return Err(Malformed::Empty);
        }
        if !self.writable {
            chain.first_writable = chain.segments.len();
        }
        chain.split = chain.first_writable;
        chain.bytes = self.limits.bytes.saturating_sub(self.bytes);
        Ok(())
    }
}

/// A table in guest memory. It lies in one segment unless a region ends inside it.
struct IndirectTable<'a> {
    memory: &'a Memory,
    addr: u64,
    entries: u32,
    whole: Option<Segment>,
}

impl<'a> IndirectTable<'a> {
    fn new(outer: Descriptor, memory: &'a Memory) -> Option<Self> {
        let entries = outer.len.checked_div(16)?;
        if outer.len == 0 || !outer.len.is_multiple_of(16) {
            return None;
        }
        let mut segments = Vec::new();
        let whole = memory.translate_one(outer.addr, outer.len);
        if whole.is_none() && !memory.translate(outer.addr, outer.len, &mut segments) {
            return None;
        }
        Some(IndirectTable { memory, addr: outer.addr, entries, whole })
    }

    /// The words of a descriptor of a table that goes on in another region.
    fn gather(&self, offset: usize) -> Option<[u64; 2]> {
        let (mut parts, mut bytes) = (Vec::new(), [[0; 8]; 2]);
        let addr = self.addr.checked_add(u64::try_from(offset).ok()?)?;
        if !self.memory.translate(addr, 16, &mut parts) {
            return None;
        }
        let mut rest = bytes.as_flattened_mut();
        for part in parts {
            let count = part.copy_to(rest);
            rest = rest.get_mut(count..)?;
        }
        Some(bytes.map(u64::from_le_bytes))
    }
}

impl Table for IndirectTable<'_> {
    #[inline]
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if u32::from(index) >= self.entries {
            return None;
        }
        let offset = usize::from(index).checked_mul(Descriptor::BYTES)?;
        let words = match &self.whole {
            Some(table) => table.read_words(offset)?,
            None => self.gather(offset)?,
        };
        Some(Descriptor::from_words(words))
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;

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

use crate::memory::{Memory, Segment};
use crate::ring::Descriptor;

/// Room that a chain keeps for the next one: a megabyte in pages, as drivers send. Longer chains are legal but
/// must not leave every chain of a queue that large for ever.
const USUAL_SEGMENTS: usize = 256;

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

/// Reads descriptor number `index` of a table, if the table has one.
pub trait Table {
    /// The descriptor, fetched once.
    fn descriptor(&self, index: u16) -> Option<Descriptor>;
}

impl Table for crate::ring::split::SplitRing {
    #[inline]
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        self.descriptor(index)
    }
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
}

impl Chain {
    /// Forgets the buffers, and room that only an unusual chain needs.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.segments.shrink_to(USUAL_SEGMENTS);
        (self.front, self.split, self.first_writable) = (0, 0, 0);
    }

    /// Walks the chain at `head`; `self` is cleared first.
    ///
    /// # Errors
    /// [`Malformed`]; `self` then holds nothing of use.
    pub fn load(
        &mut self,
        table: &impl Table,
        head: u16,
        memory: &Memory,
        limits: Limits,
    ) -> Result<(), Malformed> {
        self.clear();
        let mut walk = Walk { left: limits.descriptors, bytes: limits.bytes, writable: false, memory };
        let mut index = head;
        loop {
            let descriptor = table.descriptor(index).ok_or(Malformed::Next)?;
            if descriptor.has(Descriptor::INDIRECT) {
                // §2.7.5.3.1: a descriptor is never both INDIRECT and NEXT; its WRITE flag is ignored.
                if !limits.indirect || descriptor.has(Descriptor::NEXT) {
                    return Err(Malformed::Indirect);
                }
                self.indirect(descriptor, &mut walk)?;
                break;
            }
            self.add(descriptor, &mut walk)?;
            if !descriptor.has(Descriptor::NEXT) {
                break;
            }
            index = descriptor.next;
        }
        self.seal(walk.writable)
    }

    /// Follows an indirect table, from its first descriptor.
    fn indirect(&mut self, outer: Descriptor, walk: &mut Walk<'_>) -> Result<(), Malformed> {
        let table = IndirectTable::new(outer, walk.memory).ok_or(Malformed::Indirect)?;
        let mut index = 0;
        loop {
            let descriptor = table.descriptor(index).ok_or(Malformed::Next)?;
            if descriptor.has(Descriptor::INDIRECT) {
                return Err(Malformed::Indirect);
            }
            self.add(descriptor, walk)?;
            if !descriptor.has(Descriptor::NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    /// Appends one buffer.
    #[inline]
    fn add(&mut self, descriptor: Descriptor, walk: &mut Walk<'_>) -> Result<(), Malformed> {
        walk.left = walk.left.checked_sub(1).ok_or(Malformed::TooLong)?;
        walk.bytes = walk.bytes.checked_sub(u64::from(descriptor.len)).ok_or(Malformed::TooManyBytes)?;
        match (walk.writable, descriptor.has(Descriptor::WRITE)) {
            (true, false) => return Err(Malformed::Order),
            (false, true) => {
                walk.writable = true;
                self.first_writable = self.segments.len();
            }
            _ => {}
        }
        if walk.memory.translate(descriptor.addr, descriptor.len, &mut self.segments) {
            Ok(())
        } else {
            Err(Malformed::Outside)
        }
    }

    fn seal(&mut self, writable: bool) -> Result<(), Malformed> {
        if self.segments.is_empty() {
            return Err(Malformed::Empty);
        }
        if !writable {
            self.first_writable = self.segments.len();
        }
        self.split = self.first_writable;
        Ok(())
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

/// What is left of the limits, and which part of the chain the walk is in.
struct Walk<'a> {
    left: u16,
    bytes: u64,
    writable: bool,
    memory: &'a Memory,
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

    /// A descriptor of a table that goes on in another region.
    fn gather(&self, offset: usize) -> Option<[u8; Descriptor::BYTES]> {
        let (mut parts, mut bytes) = (Vec::new(), [0; Descriptor::BYTES]);
        let addr = self.addr.checked_add(u64::try_from(offset).ok()?)?;
        if !self.memory.translate(addr, 16, &mut parts) {
            return None;
        }
        let mut rest = bytes.as_mut_slice();
        for part in parts {
            let count = part.copy_to(rest);
            rest = rest.get_mut(count..)?;
        }
        Some(bytes)
    }
}

impl Table for IndirectTable<'_> {
    #[inline]
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if u32::from(index) >= self.entries {
            return None;
        }
        let offset = usize::from(index).checked_mul(Descriptor::BYTES)?;
        let bytes = match &self.whole {
            Some(table) => table.read(offset)?,
            None => self.gather(offset)?,
        };
        Some(Descriptor::from_bytes(bytes))
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;

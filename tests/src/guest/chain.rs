//! A chain as a plain value, and where its buffers come to lie.
//!
//! A [`Chain`] says what the driver wants: bytes to read, room to write, direct or through an indirect table.
//! Placing it takes RAM for each buffer apart from all others. Room to write is filled with [`POISON`] and
//! fenced with guard bytes, so that bytes the device did not write, or wrote beside its buffer, are seen.

use super::format::RingKind;
use super::memory::Ram;
use super::raw::{DESC_BYTES, Desc, INDIRECT, WRITE, link};

/// What room to write is filled with.
pub const POISON: u8 = 0xee;
const GUARD: [u8; 16] = [0xc5; 16];
const GUARD_BYTES: u64 = GUARD.len() as u64;

#[derive(Clone, Debug)]
enum Part {
    Readable(Vec<u8>),
    Writable(u32),
    Given(Desc),
}

/// What a driver asks of a device, before it is placed in RAM.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    parts: Vec<Part>,
    direct: Option<usize>,
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// And then a buffer with these bytes for the device to read.
    pub fn readable(mut self, bytes: &[u8]) -> Chain {
        self.parts.push(Part::Readable(bytes.to_vec()));
        self
    }

    /// And then room of `len` bytes for the device to write.
    pub fn writable(mut self, len: u32) -> Chain {
        self.parts.push(Part::Writable(len));
        self
    }

    /// And then a buffer at this very place, in RAM or not.
    pub fn at(self, addr: u64, len: u32, write: bool) -> Chain {
        self.desc(Desc::new(addr, len, if write { WRITE } else { 0 }))
    }

    /// And then a descriptor exactly like this one, whatever it says; the link to the next is added.
    pub fn desc(mut self, desc: Desc) -> Chain {
        self.parts.push(Part::Given(desc));
        self
    }

    /// The same chain with an empty buffer before each buffer.
    pub fn with_empty_parts(mut self) -> Chain {
        let empty = |part: &Part| match part {
            Part::Writable(_) => Part::Writable(0),
            Part::Given(desc) if desc.flags & WRITE != 0 => Part::Writable(0),
            Part::Readable(_) | Part::Given(_) => Part::Readable(Vec::new()),
        };
        self.parts = self.parts.into_iter().flat_map(|part| [empty(&part), part]).collect();
        self
    }

    /// The same bytes in buffers of at most `bytes` each.
    pub fn cut(mut self, bytes: u16) -> Chain {
        let cut = |part: Part| -> Vec<Part> {
            match part {
                Part::Readable(all) => {
                    all.chunks(bytes.into()).map(|one| Part::Readable(one.to_vec())).collect()
                }
                Part::Writable(len) => {
                    let whole =
                        std::iter::repeat_n(Part::Writable(bytes.into()), (len / u32::from(bytes)) as usize);
                    let rest = Some(len % u32::from(bytes)).filter(|rest| *rest > 0);
                    whole.chain(rest.map(Part::Writable)).collect()
                }
                given => vec![given],
            }
        };
        self.parts = self.parts.into_iter().flat_map(cut).collect();
        self
    }

    /// All descriptors go into one indirect table.
    pub fn indirect(self) -> Chain {
        self.indirect_after(0)
    }

    /// The first `direct` descriptors stand in the ring, the others in an indirect table (§2.7.5.3.1 allows it
    /// in a split ring; in a packed one the same chain breaks §2.8.8).
    pub fn indirect_after(mut self, direct: usize) -> Chain {
        self.direct = Some(direct);
        self
    }

    /// Descriptors it needs in the ring itself.
    pub fn slots(&self) -> usize {
        match self.direct {
            Some(direct) if direct < self.parts.len() => direct + 1,
            _ => self.parts.len(),
        }
    }

    /// Takes RAM for the buffers and makes the descriptors, still without links.
    pub(super) fn place(&self, ram: &Ram, kind: RingKind) -> (Vec<Desc>, Placed) {
        let mut placed = Placed::default();
        let mut descs: Vec<Desc> = self.parts.iter().map(|part| placed.add(ram, part)).collect();
        if let Some(direct) = self.direct.filter(|direct| *direct < descs.len()) {
            let table = descs.split_off(direct);
            let len = u32::try_from(DESC_BYTES * table.len() as u64).unwrap_or(u32::MAX);
            let addr = ram.take(u64::from(len), 16);
            ram.write(addr, &table_bytes(&table, kind));
            placed.taken.push(addr);
            descs.push(Desc::new(addr, len, INDIRECT));
        }
        (descs, placed)
    }
}

/// An indirect table of these descriptors: linked by NEXT (split), or one after the other (packed, §2.8.7).
fn table_bytes(descs: &[Desc], kind: RingKind) -> Vec<u8> {
    match kind {
        RingKind::Split => link(descs).into_iter().flat_map(Desc::to_bytes).collect(),
        RingKind::Packed => descs.iter().flat_map(|desc| desc.to_packed_bytes()).collect(),
    }
}

/// RAM that a chain holds until it is given back.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// (address, length) the device may write, in order.
    writable: Vec<(u64, u32)>,
    /// Those of them with guards on both sides.
    guarded: Vec<(u64, u32)>,
    taken: Vec<u64>,
}

impl Placed {
    fn add(&mut self, ram: &Ram, part: &Part) -> Desc {
        match part {
            Part::Readable(bytes) => {
                let addr = ram.take(bytes.len() as u64, 1);
                ram.write(addr, bytes);
                self.taken.push(addr);
                Desc::new(addr, u32::try_from(bytes.len()).unwrap_or(u32::MAX), 0)
            }
            Part::Writable(len) => self.add_writable(ram, *len),
            Part::Given(desc) => {
                if desc.flags & (WRITE | INDIRECT) == WRITE {
                    self.writable.push((desc.addr, desc.len));
                }
                *desc
            }
        }
    }

    fn add_writable(&mut self, ram: &Ram, len: u32) -> Desc {
        let start = ram.take(u64::from(len) + 2 * GUARD_BYTES, 1);
        let addr = start + GUARD_BYTES;
        ram.write(start, &GUARD);
        ram.write(addr, &vec![POISON; usize::try_from(len).unwrap_or(0)]);
        ram.write(addr + u64::from(len), &GUARD);
        self.taken.push(start);
        self.writable.push((addr, len));
        self.guarded.push((addr, len));
        Desc::new(addr, len, WRITE)
    }

    /// Bytes the device may write.
    pub(super) fn room(&self) -> u64 {
        self.writable.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// The first `len` of them.
    pub(super) fn written(&self, ram: &Ram, len: u32) -> Vec<u8> {
        let mut left = len;
        let mut bytes = Vec::new();
        for (addr, room) in &self.writable {
            let here = left.min(*room);
            bytes.extend(ram.read(*addr, usize::try_from(here).unwrap_or(0)));
            left -= here;
        }
        bytes
    }

    /// A buffer beside which the device wrote.
    pub(super) fn overrun(&self, ram: &Ram) -> Option<u64> {
        let intact = |at| ram.read(at, GUARD.len()) == GUARD;
        let hurt =
            |(addr, len): &&(u64, u32)| !intact(*addr - GUARD_BYTES) || !intact(*addr + u64::from(*len));
        self.guarded.iter().find(hurt).map(|(addr, _)| *addr)
    }

    pub(super) fn give_back(&self, ram: &Ram) {
        self.taken.iter().for_each(|start| ram.give_back(*start));
    }
}

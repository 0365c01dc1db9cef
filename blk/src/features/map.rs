//! `features/map`: one disk made of others, one after the other, or of ranges of them.
//!
//! ```text
//! above:   │     a: all of it     │   b: all of it   │        without `ranges`: subvolumes in their order
//! above:   │ a 0..1G │ b 1M..3M │ a 1G..2G │                  ranges "a:0+1G b:1M+2M a:1G+1G"
//! ```
//! In: any operation. Out: the same for whoever has its bytes. One that crosses a border is cut there, and comes up when all
//! its pieces did, with the first error; a flush goes to all. What an extent is, is told up to the border.
//! Keeps what all subvolumes keep, in the largest of their blocks. Promises that no byte ever moves: sizes are looked at
//! once, and only the last subvolume may grow. Refuses ranges that overlap, cut blocks or leave a subvolume, and
//! subvolumes that are not used.

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

use std::io;
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::cut::Cutter;
use super::join::Joins;
use crate::call::Call;
use crate::graph::options::{Bad, Preset, Setting, Type, size};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Outcome, Step, Volume};
use crate::op::{Bounds, Extent, ExtentKind, Keeps, Lifetime, Op, OpKind};

/// Marks the word of a piece; the rest is its call. Of other calls it is where they were, which is less.
const PIECE: u64 = 1 << 63;
/// What can be set.
pub const OPTIONS: &[Setting] = &[Setting {
    name: "ranges",
    kind: Type::Text(1..=8192),
    preset: Preset::Absent,
    about: "The disk from its start on, as ranges NAME:OFFSET+LENGTH of subvolumes, with blanks between",
}];
/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "features/map",
    about: "One disk of several: one after the other, or of ranges of them",
    subvolumes: 1..=usize::MAX,
    options: OPTIONS,
    prepare: None,
    make: |made| {
        let ranges = made.values.text("ranges").map(|text| ranges(text, made.subvolumes));
        Ok(Arc::new(Map::new(ranges.transpose()?)))
    },
};

/// A part of a subvolume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which one, from 0.
    pub below: usize,
    /// Its first byte there.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

impl Range {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
}

/// Ranges as they are written: `NAME:OFFSET+LENGTH`, with blanks between.
///
/// # Errors
/// What is none, or subvolumes that are not there or not used.
pub fn ranges(text: &str, names: &[&str]) -> Result<Vec<Range>, Bad> {
    let bad = |problem: String| Bad::option("ranges", problem);
    let mut all = Vec::new();
    for word in text.split_ascii_whitespace() {
        let none = || bad(format!("{word} is no range; write NAME:OFFSET+LENGTH, as in a:0+1G"));
        let (name, offset, bytes) = written(word).ok_or_else(none)?;
        let below = names.iter().position(|known| *known == name);
        let below = below
            .ok_or_else(|| bad(format!("{name} is no subvolume of it; name one of {}", names.join(", "))))?;
        offset.checked_add(bytes).ok_or_else(none)?;
        all.push(Range { below, offset, bytes });
    }
    let unused = names.iter().zip(0..).find(|(_, at)| all.iter().all(|range| range.below != *at));
    match unused {
        Some((name, _)) => Err(bad(format!("subvolume {name} is in none of them; add one, or take it out"))),
        None => Ok(all),
    }
}

/// Name, offset and length of a range as it is written.
fn written(word: &str) -> Option<(&str, u64, u64)> {
    let (name, place) = word.split_once(':')?;
    let (offset, bytes) = place.split_once('+')?;
    Some((name, size(offset)?, size(bytes).filter(|bytes| *bytes > 0)?))
}

/// A disk of ranges.
#[derive(Debug)]
pub struct Map {
    ranges: Option<Vec<Range>>,
    /// Where each byte is: decided once.
    table: OnceLock<Arc<Table>>,
}

/// Ranges with their places in the disk.
#[derive(Debug)]
struct Table {
    /// Sorted, without gaps from 0 on.
    ranges: Vec<(u64, Range)>,
    below: usize,
    /// Bytes of a block of the disk: that of a subvolume may be smaller.
    block: u64,
}

impl Map {
    /// A disk of these ranges; `None`: of all subvolumes, one after the other.
    pub fn new(ranges: Option<Vec<Range>>) -> Map {
        Map { ranges, table: OnceLock::new() }
    }

    /// The table for subvolumes of these sizes.
    fn table(&self, below: &[Keeps], block: u32) -> Table {
        let whole = |(at, keeps): (usize, &Keeps)| Range { below: at, offset: 0, bytes: keeps.size_bytes };
        let all = || below.iter().enumerate().map(whole).collect();
        let mut ranges: Vec<Range> = self.ranges.clone().unwrap_or_else(all);
        if let (None, Some(last)) = (&self.ranges, ranges.last_mut()) {
            // It may grow; what is behind its end is refused above, where the size is known.
            last.bytes = u64::MAX;
        }
        let places = ranges.iter().scan(0_u64, |next, range| {
            let start = *next;
            *next = start.saturating_add(range.bytes);
            Some(start)
        });
        Table {
            ranges: places.zip(ranges.iter().copied()).collect(),
            below: below.len(),
            block: block.into(),
        }
    }

    /// Bytes of all ranges, if they fit.
    fn size_on(&self, below: &[Keeps], block: u32) -> Result<u64, String> {
        match &self.ranges {
            Some(ranges) => {
                check(ranges, below, block)?;
                total(ranges.iter().map(|range| range.bytes))
            }
            None => {
                let part =
                    below.iter().zip(0..).find(|(keeps, _)| !keeps.size_bytes.is_multiple_of(block.into()));
                if let Some((keeps, at)) = part {
                    let size = keeps.size_bytes;
                    return Err(format!(
                        "the {size} bytes of subvolume {at} end within a block of {block} bytes, which the disk has; cut it to a multiple by features/offset"
                    ));
                }
                total(below.iter().map(|keeps| keeps.size_bytes))
            }
        }
    }

    /// What is behind a subvolume must stay where it is.
    fn check_growth(&self, table: &Table, below: &[Keeps]) -> Result<(), String> {
        let others = table.ranges.len().saturating_sub(1);
        let grown = |(_, range): &&(u64, Range)| {
            below.get(range.below).is_some_and(|keeps| keeps.size_bytes != range.bytes)
        };
        match table.ranges.iter().take(others).find(grown) {
            Some((_, range)) if self.ranges.is_none() => Err(format!(
                "subvolume {} has another size than before, which would move all behind it; give the ranges by option ranges",
                range.below
            )),
            _ => Ok(()),
        }
    }
}

fn total(mut sizes: impl Iterator<Item = u64>) -> Result<u64, String> {
    let sum = sizes.try_fold(0_u64, |sum, size| sum.checked_add(size).filter(|sum| *sum < PIECE));
    sum.ok_or_else(|| "it is larger than any disk can be; leave something out".to_owned())
}

/// Ranges that lie in their subvolumes, and no byte in two of them.
fn check(ranges: &[Range], below: &[Keeps], block: u32) -> Result<(), String> {
    let shown = |range: &Range| format!("{}+{} of subvolume {}", range.offset, range.bytes, range.below);
    for range in ranges {
        let size = below.get(range.below).map_or(0, |keeps| keeps.size_bytes);
        if ![range.offset, range.bytes].iter().all(|bytes| bytes.is_multiple_of(block.into())) {
            return Err(format!(
                "range {} cuts a block of {block} bytes; give multiples of {block}",
                shown(range)
            ));
        }
        if range.end() > size {
            return Err(format!("range {} leaves its {size} bytes; give a shorter one", shown(range)));
        }
    }
    let mut sorted: Vec<&Range> = ranges.iter().collect();
    sorted.sort_unstable_by_key(|range| (range.below, range.offset));
    let overlap = sorted
        .iter()
        .zip(sorted.iter().skip(1))
        .find(|(one, next)| one.below == next.below && next.offset < one.end());
    overlap.map_or(Ok(()), |(one, next)| {
        Err(format!("ranges {} and {} overlap; each byte can be in one place", shown(one), shown(next)))
    })
}

/// What all of them keep; the first decides where there is nothing to choose.
fn least(below: &[Keeps]) -> Option<Keeps> {
    let both = |one: Option<Bounds>, other: Option<Bounds>| Some(one?.least(other?));
    let worse = |one: Lifetime, other: Lifetime| Lifetime {
        pre_eol_info: one.pre_eol_info.max(other.pre_eol_info),
        typ_a: one.typ_a.max(other.typ_a),
        typ_b: one.typ_b.max(other.typ_b),
    };
    below.iter().copied().reduce(|one, other| Keeps {
        size_bytes: 0,
        block_bytes: one.block_bytes.max(other.block_bytes),
        physical_bytes: one.physical_bytes.max(other.physical_bytes),
        optimal_bytes: one.optimal_bytes.max(other.optimal_bytes),
        read_only: one.read_only || other.read_only,
        flush: one.flush && other.flush,
        fua: one.fua && other.fua,
        discard: both(one.discard, other.discard),
        zeroes: both(one.zeroes, other.zeroes),
        unmap: one.unmap && other.unmap,
        secure_erase: both(one.secure_erase, other.secure_erase),
        extents: one.extents && other.extents,
        lifetime: one.lifetime.zip(other.lifetime).map(|(one, other)| worse(one, other)),
    })
}

impl Volume for Map {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        let least = least(below).ok_or("it stands on nothing; give it subvolumes")?;
        let size_bytes = self.size_on(below, least.block_bytes)?;
        let table = self.table.get_or_init(|| Arc::new(self.table(below, least.block_bytes)));
        self.check_growth(table, below)?;
        // A larger unit is one of the disk only if no border cuts it.
        let fits = |unit: u32| {
            let is_whole = |bytes: u64| bytes.is_multiple_of(unit.into());
            table.ranges.iter().all(|(start, range)| is_whole(*start) && is_whole(range.offset))
        };
        let or = |unit: u32, other: u32| if fits(unit) { unit } else { other };
        let bounds =
            |bounds: Bounds| Bounds { align_bytes: or(bounds.align_bytes, least.block_bytes), ..bounds };
        Ok(Keeps {
            size_bytes,
            physical_bytes: or(least.physical_bytes, least.block_bytes),
            optimal_bytes: or(least.optimal_bytes, 0),
            discard: least.discard.map(bounds),
            zeroes: least.zeroes.map(bounds),
            secure_erase: least.secure_erase.map(bounds),
            ..least
        })
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        let none = || io::Error::other("a map has no table before it stands on something");
        let table = Arc::clone(self.table.get().ok_or_else(none)?);
        Ok(Box::new(MapLayer { table, joins: Joins::default() }))
    }
}

impl Table {
    /// The range that a byte is in, and where it begins.
    fn find(&self, offset: u64) -> Option<(u64, Range)> {
        let after = self.ranges.partition_point(|(start, _)| *start <= offset);
        let (start, range) = self.ranges.get(after.checked_sub(1)?)?;
        (offset.checked_sub(*start)? < range.bytes).then_some((*start, *range))
    }

    /// What of `offset..offset+bytes` lies in its first range: which subvolume, from where on, how many bytes.
    fn front(&self, offset: u64, bytes: u64) -> Option<Range> {
        let (start, range) = self.find(offset)?;
        let within = offset.saturating_sub(start);
        let (place, room) = (range.offset.checked_add(within)?, range.bytes.saturating_sub(within));
        Some(Range { offset: place, bytes: bytes.min(room), ..range })
    }
}

struct MapLayer {
    table: Arc<Table>,
    joins: Joins,
}

impl Layer for MapLayer {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        let Some((offset, bytes)) = call.op().range() else { return self.everywhere(call, host) };
        match self.table.front(offset, bytes) {
            Some(front) if front.bytes == bytes && call.kind() != OpKind::Extents => {
                call.push(offset);
                call.set_op(call.op().at(front.offset, bytes));
                Step::To(front.below, call)
            }
            Some(_) => self.cut(call, offset, bytes, host),
            None => Step::Up(call, Err(Errno::INVAL)),
        }
    }

    fn complete(&mut self, mut call: Call, outcome: Outcome, host: &mut Host<'_>) -> Step {
        let word = call.pop();
        if word & PIECE == 0 {
            let bytes = call.op().range().map_or(0, |(_, bytes)| bytes);
            call.set_op(call.op().at(word, bytes));
            return Step::Up(call, outcome);
        }
        let at = usize::try_from(word & !PIECE).unwrap_or(usize::MAX);
        if let (Some(extent), Some(whole)) = (call.extent(), self.joins.call(at)) {
            whole.set_extent(in_blocks(extent, self.table.block));
        }
        host.end(call);
        self.settle(at, outcome)
    }
}

impl MapLayer {
    /// A call that has no place goes everywhere.
    fn everywhere(&mut self, call: Call, host: &mut Host<'_>) -> Step {
        let (op, queue) = (call.op(), call.queue());
        let at = self.joins.begin(call);
        for below in 0..self.table.below {
            self.send(at, below, host.piece(queue, op, []), host);
        }
        self.settle(at, Ok(()))
    }

    /// Sends each part of a call to where it is.
    fn cut(&mut self, call: Call, offset: u64, bytes: u64, host: &mut Host<'_>) -> Step {
        let (op, queue) = (call.op(), call.queue());
        let at = self.joins.begin(call);
        let (mut next, mut left, mut outcome) = (offset, bytes, Ok(()));
        // What is taken from the call, and given back below: pieces are made of it meanwhile.
        let mut data = Vec::new();
        self.joins.call(at).into_iter().for_each(|call| call.swap_data(&mut data));
        let mut cutter = Cutter::new(&data);
        while left > 0 {
            let Some(front) = self.table.front(next, left) else {
                outcome = Err(Errno::INVAL);
                break;
            };
            let data = cutter.take(if carries_data(op) { front.bytes } else { 0 });
            let piece = host.piece(queue, op.at(front.offset, front.bytes), data);
            self.send(at, front.below, piece, host);
            // An extent is told up to the border.
            left = if op.kind() == OpKind::Extents { 0 } else { left.saturating_sub(front.bytes) };
            next = next.saturating_add(front.bytes);
        }
        self.joins.call(at).into_iter().for_each(|call| call.swap_data(&mut data));
        self.settle(at, outcome)
    }

    fn send(&mut self, at: usize, below: usize, mut piece: Call, host: &mut Host<'_>) {
        piece.push(PIECE | at as u64);
        self.joins.add(at);
        host.go(Step::To(below, piece));
    }

    fn settle(&mut self, at: usize, outcome: Outcome) -> Step {
        self.joins.done(at, outcome).map_or(Step::Held, |(call, outcome)| Step::Up(call, outcome))
    }
}

/// What can be said of whole blocks: one that is not all the same is data.
fn in_blocks(extent: Extent, block: u64) -> Extent {
    let rest = extent.bytes.checked_rem(block).unwrap_or(0);
    match extent.bytes.saturating_sub(rest) {
        0 => Extent { kind: ExtentKind::Data, bytes: block },
        bytes => Extent { bytes, ..extent },
    }
}

fn carries_data(op: Op) -> bool {
    matches!(op, Op::Read { .. } | Op::Write { .. })
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;

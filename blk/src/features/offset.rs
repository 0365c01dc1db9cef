//! `features/offset`: a window on a part of what is below, as a partition is.
//!
//! ```text
//! below:   │      start      │◄──────── size ────────►│            │        without `size`: all the rest, also what it
//! above:                     0                        end                  grows by
//! ```
//! In: operations from 0 on. Out: the same, `start` further on. Keeps what is below keeps; where `start` is no multiple of
//! a larger unit (physical blocks, the best size), that unit is not promised any more.
//! Refuses: a window that begins or ends within a block or leaves what is below; an operation that leaves the window.

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
use std::sync::Arc;

use rustix::io::Errno;

use super::only;
use crate::call::Call;
use crate::graph::options::{Preset, Setting, Type};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Outcome, Sees, Step, Volume};
use crate::op::{Bounds, Keeps, OpKind, OpSet};
/// What can be set.
pub const OPTIONS: &[Setting] = &[
    Setting {
        name: "offset",
        kind: Type::Size(0..=u64::MAX),
        preset: Preset::Is("0"),
        about: "Where the part begins",
    },
    Setting {
        name: "size",
        kind: Type::Size(512..=u64::MAX),
        preset: Preset::Absent,
        about: "Its length; without it all the rest",
    },
];
/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "features/offset",
    about: "A part of what is below, as a partition is",
    subvolumes: 1..=1,
    options: OPTIONS,
    prepare: None,
    make: |made| {
        let start = made.values.number("offset").unwrap_or(0);
        Ok(Arc::new(Offset::new(start, made.values.number("size"))))
    },
};

/// Operations that have a place.
const PLACED: OpSet = OpSet::of(&[
    OpKind::Read,
    OpKind::Write,
    OpKind::Discard,
    OpKind::Zeroes,
    OpKind::SecureErase,
    OpKind::Extents,
]);

/// The window.
#[derive(Clone, Copy, Debug)]
pub struct Offset {
    start: u64,
    size: Option<u64>,
}

impl Offset {
    /// A window of `size` bytes, or of all there are, from `start` on.
    pub fn new(start: u64, size: Option<u64>) -> Offset {
        Offset { start, size }
    }

    /// Bytes of the window on a volume of so many.
    fn size_on(&self, below: &Keeps) -> Result<u64, String> {
        let (start, all, block) = (self.start, below.size_bytes, below.block_bytes);
        let is_whole = |bytes: u64| bytes.is_multiple_of(block.into());
        let rest = all.checked_sub(start).filter(|rest| *rest > 0);
        let rest =
            rest.ok_or_else(|| format!("offset {start} is behind the {all} bytes below; give less"))?;
        let size = self.size.unwrap_or(rest);
        match (start, size) {
            _ if !is_whole(start) => Err(format!(
                "offset {start} is within a block of {block} bytes below; give a multiple of {block}"
            )),
            _ if !is_whole(size) => Err(format!(
                "size {size} ends within a block of {block} bytes below; give a multiple of {block}"
            )),
            _ if size > rest => {
                Err(format!("size {size} from {start} on leaves the {all} bytes below; give at most {rest}"))
            }
            _ => Ok(size),
        }
    }
}

impl Volume for Offset {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        let below = only(below)?;
        let size_bytes = self.size_on(&below)?;
        let or = |unit: u32, other: u32| if self.start.is_multiple_of(unit.into()) { unit } else { other };
        let bounds =
            |bounds: Bounds| Bounds { align_bytes: or(bounds.align_bytes, below.block_bytes), ..bounds };
        Ok(Keeps {
            size_bytes,
            physical_bytes: or(below.physical_bytes, below.block_bytes),
            optimal_bytes: or(below.optimal_bytes, 0),
            discard: below.discard.map(bounds),
            zeroes: below.zeroes.map(bounds),
            secure_erase: below.secure_erase.map(bounds),
            ..below
        })
    }

    fn sees(&self) -> Sees {
        Sees { down: PLACED, up: PLACED }
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(*self))
    }
}

impl Layer for Offset {
    fn submit(&mut self, mut call: Call, _: &mut Host<'_>) -> Step {
        let Some((offset, bytes)) = call.op().range() else { return Step::Down(call) };
        // Who is above could err, and next to the window there may be somebody else's.
        let end = offset.checked_add(bytes).filter(|end| *end <= self.size.unwrap_or(u64::MAX));
        let (Some(_), Some(place)) = (end, offset.checked_add(self.start)) else {
            return Step::Up(call, Err(Errno::INVAL));
        };
        call.set_op(call.op().at(place, bytes));
        Step::Down(call)
    }

    fn complete(&mut self, mut call: Call, outcome: Outcome, _: &mut Host<'_>) -> Step {
        if let Some((place, bytes)) = call.op().range() {
            call.set_op(call.op().at(place.saturating_sub(self.start), bytes));
        }
        Step::Up(call, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::testing::{Disk, Ram, stack};

    fn keeps(start: u64, size: Option<u64>, below: Keeps) -> Result<Keeps, String> {
        Offset::new(start, size).keeps(&[below])
    }

    #[test]
    fn a_window_shows_its_part_and_no_more() {
        let ram = Ram::new(1 << 20, 512);
        let graph = stack(vec![ram.volume(), Box::new(Offset::new(4096, Some(8192)))]);
        assert_eq!(graph.disk().size_bytes, 8192);
        let mut disk = Disk::new(&graph);
        disk.write(0, &[1; 512]).unwrap();
        disk.write(7680, &[2; 512]).unwrap();
        assert_eq!(ram.bytes(4096, 512), [1; 512]);
        assert_eq!(ram.bytes(4096 + 7680, 512), [2; 512]);
        assert_eq!(disk.read(7680, 512).unwrap(), [2; 512]);
        for (offset, bytes) in [(8192, 512), (7680, 1024), (u64::MAX - 511, 512)] {
            assert_eq!(disk.run(Op::Discard { offset, bytes }), Err(Errno::INVAL));
        }
        assert_eq!(ram.seen().len(), 3);
    }

    #[test]
    fn the_operation_comes_up_as_it_went_down() {
        let ram = Ram::new(1 << 20, 512);
        let graph =
            stack(vec![ram.volume(), Box::new(Offset::new(4096, None)), Box::new(Offset::new(512, None))]);
        let mut disk = Disk::new(&graph);
        let op = Op::Extents { offset: 1024, bytes: 4096 };
        assert_eq!(disk.run(op), Ok(()));
        assert_eq!(disk.last(), Some(op));
        assert_eq!(ram.last(), Some(Op::Extents { offset: 4096 + 512 + 1024, bytes: 4096 }));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let below = Keeps::plain(1 << 20, 4096);
        for (start, size, told) in [
            (1 << 20, None, "offset 1048576 is behind the 1048576 bytes below; give less"),
            (512, None, "offset 512 is within a block of 4096 bytes below; give a multiple of 4096"),
            (0, Some(512), "size 512 ends within a block of 4096 bytes below; give a multiple of 4096"),
            (
                4096,
                Some(1 << 20),
                "size 1048576 from 4096 on leaves the 1048576 bytes below; give at most 1044480",
            ),
        ] {
            assert_eq!(keeps(start, size, below), Err(told.to_owned()));
        }
    }

    #[test]
    fn units_that_it_cuts_are_not_promised() {
        let bounds = Some(Bounds { max_bytes: 1 << 20, align_bytes: 65536 });
        let below = Keeps {
            physical_bytes: 4096,
            optimal_bytes: 65536,
            discard: bounds,
            fua: true,
            ..Keeps::plain(1 << 20, 512)
        };
        let aligned = keeps(65536, None, below).unwrap();
        assert_eq!(aligned, Keeps { size_bytes: (1 << 20) - 65536, ..below });
        let askew = keeps(512, None, below).unwrap();
        assert_eq!((askew.physical_bytes, askew.optimal_bytes, askew.fua), (512, 0, true));
        assert_eq!(askew.discard.unwrap().align_bytes, 512);
        assert_eq!(keeps(4096, None, below).unwrap().physical_bytes, 4096);
    }
}

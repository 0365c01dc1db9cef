//! `storage/null`: nothing. Reads give zeros, what is written is forgotten.
//!
//! In: calls. Out: outcomes, at once: what a graph costs without a host below it.

use std::io;
use std::sync::Arc;

use backends::memory::own::fill_with_zeros;

use super::file::{BLOCK_SIZE, block_bytes};
use crate::call::Call;
use crate::graph::options::{Bad, Preset, Setting, Type, Values};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Sees, Step, Volume};
use crate::op::{Bounds, Extent, ExtentKind, Keeps, Op};

/// What can be set of leaves without a file.
pub(super) const OPTIONS: &[Setting] = &[
    Setting {
        name: "size",
        kind: Type::Size(4096..=1 << 60),
        preset: Preset::Required,
        about: "Of the disk: whole blocks",
    },
    BLOCK_SIZE,
];

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "storage/null",
    about: "Nothing: reads give zeros, what is written is forgotten",
    subvolumes: 0..=0,
    options: OPTIONS,
    prepare: None,
    make: |made| {
        Ok(Arc::new(Null { size_bytes: size_bytes(made.values)?, block_bytes: block_bytes(made.values) }))
    },
};

/// The size that was asked for.
pub(super) fn size_bytes(values: &Values) -> Result<u64, Bad> {
    let (size, block) = (values.number("size").unwrap_or(0), block_bytes(values));
    if !size.is_multiple_of(block.into()) {
        return Err(Bad::option(
            "size",
            format_args!("it is no multiple of block-size {block}; give whole blocks"),
        ));
    }
    Ok(size)
}

/// A disk of this size that keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct Null {
    /// Bytes.
    pub size_bytes: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
}

impl Volume for Null {
    fn keeps(&self, _: &[Keeps]) -> Result<Keeps, String> {
        let all = Some(Bounds { max_bytes: self.size_bytes, align_bytes: self.block_bytes });
        Ok(Keeps {
            discard: all,
            zeroes: all,
            unmap: true,
            extents: true,
            ..Keeps::plain(self.size_bytes, self.block_bytes)
        })
    }

    fn sees(&self) -> Sees {
        Sees::DOWN
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(*self))
    }
}

impl Layer for Null {
    fn submit(&mut self, mut call: Call, _: &mut Host<'_>) -> Step {
        match call.op() {
            Op::Read { .. } => call.data().iter().copied().for_each(fill_with_zeros),
            Op::Extents { bytes, .. } => call.set_extent(Extent { kind: ExtentKind::Hole, bytes }),
            Op::Write { .. }
            | Op::Flush
            | Op::Discard { .. }
            | Op::Zeroes { .. }
            | Op::SecureErase { .. } => {}
        }
        Step::Up(call, Ok(()))
    }
}

//! `features/read-only`: whatever is below, it stays as it is.
//!
//! In: any operation. Out: those that change nothing. Keeps what is below keeps, but takes nothing that writes.
//! Refuses the rest by `EROFS`, for a caller that does not look at what is kept.

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
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Sees, Step, Volume};
use crate::op::{Keeps, OpSet};
/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "features/read-only",
    about: "What is below, but nobody can change it",
    subvolumes: 1..=1,
    options: &[],
    prepare: None,
    make: |_| Ok(Arc::new(ReadOnly)),
};

/// A volume that nobody changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnly;

impl Volume for ReadOnly {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        let nothing = Keeps { discard: None, zeroes: None, secure_erase: None, ..only(below)? };
        Ok(Keeps { read_only: true, unmap: false, ..nothing })
    }

    fn sees(&self) -> Sees {
        Sees { down: OpSet::ALTERING, up: OpSet::NONE }
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(ReadOnly))
    }
}

impl Layer for ReadOnly {
    fn submit(&mut self, call: Call, _: &mut Host<'_>) -> Step {
        Step::Up(call, Err(Errno::ROFS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Op, OpKind};
    use crate::testing::{Ram, stack};

    #[test]
    fn reads_pass_and_what_changes_is_refused_at_every_door() {
        let ram = Ram::new(1 << 20, 512);
        let graph = stack(vec![ram.volume(), Box::new(ReadOnly)]);
        assert!(graph.disk().read_only);
        assert_eq!(graph.disk().ops(), OpSet::of(&[OpKind::Read, OpKind::Flush, OpKind::Extents]));
        let mut disk = crate::testing::Disk::new(&graph);
        disk.read(4096, 512).unwrap();
        for op in [
            Op::Write { offset: 0, bytes: 512, fua: false },
            Op::Discard { offset: 0, bytes: 512 },
            Op::Zeroes { offset: 0, bytes: 512, unmap: true },
            Op::SecureErase { offset: 0, bytes: 512 },
        ] {
            assert_eq!(disk.run(op), Err(Errno::ROFS), "{op:?}");
        }
        assert_eq!(disk.run(Op::Flush), Ok(()));
        assert_eq!(ram.seen(), [OpKind::Read, OpKind::Flush]);
    }
}

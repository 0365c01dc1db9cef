//! `features/crypt`: what is below holds nothing that can be read without the key.
//!
//! ```text
//! write: guest ──copy──► bounce buffer ──encipher──► below           the guest's memory is read once, and never holds
//! read:  guest ◄──copy── bounce buffer ◄──decipher── below           what is below: the guest could look at that, or
//! ```                                                                  change it while it is being enciphered
//! In: any operation. Out: reads and writes of enciphered bytes, in the format of [`crate::cipher`]; discards and flushes as
//! they are. Keeps what is below keeps, in blocks of at least a sector; zeros and extents are not promised, since what is
//! zero below is noise above. Promises: buffers for `memory` bytes at most, whatever comes; calls that find none wait
//! in their order, long ones piece by piece; nothing is allocated once there were as many in flight.
//! Refuses: no key, one that others can read, one that is none; a size that is not in whole sectors.

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

mod bounce;
mod key;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use serde_json::{Map, Value};

use self::bounce::{Bounce, PIECE_BYTES};
use super::cut::{Cutter, gather, scatter};
use super::join::Joins;
use super::only;
use crate::call::Call;
use crate::cipher::{CipherError, Key, Xts};
use crate::debug::tally::{Lane, Tally};
use crate::graph::options::{Preset, Setting, Type};
use crate::graph::registry::Kind;
use crate::graph::{Host, Layer, Outcome, Release, Sees, Step, Volume};
use crate::op::{Bounds, Keeps, Op, OpKind, OpSet};

/// What can be set.
pub const OPTIONS: &[Setting] = &[
    Setting {
        name: "key-file",
        kind: Type::Path,
        preset: Preset::Absent,
        about: "File with the key: 64 random bytes, or as 128 hexadecimal digits; only its owner may read it",
    },
    Setting {
        name: "key-credential",
        kind: Type::Text(1..=255),
        preset: Preset::Absent,
        about: "Name of the systemd credential that is the key, instead of a file",
    },
    Setting {
        name: "sector",
        kind: Type::Enum(&["512", "4096"]),
        preset: Preset::Is("512"),
        about: "Bytes that are enciphered as one; the disk has no smaller blocks. 4096 is faster",
    },
    Setting {
        name: "memory",
        kind: Type::Size(1 << 20..=1 << 32),
        preset: Preset::Is("32M"),
        about: "Most memory that each worker uses for data on their way",
    },
];

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "features/crypt",
    about: "What is below, enciphered with AES-256-XTS",
    subvolumes: 1..=1,
    options: OPTIONS,
    prepare: Some(key::prepare),
    make: |made| {
        let sector = made.values.word("sector").and_then(|word| word.parse().ok()).unwrap_or(512);
        let memory = made.values.number("memory").unwrap_or(32 << 20);
        Ok(Arc::new(Crypt::new(key::take(made)?, sector, memory)))
    },
};

/// Operations that carry data.
const SEEN: OpSet = OpSet::of(&[OpKind::Read, OpKind::Write]);
const ENCIPHERED: usize = 0;
const DECIPHERED: usize = 1;
const WAITED: usize = 2;
/// A call that is no piece of another.
const WHOLE: u64 = u32::MAX as u64;

/// An enciphered volume.
#[derive(Debug)]
pub struct Crypt {
    key: Key,
    sector: u32,
    buffers: usize,
    tally: Tally,
}

impl Crypt {
    /// With this key, in sectors of so many bytes, and with so much memory for each worker.
    pub fn new(key: Key, sector: u32, memory: u64) -> Crypt {
        let buffers = usize::try_from(memory).unwrap_or(usize::MAX).checked_div(PIECE_BYTES).unwrap_or(1);
        Crypt { key, sector, buffers: buffers.clamp(1, 1 << 16), tally: Tally::new(3) }
    }
}

impl Volume for Crypt {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        let (below, sector) = (only(below)?, self.sector);
        let (size, block) = (below.size_bytes, below.block_bytes.max(sector));
        if !size.is_multiple_of(block.into()) {
            return Err(format!(
                "the {size} bytes below are no whole sectors of {sector}; enlarge it, or add option sector 512"
            ));
        }
        let bounds = |bounds: Bounds| Bounds { align_bytes: bounds.align_bytes.max(block), ..bounds };
        Ok(Keeps {
            block_bytes: block,
            physical_bytes: below.physical_bytes.max(block),
            discard: below.discard.map(bounds),
            secure_erase: below.secure_erase.map(bounds),
            zeroes: None,
            unmap: false,
            extents: false,
            ..below
        })
    }

    fn sees(&self) -> Sees {
        Sees { down: SEEN, up: SEEN }
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        let failed = |_: CipherError| io::Error::from(io::ErrorKind::OutOfMemory);
        Ok(Box::new(Crypting {
            xts: Xts::new(&self.key, self.sector).map_err(failed)?,
            sector: self.sector.into(),
            bounce: Bounce::new(self.buffers)?,
            waiting: VecDeque::new(),
            joins: Joins::default(),
            lane: self.tally.lane(),
        }))
    }

    fn state(&self) -> Map<String, Value> {
        let members: [(&str, Value); 5] = [
            ("cipher", "aes-256-xts".into()),
            ("sector_bytes", self.sector.into()),
            ("enciphered_bytes", self.tally.sum(ENCIPHERED).into()),
            ("deciphered_bytes", self.tally.sum(DECIPHERED).into()),
            ("waited_for_memory", self.tally.sum(WAITED).into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }
}

/// What waits for a buffer.
enum Waiting {
    /// A call that goes as it is.
    Call(Call),
    /// What is left of one that is longer than a buffer.
    Rest { at: usize, next: u64, left: u64 },
}

struct Crypting {
    xts: Xts,
    sector: u64,
    bounce: Bounce,
    waiting: VecDeque<Waiting>,
    joins: Joins,
    lane: Lane,
}

impl Layer for Crypting {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        let (offset, bytes) = call.op().range().unwrap_or((0, 0));
        let is_short = bytes <= PIECE_BYTES as u64;
        if is_short
            && self.waiting.is_empty()
            && let Some(buffer) = self.bounce.take()
        {
            return match self.load(&mut call, buffer, WHOLE) {
                Ok(()) => Step::Down(call),
                Err(errno) => Step::Up(call, Err(errno)),
            };
        }
        if is_short {
            self.lane.add(WAITED, 1);
            self.waiting.push_back(Waiting::Call(call));
        } else {
            let at = self.joins.begin(call);
            self.waiting.push_back(Waiting::Rest { at, next: offset, left: bytes });
        }
        self.pump(host);
        Step::Held
    }

    fn complete(&mut self, mut call: Call, outcome: Outcome, host: &mut Host<'_>) -> Step {
        let word = call.pop();
        let outcome = self.unload(&mut call, word, outcome);
        self.pump(host);
        match word >> 32 {
            WHOLE => Step::Up(call, outcome),
            at => {
                host.end(call);
                self.settle(usize::try_from(at).unwrap_or(usize::MAX), outcome)
            }
        }
    }

    fn release(&mut self, queue: u16, how: Release, host: &mut Host<'_>) {
        // What waits goes on by itself, as soon as what is below has answered others.
        if how == Release::Go {
            return;
        }
        let mut rests = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Call(call) if call.queue() == queue => host.go(Step::Up(call, Err(Errno::CANCELED))),
                Waiting::Rest { at, .. } if self.joins.call(at).is_some_and(|call| call.queue() == queue) => {
                    rests.push(at);
                }
                other => self.waiting.push_back(other),
            }
        }
        for at in rests {
            host.go(self.settle(at, Err(Errno::CANCELED)));
        }
    }
}

impl Crypting {
    /// Puts a buffer in the place of the call's data. Without it the call comes up.
    fn load(&mut self, call: &mut Call, buffer: usize, join: u64) -> Outcome {
        let op = call.op();
        let (offset, bytes) = op.range().unwrap_or((0, 0));
        let first = offset.checked_div(self.sector).unwrap_or(0);
        if matches!(op, Op::Write { .. }) {
            let room = self.bounce.bytes(buffer, bytes);
            gather(call.data(), room);
            if self.xts.encipher(first, room).is_err() {
                self.bounce.give_back(buffer);
                return Err(Errno::IO);
            }
            self.lane.add(ENCIPHERED, bytes);
        }
        self.bounce.lend(buffer, bytes, call);
        call.push(join << 32 | buffer as u64);
        Ok(())
    }

    /// Gives the call its own data again, filled if it reads.
    fn unload(&mut self, call: &mut Call, word: u64, outcome: Outcome) -> Outcome {
        let buffer = usize::try_from(word & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        self.bounce.end_loan(buffer, call);
        let mut outcome = outcome;
        if let (Op::Read { offset, bytes }, Ok(())) = (call.op(), outcome) {
            let room = self.bounce.bytes(buffer, bytes);
            match self.xts.decipher(offset.checked_div(self.sector).unwrap_or(0), room) {
                Ok(()) => scatter(room, call.data()),
                Err(CipherError) => outcome = Err(Errno::IO),
            }
            self.lane.add(DECIPHERED, bytes);
        }
        self.bounce.give_back(buffer);
        outcome
    }

    /// Sends on what waits, as long as there are buffers.
    fn pump(&mut self, host: &mut Host<'_>) {
        while !self.waiting.is_empty()
            && let Some(buffer) = self.bounce.take()
        {
            let step = match self.waiting.pop_front() {
                Some(Waiting::Call(mut call)) => match self.load(&mut call, buffer, WHOLE) {
                    Ok(()) => Step::Down(call),
                    Err(errno) => Step::Up(call, Err(errno)),
                },
                Some(Waiting::Rest { at, next, left }) => self.cut(at, next, left, buffer, host),
                None => Step::Held,
            };
            host.go(step);
        }
    }

    /// Sends the next piece of a call that is longer than a buffer. The call, if that fails and nothing is under way.
    fn cut(&mut self, at: usize, next: u64, left: u64, buffer: usize, host: &mut Host<'_>) -> Step {
        let bytes = left.min(PIECE_BYTES as u64);
        let Some(mut piece) = self.piece(at, next, bytes, host) else { return Step::Held };
        match self.load(&mut piece, buffer, at as u64) {
            Ok(()) => host.go(Step::Down(piece)),
            Err(errno) => {
                host.end(piece);
                return self.settle(at, Err(errno));
            }
        }
        // The last piece is the one that the call has counted as from the beginning.
        if left > bytes {
            let (next, left) = (next.saturating_add(bytes), left.saturating_sub(bytes));
            self.joins.add(at);
            self.waiting.push_front(Waiting::Rest { at, next, left });
        }
        Step::Held
    }

    /// The next piece of a call that waits.
    fn piece(&mut self, at: usize, next: u64, bytes: u64, host: &mut Host<'_>) -> Option<Call> {
        let whole = self.joins.call(at)?;
        let mut data = Cutter::new(whole.data());
        let piece = host.piece(whole.queue(), whole.op().at(next, bytes), data.take(bytes));
        whole.advance(usize::try_from(bytes).unwrap_or(usize::MAX));
        Some(piece)
    }

    fn settle(&mut self, at: usize, outcome: Outcome) -> Step {
        self.joins.done(at, outcome).map_or(Step::Held, |(call, outcome)| Step::Up(call, outcome))
    }
}

#[cfg(test)]
#[path = "crypt_tests.rs"]
mod tests;

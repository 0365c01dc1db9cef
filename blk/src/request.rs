//! From a chain to a command: what the driver asks for, checked against the disk.
//!
//! In: a chain as the queue gave it, and what the disk keeps. Out: a [`Parsed`], which holds the status
//! byte's place and a [`Command`] or the status that refuses it; the chain is left with the data alone. The ranges of a
//! discard and its like are taken off it one by one, by [`next_range`].
//! Pure: no I/O, nothing of the host. The driver may cut header, data and status into descriptors as it
//! likes (virtio 1.3 §2.7.4.1): the header is the first 16 readable bytes, the status the last writable one.
//!
//! Promises: a command's bytes are whole blocks within the disk, nothing alters a read-only disk (§5.2.6.2). Ranges are
//! checked twice: all before the first is carried out, so that a request that is wrong does nothing; and each again when
//! it is taken, since a driver can write to it in between.
//! Refuses: a chain without a whole header or without a status byte, by `None`: there is nothing to say and
//! nowhere to say it; anything else by status.

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

use backends::chain::Chain;
use backends::memory::Segment;
use virtio_bindings::virtio_blk as spec;

use crate::offer::MAX_RANGES;
use crate::op::{Bounds, Keeps, Op};
use crate::wire::{self, Header, ID_BYTES, LIFETIME_BYTES, Range, SECTOR_BYTES, Status};

/// A request that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fill the writable part from the disk.
    Read {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes of the writable part.
        bytes: u64,
    },
    /// Store the readable part on the disk.
    Write {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes of the readable part.
        bytes: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// Tell the serial number; there is room for it.
    GetId,
    /// Tell how worn the disk is; there is room for it.
    GetLifetime,
    /// One after the other, what [`next_range`] takes off the readable part.
    Ranges(Fate),
}

/// What becomes of ranges of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Their bytes are of no use any more.
    Discard,
    /// They read as zeros.
    Zeroes,
    /// Nobody can read what was there.
    SecureErase,
}

/// A request with a place for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// The status byte.
    pub status: Segment,
    /// Bytes that the driver lets us write, the status included.
    pub room: u64,
    /// What to do, or the answer if that is nothing.
    pub command: Result<Command, Status>,
}

/// Takes header and status off the chain; `None` if it has not both.
pub fn parse(chain: &mut Chain, keeps: &Keeps) -> Option<Parsed> {
    let room = chain.writable_bytes();
    let header = Header::from_bytes(chain.read_front()?);
    let status = chain.take_last_byte()?;
    Some(Parsed { status, room, command: command(header, chain, keeps) })
}

/// What the header asks for, with what is left of the chain as its data.
fn command(header: Header, data: &Chain, keeps: &Keeps) -> Result<Command, Status> {
    match header.kind {
        spec::VIRTIO_BLK_T_IN => {
            let bytes = data.writable_bytes();
            let offset = place(header.sector, bytes, keeps)?;
            Ok(Command::Read { offset, bytes })
        }
        // §5.2.6.2: a write to a read-only device fails, and nothing is written.
        spec::VIRTIO_BLK_T_OUT if keeps.read_only => Err(Status::IoErr),
        spec::VIRTIO_BLK_T_OUT => {
            let bytes = data.readable_bytes();
            let offset = place(header.sector, bytes, keeps)?;
            Ok(Command::Write { offset, bytes })
        }
        spec::VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
        spec::VIRTIO_BLK_T_GET_ID => room(data, ID_BYTES).map(|()| Command::GetId),
        wire::VIRTIO_BLK_T_GET_LIFETIME if keeps.lifetime.is_some() => {
            room(data, LIFETIME_BYTES).map(|()| Command::GetLifetime)
        }
        spec::VIRTIO_BLK_T_DISCARD => ranges(Fate::Discard, data, keeps),
        spec::VIRTIO_BLK_T_WRITE_ZEROES => ranges(Fate::Zeroes, data, keeps),
        spec::VIRTIO_BLK_T_SECURE_ERASE => ranges(Fate::SecureErase, data, keeps),
        _ => Err(Status::Unsupported),
    }
}

/// Whether there is room for an answer of this many bytes.
fn room(data: &Chain, bytes: usize) -> Result<(), Status> {
    let room = usize::try_from(data.writable_bytes()).unwrap_or(usize::MAX);
    if room < bytes { Err(Status::IoErr) } else { Ok(()) }
}

/// Where `bytes` from `sector` on begin, if they are whole blocks of the disk (§5.2.6.1).
fn place(sector: u64, bytes: u64, keeps: &Keeps) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoErr)?;
    let end = offset.checked_add(bytes).ok_or(Status::IoErr)?;
    let is_whole = |number: u64| number.is_multiple_of(keeps.block_bytes.into());
    if is_whole(offset) && is_whole(bytes) && end <= keeps.size_bytes {
        Ok(offset)
    } else {
        Err(Status::IoErr)
    }
}

/// Bytes of the most ranges.
const MAX_BYTES: u64 = MAX_RANGES as u64 * Range::BYTES as u64;

/// Looks at all ranges, and takes none (§5.2.6.1: whole ones, not more than were allowed).
fn ranges(fate: Fate, data: &Chain, keeps: &Keeps) -> Result<Command, Status> {
    // §5.2.6.2, as of a write: before anything else, whatever is kept.
    if keeps.read_only {
        return Err(Status::IoErr);
    }
    bounds(fate, keeps).ok_or(Status::Unsupported)?;
    let bytes = data.readable_bytes();
    if !bytes.is_multiple_of(Range::BYTES as u64) || bytes > MAX_BYTES {
        return Err(Status::IoErr);
    }
    data.records().map(Range::from_bytes).try_for_each(|range| check(fate, range, keeps).map(drop))?;
    Ok(Command::Ranges(fate))
}

/// Takes the next range off the data of a [`Command::Ranges`], and says what to do there, or why not; `None`: there is no
/// more.
pub fn next_range(fate: Fate, data: &mut Chain, keeps: &Keeps) -> Option<Result<Op, Status>> {
    Some(check(fate, Range::from_bytes(data.read_front()?), keeps))
}

fn check(fate: Fate, range: Range, keeps: &Keeps) -> Result<Op, Status> {
    let unmap = range.flags == spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    // §5.2.6.2: unknown flags, and unmap where it means nothing, are answered so.
    if range.flags != 0 && !(unmap && fate == Fate::Zeroes) {
        return Err(Status::Unsupported);
    }
    let bytes = u64::from(range.sectors).saturating_mul(SECTOR_BYTES);
    if bounds(fate, keeps).is_none_or(|bounds| bounds.max_bytes < bytes) {
        return Err(Status::IoErr);
    }
    let offset = place(range.sector, bytes, keeps)?;
    Ok(match fate {
        Fate::Discard => Op::Discard { offset, bytes },
        Fate::Zeroes => Op::Zeroes { offset, bytes, unmap: unmap && keeps.unmap },
        Fate::SecureErase => Op::SecureErase { offset, bytes },
    })
}

/// How long a range may be, if the disk takes such at all.
fn bounds(fate: Fate, keeps: &Keeps) -> Option<Bounds> {
    match fate {
        Fate::Discard => keeps.discard,
        Fate::Zeroes => keeps.zeroes,
        Fate::SecureErase => keeps.secure_erase,
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

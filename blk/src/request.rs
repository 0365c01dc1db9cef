//! From a chain to a command: what the driver asks for, checked against the disk.
//!
//! In: a chain as the queue gave it, and the limits of the disk. Out: a [`Parsed`], which holds the status
//! byte's place and a [`Command`] or the status that refuses it; the chain is left with the data alone.
//! Pure: no I/O, nothing of the host. The driver may cut header, data and status into descriptors as it
//! likes (virtio 1.3 §2.7.4.1): the header is the first 16 readable bytes, the status the last writable one.
//!
//! Promises: a command's bytes lie within the disk, its length is a multiple of the sector, a write goes to
//! no read-only disk (§5.2.6.2).
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

use crate::wire::{Header, ID_BYTES, SECTOR_BYTES, Status};

/// What requests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Nothing may be written.
    pub read_only: bool,
}

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
pub fn parse(chain: &mut Chain, limits: Limits) -> Option<Parsed> {
    let room = chain.writable_bytes();
    let header = Header::from_bytes(chain.read_front()?);
    let status = chain.take_last_byte()?;
    Some(Parsed { status, room, command: command(header, chain, limits) })
}

/// What the header asks for, with what is left of the chain as its data.
fn command(header: Header, data: &Chain, limits: Limits) -> Result<Command, Status> {
    match header.kind {
        spec::VIRTIO_BLK_T_IN => {
            let bytes = data.writable_bytes();
            let offset = place(header.sector, bytes, limits)?;
            Ok(Command::Read { offset, bytes })
        }
        // §5.2.6.2: a write to a read-only device fails, and nothing is written.
        spec::VIRTIO_BLK_T_OUT if limits.read_only => Err(Status::IoErr),
        spec::VIRTIO_BLK_T_OUT => {
            let bytes = data.readable_bytes();
            let offset = place(header.sector, bytes, limits)?;
            Ok(Command::Write { offset, bytes })
        }
        spec::VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
        spec::VIRTIO_BLK_T_GET_ID => match usize::try_from(data.writable_bytes()) {
            Ok(room) if room >= ID_BYTES => Ok(Command::GetId),
            _ => Err(Status::IoErr),
        },
        _ => Err(Status::Unsupported),
    }
}

/// Where `bytes` from `sector` on begin, if they are whole sectors of the disk (§5.2.6.1).
fn place(sector: u64, bytes: u64, limits: Limits) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoErr)?;
    let end = offset.checked_add(bytes).ok_or(Status::IoErr)?;
    if bytes.is_multiple_of(SECTOR_BYTES) && end <= limits.size_bytes {
        Ok(offset)
    } else {
        Err(Status::IoErr)
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

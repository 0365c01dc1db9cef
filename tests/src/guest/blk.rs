//! A driver for the block device (virtio 1.3 §5.2), free in its framing.
//!
//! A request is two streams: header and data out, which the device reads, then data in and status, which it
//! writes. [`Framing`] says how each stream is cut into descriptors: the specification leaves that to the
//! driver (§2.7.4.2), so header, data and status may share descriptors or be spread over many.

use virtio_bindings::virtio_blk;

use super::chain::Chain;
use super::ring::{Completion, Ring, RingError};

/// Read.
pub const IN: u32 = virtio_blk::VIRTIO_BLK_T_IN;
/// Write.
pub const OUT: u32 = virtio_blk::VIRTIO_BLK_T_OUT;
/// Make what was written durable.
pub const FLUSH: u32 = virtio_blk::VIRTIO_BLK_T_FLUSH;
/// Read the serial number.
pub const GET_ID: u32 = virtio_blk::VIRTIO_BLK_T_GET_ID;
/// Read how worn the disk is.
pub const GET_LIFETIME: u32 = 10;
/// Bytes of ranges are of no use any more.
pub const DISCARD: u32 = virtio_blk::VIRTIO_BLK_T_DISCARD;
/// Ranges read as zeros.
pub const WRITE_ZEROES: u32 = virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES;
/// Nobody can read what was in ranges.
pub const SECURE_ERASE: u32 = virtio_blk::VIRTIO_BLK_T_SECURE_ERASE;
/// Flag of a range of zeroes: its room may be given back.
pub const UNMAP: u32 = virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
/// Where the driver chooses the mode of the cache, in the configuration space.
pub const WRITEBACK: u32 = 32;
/// Status: done.
pub const OK: u8 = 0;
/// Status: failed.
pub const IOERR: u8 = 1;
/// Status: the device does not know such requests.
pub const UNSUPP: u8 = 2;
/// Bytes of a sector, whatever the device's block size.
pub const SECTOR_BYTES: u32 = 512;
/// Bytes of a serial number.
pub const ID_BYTES: u32 = 20;

/// How a request is cut into descriptors.
#[derive(Clone, Debug, Default)]
pub struct Framing {
    /// Lengths of the readable descriptors; the last of them takes what is left.
    pub out: Vec<usize>,
    /// Lengths of the writable descriptors; the last of them takes what is left.
    pub input: Vec<u32>,
    /// All of it through an indirect table.
    pub indirect: bool,
}

impl Framing {
    /// Header, data and status apart, as Linux does it.
    pub fn usual(data_in: u32) -> Framing {
        let input = if data_in == 0 { Vec::new() } else { vec![data_in] };
        Framing { out: vec![16], input, indirect: false }
    }

    /// Two descriptors: everything to read, everything to write.
    pub fn joined() -> Framing {
        Framing::default()
    }

    /// Pieces of `len` bytes at most `count` times, then the rest.
    pub fn pieces(len: u32, count: usize) -> Framing {
        Framing {
            out: vec![usize::try_from(len).unwrap_or(1); count],
            input: vec![len; count],
            indirect: false,
        }
    }
}

/// One request in the device's terms.
#[derive(Clone, Debug)]
pub struct Request {
    /// [`IN`], [`OUT`], [`FLUSH`], [`GET_ID`] or any other number.
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// Bytes after the header.
    pub data_out: Vec<u8>,
    /// Room before the status byte.
    pub data_in: u32,
}

impl Request {
    /// Read `bytes` from `sector` on.
    pub fn read(sector: u64, bytes: u32) -> Request {
        Request { kind: IN, sector, data_out: Vec::new(), data_in: bytes }
    }

    /// Write `data` from `sector` on.
    pub fn write(sector: u64, data: &[u8]) -> Request {
        Request { kind: OUT, sector, data_out: data.to_vec(), data_in: 0 }
    }

    /// A request of this kind without data.
    pub fn bare(kind: u32) -> Request {
        Request { kind, sector: 0, data_out: Vec::new(), data_in: 0 }
    }

    /// A [`DISCARD`], [`WRITE_ZEROES`] or [`SECURE_ERASE`] of ranges: first sector, sectors, flags.
    pub fn ranges(kind: u32, ranges: &[(u64, u32, u32)]) -> Request {
        let bytes = |(sector, sectors, flags): &(u64, u32, u32)| {
            [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        Request { data_out: ranges.iter().flat_map(bytes).collect(), ..Request::bare(kind) }
    }

    /// `struct virtio_blk_outhdr`: type, reserved (the legacy priority), sector.
    pub fn header(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sector.to_le_bytes());
        bytes
    }

    /// The chain of this request, cut as `framing` says.
    pub fn chain(&self, framing: &Framing) -> Chain {
        let out = [&self.header()[..], &self.data_out].concat();
        let chain = cut_out(Chain::new(), &out, &framing.out);
        let chain = cut_in(chain, self.data_in + 1, &framing.input);
        if framing.indirect { chain.indirect() } else { chain }
    }
}

fn cut_out(mut chain: Chain, mut bytes: &[u8], lengths: &[usize]) -> Chain {
    for len in lengths {
        let (piece, rest) = bytes.split_at((*len).min(bytes.len()));
        if piece.is_empty() {
            return chain;
        }
        chain = chain.readable(piece);
        bytes = rest;
    }
    if bytes.is_empty() { chain } else { chain.readable(bytes) }
}

fn cut_in(mut chain: Chain, mut left: u32, lengths: &[u32]) -> Chain {
    for len in lengths {
        if left == 0 {
            return chain;
        }
        let piece = (*len).min(left);
        chain = chain.writable(piece);
        left -= piece;
    }
    if left == 0 { chain } else { chain.writable(left) }
}

/// What came back of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status byte; `None` when the device did not reach it.
    pub status: Option<u8>,
    /// Bytes before the status.
    pub data: Vec<u8>,
}

impl Answer {
    /// The answer in a completion whose request had `data_in` bytes of room before its status.
    pub fn new(completion: &Completion, data_in: u32) -> Answer {
        let room = usize::try_from(data_in).unwrap_or(usize::MAX);
        let status = completion.data.get(room).copied();
        Answer { status, data: completion.data.iter().copied().take(room).collect() }
    }
}

/// A block driver on one queue.
#[derive(Debug)]
pub struct Blk {
    /// The queue.
    pub ring: Ring,
}

impl Blk {
    /// A driver on this ring.
    pub fn new(ring: Ring) -> Blk {
        Blk { ring }
    }

    /// Runs one request.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn run(&mut self, request: &Request, framing: &Framing) -> Result<Answer, RingError> {
        let completion = self.ring.run(&request.chain(framing))?;
        Ok(Answer::new(&completion, request.data_in))
    }

    /// Reads, in the usual framing.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn read(&mut self, sector: u64, bytes: u32) -> Result<Answer, RingError> {
        self.run(&Request::read(sector, bytes), &Framing::usual(bytes))
    }

    /// Writes, in the usual framing.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<Answer, RingError> {
        self.run(&Request::write(sector, data), &Framing::usual(0))
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn flush(&mut self) -> Result<Answer, RingError> {
        self.run(&Request::bare(FLUSH), &Framing::usual(0))
    }

    /// Runs a request about ranges: first sector, sectors, flags. All of them in one descriptor.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> Result<Answer, RingError> {
        self.run(&Request::ranges(kind, ranges), &Framing::usual(0))
    }

    /// Asks for the serial number.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn get_id(&mut self) -> Result<Answer, RingError> {
        let request = Request { data_in: ID_BYTES, ..Request::bare(GET_ID) };
        self.run(&request, &Framing::usual(ID_BYTES))
    }
}

/// Capacity in sectors, from the configuration space (§5.2.4).
pub fn capacity_sectors(config: &[u8]) -> Option<u64> {
    config.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

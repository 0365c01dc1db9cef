//! The region in which a back-end keeps what is in flight, and in which the next one finds it.

use std::os::fd::{AsFd, OwnedFd};

use backends::proto::{Code, Inflight, ProtocolFeatures, Reply, Request};

use rustix::io::{pread, pwrite};

use super::{Frontend, FrontendError, Result};
use crate::guest::format::RingKind;

/// A region as GET_INFLIGHT_FD gave it.
#[derive(Debug)]
pub struct Region {
    /// Where it lies in its file, and for how many queues of which size.
    pub inflight: Inflight,
    /// The file.
    pub fd: OwnedFd,
}

/// The layout is that of the vhost-user text ("Inflight I/O tracking"), for the first queue.
impl Region {
    /// Bytes of the region.
    ///
    /// # Panics
    /// The file is shorter.
    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let read = pread(&self.fd, &mut bytes, self.inflight.mmap_offset + offset);
        assert_eq!(read, Ok(N), "read the region at {offset}");
        bytes
    }

    /// Writes bytes of the region.
    ///
    /// # Panics
    /// The file is shorter.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let written = pwrite(&self.fd, bytes, self.inflight.mmap_offset + offset);
        assert_eq!(written, Ok(bytes.len()), "write the region at {offset}");
    }

    /// The header of a queue's part.
    ///
    /// # Panics
    /// The file is shorter.
    pub fn header(&self, queue: u32, kind: RingKind) -> [u8; 32] {
        let (header, entry) = sizes(kind);
        let part = (header + entry * u64::from(self.inflight.queue_size)).next_multiple_of(64);
        self.read(part * u64::from(queue))
    }

    /// Entries of queue 0 that are marked as in flight.
    pub fn marks(&self, kind: RingKind) -> Vec<u16> {
        let (header, entry) = sizes(kind);
        let entries = u16::from_le_bytes(self.read(10));
        (0..entries).filter(|at| self.read::<1>(header + entry * u64::from(*at)) != [0]).collect()
    }
}

/// Bytes before the entries of a part, and of an entry.
fn sizes(kind: RingKind) -> (u64, u64) {
    match kind {
        RingKind::Split => (16, 16),
        RingKind::Packed => (32, 32),
    }
}

impl Frontend {
    /// The back-end tracks what is in flight (INFLIGHT_SHMFD was negotiated).
    pub fn tracks(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// GET_INFLIGHT_FD.
    ///
    /// # Errors
    /// Connection lost, nonsense, or no region: an answer of length 0 or without a descriptor.
    pub fn inflight(&mut self, queues: u16, queue_size: u16) -> Result<Region> {
        let code = Code::GetInflightFd;
        let asked = Inflight { size_bytes: 0, mmap_offset: 0, queues, queue_size };
        self.send(&Request::GetInflightFd(asked), &[], false)?;
        let (header, reply, fds) = self.receive_with_fds(code)?;
        let bytes = usize::try_from(header.size).unwrap_or(usize::MAX);
        match (reply, <[OwnedFd; 1]>::try_from(fds)) {
            (Reply::Inflight(inflight), Ok([fd])) if inflight.size_bytes > 0 => Ok(Region { inflight, fd }),
            _ => Err(FrontendError::Nonsense { code, header, bytes }),
        }
    }

    /// SET_INFLIGHT_FD: what is in flight is kept there, and what is marked there is replayed.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn set_inflight(&mut self, region: &Region) -> Result<()> {
        self.tell(Request::SetInflightFd(region.inflight), &[region.fd.as_fd()])
    }
}

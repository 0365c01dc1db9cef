//! The region in which a back-end keeps what is in flight, and in which the next one finds it.

use std::os::fd::{AsFd, OwnedFd};

use backends::proto::{Code, Inflight, ProtocolFeatures, Reply, Request};

use super::{Frontend, FrontendError, Result};

/// A region as GET_INFLIGHT_FD gave it.
#[derive(Debug)]
pub struct Region {
    /// Where it lies in its file, and for how many queues of which size.
    pub inflight: Inflight,
    /// The file.
    pub fd: OwnedFd,
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

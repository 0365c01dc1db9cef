//! What a front-end says while it moves a guest, and where it listens to the back-end.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use backends::proto::wire::F_LOG_ALL;
use backends::proto::{Code, Connection, Request, TransportError, VringAddr};
use backends::session::Direction;

use super::{Frontend, FrontendError, Result};
use crate::dirty::DirtyLog;
use crate::guest::ring::Ring;

impl Frontend {
    /// SET_LOG_BASE: writes are marked in `log` from now on, if they are logged.
    ///
    /// # Errors
    /// Refused, connection lost or nonsense.
    pub fn set_log(&mut self, log: &DirtyLog) -> Result<()> {
        let code = Code::SetLogBase;
        self.send(&Request::SetLogBase { size_bytes: log.bytes(), mmap_offset: 0 }, &[log.as_fd()], false)?;
        match self.receive_number(code as u32)? {
            0 => Ok(()),
            ack => Err(FrontendError::Refused { code, ack }),
        }
    }

    /// Turns logging on or off (VHOST_F_LOG_ALL).
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn log_writes(&mut self, on: bool) -> Result<()> {
        let features = if on { self.features | F_LOG_ALL } else { self.features & !F_LOG_ALL };
        self.tell(Request::SetFeatures(features), &[])?;
        self.features = features;
        Ok(())
    }

    /// Turns logging of a ring's own memory on or off (VHOST_VRING_F_LOG), as QEMU does it: under the address of
    /// the used part, whatever the kind of ring.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn log_ring(&mut self, index: u8, ring: &Ring, on: bool) -> Result<()> {
        let addr = self.vring_addr(index.into(), ring);
        let log = ring.layout().used;
        self.tell(Request::SetVringAddr(VringAddr { flags: u32::from(on), log, ..addr }), &[])
    }

    /// SET_BACKEND_REQ_FD: the back-end's own requests arrive at the connection that is given back.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn open_channel(&mut self) -> Result<Connection> {
        let code = Code::SetBackendReqFd;
        let transport = |source| FrontendError::Transport { code, source };
        let (here, there) = UnixStream::pair().map_err(|e| transport(TransportError::Socket(e)))?;
        self.tell(Request::SetBackendReqFd, &[there.as_fd()])?;
        Connection::new(here).map_err(transport)
    }

    /// SET_DEVICE_STATE_FD with the device standing still; the back-end writes to `fd` or reads from it.
    ///
    /// # Errors
    /// Refused, connection lost or nonsense.
    pub fn carry_state(&mut self, direction: Direction, fd: BorrowedFd<'_>) -> Result<()> {
        let code = Code::SetDeviceStateFd;
        let direction = u32::from(direction == Direction::Load);
        self.send(&Request::SetDeviceStateFd { direction, phase: 0 }, &[fd], false)?;
        // Bit 8: no descriptor comes back; the low byte is an error.
        match self.receive_number(code as u32)? {
            0x100 => Ok(()),
            ack => Err(FrontendError::Refused { code, ack }),
        }
    }

    /// CHECK_DEVICE_STATE: the last transfer of state went well.
    ///
    /// # Errors
    /// Connection lost or nonsense.
    pub fn state_is_good(&mut self) -> Result<bool> {
        Ok(self.ask_u64(Request::CheckDeviceState)? == 0)
    }
}

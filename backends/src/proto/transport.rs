//! Messages over a unix socket: descriptors owned the moment they arrive, a deadline on everything.
//!
//! [`Connection`] never blocks without a deadline. Receiving is incremental: [`Connection::try_recv`] takes
//! what has come and says `None` until a message is whole, so one thread can serve the socket beside other
//! work; [`Connection::partial_since`] lets that thread hang up on a sender that stopped in the middle.
//! Promises: a descriptor belongs to the message whose bytes it came with, and is closed with the frame if
//! nobody takes it. Refuses (by an error that means "hang up"): a payload over the limit, truncated data or
//! truncated descriptors, a peer that does not read its answer in time.

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

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use thiserror::Error;

use super::wire::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES};
use crate::log::GuestData;
use crate::passing;

/// Most descriptors of one message. Four times what any message carries, so that a message with a few too many is
/// refused with an answer instead of a hang-up.
const MAX_DESCRIPTORS: usize = 32;
/// How long a peer may take to finish a message it began, or to take an answer.
pub const MESSAGE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a connection is over.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The peer closed the socket.
    #[error("Peer closed the connection")]
    Closed,
    /// The socket failed.
    #[error("Socket failed")]
    Socket(#[source] std::io::Error),
    /// The header announces more payload than any message has.
    #[error("Message announces {0} payload bytes, more than {MAX_PAYLOAD_BYTES}")]
    TooLong(u32),
    /// The kernel dropped data or descriptors of a message.
    #[error("Message or its descriptors were truncated")]
    Truncated,
    /// A message was not finished, or an answer not taken, in time.
    #[error("Peer did not go on within the deadline")]
    Deadline,
}

impl From<Errno> for TransportError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => TransportError::Closed,
            other => TransportError::Socket(other.into()),
        }
    }
}

/// One whole message. Its descriptors are closed with it unless they are taken out.
#[derive(Debug)]
pub struct Frame {
    /// Header as it came.
    pub header: Header,
    /// Payload, `header.size` bytes.
    pub payload: GuestData<Vec<u8>>,
    /// Descriptors that came with any of its bytes, in order.
    pub fds: Vec<OwnedFd>,
}

/// A connected socket and the message that is arriving on it.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    partial: Partial,
}

#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    since: Option<Instant>,
}

impl Connection {
    /// Takes over a connected socket and makes it non-blocking. Its other end may share that setting and change it
    /// back, so each call says for itself that it does not wait.
    ///
    /// # Errors
    /// The descriptor refuses to become non-blocking.
    pub fn new(socket: UnixStream) -> Result<Connection, TransportError> {
        socket.set_nonblocking(true).map_err(TransportError::Socket)?;
        Ok(Connection { socket, partial: Partial::default() })
    }

    /// Takes what has arrived; `None` when the message is not whole yet.
    ///
    /// # Errors
    /// Any error means that the connection is over.
    pub fn try_recv(&mut self) -> Result<Option<Frame>, TransportError> {
        loop {
            let want = self.partial.missing()?;
            if want == 0 {
                return Ok(Some(self.partial.take()));
            }
            match self.recv_some(want) {
                Err(TransportError::Socket(e)) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return Ok(None);
                }
                other => other?,
            }
        }
    }

    /// Waits for a whole message until `deadline`.
    ///
    /// # Errors
    /// As [`Connection::try_recv`], and [`TransportError::Deadline`].
    pub fn recv(&mut self, deadline: Instant) -> Result<Frame, TransportError> {
        loop {
            if let Some(frame) = self.try_recv()? {
                return Ok(frame);
            }
            self.wait(PollFlags::IN, deadline)?;
        }
    }

    /// Since when a message has been unfinished, if one is.
    pub fn partial_since(&self) -> Option<Instant> {
        self.partial.since
    }

    /// Sends one message with its descriptors, until `deadline`.
    ///
    /// # Errors
    /// [`TransportError::Deadline`] when the peer does not read; the stream is then out of step and must be closed.
    pub fn send(
        &mut self,
        header: Header,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), TransportError> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        let mut rest = bytes.as_slice();
        let mut fds = fds;
        while !rest.is_empty() {
            match passing::send(&self.socket, rest, fds, SendFlags::DONTWAIT) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), TransportError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TransportError::Deadline);
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&self.socket, flags)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads at most `want` bytes, so that the descriptors that come belong to this message.
    fn recv_some(&mut self, want: usize) -> Result<(), TransportError> {
        let mut bytes = [0u8; MAX_PAYLOAD_BYTES];
        let buffer = bytes.get_mut(..want).unwrap_or_default();
        let received = passing::recv(&self.socket, buffer, RecvFlags::DONTWAIT)?;
        self.partial.fds.extend(received.fds);
        if !received.whole || self.partial.fds.len() > MAX_DESCRIPTORS {
            return Err(TransportError::Truncated);
        }
        if received.bytes == 0 {
            return Err(TransportError::Closed);
        }
        self.partial.since.get_or_insert_with(Instant::now);
        self.partial.bytes.extend_from_slice(bytes.get(..received.bytes).unwrap_or_default());
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Partial {
    fn header(&self) -> Option<Header> {
        self.bytes.first_chunk::<HEADER_BYTES>().map(|bytes| Header::from_bytes(*bytes))
    }

    /// Bytes still to come of the part at hand: first the header, then the payload it announces.
    fn missing(&self) -> Result<usize, TransportError> {
        let Some(header) = self.header() else {
            return Ok(HEADER_BYTES.saturating_sub(self.bytes.len()));
        };
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size > MAX_PAYLOAD_BYTES {
            return Err(TransportError::TooLong(header.size));
        }
        Ok(HEADER_BYTES.saturating_add(size).saturating_sub(self.bytes.len()))
    }

    fn take(&mut self) -> Frame {
        let whole = std::mem::take(self);
        let header = whole.header().unwrap_or(Header { request: 0, flags: 0, size: 0 });
        let payload = whole.bytes.get(HEADER_BYTES..).unwrap_or_default().to_vec();
        Frame { header, payload: payload.into(), fds: whole.fds }
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;

//! The host side of a port: who reads what the guest writes, and where its input comes from.
//!
//! In: readiness, and attempts to read or write. Out: [`Moved`]. Nothing here blocks or keeps bytes: a reader
//! who is slow and a reader who is not there are different answers, and what to do then is for
//! [`crate::port`] to say. Who the other side is changes only in [`HostSide::ready`]: an attempt that finds it
//! gone says [`Moved::Nobody`], and the readiness that tells of it is on its way. One that has a task of its own
//! changes there, and has the handler told.
//! Descriptors are opened at the start of the program and watched from the worker's start to its end.

pub mod connect;
pub mod left;
mod modes;
pub mod pty;
pub mod stdio;
pub mod unix;

use std::convert::Infallible;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use backends::device::{Io, Source};
use backends::engine::Interest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

/// The engine, for a device that submits no operations.
pub type HostIo<'a> = Io<'a, Infallible>;

/// One system call on the descriptor that is to be read or written.
pub type Call<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> Result<u32, Errno>;

/// Reads what a socket has now, and leaves it there.
///
/// # Errors
/// The host's; `EAGAIN`: it has nothing.
pub fn peek(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize, Errno> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let mut none = RecvAncillaryBuffer::default();
    recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut none, flags).map(|received| received.bytes)
}

/// What an attempt to read or write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Moved this many bytes, at least one.
    Bytes(u32),
    /// Somebody is there, and not ready now; [`HostSide::ready`] will be called.
    Later,
    /// Nobody is there, or nobody will say anything more.
    Nobody,
}

/// One kind of host side. It lives in the worker's thread.
pub trait HostSide {
    /// Watches what has to be watched.
    ///
    /// # Errors
    /// The host's.
    fn start(&mut self, io: &mut HostIo<'_>) -> io::Result<()>;

    /// A watched descriptor became ready; a source of an earlier watch means nothing.
    fn ready(&mut self, source: Source, io: &mut HostIo<'_>);

    /// Whether what the host has to say can be looked at without taking it, as that of a socket.
    fn can_look(&self) -> bool {
        false
    }

    /// Tries to read what the host has to say.
    fn read(&mut self, call: Call<'_>) -> Moved;

    /// Tries to write what the guest has to say.
    fn write(&mut self, call: Call<'_>) -> Moved;

    /// Where a reader is now, to give it the rest at the end of the daemon.
    fn writer(&self) -> Option<OwnedFd>;

    /// Bytes that were sent to the guest and given up because too many senders left before it read them.
    fn lost_input(&self) -> u64 {
        0
    }
}

/// A descriptor with what is known of its readiness: ready until it says that it is not.
#[derive(Debug)]
pub struct Channel<F = OwnedFd> {
    fd: F,
    source: Source,
    readable: bool,
    writable: bool,
    /// Read to its end.
    input_over: bool,
    /// Nothing written to it will be read.
    output_over: bool,
}

impl<F: AsFd> Channel<F> {
    /// A non-blocking descriptor, not watched yet.
    pub fn new(fd: F, source: Source) -> Channel<F> {
        Channel { fd, source, readable: true, writable: true, input_over: false, output_over: false }
    }

    /// Watches it. A file cannot be watched, and need not: it is always ready (epoll_ctl(2), EPERM).
    ///
    /// # Errors
    /// The host's.
    pub fn watch(&self, interest: Interest, io: &mut HostIo<'_>) -> io::Result<()> {
        match io.watch(self.fd.as_fd(), interest, self.source) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            watched => watched,
        }
    }

    /// Its name.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The descriptor alone.
    pub fn into_inner(self) -> F {
        self.fd
    }

    /// It may be ready again.
    pub fn refresh(&mut self) {
        (self.readable, self.writable) = (true, true);
    }

    /// Its readers and writers may be others than before.
    pub fn reopen(&mut self) {
        self.refresh();
        (self.input_over, self.output_over) = (false, false);
    }

    /// It was read to its end.
    pub fn is_input_over(&self) -> bool {
        self.input_over
    }

    /// Writing to it makes sense.
    pub fn takes_output(&self) -> bool {
        !self.output_over
    }

    /// The other side has gone altogether.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = Timespec::default();
        poll(&mut fds, Some(&now)).is_ok_and(|_| fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP)))
    }

    /// Tries to read.
    pub fn read(&mut self, call: Call<'_>) -> Moved {
        if self.input_over {
            return Moved::Nobody;
        }
        if !self.readable {
            return Moved::Later;
        }
        match call(self.fd.as_fd()) {
            Ok(0) => self.end_of_input(),
            Ok(count) => Moved::Bytes(count),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Moved::Later
            }
            Err(_) => self.end_of_input(),
        }
    }

    fn end_of_input(&mut self) -> Moved {
        self.input_over = true;
        Moved::Nobody
    }

    /// Tries to write. A disk that is full now may not be so later: that is not the end.
    pub fn write(&mut self, call: Call<'_>) -> Moved {
        if self.output_over {
            return Moved::Nobody;
        }
        if !self.writable {
            return Moved::Later;
        }
        match call(self.fd.as_fd()) {
            Ok(0) | Err(Errno::AGAIN) => {
                self.writable = false;
                Moved::Later
            }
            Ok(count) => Moved::Bytes(count),
            Err(Errno::NOSPC | Errno::DQUOT) => Moved::Nobody,
            Err(_) => {
                self.output_over = true;
                Moved::Nobody
            }
        }
    }
}

impl<F: AsFd> AsFd for Channel<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until `fd` takes more; `false` when it will not, or not in time. Only for the end of the daemon.
pub fn await_writable(fd: BorrowedFd<'_>, until: Option<Instant>) -> bool {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let woken = poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0);
    woken && fds.iter().all(|fd| fd.revents() == PollFlags::OUT)
}

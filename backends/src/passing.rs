//! Bytes and the descriptors that go with them, over a unix socket in one call.
//!
//! In: bytes and descriptors of ours. Out: the same at the other end, the descriptors closed with whoever drops them.
//! Whether that waits is for the caller's flags and socket to say; a signal repeats it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors of one message (the kernel's SCM_MAX_FD).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// What one call received.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes of the buffer.
    pub(crate) bytes: usize,
    /// Descriptors that came with them, closed on exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// The kernel cut off neither bytes nor descriptors.
    pub(crate) whole: bool,
}

/// Sends bytes with descriptors; how many of a stream's bytes were taken.
///
/// # Errors
/// The kernel's; `ETOOMANYREFS`: more descriptors than [`MAX_DESCRIPTORS`].
pub(crate) fn send(
    socket: &impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent,
        }
    }
}

/// Receives what has come, as much of it as the buffer holds.
///
/// # Errors
/// The kernel's.
pub(crate) fn recv(socket: &impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let buffer = &mut [IoSliceMut::new(buffer)];
        match recvmsg(socket, buffer, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    let whole = !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received { bytes: received.bytes, fds, whole })
}

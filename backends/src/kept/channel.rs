//! The channel between a keeper and its worker: one packet a note, with the descriptors that belong to it.
//!
//! In: a [`Note`] and descriptors. Out: the same at the other end, whole or not at all. Promises: nothing here waits.
//! Refuses a packet that is no note, or one whose descriptors did not all arrive.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use crate::passing;

/// Longest name of what is kept, as for systemd's descriptor store.
const MAX_NAME_BYTES: usize = 255;
/// Most descriptors under one name.
const MAX_DESCRIPTORS: usize = 8;
/// A kind, a number, a name.
const MAX_NOTE_BYTES: usize = 5 + MAX_NAME_BYTES;

/// What a keeper and its worker tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// To the worker: serve the front-end on this socket.
    Session(u32),
    /// To the worker: what an earlier one gave under this name.
    Kept(String),
    /// To the worker: you are about to be asked to end, and another one goes on.
    Leave,
    /// To the keeper: the device is open.
    Ready,
    /// To the keeper: the session of that number ends by the worker's own decision.
    Over(u32),
    /// To the keeper: hold these descriptors, in place of those of the same name.
    Keep(String),
    /// To the keeper: what has this name is not needed any more.
    Drop(String),
}

impl Note {
    fn to_bytes(&self) -> Vec<u8> {
        let (kind, number, name) = match self {
            Note::Session(number) => (1, *number, ""),
            Note::Kept(name) => (2, 0, name.as_str()),
            Note::Ready => (3, 0, ""),
            Note::Over(number) => (4, *number, ""),
            Note::Keep(name) => (5, 0, name.as_str()),
            Note::Drop(name) => (6, 0, name.as_str()),
            Note::Leave => (7, 0, ""),
        };
        [&[kind], &u32::to_le_bytes(number)[..], name.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Note> {
        let (kind, rest) = bytes.split_first()?;
        let (number, name) = rest.split_first_chunk::<4>()?;
        let (number, name) = (u32::from_le_bytes(*number), String::from_utf8(name.to_vec()).ok()?);
        Some(match kind {
            1 => Note::Session(number),
            2 => Note::Kept(name),
            3 => Note::Ready,
            4 => Note::Over(number),
            5 => Note::Keep(name),
            6 => Note::Drop(name),
            7 => Note::Leave,
            _ => return None,
        })
    }
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// The keeper's end, and the worker's.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(ours), Channel(theirs)))
    }

    /// The end that a worker was started with.
    ///
    /// # Errors
    /// There is no such descriptor.
    pub fn inherited(fd: RawFd) -> io::Result<Channel> {
        Ok(Channel(crate::sys::adopt_fd(fd)?))
    }

    /// Sends a note.
    ///
    /// # Errors
    /// The other end is gone, or has not read for long.
    pub fn send(&self, note: &Note, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        passing::send(&self.0, &note.to_bytes(), fds, SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Takes a note that has arrived, if one has.
    ///
    /// # Errors
    /// `UnexpectedEof`: the other end is gone; others: what came is no note.
    pub fn try_recv(&self) -> io::Result<Option<(Note, Vec<OwnedFd>)>> {
        let mut bytes = [0; MAX_NOTE_BYTES];
        let received = match passing::recv(&self.0, &mut bytes, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(io::ErrorKind::UnexpectedEof.into()),
            other => other?,
        };
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let whole = received.whole && received.fds.len() <= MAX_DESCRIPTORS;
        let note = bytes.get(..received.bytes).filter(|_| whole).and_then(Note::from_bytes);
        note.map(|note| Some((note, received.fds))).ok_or_else(|| io::Error::other("what came is no note"))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_note_arrives_as_it_was_sent_with_its_descriptors() {
        let (keeper, worker) = Channel::pair().unwrap();
        assert!(worker.try_recv().unwrap().is_none());
        let name = || "terminal".to_owned();
        let notes = [
            Note::Session(7),
            Note::Kept(name()),
            Note::Ready,
            Note::Over(u32::MAX),
            Note::Keep(name()),
            Note::Drop(name()),
            Note::Leave,
        ];
        for note in notes {
            keeper.send(&note, &[keeper.as_fd(), worker.as_fd()]).unwrap();
            let (got, fds) = worker.try_recv().unwrap().unwrap();
            assert_eq!((got, fds.len()), (note, 2));
        }
        drop(keeper);
        assert_eq!(worker.try_recv().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let (keeper, worker) = Channel::pair().unwrap();
        for bytes in [&[9u8, 0, 0, 0, 0][..], &[1, 0], &[2, 0, 0, 0, 0, 0xff], &[1; 300]] {
            rustix::io::write(&keeper, bytes).unwrap();
            assert!(worker.try_recv().is_err(), "{bytes:?}");
        }
    }
}

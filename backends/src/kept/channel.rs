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
pub(crate) const MAX_NAME_BYTES: usize = 255;
/// Most descriptors under one name.
const MAX_DESCRIPTORS: usize = 8;
/// A kind, a number, and a name or something shorter.
const MAX_NOTE_BYTES: usize = 5 + MAX_NAME_BYTES;

/// What a keeper and its worker tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// To the worker: serve the front-end on this socket.
    Session(Begun),
    /// To the worker: whose it is, and the how manieth.
    Standing(Standing),
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
    /// Both ways: the log is of this level from now on, by its number, in the file of this name; a new one comes along.
    Log {
        /// Number of the level.
        level: u8,
        /// Whole path; empty: there is no file.
        file: String,
    },
    /// To the keeper: start the next worker from what the executable's path names now.
    Upgrade,
}

/// A session that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its number, for [`Note::Over`].
    pub number: u32,
    /// A worker before this one has served the same front-end.
    pub again: bool,
    /// When the front-end connected, in milliseconds of Unix time.
    pub connected_ms: u64,
}

/// A worker's place in the life of its daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Process of the keeper.
    pub keeper_pid: u32,
    /// Workers that were started until now, this one among them.
    pub workers: u32,
    /// When the keeper began, in milliseconds of Unix time.
    pub began_ms: u64,
}

impl Note {
    fn to_bytes(&self) -> Vec<u8> {
        let (mut number, mut rest) = (0, Vec::new());
        let kind: u8 = match self {
            Note::Session(Begun { number: nth, again, connected_ms }) => {
                number = *nth;
                rest = connected_ms.to_le_bytes().into_iter().chain([u8::from(*again)]).collect();
                1
            }
            Note::Kept(name) => named(2, name, &mut rest),
            Note::Ready => 3,
            Note::Over(nth) => {
                number = *nth;
                4
            }
            Note::Keep(name) => named(5, name, &mut rest),
            Note::Drop(name) => named(6, name, &mut rest),
            Note::Leave => 7,
            Note::Standing(Standing { keeper_pid, workers, began_ms }) => {
                number = *workers;
                rest = began_ms.to_le_bytes().into_iter().chain(keeper_pid.to_le_bytes()).collect();
                8
            }
            Note::Upgrade => 9,
            Note::Log { level, file } => {
                number = u32::from(*level);
                named(10, file, &mut rest)
            }
        };
        [&[kind], &number.to_le_bytes()[..], &rest].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Note> {
        let (kind, rest) = bytes.split_first()?;
        let (number, rest) = rest.split_first_chunk::<4>()?;
        let number = u32::from_le_bytes(*number);
        let name = || String::from_utf8(rest.to_vec()).ok();
        let time = || rest.split_first_chunk().map(|(ms, rest)| (u64::from_le_bytes(*ms), rest));
        Some(match kind {
            1 => {
                let (connected_ms, again) = time()?;
                Note::Session(Begun { number, again: *again.first()? != 0, connected_ms })
            }
            2 => Note::Kept(name()?),
            3 => Note::Ready,
            4 => Note::Over(number),
            5 => Note::Keep(name()?),
            6 => Note::Drop(name()?),
            7 => Note::Leave,
            8 => {
                let (began_ms, keeper) = time()?;
                let keeper_pid = u32::from_le_bytes(*keeper.first_chunk()?);
                Note::Standing(Standing { keeper_pid, workers: number, began_ms })
            }
            9 => Note::Upgrade,
            10 => Note::Log { level: u8::try_from(number).ok()?, file: name()? },
            _ => return None,
        })
    }
}

fn named(kind: u8, name: &str, rest: &mut Vec<u8>) -> u8 {
    rest.extend(name.as_bytes());
    kind
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
            Note::Session(Begun { number: 7, again: true, connected_ms: u64::MAX }),
            Note::Standing(Standing { keeper_pid: 1, workers: 2, began_ms: 3 }),
            Note::Upgrade,
            Note::Log { level: 4, file: "/log".to_owned() },
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
        for bytes in [&[99u8, 0, 0, 0, 0][..], &[1, 0], &[1; 13], &[8; 16], &[2, 0, 0, 0, 0, 0xff], &[1; 300]]
        {
            rustix::io::write(&keeper, bytes).unwrap();
            assert!(worker.try_recv().is_err(), "{bytes:?}");
        }
    }
}

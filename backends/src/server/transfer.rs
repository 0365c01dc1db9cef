//! Device state over a descriptor of the front-end (SET_DEVICE_STATE_FD).
//!
//! In: a pipe or socket. Out: state written or read whole. Promises: neither takes longer than a deadline since
//! the last progress, and no more is read than a device could have saved. The end of the state is the end of the
//! stream; closing the descriptor, which the caller does, tells the other side.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Most bytes of state. The largest device keeps a bit for each page of its guest: 16 MiB are 512 GiB of guest.
const MAX_STATE_BYTES: usize = 16 << 20;
/// How long the other side may do nothing.
const PROGRESS_DEADLINE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Writes all of `state`. Always good when it returns `Ok`.
pub(super) fn save(fd: &OwnedFd, state: &[u8]) -> io::Result<bool> {
    set_nonblocking(fd)?;
    let mut rest = state;
    while !rest.is_empty() {
        match rustix::io::write(fd, rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd, PollFlags::OUT)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

/// Reads to the end of the stream.
pub(super) fn load(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    set_nonblocking(fd)?;
    let (mut state, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => return Ok(state),
            Ok(count) => state.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd, PollFlags::IN)?,
            Err(errno) => return Err(errno.into()),
        }
        if state.len() > MAX_STATE_BYTES {
            return Err(io::Error::other(format!("more than {MAX_STATE_BYTES} bytes of state")));
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

fn wait(fd: &OwnedFd, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, flags)], Some(&PROGRESS_DEADLINE)) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the other side does not go on")),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let state: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let sent = state.clone();
        let sender = std::thread::spawn(move || save(&writer, &sent).unwrap());
        assert_eq!(load(&reader).unwrap(), state);
        assert!(sender.join().unwrap());
    }

    #[test]
    fn endless_state_is_refused() {
        let zero = OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
        assert!(load(&zero).is_err());
    }

    #[test]
    fn a_side_that_does_nothing_is_given_up() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(load(&reader).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(save(&writer, &vec![0; 1 << 20]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

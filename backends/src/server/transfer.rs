//! Device state over a descriptor of the front-end (SET_DEVICE_STATE_FD).
//!
//! In: a pipe or socket. Out: state written or read whole. Promises: neither takes longer than [`DEADLINE`] in all,
//! however slowly the other side goes on, and no more is read than a device could have saved. The end of the
//! state is the end of the stream; closing the descriptor, which the caller does, tells the other side. Each call
//! is preceded by a look whether it can go on, since the other side may share and change the descriptor's flags.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Most bytes of state. The largest device keeps a bit for each page of its guest: 16 MiB are 512 GiB of guest.
const MAX_STATE_BYTES: usize = 16 << 20;
/// How long it may take. The control thread does nothing else meanwhile.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most bytes of one call: what a pipe that has room takes without waiting.
const PIECE_BYTES: usize = 4096;

/// Writes all of `state`. Always good when it returns `Ok`.
pub(super) fn save(fd: &OwnedFd, state: &[u8]) -> io::Result<bool> {
    let until = begin(fd)?;
    let mut rest = state;
    while !rest.is_empty() {
        wait(fd, PollFlags::OUT, until)?;
        let piece = rest.get(..PIECE_BYTES).unwrap_or(rest);
        match rustix::io::write(fd, piece) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

/// Reads to the end of the stream.
pub(super) fn load(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let until = begin(fd)?;
    let (mut state, mut buffer) = (Vec::new(), [0; PIECE_BYTES]);
    loop {
        wait(fd, PollFlags::IN, until)?;
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => return Ok(state),
            Ok(count) => state.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        if state.len() > MAX_STATE_BYTES {
            return Err(io::Error::other(format!("more than {MAX_STATE_BYTES} bytes of state")));
        }
    }
}

/// When it must be over.
fn begin(fd: &OwnedFd) -> io::Result<Instant> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    Ok(Instant::now() + DEADLINE)
}

fn wait(fd: &OwnedFd, flags: PollFlags, until: Instant) -> io::Result<()> {
    let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
    match poll(&mut [PollFd::new(fd, flags)], left.as_ref()) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long")),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::RecvTimeoutError;

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
        assert_eq!(save(&writer, &vec![0; 1 << 20]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(reader);
    }

    #[test]
    fn a_side_that_dribbles_is_given_up_too() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let dribble = std::thread::spawn(move || {
            while stopped
                .recv_timeout(Duration::from_millis(100))
                .is_err_and(|e| e == RecvTimeoutError::Timeout)
            {
                rustix::io::write(&writer, &[0]).unwrap();
            }
        });
        assert_eq!(load(&reader).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(stop);
        dribble.join().unwrap();
    }
}

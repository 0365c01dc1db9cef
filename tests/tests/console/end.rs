//! The far end of a host side: non-blocking, every wait with a deadline.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tests::wait;

/// A descriptor that a person or program on the host has.
#[derive(Debug)]
pub struct End(OwnedFd);

impl End {
    pub fn new(fd: impl Into<OwnedFd>) -> End {
        let fd = fd.into();
        fcntl_setfl(&fd, fcntl_getfl(&fd).unwrap() | OFlags::NONBLOCK).unwrap();
        End(fd)
    }

    pub fn connect(path: &Path) -> End {
        End::new(UnixStream::connect(path).unwrap())
    }

    /// Takes the next connection.
    #[track_caller]
    pub fn accept(listener: &UnixListener) -> End {
        assert!(wait::one_readable(listener, wait::deadline()), "nobody connects");
        End::new(listener.accept().unwrap().0)
    }

    /// Opens a terminal without making it ours.
    pub fn open_terminal(path: &Path) -> End {
        let flags = i32::try_from(OFlags::NOCTTY.bits()).unwrap();
        End::new(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap())
    }

    /// Reads exactly `count` bytes.
    #[track_caller]
    pub fn read(&self, count: usize) -> Vec<u8> {
        let bytes = self.read_up_to(count);
        assert_eq!(bytes.len(), count, "the end of the stream or the deadline came first");
        bytes
    }

    /// Reads to the end of the stream.
    pub fn read_to_end(&self) -> Vec<u8> {
        self.read_up_to(usize::MAX)
    }

    fn read_up_to(&self, count: usize) -> Vec<u8> {
        let (mut bytes, mut piece) = (Vec::new(), [0; 16384]);
        while bytes.len() < count {
            let room = piece.len().min(count - bytes.len());
            match rustix::io::read(&self.0, &mut piece[..room]) {
                Ok(0) => break,
                Ok(read) => bytes.extend(&piece[..read]),
                Err(Errno::AGAIN) if wait::one_readable(&self.0, wait::deadline()) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::IO | Errno::CONNRESET) => break,
                Err(errno) => panic!("read: {errno}"),
            }
        }
        bytes
    }

    /// Writes all of it.
    #[track_caller]
    pub fn write(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::io::write(&self.0, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::AGAIN) => self.wait_writable(),
                Err(errno) => panic!("write: {errno}"),
            }
        }
    }

    #[track_caller]
    fn wait_writable(&self) {
        let left = Timespec::try_from(wait::PATIENCE).ok();
        let ready = poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], left.as_ref());
        assert!(matches!(ready, Ok(1) | Err(Errno::INTR)), "nobody reads: {ready:?}");
    }

    /// Ends its own sending and goes on reading.
    pub fn shut_down_writing(&self) {
        rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write).unwrap();
    }
}

/// A socket ends here and now, though a process that another test is just starting may have inherited it.
impl Drop for End {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

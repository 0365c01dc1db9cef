//! A listening unix socket as the host side: one client at a time.
//!
//! The others wait in the backlog of the socket. A client that has gone altogether is replaced by the next at
//! once; one that only ended its own sending stays as a reader. What a client sent before it went is still
//! given to the guest, before anything of the next ([`Left`]). The socket and its client outlive the worker: the next
//! one has them from the keeper.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use backends::device::Source;
use backends::engine::Interest;
use backends::kept::Kept;
use backends::log::{self, Class};
use backends::opened::Opened;
use backends::options::{SocketError, check_listen};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::left::Left;
use super::{Call, Channel, HostIo, HostSide, Moved};

const LISTENER: Source = Source(0);
/// The option that names it.
const OPTION: &str = "--listen";
/// Names of the socket, and of its client, which is kept.
const LISTENING: &str = "console.listener";
const KEPT_CLIENT: &str = "console.client";

/// The socket and whoever is connected to it.
pub struct Unix {
    listener: UnixListener,
    path: PathBuf,
    client: Option<Channel>,
    kept: Kept,
    left: Left<OwnedFd>,
    /// Every client is watched under a name of its own, so that late news of one is not taken for the next's.
    next: u16,
}

impl Unix {
    /// Whether `path` can be listened on, also by taking it over.
    ///
    /// # Errors
    /// [`SocketError::Path`], which names `--listen`.
    pub fn check(path: &Path) -> Result<(), SocketError> {
        check_listen(OPTION, path)
    }

    /// Listens on `path`, or goes on listening there; a client of it that a keeper before had stays, too.
    ///
    /// # Errors
    /// [`SocketError::Path`], which names `--listen`.
    pub fn prepare(path: &Path, opened: &mut Opened) -> Result<(), SocketError> {
        opened.listen(OPTION, LISTENING, path)?;
        if let Some(client) = opened.before(KEPT_CLIENT).map(UnixStream::from)
            && client.local_addr().is_ok_and(|own| own.as_pathname() == Some(path))
        {
            opened.hand_on(KEPT_CLIENT, client);
        }
        Ok(())
    }

    /// Takes clients of the socket that was prepared.
    ///
    /// # Errors
    /// It was not.
    pub fn open(path: PathBuf, kept: &Kept) -> io::Result<Unix> {
        let listener = UnixListener::from(kept.opened(LISTENING)?);
        listener.set_nonblocking(true)?;
        Ok(Unix { listener, path, client: None, kept: kept.clone(), left: Left::default(), next: LISTENER.0 })
    }

    /// Takes the next client, if nobody is connected and somebody waits.
    fn accept(&mut self, io: &mut HostIo<'_>) {
        while self.client.is_none() {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(fd) => self.connect(fd, io),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    let path = self.path.display();
                    log::line!(warn, Class::ConsolePeer, %error, %path, "A client waits: cannot accept it");
                    return;
                }
            }
        }
    }

    fn connect(&mut self, fd: OwnedFd, io: &mut HostIo<'_>) {
        self.next = self.next.checked_add(1).unwrap_or(LISTENER.0.saturating_add(1));
        let client = Channel::new(fd, Source(self.next));
        match client.watch(Interest::Both, io) {
            Ok(()) => {
                self.kept.keep(KEPT_CLIENT, client.as_fd());
                self.client = Some(client);
            }
            Err(error) => {
                log::line!(warn, Class::ConsolePeer, %error, "A client is not served: cannot watch it")
            }
        }
    }

    /// The client has gone: whatever it sent is still to be read.
    fn leave(&mut self, io: &mut HostIo<'_>) {
        let Some(client) = self.client.take() else { return };
        self.kept.drop(KEPT_CLIENT);
        io.unwatch(client.as_fd(), client.source());
        self.left.keep(client);
    }
}

impl HostSide for Unix {
    fn start(&mut self, io: &mut HostIo<'_>) -> io::Result<()> {
        io.watch(self.listener.as_fd(), Interest::Read, LISTENER)?;
        if let Some(client) = self.kept.take(KEPT_CLIENT) {
            self.connect(client, io);
        }
        self.accept(io);
        Ok(())
    }

    fn ready(&mut self, source: Source, io: &mut HostIo<'_>) {
        if let Some(client) = self.client.as_mut().filter(|client| client.source() == source) {
            client.refresh();
            if client.is_hung_up() {
                self.leave(io);
            }
        }
        self.accept(io);
    }

    fn can_look(&self) -> bool {
        true
    }

    fn read(&mut self, call: Call<'_>) -> Moved {
        match self.left.read(call) {
            Some(count) => Moved::Bytes(count),
            None => self.client.as_mut().map_or(Moved::Nobody, |client| client.read(call)),
        }
    }

    fn write(&mut self, call: Call<'_>) -> Moved {
        self.client.as_mut().map_or(Moved::Nobody, |client| client.write(call))
    }

    fn writer(&self) -> Option<OwnedFd> {
        let client = self.client.as_ref().filter(|client| client.takes_output())?;
        client.as_fd().try_clone_to_owned().ok()
    }

    fn lost_input(&self) -> u64 {
        self.left.lost_input()
    }
}

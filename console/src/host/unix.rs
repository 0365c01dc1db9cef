//! A listening unix socket as the host side: one client at a time.
//!
//! The others wait in the backlog of the socket. A client that has gone altogether is replaced by the next at
//! once; one that only ended its own sending stays as a reader. What a client sent before it went is still
//! given to the guest, before anything of the next ([`Left`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backends::device::Source;
use backends::engine::Interest;
use backends::log::Gate;
use backends::options::{PathProblem, SocketError, listen};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::left::Left;
use super::{Call, Channel, HostIo, HostSide, Moved};

const LISTENER: Source = Source(0);
/// The socket and whoever is connected to it.
pub struct Unix {
    listener: UnixListener,
    path: PathBuf,
    client: Option<Channel>,
    left: Left<OwnedFd>,
    /// Every client is watched under a name of its own, so that late news of one is not taken for the next's.
    next: u16,
    refusals: Gate,
}

impl Unix {
    /// Listens on `path`.
    ///
    /// # Errors
    /// [`SocketError::Path`], which names `--listen`.
    pub fn open(path: &Path) -> Result<Unix, SocketError> {
        const OPTION: &str = "--listen";
        let listener = listen(OPTION, path)?;
        listener.set_nonblocking(true).map_err(|cause| SocketError::Path {
            option: OPTION,
            path: path.into(),
            problem: PathProblem::Bind(cause),
        })?;
        Ok(Unix {
            listener,
            path: path.into(),
            client: None,
            left: Left::default(),
            next: LISTENER.0,
            refusals: Gate::default(),
        })
    }

    /// Takes the next client, if nobody is connected and somebody waits.
    fn accept(&mut self, io: &mut HostIo<'_>) {
        while self.client.is_none() {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(fd) => self.connect(fd, io),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    if self.refusals.pass(Instant::now()).is_some() {
                        tracing::warn!(%error, path = %self.path.display(), "A client waits: cannot accept it");
                    }
                    return;
                }
            }
        }
    }

    fn connect(&mut self, fd: OwnedFd, io: &mut HostIo<'_>) {
        self.next = self.next.checked_add(1).unwrap_or(LISTENER.0.saturating_add(1));
        let client = Channel::new(fd, Source(self.next));
        match client.watch(Interest::Both, io) {
            Ok(()) => self.client = Some(client),
            Err(error) => tracing::warn!(%error, "A client is not served: cannot watch it"),
        }
    }

    /// The client has gone: whatever it sent is still to be read.
    fn leave(&mut self, io: &mut HostIo<'_>) {
        let Some(client) = self.client.take() else { return };
        io.unwatch(client.as_fd(), client.source());
        self.left.keep(client);
    }
}

impl HostSide for Unix {
    fn start(&mut self, io: &mut HostIo<'_>) -> io::Result<()> {
        io.watch(self.listener.as_fd(), Interest::Read, LISTENER)?;
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

impl Drop for Unix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

//! A device that a test brings itself, served in this process behind a real socket.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use backends::device::Device;
use backends::kept::Kept;
use backends::server::{Endpoint, Server, Settings};

/// A server in a thread of its own, which must end well. On a connection it is dropped after its front-end.
#[derive(Debug)]
pub struct Served {
    thread: Option<JoinHandle<()>>,
    /// Closing it asks the server to end.
    end: Option<UnixStream>,
    listens: bool,
}

impl Served {
    /// Serves the device, and the front-end's end of its socket.
    ///
    /// # Panics
    /// The host has no sockets left.
    pub fn new(device: impl Device, settings: Settings) -> (Served, UnixStream) {
        let (here, there) = pair();
        (Served::start(device, settings, Endpoint::Connected(there)), here)
    }

    /// Serves the device to one front-end after the other, until it is dropped.
    ///
    /// # Panics
    /// The host has no sockets left, or `socket` is taken.
    pub fn listening(device: impl Device, settings: Settings, socket: &Path) -> Served {
        let listener = UnixListener::bind(socket);
        let listener = listener.unwrap_or_else(|e| panic!("listen on {}: {e}", socket.display()));
        Served::start(device, settings, Endpoint::Listening(listener))
    }

    fn start(device: impl Device, settings: Settings, endpoint: Endpoint) -> Served {
        let (end, asked) = pair();
        let listens = matches!(endpoint, Endpoint::Listening(_));
        let thread = std::thread::spawn(move || {
            let served = Server::new(device, settings, &Kept::default())
                .and_then(|mut server| server.serve(endpoint, asked.as_fd()));
            served.unwrap_or_else(|e| panic!("serve: {e}"));
        });
        Served { thread: Some(thread), end: Some(end), listens }
    }
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap_or_else(|e| panic!("socket pair: {e}"))
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.listens {
            self.end = None;
        }
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server ended by a panic");
    }
}

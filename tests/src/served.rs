//! A device that a test brings itself, served in this process behind a real socket.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use backends::device::Device;
use backends::server::{Endpoint, Server, Settings};

/// A server in a thread of its own. Dropped after its front-end, it must have ended well.
#[derive(Debug)]
pub struct Served(Option<JoinHandle<()>>);

impl Served {
    /// Serves the device, and the front-end's end of its socket.
    ///
    /// # Panics
    /// The host has no sockets left.
    pub fn new(device: impl Device, settings: Settings) -> (Served, UnixStream) {
        let pair = || UnixStream::pair().unwrap_or_else(|e| panic!("socket pair: {e}"));
        let ((here, there), (asked, never)) = (pair(), pair());
        let thread = std::thread::spawn(move || {
            let served = Server::new(device, settings)
                .and_then(|mut server| server.serve(Endpoint::Connected(there), asked.as_fd()));
            served.unwrap_or_else(|e| panic!("serve: {e}"));
            drop(never);
        });
        (Served(Some(thread)), here)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let ended = self.0.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server ended by a panic");
    }
}

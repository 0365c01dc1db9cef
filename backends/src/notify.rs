//! Telling the other side: call and error eventfds.
//!
//! In: descriptors from SET_VRING_CALL and SET_VRING_ERR. Promises: signalling never blocks and never fails
//! loudly, whatever descriptor the front-end sent (a full eventfd, a pipe without a reader): the front-end
//! can only deprive its own guest. When a signal is due is for [`crate::ring`] to say.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// An eventfd that another process waits for. Empty when the front-end wants to poll instead.
#[derive(Clone, Debug, Default)]
pub struct Signal(Option<Arc<OwnedFd>>);

impl Signal {
    /// Takes the descriptor over and makes it non-blocking.
    pub fn new(fd: Option<OwnedFd>) -> Signal {
        if let Some(fd) = &fd
            && let Ok(flags) = fcntl_getfl(fd)
        {
            // A descriptor that cannot be made non-blocking cannot be written to either.
            let _ = fcntl_setfl(fd, flags | OFlags::NONBLOCK);
        }
        Signal(fd.map(Arc::new))
    }

    /// Raises it. A full counter already says what we have to say.
    pub fn raise(&self) {
        if let Some(fd) = &self.0 {
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }
}

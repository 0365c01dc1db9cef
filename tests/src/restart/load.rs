//! Verified I/O of one device, as the soak and the crash tests drive it.

use thiserror::Error;

use crate::frontend::FrontendError;
use crate::guest::ring::{Ring, RingError};
use crate::oracle::Illegal;

/// What a restart must not do.
#[derive(Debug, Error)]
pub enum Fault {
    /// A request was lost (the deadline), came back twice (an unknown chain), or its ring is broken.
    #[error("queue {queue}: {source}")]
    Ring {
        /// Which.
        queue: usize,
        /// What.
        source: RingError,
    },
    /// A sector is wrong.
    #[error("{0}")]
    Disk(#[from] Illegal),
    /// A request was answered wrongly.
    #[error("{0}")]
    Answer(String),
    /// A message was.
    #[error("{0}")]
    Message(#[from] FrontendError),
    /// The daemon has more descriptors, mappings, threads or memory than before.
    #[error("{0}")]
    Counts(String),
}

impl Fault {
    /// Requests that never came back.
    pub fn lost(&self) -> usize {
        match self {
            Fault::Ring { source: RingError::Deadline(outstanding), .. } => *outstanding,
            _ => 0,
        }
    }

    /// Requests that came back twice.
    pub fn doubled(&self) -> usize {
        usize::from(matches!(self, Fault::Ring { source: RingError::Unknown(_), .. }))
    }
}

/// Puts the number of a queue to what its ring said.
pub(super) fn of_queue<T>(queue: usize, said: Result<T, RingError>) -> Result<T, Fault> {
    said.map_err(|source| Fault::Ring { queue, source })
}

/// A guest that uses its device and checks all it gets.
pub trait Load {
    /// Its rings, by queue number.
    fn rings(&self) -> Vec<&Ring>;

    /// Requests that have not come back, of those that need nobody else to.
    fn outstanding(&self) -> usize;

    /// Makes as many requests as may be outstanding.
    fn submit(&mut self);

    /// Takes and checks what has come back; how many.
    ///
    /// # Errors
    /// Something was wrong with it.
    fn reap(&mut self) -> Result<usize, Fault>;

    /// Waits for an interrupt that brings something back, and takes it. There is something outstanding.
    ///
    /// # Errors
    /// It does not come, or is wrong.
    fn wait(&mut self) -> Result<usize, Fault>;

    /// Whoever serves was killed, and is gone; with the host's `connections` to it if that was the whole daemon.
    ///
    /// # Errors
    /// What the host still got from it is wrong.
    fn killed(&mut self, connections: bool) -> Result<(), Fault> {
        let _ = connections;
        Ok(())
    }

    /// Takes and checks what is in the rings though nobody serves them.
    ///
    /// # Errors
    /// Something was wrong with it.
    fn salvage(&mut self) -> Result<usize, Fault> {
        self.reap()
    }

    /// Somebody is there again and is about to serve, after all that came back before the kill was taken.
    ///
    /// # Errors
    /// Others cannot connect to it.
    fn recovered(&mut self, connections: bool) -> Result<(), Fault> {
        let _ = connections;
        Ok(())
    }

    /// Checks what can be checked with nothing outstanding.
    ///
    /// # Errors
    /// It is wrong.
    fn check(&mut self) -> Result<(), Fault>;

    /// Chains whose bytes the other side got twice, where a kill may do that.
    fn repeated(&self) -> u64 {
        0
    }

    /// Waits until nothing is outstanding.
    ///
    /// # Errors
    /// As [`Load::wait`].
    fn drain(&mut self) -> Result<(), Fault> {
        while self.outstanding() > 0 {
            self.wait()?;
        }
        Ok(())
    }
}

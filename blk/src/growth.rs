//! Disks that grow while they are used.
//!
//! In: somebody says that the image may be larger: an operator on the control socket, or the kernel of a block device
//! ([`crate::uevents`]). Out: the graph looks again, and a driver is told of the size that it finds, by a change of the
//! configuration space. Promises: a disk does not become smaller: what is missing at its end then fails, and the log says
//! so. Refuses volumes that do not fit together any more: the disk stays as it was.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use backends::control::{Change, ChangeError};
use backends::device::Announcer;
use backends::log::{self, Class};
use serde_json::{Map, Value};

use crate::graph::Graph;

/// What an operator sets when an image has grown.
pub(crate) const SIZE: &str = "size_bytes";

/// How a disk comes to know that it has grown, and who is told.
#[derive(Debug, Default)]
pub struct Growth {
    announcer: OnceLock<Announcer>,
    uevents: Mutex<Option<OwnedFd>>,
}

impl Growth {
    /// Block devices tell of it on this socket, if there is one.
    pub fn new(uevents: Option<OwnedFd>) -> Growth {
        Growth { announcer: OnceLock::new(), uevents: Mutex::new(uevents) }
    }

    /// Where drivers are told.
    pub fn attach(&self, announcer: Announcer) {
        let _ = self.announcer.set(announcer);
    }

    /// The socket, for the one worker that listens.
    pub fn take_uevents(&self) -> Option<OwnedFd> {
        self.uevents.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Looks how large the disk is.
    pub fn look(&self, graph: &Graph) {
        match graph.look_again() {
            Ok((before, now)) if before != now => {
                log::line!(info, Class::DiskGrew, before, now, "The disk has grown");
                self.announcer.get().iter().for_each(|announcer| announcer.config_changed());
            }
            Ok(_) => {}
            Err(error) => {
                log::line!(warn, Class::DiskGrew, %error, "What grew does not fit any more; the disk keeps its size");
            }
        }
    }

    /// What an operator may set, as it is.
    pub fn settings(graph: &Graph) -> Map<String, Value> {
        Map::from_iter([(SIZE.to_owned(), graph.size_bytes().into())])
    }

    /// An operator says that the image was enlarged to this size, or beyond it.
    ///
    /// # Errors
    /// It was not.
    pub fn change(&self, graph: &Graph, change: &Change<'_>) -> Result<(), ChangeError> {
        change.only(&[SIZE])?;
        let Some(wanted) = change.number(SIZE, 1..=u64::MAX)? else { return Ok(()) };
        self.look(graph);
        let found = graph.size_bytes();
        if found < wanted {
            let cure = format!("at most {found}, or enlarge the image first, as `outboard-blk grow` does");
            return Err(change.refused(SIZE, &cure));
        }
        Ok(())
    }
}

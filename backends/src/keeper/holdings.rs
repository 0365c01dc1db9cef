//! What workers find when they begin: descriptors by name.
//!
//! In: what the first process opened, and what workers give to be kept for those after them. Out: both, to each worker.
//! Promises: a worker that was taken over has nothing in here that outlives it but names of its own: what was opened
//! stays what it was, there is an end to the names, and only files and sockets are taken. Others could hold on to
//! something that has to go with the worker, as a ring does to its fence.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, fstat};

use super::worker::Gift;
use crate::kept::{Arrived, FENCE, SOCKET};

/// Most names.
const MAX: usize = 64;

/// Descriptors by name.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    fds: BTreeMap<String, OwnedFd>,
    /// Names that are not a worker's to give.
    ours: BTreeSet<String>,
}

impl Holdings {
    /// What has arrived from the first process, and the names that the keeper uses itself.
    pub(super) fn new(arrived: Arrived) -> Holdings {
        let mut ours = arrived.opened;
        ours.extend([SOCKET, FENCE].map(str::to_owned));
        Holdings { fds: arrived.fds, ours }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.fds.iter().map(|(name, fd)| (name.as_str(), fd))
    }

    /// Takes what a worker gave, and lets go of what it dropped.
    pub(super) fn take(&mut self, gifts: Vec<Gift>) {
        for (name, gift) in gifts.into_iter().filter(|(name, _)| !self.ours.contains(name)) {
            match gift {
                None => drop(self.fds.remove(&name)),
                Some(fd) if self.has_room_for(&name) && is_file_or_socket(&fd) => {
                    self.fds.insert(name, fd);
                }
                Some(_) => {}
            }
        }
    }

    fn has_room_for(&self, name: &str) -> bool {
        self.fds.len() < MAX || self.fds.contains_key(name)
    }
}

fn is_file_or_socket(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|file| {
        matches!(FileType::from_raw_mode(file.st_mode), FileType::RegularFile | FileType::Socket)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn socket() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    fn gift(name: &str, fd: impl Into<OwnedFd>) -> Gift {
        (name.to_owned(), Some(fd.into()))
    }

    fn holdings() -> Holdings {
        let mut arrived = Arrived::default();
        arrived.fds.insert("image".to_owned(), socket());
        arrived.opened.insert("image".to_owned());
        arrived.fds.insert("client".to_owned(), socket());
        Holdings::new(arrived)
    }

    fn identity(holdings: &Holdings, name: &str) -> Option<u64> {
        holdings.fds.get(name).map(|fd| fstat(fd).unwrap().st_ino)
    }

    #[test]
    fn what_was_opened_and_what_the_keeper_uses_is_no_workers_to_give_or_drop() {
        let mut holdings = holdings();
        let before = identity(&holdings, "image");
        for name in ["image", SOCKET, FENCE] {
            holdings.take(vec![gift(name, socket()), (name.to_owned(), None)]);
        }
        assert_eq!((identity(&holdings, "image"), holdings.fds.len()), (before, 2));
    }

    #[test]
    fn what_a_worker_gave_before_it_can_give_anew_and_drop() {
        let mut holdings = holdings();
        let before = identity(&holdings, "client");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"state").unwrap();
        holdings.take(vec![gift("client", socket()), gift("state", file)]);
        assert!(identity(&holdings, "client") != before && identity(&holdings, "state").is_some());
        holdings.take(vec![("client".to_owned(), None)]);
        assert_eq!(identity(&holdings, "client"), None);
    }

    #[test]
    fn there_is_an_end_to_the_names() {
        let mut holdings = holdings();
        holdings.take((0..100).map(|nth| gift(&nth.to_string(), socket())).collect());
        assert_eq!(holdings.fds.len(), MAX);
    }

    #[test]
    fn neither_pipes_nor_what_has_no_kind_is_kept() {
        let mut holdings = holdings();
        let (reader, writer) = std::io::pipe().unwrap();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        holdings.take(vec![gift("a", reader), gift("b", writer), gift("c", event)]);
        assert_eq!(holdings.fds.len(), 2);
    }
}

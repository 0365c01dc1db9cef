//! What a daemon opens, once, with the rights of whoever started it.
//!
//! In: what options name, opened by [`crate::daemon::Program::prepare`] in the first process, and what a keeper before
//! this one had, which the service manager brought back. Out: descriptors by name. They go to the keeper, and from it to
//! each worker, which finds them in [`Kept`] and opens nothing: a worker that is killed leaves no lock and no socket
//! that somebody else could take before the next one has it. Promises: what was brought back and nobody claimed is
//! closed; paths that were made here are removed at the end of the daemon, if they are still what was made.
//!
//! The library's own names are those in [`crate::kept`]; a device's begin with its own, as `blk.image`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::kept::Kept;
use crate::kept::channel::{Channel, Note};
use crate::options::{SocketError, listen};

/// Connections that wait: as many as the host allows.
const BACKLOG: i32 = i32::MAX;

/// Descriptors by name.
#[derive(Debug, Default)]
pub struct Opened {
    fds: BTreeMap<String, OwnedFd>,
    /// Names of what workers gave, and may give anew.
    given: BTreeSet<String>,
    /// Of a keeper before this one, and not claimed yet.
    before: BTreeMap<String, OwnedFd>,
    made: Vec<Unlink>,
}

impl Opened {
    /// Nothing is open but what a keeper before had.
    pub(crate) fn after(before: BTreeMap<String, OwnedFd>) -> Opened {
        Opened { before, ..Opened::default() }
    }

    /// Opens the way for `fd` to each worker, under this name. No worker can put another one there: one that was taken
    /// over would have its successors serve what it likes.
    pub fn insert(&mut self, name: &str, fd: impl Into<OwnedFd>) {
        self.fds.insert(name.to_owned(), fd.into());
    }

    /// What has this name.
    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.fds.get(name).map(AsFd::as_fd)
    }

    /// Takes what a keeper before had under this name: whether it is still what the options mean is to be looked at.
    pub fn before(&mut self, name: &str) -> Option<OwnedFd> {
        self.before.remove(name)
    }

    /// Goes on with what a keeper before had under this name, if it had something, from a worker.
    pub fn go_on(&mut self, name: &str) {
        if let Some(fd) = self.before(name) {
            self.hand_on(name, fd);
        }
    }

    /// Has `fd`, which a worker gave to a keeper before, go to each worker until one gives another.
    pub fn hand_on(&mut self, name: &str, fd: impl Into<OwnedFd>) {
        self.insert(name, fd);
        self.given.insert(name.to_owned());
    }

    /// Listens at the path that `option` named, or goes on with the socket that a keeper before had bound there. The
    /// path is removed at the end.
    ///
    /// # Errors
    /// [`SocketError::Path`], which names the option.
    pub fn listen(&mut self, option: &'static str, name: &str, path: &Path) -> Result<(), SocketError> {
        self.listen_by(name, path, || listen(option, path))
    }

    /// The same for a socket that is bound in a way of its own.
    ///
    /// # Errors
    /// As from `bind`.
    pub fn listen_by(
        &mut self,
        name: &str,
        path: &Path,
        bind: impl FnOnce() -> Result<UnixListener, SocketError>,
    ) -> Result<(), SocketError> {
        let before = self.before(name).map(UnixListener::from).filter(|before| still_listens(before, path));
        let listener = before.map_or_else(bind, Ok)?;
        self.insert(name, listener);
        self.remove_at_end(path);
        Ok(())
    }

    /// Has what was made at this path removed at the end of the daemon, unless it is something else by then.
    pub fn remove_at_end(&mut self, path: &Path) {
        self.made.push(Unlink::new(path.into()));
    }

    /// What will be removed.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.made.iter().map(|made| made.path.as_path())
    }

    /// All of them by name, for a process that passes them on by itself.
    pub fn into_fds(self) -> BTreeMap<String, OwnedFd> {
        self.fds
    }

    /// For a daemon that is one process.
    pub fn into_kept(self) -> (Kept, Made) {
        (Kept::of(self.fds), Made { _paths: self.made })
    }

    /// For a keeper, at the other end.
    pub(crate) fn send(&self, channel: &Channel) -> io::Result<()> {
        self.fds.iter().try_for_each(|(name, fd)| {
            let note = if self.given.contains(name) { Note::Keep } else { Note::Kept };
            channel.send(&note(name.clone()), &[fd.as_fd()])
        })
    }
}

/// Whether connections to `path` come to this socket. From now on it is this process that listens, for those who ask
/// (SO_PEERCRED).
fn still_listens(before: &UnixListener, path: &Path) -> bool {
    path.exists()
        && before.local_addr().is_ok_and(|own| own.as_pathname() == Some(path))
        && rustix::net::listen(before, BACKLOG).is_ok()
}

/// Paths that are removed when this is dropped.
#[derive(Debug)]
pub struct Made {
    _paths: Vec<Unlink>,
}

/// Removes what we made at a path when it is dropped, unless another one has taken its place.
#[derive(Debug)]
pub(crate) struct Unlink {
    path: PathBuf,
    made: Option<(u64, u64)>,
}

impl Unlink {
    pub(crate) fn new(path: PathBuf) -> Unlink {
        Unlink { made: identity(&path), path }
    }

    /// Leaves it there: another process goes on with it.
    pub(crate) fn leave(&mut self) {
        self.made = None;
    }
}

impl Drop for Unlink {
    fn drop(&mut self) {
        if self.made.is_some() && self.made == identity(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of what is at a path, be it a link.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

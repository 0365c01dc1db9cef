//! A keeper as its worker sees it: the [`channel`] between them, and what outlives this process, descriptors that the
//! keeper holds for the worker after this one.
//!
//! In: descriptors and a name. Out: what was opened before the daemon began ([`crate::opened`]), and what an earlier
//! worker gave, under that name, once. What a worker gives is what would be noticed if it were closed: the client of a
//! socket. A daemon without a keeper has what it opened, and keeps nothing. Promises: nothing here waits or fails; a
//! keeper that does not listen keeps less.

pub mod channel;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use channel::{Channel, Note, Standing};

use crate::log::{self, Class};

/// Name of the socket that front-ends come by. Workers behind a keeper do not get it.
pub const SOCKET: &str = "socket";
/// Name of the control socket, also as systemd is to call it.
pub const CONTROL: &str = "control";

/// Name of what the keeper sees closed when nothing of a worker is in flight at the host any more, though it was killed
/// before. To a worker this is the end to hold, to the first process of a daemon that of the keeper before.
pub const FENCE: &str = "fence";

/// A handle; all of a process are the same.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    keeper: Option<Arc<Channel>>,
    /// What was opened, and what workers before gave.
    given: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    /// The keeper said that another worker goes on.
    leaving: Arc<AtomicBool>,
    standing: Option<Standing>,
}

impl Kept {
    /// What has arrived on the channel of a worker that begins.
    pub(crate) fn by(keeper: &Arc<Channel>) -> Kept {
        let Arrived { fds, standing, .. } = arrived(keeper);
        Kept { keeper: Some(Arc::clone(keeper)), standing, ..Kept::of(fds) }
    }

    /// Whose worker this is; `None`: nobody's, there is no keeper.
    pub fn standing(&self) -> Option<Standing> {
        self.standing
    }

    /// Has the next worker started from what the executable's path names now. `false`: there is no keeper to do it.
    pub fn upgrade(&self) -> bool {
        self.tell(&Note::Upgrade, &[]);
        self.keeper.is_some()
    }

    /// The log is another from now on.
    pub(crate) fn log_changed(&self, log: &Note, file: Option<BorrowedFd<'_>>) {
        self.tell(log, file.as_slice());
    }

    /// What a process has that is its own keeper.
    pub fn of(given: BTreeMap<String, OwnedFd>) -> Kept {
        Kept { given: Arc::new(Mutex::new(given)), ..Kept::default() }
    }

    /// What is there under this name, for whoever asks first.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// What the first process opened under this name.
    ///
    /// # Errors
    /// It did not, or somebody took it before.
    pub fn opened(&self, name: &str) -> io::Result<OwnedFd> {
        self.take(name).ok_or_else(|| io::Error::other(format!("{name} is not open")))
    }

    /// All names under which something is there that nobody took.
    pub fn names(&self) -> Vec<String> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// What is there under a name is to be taken under another one, in place of what had that.
    pub fn rename(&self, from: &str, to: &str) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = given.remove(from) {
            given.insert(to.to_owned(), fd);
        }
    }

    /// As [`Kept::keep`], for what must not be there for this process only. Without a keeper there is no other.
    ///
    /// # Errors
    /// The keeper does not take it.
    pub fn commit(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.send(&Note::Keep(name.to_owned()), &[fd]))
    }

    /// Has a descriptor kept under this name, in place of an earlier one.
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) {
        self.tell(&Note::Keep(name.to_owned()), &[fd]);
    }

    /// What has this name is not needed any more.
    pub fn drop(&self, name: &str) {
        self.tell(&Note::Drop(name.to_owned()), &[]);
    }

    /// Whether another worker goes on after this one, which is about to end: then what both need has to stay.
    pub fn goes_on(&self) -> bool {
        let next = |keeper: &Arc<Channel>| keeper.try_recv().ok().flatten();
        let told = std::iter::from_fn(|| next(self.keeper.as_ref()?)).any(|(note, _)| note == Note::Leave);
        self.leaving.fetch_or(told, Ordering::Relaxed) || told
    }

    fn tell(&self, note: &Note, fds: &[BorrowedFd<'_>]) {
        if let Some(keeper) = &self.keeper
            && let Err(error) = keeper.send(note, fds)
        {
            log::line!(warn, Class::KeeperDeaf, %error, ?note, "The keeper does not take it");
        }
    }
}

/// What has been sent to a process that begins.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) fds: BTreeMap<String, OwnedFd>,
    /// Names of those that the first process opened: to a keeper, no worker's to give.
    pub(crate) opened: BTreeSet<String>,
    pub(crate) standing: Option<Standing>,
}

/// Takes what has been sent to a process that begins.
pub(crate) fn arrived(channel: &Channel) -> Arrived {
    let mut all = Arrived::default();
    while let Ok(Some((note, fds))) = channel.try_recv() {
        let fd = fds.into_iter().next();
        match note {
            Note::Kept(name) => {
                all.opened.insert(name.clone());
                all.fds.extend(fd.map(|fd| (name, fd)));
            }
            Note::Keep(name) => all.fds.extend(fd.map(|fd| (name, fd))),
            Note::Log { level, file } => log::follow(level, &file, None),
            Note::Standing(ours) => all.standing = Some(ours),
            _ => break,
        }
    }
    all
}

//! A keeper as its worker sees it: the [`channel`] between them, and what outlives this process, descriptors that the
//! keeper holds for the worker after this one.
//!
//! In: descriptors and a name. Out: what an earlier worker gave under that name, once. A daemon without a keeper keeps
//! nothing, and finds nothing. What is kept is what would be noticed if it were closed: a listening socket and its
//! client, the master of a pty. Promises: nothing here waits or fails; a keeper that does not listen keeps less.

pub mod channel;

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use channel::{Channel, Note, Standing};

use crate::log::{self, Class};

/// A handle; all of a process are the same.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    keeper: Option<Arc<Channel>>,
    /// What the worker before gave.
    given: Arc<Mutex<BTreeMap<String, Vec<OwnedFd>>>>,
    /// The keeper said that another worker goes on.
    leaving: Arc<AtomicBool>,
    standing: Option<Standing>,
}

impl Kept {
    /// What has arrived on the channel of a worker that begins.
    pub(crate) fn by(keeper: &Arc<Channel>) -> Kept {
        let (mut given, mut standing) = (BTreeMap::new(), None);
        while let Ok(Some((note, fds))) = keeper.try_recv() {
            match note {
                Note::Kept(name) => drop(given.insert(name, fds)),
                Note::Log(level) => log::follow(level, None),
                Note::Standing(ours) => standing = Some(ours),
                _ => break,
            }
        }
        let given = Arc::new(Mutex::new(given));
        Kept { keeper: Some(Arc::clone(keeper)), given, leaving: Arc::default(), standing }
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
    pub(crate) fn log_changed(&self, level: u8, file: Option<BorrowedFd<'_>>) {
        self.tell(&Note::Log(level), file.as_slice());
    }

    /// What was kept under this name.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).remove(name)?.pop()
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

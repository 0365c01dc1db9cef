//! What a kind of volumes is. A new one is a file of its own and a line in [`super::kinds`].
//!
//! A [`Kind`] says what it takes; files are checked against that, and `graph types`, the manual and `docs/graph.md` are made
//! of it. A volume comes to be in two steps, in two processes: `prepare` opens what it needs with the rights of whoever
//! started the daemon, `make` finds that again in each worker, which may open nothing.

use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use backends::kept::Kept;
use backends::opened::Opened;
use serde_json::{Value, json};

use super::Volume;
use super::options::{Bad, Setting, Values};

/// Opens what a volume needs.
pub type Prepare = fn(&Values, &mut Openings<'_>) -> Result<(), Bad>;

/// Makes a volume.
pub type Make = fn(&Made<'_>) -> Result<Arc<dyn Volume>, Bad>;

/// A kind of volume.
#[derive(Debug)]
pub struct Kind {
    /// `CATEGORY/KIND`
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// On how many volumes it stands.
    pub subvolumes: RangeInclusive<usize>,
    /// What it takes.
    pub options: &'static [Setting],
    /// Opens what its volumes need.
    pub prepare: Option<Prepare>,
    /// Makes a volume of what was opened.
    pub make: Make,
}

impl Kind {
    /// For programs.
    pub fn to_json(&self) -> Value {
        let options: Vec<Value> = self.options.iter().map(Setting::to_json).collect();
        let (least, most) = (self.subvolumes.start(), self.subvolumes.end());
        json!({
            "type": self.name,
            "about": self.about,
            "subvolumes": { "min": least, "max": most },
            "options": options,
        })
    }
}

/// What descriptors are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A daemon serves them: they are locked.
    Serve,
    /// Somebody wants to know what would be served: they are left alone, a daemon may be serving them.
    Look,
}

/// Where a volume puts what it opens.
#[derive(Debug)]
pub struct Openings<'a> {
    /// Its name.
    pub volume: &'a str,
    /// What it is opened for.
    pub purpose: Purpose,
    /// All that is open by now.
    pub opened: &'a mut Opened,
}

impl Openings<'_> {
    /// Puts a descriptor there for [`Made::take`] in each worker.
    pub fn insert(&mut self, what: &str, fd: impl Into<OwnedFd>) {
        self.opened.insert(&name(self.volume, what), fd);
    }

    /// A copy of what it has put there.
    pub fn get(&self, what: &str) -> Option<OwnedFd> {
        self.opened.get(&name(self.volume, what))?.try_clone_to_owned().ok()
    }

    /// What a keeper before this one had opened so.
    pub fn before(&mut self, what: &str) -> Option<OwnedFd> {
        self.opened.before(&name(self.volume, what))
    }
}

/// What a volume is made of.
#[derive(Debug)]
pub struct Made<'a> {
    /// Its name.
    pub volume: &'a str,
    /// Its options.
    pub values: &'a Values,
    /// Names of those below it.
    pub subvolumes: &'a [&'a str],
    /// All that was opened.
    pub kept: &'a Kept,
}

impl Made<'_> {
    /// What was opened for it, once.
    pub fn take(&self, what: &str) -> Option<OwnedFd> {
        self.kept.take(&name(self.volume, what))
    }

    /// Has the next worker find this one in its place.
    pub fn keep(&self, what: &str, fd: BorrowedFd<'_>) {
        self.kept.keep(&name(self.volume, what), fd);
    }
}

/// What the names of descriptors of volumes begin with.
pub const PREFIX: &str = "blk.";

/// Name of a descriptor that was opened for a volume.
pub fn name(volume: &str, what: &str) -> String {
    format!("{PREFIX}{volume}.{what}")
}

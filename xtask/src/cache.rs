//! What was fetched once: `$XDG_CACHE_HOME/outboard` (default `~/.cache/outboard`).
//!
//! An entry is a directory that is either complete or absent. Whoever finds it absent makes it, alone: a lock file
//! beside it keeps others waiting, and the finished directory is renamed into place. Nothing here is ever changed in
//! place, so any number of runs may read it at once; deleting an entry makes the next run fetch it again.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why the cache could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither variable that tells where the cache is was set.
    #[error("Neither XDG_CACHE_HOME nor HOME is set: set one of them to say where the cache may live")]
    NoHome,
    /// A file operation failed.
    #[error("Cannot use the cache entry {path}")]
    Io {
        /// The entry.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The root of the cache.
pub fn root() -> Result<PathBuf, Error> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("outboard")).ok_or(Error::NoHome)
}

/// The directory `name` of the cache; when it is absent `make` fills a fresh directory that then becomes it.
pub fn entry<E: From<Error>>(name: &str, make: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E> {
    entry_in(&root()?, name, make)
}

fn entry_in<E: From<Error>>(
    root: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let path = root.join(name);
    if path.is_dir() {
        return Ok(path);
    }
    let io = |source| Error::Io { path: path.clone(), source };
    fs::create_dir_all(root).map_err(io)?;
    let _lock = lock(&root.join(format!("{name}.lock"))).map_err(io)?;
    if path.is_dir() {
        return Ok(path);
    }
    let fresh = tempfile::Builder::new().prefix(".making-").tempdir_in(root).map_err(io)?;
    make(fresh.path())?;
    fs::rename(fresh.path(), &path).map_err(io)?;
    Ok(path)
}

/// Holds the lock until the file is dropped; a holder that dies lets go of it.
fn lock(path: &Path) -> io::Result<File> {
    let file = File::create(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn an_entry_is_made_once_however_many_ask_at_once() {
        let root = tempfile::tempdir().unwrap();
        let made = AtomicUsize::new(0);
        let make = |dir: &Path| -> Result<(), Error> {
            made.fetch_add(1, Ordering::SeqCst);
            fs::write(dir.join("file"), "complete").unwrap();
            Ok(())
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let path = entry_in(root.path(), "thing", make).unwrap();
                    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "complete");
                });
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failed_making_leaves_no_entry() {
        let root = tempfile::tempdir().unwrap();
        let failed = entry_in(root.path(), "thing", |_| Err(Error::NoHome));
        assert!(failed.is_err());
        assert!(!root.path().join("thing").exists());
        entry_in(root.path(), "thing", |_| Ok::<(), Error>(())).unwrap();
    }
}

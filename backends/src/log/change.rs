//! What can change while a daemon runs: the level of its log, and the file.
//!
//! In: an operator's wish, by way of the control socket. Out: this process logs so, its keeper too, and the workers that
//! follow. Refuses a descriptor that cannot be written to, and a file where the log goes to journald. A file comes as a
//! descriptor, opened with the rights of whoever asks: a daemon opens nothing. It takes the place of standard error at
//! once, so that no line is torn, and what went to the old one is there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use thiserror::Error;
use tracing::Level;

use super::{Format, sink};
use crate::kept::Kept;
use crate::kept::channel::{MAX_NAME_BYTES, Note};

/// By the number that stands for it between processes.
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
const INFO: u8 = 2;

static LEVEL: AtomicU8 = AtomicU8::new(INFO);
static KEEPER: OnceLock<Kept> = OnceLock::new();
/// What the file is called that has the place of standard error.
static FILE: Mutex<Option<String>> = Mutex::new(None);

/// Why the log stays where it is.
#[derive(Debug, Error)]
pub enum ReopenError {
    /// There is no file.
    #[error("The log goes to the journal; start with --log-format text or json to have it in a file")]
    Journal,
    /// Nothing can be written to it.
    #[error("The descriptor for the log is not open for writing; open the file for appending")]
    ReadOnly,
    /// It is nothing to write lines to.
    #[error("The descriptor for the log is no file, pipe, socket or terminal; open a file for appending")]
    Kind,
    /// Nobody could find it under this name.
    #[error("file {0:?}: not a whole path of at most {MAX_NAME_BYTES} bytes; name the file that you opened")]
    Name(String),
    /// The host refuses.
    #[error("The descriptor for the log cannot be used: {0}; open a file for appending")]
    Host(#[from] io::Error),
}

impl ReopenError {
    /// Whether no descriptor at all would do.
    pub fn is_conflict(&self) -> bool {
        matches!(self, ReopenError::Journal)
    }
}

/// The level of what is written now.
pub fn level() -> Level {
    let number = usize::from(LEVEL.load(Ordering::Relaxed));
    LEVELS.get(number).copied().unwrap_or(Level::INFO)
}

/// Has lines of this level written from now on, and those that matter more; by the keeper and the next workers, too.
pub fn set_level(level: Level) {
    take_level(level);
    tell(None);
}

/// Has lines go to this file from now on, in the place of standard error; those of the keeper and the next workers, too.
/// Its name, if that is another than before, is for those who ask where the log is.
///
/// # Errors
/// [`ReopenError`]
pub fn reopen(file: &OwnedFd, name: Option<&str>) -> Result<(), ReopenError> {
    if super::format() == Format::Journal {
        return Err(ReopenError::Journal);
    }
    if let Some(wrong) = name.filter(|name| !name.starts_with('/') || name.len() > MAX_NAME_BYTES) {
        return Err(ReopenError::Name(wrong.chars().take(100).collect()));
    }
    check(file)?;
    take_file(file)?;
    if let Some(name) = name {
        call_file(Some(name.to_owned()));
    }
    tell(Some(file.as_fd()));
    Ok(())
}

/// The whole path of the file that took the place of standard error, as far as it was told.
pub fn file() -> Option<String> {
    name_of_file().clone()
}

pub(super) fn call_file(name: Option<String>) {
    *name_of_file() = name;
}

fn name_of_file() -> MutexGuard<'static, Option<String>> {
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on changes are told to the keeper.
pub(crate) fn report_to(keeper: Kept) {
    let _ = KEEPER.set(keeper);
}

/// The log as it is now, for another process of this daemon: level and name of the file.
pub(crate) fn note() -> Note {
    // A longer one is known to those who parse the options, and to nobody else.
    let file = file().filter(|name| name.len() <= MAX_NAME_BYTES).unwrap_or_default();
    Note::Log { level: LEVEL.load(Ordering::Relaxed), file }
}

/// Logs as another process of this daemon does: at this level, to the file of this name (empty: there is none), which
/// comes along if it is a new one.
pub(crate) fn follow(level: u8, name: &str, file: Option<&OwnedFd>) {
    if let Some(level) = LEVELS.get(usize::from(level)) {
        take_level(*level);
    }
    if !name.is_empty() {
        call_file(Some(name.to_owned()));
    }
    // A worker may have been taken over: its descriptor is looked at like anybody's.
    if let Some(file) = file
        && check(file).is_ok()
    {
        let _ = take_file(file);
    }
}

/// Whether lines of this level, by its name, are written.
#[doc(hidden)]
pub fn is_on(level_name: &str) -> bool {
    level_name.parse().is_ok_and(|asked: Level| asked <= level())
}

pub(super) fn take_level(level: Level) {
    let at = LEVELS.iter().position(|known| *known == level).unwrap_or_default();
    LEVEL.store(u8::try_from(at).unwrap_or(INFO), Ordering::Relaxed);
    tracing_core::callsite::rebuild_interest_cache();
}

fn take_file(file: &OwnedFd) -> io::Result<()> {
    sink::replace(file)?;
    super::look_at_stderr();
    Ok(())
}

fn tell(file: Option<BorrowedFd<'_>>) {
    if let Some(keeper) = KEEPER.get() {
        keeper.log_changed(&note(), file);
    }
}

/// Looks at a descriptor; lines go to the end of a file, whoever else writes there.
fn check(file: &OwnedFd) -> Result<(), ReopenError> {
    let host = |errno: rustix::io::Errno| ReopenError::Host(errno.into());
    let flags = fcntl_getfl(file).map_err(host)?;
    if flags.contains(OFlags::PATH) || !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Err(ReopenError::ReadOnly);
    }
    match FileType::from_raw_mode(fstat(file).map_err(host)?.st_mode) {
        FileType::RegularFile => fcntl_setfl(file, flags | OFlags::APPEND).map_err(host),
        FileType::Fifo | FileType::CharacterDevice | FileType::Socket => Ok(()),
        _ => Err(ReopenError::Kind),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn levels_keep_their_order_between_processes() {
        for (number, level) in LEVELS.into_iter().enumerate() {
            take_level(level);
            assert_eq!(usize::from(LEVEL.load(Ordering::Relaxed)), number);
            assert_eq!(super::level(), level);
            assert!(is_on("error") && is_on(level.as_str()));
            follow(200, "", None);
            assert_eq!(super::level(), level);
        }
        assert!(is_on("trace"));
        follow(1, "", None);
        assert!(is_on("warn") && !is_on("info"));
        take_level(Level::INFO);
    }

    #[test]
    fn only_what_lines_can_be_written_to_becomes_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let open = |options: &mut std::fs::OpenOptions, path: &str| -> OwnedFd {
            options.open(dir.path().join(path)).unwrap().into()
        };
        let file = open(File::options().write(true).create(true), "log");
        check(&file).unwrap();
        assert!(fcntl_getfl(&file).unwrap().contains(OFlags::APPEND));
        assert!(matches!(check(&open(File::options().read(true), "log")), Err(ReopenError::ReadOnly)));
        assert!(matches!(check(&open(File::options().read(true), ".")), Err(ReopenError::ReadOnly)));
        let path = rustix::fs::open(dir.path().join("log"), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(matches!(check(&path), Err(ReopenError::ReadOnly)));
        check(&open(File::options().write(true), "/dev/null")).unwrap();
        let memory = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        assert!(matches!(check(&memory), Err(ReopenError::Kind)));
    }
}

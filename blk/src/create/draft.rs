//! A file that has no name until it is whole.
//!
//! In: the path it is to have, and whether it may replace what is there. Out: a file without a name in the same
//! directory (O_TMPFILE), which the kernel forgets however this process ends; where the file system knows no such thing
//! (NFS, FAT), one with a hidden name, which is removed again unless the process is killed, as is the one that a file which
//! replaces another has for an instant. [`Draft::publish`] gives it
//! its name in one step: nobody sees half an image, and two who make the same one cannot both succeed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Uid, fchown, linkat, open, renameat_with};
use rustix::io::Errno;

use super::{Problem, directory};
use crate::storage::lock::{LockError, Ways};

/// Who may do what with an image: its owner, all.
const MODE: u32 = 0o600;

/// A file that is being made.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    /// The name it is to have, links resolved if it replaces something.
    path: PathBuf,
    replaces: bool,
    /// Its name until then, which goes with it.
    hidden: Option<Hidden>,
}

#[derive(Debug)]
struct Hidden(PathBuf);

impl Drop for Hidden {
    fn drop(&mut self) {
        // It has its own name by now, or nobody needs it.
        let _ = fs::remove_file(&self.0);
    }
}

impl Draft {
    /// An empty file that can become `path`.
    pub(super) fn begin(path: &Path, force: bool) -> Result<Draft, Problem> {
        let replaced = replaceable(path, force)?;
        let path = replaced.as_ref().map_or_else(|| path.to_owned(), |(path, _)| path.clone());
        let (file, hidden) = match unnamed(directory(&path)) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named(&path)?,
            file => (file.map_err(|errno| refused(errno.into()))?, None),
        };
        if let Some((_, old)) = &replaced {
            take_after(&file, old).map_err(Problem::Make)?;
        }
        Ok(Draft { file, path, replaces: replaced.is_some(), hidden })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, durably.
    pub(super) fn publish(self) -> Result<(), Problem> {
        let named = match (&self.hidden, self.replaces) {
            (None, false) => self.link(&self.path),
            (None, true) => self.link_over(),
            (Some(hidden), false) => rename_new(&hidden.0, &self.path),
            (Some(hidden), true) => fs::rename(&hidden.0, &self.path),
        };
        let named = named.and_then(|()| File::open(directory(&self.path))?.sync_all());
        named.map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => Problem::Exists,
            _ => Problem::Make(cause),
        })
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// A link replaces nothing, but a name does.
    fn link_over(&self) -> io::Result<()> {
        let hidden = Hidden(hidden_name(&self.path));
        self.link(&hidden.0)?;
        fs::rename(&hidden.0, &self.path)
    }
}

/// What is at a path, if it may be replaced: its own path, and what it is.
fn replaceable(path: &Path, force: bool) -> Result<Option<(PathBuf, fs::Metadata)>, Problem> {
    match fs::symlink_metadata(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(refused)?,
    };
    if !force {
        return Err(Problem::Exists);
    }
    let path = fs::canonicalize(path).map_err(|_| Problem::Kind("a link to nothing"))?;
    let old = OpenOptions::new().read(true).write(true).custom_flags(nonblocking()).open(&path);
    let old = old.map_err(|cause| kind(&path).map_or(Problem::Make(cause), Problem::Kind))?;
    let metadata = old.metadata().map_err(Problem::Make)?;
    if let Some(kind) = kind(&path) {
        return Err(Problem::Kind(kind));
    }
    match (Ways { cached: Some(old.into()), direct: None }).lock(false) {
        Err(LockError::InUse(holder)) => Err(Problem::InUse(holder)),
        // Where there are no locks, nobody has one.
        Ok(()) | Err(LockError::Host(_)) => Ok(Some((path, metadata))),
    }
}

/// What is no file.
fn kind(path: &Path) -> Option<&'static str> {
    let kind = fs::metadata(path).ok()?.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_block_device() => Some("a block device"),
        () => Some("neither a file nor a block device"),
    }
}

/// Opening a pipe that nobody writes to must not hang.
fn nonblocking() -> i32 {
    i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0)
}

fn unnamed(directory: &Path) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    open(directory, flags, Mode::from_raw_mode(MODE)).map(File::from)
}

fn named(path: &Path) -> Result<(File, Option<Hidden>), Problem> {
    let hidden = Hidden(hidden_name(path));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(MODE).open(&hidden.0);
    file.map(|file| (file, Some(hidden))).map_err(Problem::Make)
}

/// A name beside it, which no other process takes.
fn hidden_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".new-{}", std::process::id()));
    path.with_file_name(name)
}

fn refused(cause: io::Error) -> Problem {
    match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Problem::NoDirectory,
        _ => Problem::Make(cause),
    }
}

/// The same owner and rights as what it replaces.
fn take_after(file: &File, old: &fs::Metadata) -> io::Result<()> {
    if file.metadata()?.uid() != old.uid() || file.metadata()?.gid() != old.gid() {
        fchown(file, Some(Uid::from_raw(old.uid())), Some(Gid::from_raw(old.gid())))?;
    }
    file.set_permissions(Permissions::from_mode(old.mode()))
}

/// Renames, but replaces nothing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that cannot do that can link.
        Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(from, to),
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    /// Where there is nothing like O_TMPFILE.
    fn hidden(path: &Path, replaces: bool) -> Draft {
        let (file, hidden) = named(path).unwrap();
        Draft { file, path: path.to_owned(), replaces, hidden }
    }

    #[test]
    fn a_draft_without_a_name_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        drop(Draft::begin(&path, false).unwrap());
        drop(hidden(&path, false));
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn either_kind_becomes_what_it_is_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        hidden(&path, false).publish().unwrap();
        hidden(&path, true).publish().unwrap();
        Draft::begin(&path, true).unwrap().publish().unwrap();
        assert_eq!(names(dir.path()), ["a.img"]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
    }

    #[test]
    fn what_came_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        let drafts = [Draft::begin(&path, false).unwrap(), hidden(&path, false)];
        fs::write(&path, "precious").unwrap();
        for draft in drafts {
            assert!(matches!(draft.publish(), Err(Problem::Exists)));
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(names(dir.path()), ["a.img"]);
    }

    #[test]
    fn what_replaces_something_has_its_rights_and_leaves_links_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a.img"), dir.path().join("link.img"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Draft::begin(&link, true).unwrap().publish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}

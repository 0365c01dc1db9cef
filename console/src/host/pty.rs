//! A pseudo-terminal as the host side, found by a symbolic link.
//!
//! We hold the master only. Somebody reads as long as any program has the slave open: the kernel reports a
//! hang-up on the master when the last one closes it, and says nothing when one opens it again. inotify does,
//! on the slave's device node. So reader after reader may come and go, and nothing is polled by time.
//! The slave is raw from the start; without that it would echo the guest's output back as its input.
//!
//! The link is made beside its place and renamed, so that nobody sees it half made. One that is there already
//! is taken for what a daemon that was killed left, and replaced. At the end it goes, if it is still ours.
//! The master outlives the worker: readers keep their terminal.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backends::device::Source;
use backends::engine::Interest;
use backends::kept::Kept;
use backends::opened::Opened;
use backends::options::check_directory;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, Mode, OFlags, fcntl_setfl, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use thiserror::Error;

use super::{Call, Channel, HostIo, HostSide, Moved};

const MASTER: Source = Source(0);
const OPENED: Source = Source(1);
const FIRST_FREE_FD: i32 = 3;
/// Names of the master, and of the watch on who opens the slave.
const PREPARED_MASTER: &str = "console.master";
const PREPARED_WATCH: &str = "console.opens";

/// Why there is no pty.
#[derive(Debug, Error)]
pub enum PtyError {
    /// The host gives none.
    #[error("--pty {}: cannot open a pseudo-terminal: {cause}; is devpts mounted on /dev/pts, and kernel.pty.max not reached?", link.display())]
    Open {
        /// Where the link was to be.
        link: PathBuf,
        /// Error of the host.
        cause: io::Error,
    },
    /// The link would overwrite something.
    #[error("--pty {}: something that is no symbolic link is there; remove it or use another path", .0.display())]
    Taken(PathBuf),
    /// The link cannot be made.
    #[error("--pty {}: cannot make a symbolic link there: {cause}; the directory must exist and be writable for this user", link.display())]
    Link {
        /// Where the link was to be.
        link: PathBuf,
        /// Error of the host.
        cause: io::Error,
    },
}

/// The master of a pseudo-terminal.
pub struct Pty {
    master: Channel,
    opened: OwnedFd,
    /// Somebody has the slave open.
    reader: bool,
}

impl Pty {
    /// Whether a link can be made at `link`.
    ///
    /// # Errors
    /// [`PtyError::Taken`], [`PtyError::Link`]
    pub fn check(link: &Path) -> Result<(), PtyError> {
        refuse_other(link)?;
        check_directory(link).map_err(|cause| PtyError::Link { link: link.into(), cause })
    }

    /// Opens a pseudo-terminal, or goes on with that of a keeper before, and makes `link` point to its slave. The link
    /// is removed at the end.
    ///
    /// # Errors
    /// [`PtyError`]
    pub fn prepare(link: &Path, opened: &mut Opened) -> Result<(), PtyError> {
        let failed = |cause| PtyError::Open { link: link.into(), cause };
        let before =
            opened.before(PREPARED_MASTER).and_then(|master| Some((slave_path(&master).ok()?, master)));
        let (slave, master) = before.map_or_else(open_pair, Ok).map_err(failed)?;
        opened.insert(PREPARED_WATCH, watch_opens(&slave).map_err(failed)?);
        opened.insert(PREPARED_MASTER, master);
        make_link(link, &slave)?;
        opened.remove_at_end(link);
        Ok(())
    }

    /// The pseudo-terminal that was prepared.
    ///
    /// # Errors
    /// None was.
    pub fn open(kept: &Kept) -> io::Result<Pty> {
        let (master, opened) = (kept.opened(PREPARED_MASTER)?, kept.opened(PREPARED_WATCH)?);
        Ok(Pty { master: Channel::new(master, MASTER), opened, reader: false })
    }

    /// The master, to ask for the size that a reader gives its terminal.
    pub fn terminal(&self) -> Option<OwnedFd> {
        fcntl_dupfd_cloexec(&self.master, FIRST_FREE_FD).ok()
    }

    /// Finds out whether there is a reader.
    fn look(&mut self) {
        self.reader = !self.master.is_hung_up();
        self.master.reopen();
    }
}

impl HostSide for Pty {
    fn start(&mut self, io: &mut HostIo<'_>) -> io::Result<()> {
        self.master.watch(Interest::Both, io)?;
        io.watch(self.opened.as_fd(), Interest::Read, OPENED)?;
        self.look();
        Ok(())
    }

    fn ready(&mut self, source: Source, _: &mut HostIo<'_>) {
        if source == OPENED {
            forget_events(&self.opened);
        }
        self.look();
    }

    fn read(&mut self, call: Call<'_>) -> Moved {
        self.master.read(call)
    }

    fn write(&mut self, call: Call<'_>) -> Moved {
        if self.reader { self.master.write(call) } else { Moved::Nobody }
    }

    fn writer(&self) -> Option<OwnedFd> {
        self.reader.then(|| self.master.as_fd().try_clone_to_owned().ok()).flatten()
    }
}

fn slave_path(master: &OwnedFd) -> io::Result<PathBuf> {
    let path = ptsname(master, Vec::new())?;
    Ok(PathBuf::from(OsStr::from_bytes(path.to_bytes())))
}

/// The path of a slave, which is raw and closed, and its non-blocking master.
fn open_pair() -> io::Result<(PathBuf, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = slave_path(&master)?;
    let slave = openat(CWD, &path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut modes = tcgetattr(&slave)?;
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    Ok((path, master))
}

fn watch_opens(slave: &Path) -> io::Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, slave, WatchFlags::OPEN)?;
    Ok(watch)
}

/// That something happened is all we want to know.
fn forget_events(watch: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 512];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|(events, _)| !events.is_empty()) {}
}

/// Nothing but a link may be replaced by ours.
fn refuse_other(path: &Path) -> Result<(), PtyError> {
    if path.symlink_metadata().is_ok_and(|there| !there.is_symlink()) {
        return Err(PtyError::Taken(path.into()));
    }
    Ok(())
}

/// A symbolic link at `path`, in place of one that is there.
fn make_link(path: &Path, target: &Path) -> Result<(), PtyError> {
    let failed = |cause| PtyError::Link { link: path.into(), cause };
    refuse_other(path)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    std::os::unix::fs::symlink(target, &beside).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(|cause| {
        let _ = std::fs::remove_file(&beside);
        failed(cause)
    })
}

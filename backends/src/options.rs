//! Options that all daemons have, and the socket they name.
//!
//! In: a command line, and what systemd passed (LISTEN_FDS). Out: a socket, in [`Opened`]. Follows the vhost-user
//! back-end program conventions: `--socket-path`, `--fd`, `--print-capabilities`, never daemonising.
//! Refuses, each with one line that names the option, the value and the cure: a path that is too long, in a
//! directory that is not there or not ours, taken by something that is no socket, or served by another
//! daemon already (exit code 4).

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use thiserror::Error;

use crate::control;
use crate::cpus::CpuList;
use crate::engine::EngineKind;
use crate::keeper::store::is_ours as is_stored;
use crate::kept::channel::Channel;
use crate::kept::{CONTROL, SOCKET};
use crate::log;
use crate::opened::Opened;
use crate::sandbox;

/// Longest path of a unix socket (`sun_path` less its closing zero).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The option that names the control socket.
const CONTROL_SOCKET: &str = "--control-socket";
/// First descriptor that systemd passes (sd_listen_fds(3)).
const FIRST_PASSED_FD: RawFd = 3;

/// Options of every daemon.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of every daemon")]
pub struct Common {
    /// Listen on this unix socket for front-ends, one at a time
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,

    /// Use this open descriptor: a listening socket, or one that a front-end is connected to
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<RawFd>,

    /// Answer `outboard ctl`, curl and Prometheus on this unix socket
    #[arg(long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,

    /// Take options from this TOML file too; its keys are their names, and the command line wins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Say whether the options are good, and what they name can be used, without serving; exit 0, or as a start would
    #[arg(long)]
    pub check: bool,

    /// Print what this program can do, as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Hold the front-end's connection in a process of its own, so that a worker that dies is replaced unnoticed
    #[arg(long, value_enum, value_name = "on|off", default_value_t, hide_possible_values = true)]
    pub keeper: Switch,

    /// The channel to this worker's keeper
    #[arg(long, hide = true, value_name = "FD")]
    pub worker: Option<RawFd>,

    /// How to wait for and do I/O
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub engine: EngineKind,

    /// Run the daemon's workers on these CPUs, one on each in turn, like 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Refuse guest memory that the front-end could cut short (memfd without F_SEAL_SHRINK, hugetlbfs)
    #[arg(long)]
    pub require_sealed_memory: bool,

    /// Confine the daemon to what it needs; log: let it do the rest too, and have the kernel log that
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub sandbox: sandbox::Mode,

    /// Go on as this user, without any other group, once everything is open
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,

    /// The log
    #[command(flatten)]
    pub log: log::LogOptions,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Yes.
    #[default]
    On,
    /// No.
    Off,
}

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// None of the ways to name one was used.
    #[error("No socket: give --socket-path PATH or --fd N, or start me by systemd socket activation")]
    Missing,
    /// A path at which nobody can listen.
    #[error("{option} {}: {problem}", path.display())]
    Path {
        /// The option that named it.
        option: &'static str,
        /// Path.
        path: PathBuf,
        /// What is wrong with it, and the cure.
        problem: PathProblem,
    },
    /// The descriptor is no unix stream socket.
    #[error("--fd {fd}: {cause}; pass a unix stream socket that listens or is connected")]
    Fd {
        /// Descriptor.
        fd: RawFd,
        /// Error of the host.
        cause: io::Error,
    },
    /// A worker without a keeper.
    #[error("--worker: {0}; this option is for keepers only")]
    Channel(io::Error),
    /// systemd passed something that is not for us.
    #[error("LISTEN_FDS: {0}")]
    Activation(String),
}

/// What is wrong with the path of a socket.
#[derive(Debug, Error)]
pub enum PathProblem {
    /// It does not fit into a socket address.
    #[error("{0} bytes are too long for a socket; use a path of at most {MAX_SOCKET_PATH_BYTES}")]
    TooLong(usize),
    /// Something else is there.
    #[error("something that is no socket is there; remove it or use another path")]
    NoSocket,
    /// Front-ends and control clients would come by one socket.
    #[error("--socket-path is the same; use another path, like one that ends in .control")]
    Shared,
    /// Another process listens there.
    #[error("another process listens there; stop it or use another path")]
    InUse,
    /// The directory is missing or not ours.
    #[error("cannot listen there: {0}; the directory must exist and be writable for this user")]
    Bind(io::Error),
}

impl Common {
    /// The channel to the keeper, if this is a worker.
    ///
    /// # Errors
    /// [`SocketError::Channel`]
    pub(crate) fn keeper_channel(&self) -> Result<Option<Arc<Channel>>, SocketError> {
        let channel = self.worker.map(Channel::inherited).transpose().map_err(SocketError::Channel)?;
        Ok(channel.map(Arc::new))
    }

    /// Looks at the socket that the options name, if they name one. One that another process listens on is good:
    /// that may be the daemon that is to be started again.
    ///
    /// # Errors
    /// [`SocketError`]
    pub fn check(&self) -> Result<(), SocketError> {
        if let Some(path) = &self.control_socket {
            self.check_control(path)?;
            check_listen(CONTROL_SOCKET, path)?;
        }
        match (&self.socket_path, self.fd) {
            (Some(path), _) => check_listen("--socket-path", path),
            (None, Some(fd)) => from_fd(fd).map(drop),
            (None, None) => Ok(()),
        }
    }

    /// Opens the sockets that the options or systemd name.
    ///
    /// # Errors
    /// [`SocketError`]
    pub(crate) fn prepare(&self, opened: &mut Opened) -> Result<(), SocketError> {
        self.prepare_control(opened)?;
        let fd = match (&self.socket_path, self.fd) {
            (Some(path), _) => return opened.listen("--socket-path", SOCKET, path),
            (None, Some(fd)) => fd,
            (None, None) => activated()?.ok_or(SocketError::Missing)?,
        };
        opened.insert(SOCKET, from_fd(fd)?);
        Ok(())
    }

    /// The control socket needs a path of its own.
    fn check_control(&self, path: &Path) -> Result<(), SocketError> {
        if self.socket_path.as_deref() == Some(path) {
            let (option, path) = (CONTROL_SOCKET, path.into());
            return Err(SocketError::Path { option, path, problem: PathProblem::Shared });
        }
        Ok(())
    }

    fn prepare_control(&self, opened: &mut Opened) -> Result<(), SocketError> {
        let passed = passed()?.into_iter().find(|(_, name)| name == CONTROL);
        match (&self.control_socket, passed) {
            (None, None) => {}
            (None, Some((fd, _))) => opened.insert(CONTROL, from_fd(fd)?),
            (Some(path), None) => {
                self.check_control(path)?;
                opened.listen_by(CONTROL, path, || control::listen(CONTROL_SOCKET, path))?;
            }
            (Some(_), Some(_)) => {
                return Err(SocketError::Activation(format!(
                    "a socket called {CONTROL} was passed, and {CONTROL_SOCKET} names another; leave out one of them"
                )));
            }
        }
        Ok(())
    }
}

/// What clap says of a mistake, without its usage and its line breaks.
pub fn one_line(error: &clap::Error) -> String {
    let message = error.render().to_string();
    let message = message.split("\n\nUsage:").next().unwrap_or_default();
    let message = message.split("\n\nFor more").next().unwrap_or_default();
    let words: Vec<&str> = message.trim_start_matches("error: ").split_whitespace().collect();
    format!("{}; see --help", words.join(" "))
}

/// Listens at the path that `option` named. A socket that nobody listens on is what a daemon that was killed
/// leaves: it is replaced.
///
/// # Errors
/// [`SocketError::Path`]
pub fn listen(option: &'static str, path: &Path) -> Result<UnixListener, SocketError> {
    listen_by(option, path, |path| UnixListener::bind(path))
}

/// The same, by another way to bind.
pub(crate) fn listen_by(
    option: &'static str,
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<UnixListener>,
) -> Result<UnixListener, SocketError> {
    place(path, bind).map_err(|problem| SocketError::Path { option, path: path.into(), problem })
}

fn place(path: &Path, bind: impl Fn(&Path) -> io::Result<UnixListener>) -> Result<UnixListener, PathProblem> {
    if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(PathProblem::TooLong(path.as_os_str().len()));
    }
    match bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other.map_err(PathProblem::Bind),
    }
    if !std::fs::symlink_metadata(path).map_err(PathProblem::Bind)?.file_type().is_socket() {
        return Err(PathProblem::NoSocket);
    }
    if somebody_listens(path) {
        return Err(PathProblem::InUse);
    }
    std::fs::remove_file(path).map_err(PathProblem::Bind)?;
    bind(path).map_err(PathProblem::Bind)
}

/// Whether the path that `option` named can be connected to, now or later: nobody needs to listen there yet.
///
/// # Errors
/// [`SocketError::Path`]: it is too long, or something that is no socket is there.
pub fn check_peer(option: &'static str, path: &Path) -> Result<(), SocketError> {
    let problem = match std::fs::metadata(path) {
        _ if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES => PathProblem::TooLong(path.as_os_str().len()),
        Ok(file) if !file.file_type().is_socket() => PathProblem::NoSocket,
        _ => return Ok(()),
    };
    Err(SocketError::Path { option, path: path.into(), problem })
}

/// Whether a socket can be made at the path that `option` named, or replaced there.
///
/// # Errors
/// [`SocketError::Path`], as from [`listen`].
pub fn check_listen(option: &'static str, path: &Path) -> Result<(), SocketError> {
    check_peer(option, path)?;
    check_directory(path).map_err(|cause| SocketError::Path {
        option,
        path: path.into(),
        problem: PathProblem::Bind(cause),
    })
}

/// Whether this user may make and remove what is at the path.
///
/// # Errors
/// The directory is missing, or not writable.
pub fn check_directory(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
}

/// A connection is tried without waiting: a listener whose backlog is full is one too. One whose process is gone is
/// none: after a kill io_uring holds its socket for some milliseconds.
fn somebody_listens(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (Ok(socket), Ok(address)) =
        (socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None), SocketAddrUnix::new(path))
    else {
        return false;
    };
    match connect(&socket, &address) {
        Ok(()) => !crate::sys::peer_is_gone(socket.as_fd()),
        Err(errno) => errno == Errno::AGAIN,
    }
}

/// A socket that was handed over.
fn from_fd(fd: RawFd) -> Result<OwnedFd, SocketError> {
    let failed = |errno: Errno| SocketError::Fd { fd, cause: errno.into() };
    let fd = crate::sys::adopt_fd(fd).map_err(failed)?;
    socket_acceptconn(&fd).map_err(failed)?;
    Ok(fd)
}

/// What systemd passed, but for what the keeper before had stored: that is taken by the next keeper.
fn passed() -> Result<Vec<(RawFd, String)>, SocketError> {
    let passed = sd_notify::listen_fds_with_names().map_err(|e| SocketError::Activation(e.to_string()))?;
    Ok(passed.filter(|(_, name)| !is_stored(name)).collect())
}

/// The descriptor that systemd calls `vhost-user`, or the only one it passed beside that of the control socket.
fn activated() -> Result<Option<RawFd>, SocketError> {
    let passed: Vec<_> = passed()?.into_iter().filter(|(_, name)| name != CONTROL).collect();
    match passed.as_slice() {
        [] => Ok(None),
        [(fd, _)] => Ok(Some(*fd)),
        many => match many.iter().find(|(_, name)| name == "vhost-user") {
            Some((fd, _)) => Ok(Some(*fd)),
            None => Err(SocketError::Activation(format!(
                "none of the {} descriptors from {FIRST_PASSED_FD} is called vhost-user; set FileDescriptorName=vhost-user",
                many.len()
            ))),
        },
    }
}

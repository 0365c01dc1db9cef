//! Becoming the keeper: the daemon executes itself again, in the same process.
//!
//! In: options that were found good, and what they say about the socket. Out: this process as a keeper, a small image
//! that has parsed no options and started no threads. What it needs to know goes before the daemon's own arguments,
//! among them by now what a file of options said ([`crate::config`]), which no worker reads again:
//!
//! ```text
//! outboard-X --as-keeper LOG KIND VALUE EXECUTABLE ARGUMENT...
//!            LOG: FORMAT,LEVEL,JOURNAL   KIND VALUE: path P | fd N
//! ```

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use signal_hook::consts::SIGXFSZ;
use tracing::Level;

use super::pace::Pace;
use super::signals::Signals;
use super::store::Store;
use super::worker::Program;
use super::{Keeper, Stop, say, store};
use crate::daemon::{Failure, Unlink};
use crate::kept::channel::Standing;
use crate::log;
use crate::options::{Common, from_fd, listen};
use crate::server::Endpoint;

/// First argument of a keeper.
const AS_KEEPER: &str = "--as-keeper";
/// First argument of a worker.
pub(super) const AS_WORKER: &str = "--worker";
/// Connections that wait: as many as the host allows.
const BACKLOG: i32 = i32::MAX;
const SELF: &str = "/proc/self/exe";

/// Where front-ends will come from.
#[derive(Debug)]
pub enum Place {
    /// A socket that is bound once the first worker is ready.
    Path(PathBuf),
    /// The same, bound by the keeper before.
    Bound(PathBuf, UnixListener),
    /// A socket that was handed over.
    Open(Endpoint),
}

impl Place {
    /// Where the options say.
    ///
    /// # Errors
    /// What was handed over is no socket.
    pub fn new(options: &Common) -> Result<Place, Failure> {
        match &options.socket_path {
            Some(path) => Ok(Place::Path(path.clone())),
            None => Ok(Place::Open(options.endpoint()?)),
        }
    }

    fn to_args(&self) -> Result<[OsString; 2], io::Error> {
        let fd = match self {
            Place::Path(path) | Place::Bound(path, _) => return Ok(["path".into(), path.into()]),
            Place::Open(Endpoint::Listening(fd)) => fd.as_fd(),
            Place::Open(Endpoint::Connected(fd)) => fd.as_fd(),
            Place::Open(Endpoint::Kept(channel)) => channel.as_fd(),
        };
        fcntl_setfd(fd, FdFlags::empty())?;
        Ok(["fd".into(), fd.as_raw_fd().to_string().into()])
    }

    fn from_args(kind: &OsString, value: &OsString) -> Option<Place> {
        if kind == "path" {
            return Some(Place::Path(value.into()));
        }
        from_fd(value.to_str()?.parse().ok()?).ok().map(Place::Open)
    }

    /// The socket, bound if it has yet to be.
    pub(super) fn open(self) -> Result<(Endpoint, Option<Unlink>), Failure> {
        match self {
            Place::Path(path) => {
                let listener = listen("--socket-path", &path)?;
                Ok((Endpoint::Listening(listener), Some(Unlink::new(path))))
            }
            Place::Bound(path, listener) => Ok((Endpoint::Listening(listener), Some(Unlink::new(path)))),
            Place::Open(endpoint) => Ok((endpoint, None)),
        }
    }

    /// The keeper before had bound this socket: it is taken if it can be connected to where the options say.
    pub(super) fn bound_before(self, listener: UnixListener) -> Place {
        match self {
            Place::Path(path)
                if path.exists()
                    && listener.local_addr().is_ok_and(|own| own.as_pathname() == Some(&path))
                    // It is this process that listens now, for those who ask (SO_PEERCRED).
                    && rustix::net::listen(&listener, BACKLOG).is_ok() =>
            {
                Place::Bound(path, listener)
            }
            other => other,
        }
    }
}

/// Makes this process the keeper of the daemon that `args` describe, its name first. Returns only if that failed.
pub fn become_keeper(place: &Place, log: &log::LogOptions, args: Vec<OsString>) -> Failure {
    let begin = || -> Result<io::Error, io::Error> {
        let mut own = args.into_iter();
        let name = own.next().unwrap_or_default();
        let mut command = Command::new(SELF);
        let stored = store::passed();
        for fd in &stored {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        command.arg0(&name).arg(AS_KEEPER).arg(log.to_arg());
        command.args(place.to_args()?).arg(std::env::current_exe()?).args(own);
        Ok(command.exec())
    };
    let error = begin().unwrap_or_else(|error| error);
    Failure::host(format!("Cannot start the keeper from {SELF}: {error}; mount /proc, or use --keeper off"))
}

/// Whether a keeper started this process, with these arguments.
pub fn is_worker(args: &[OsString]) -> bool {
    args.get(1).is_some_and(|arg| arg == AS_WORKER)
}

/// Runs as the keeper, if that is what this process was started as.
pub fn main(name: &'static str) -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let own_name = args.next()?;
    if args.next()? != AS_KEEPER {
        return None;
    }
    log::begin_keeper(name, &log::LogOptions::from_arg(&args.next()?)?);
    let (kind, value, path) = (args.next()?, args.next()?, args.next()?);
    let place = Place::from_args(&kind, &value)?;
    let ended = keep(name, place, path.into(), std::iter::once(own_name).chain(args).collect());
    Some(ended.unwrap_or_else(|failure| {
        log::fail(name, &failure.message);
        ExitCode::from(failure.code)
    }))
}

fn keep(name: &'static str, place: Place, path: PathBuf, args: Vec<OsString>) -> Result<ExitCode, Failure> {
    allow_descriptors();
    crate::sys::set_name(name);
    // Mappings are cut into pieces now, so that their number stays what it is.
    crate::sys::drop_clean_pages();
    let signals = Signals::new().map_err(Failure::host)?;
    // A log at its size limit: the line is lost, the keeper goes on.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(Failure::host)?;
    let exe = rustix::fs::open(SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let exe = exe.map_err(|errno| Failure::host(format!("{SELF}: {errno}")))?;
    let (store, manager) = Store::new();
    let mut keeper = Keeper {
        program: Program { exe, args },
        path,
        proven: None,
        signals,
        place: Some(place),
        door: None,
        worker: None,
        pace: Pace::new(Instant::now()),
        front_end: None,
        sessions: 0,
        standing: Standing { keeper_pid: std::process::id(), workers: 0, began_ms: crate::clock::unix_ms() },
        kept: Default::default(),
        stirred: false,
        socket: None,
        store,
    };
    if let Err(error) = manager {
        say(Level::WARN, format_args!("Nothing is stored with the service manager: {error}"));
    }
    let ended = keeper.inherit().and_then(|()| keeper.run());
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    match ended {
        Ok(status) => Ok(code(status.and_then(|status| status.code()), 0)),
        Err(Stop::Unready(status)) => Ok(code(status.code(), 1)),
        Err(Stop::Place(failure)) => Err(failure),
        Err(Stop::Failed(error)) => Err(Failure::host(format!("Cannot go on: {error}"))),
        Err(stop) => Err(Failure::host(format!("Cannot go on: {stop:?}"))),
    }
}

/// An exit code passed on; `otherwise` where a signal ended the worker.
fn code(code: Option<i32>, otherwise: u8) -> ExitCode {
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(otherwise))
}

/// As many descriptors as this user may have: one for each region of memory and three for each queue of a session,
/// here and in the worker, which inherits the limit.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

//! Becoming the keeper: the daemon executes itself again, in the same process.
//!
//! In: options that were found good, and what was opened for them. Out: this process as a keeper, a small image that has
//! parsed no options and started no threads. What it needs to know goes before the daemon's own arguments, among them by
//! now what a file of options said ([`crate::config`]), which no worker reads again:
//!
//! ```text
//! outboard-X --as-keeper LOG CHANNEL N PATH... EXECUTABLE ARGUMENT...            LOG: FORMAT,LEVEL,JOURNAL
//! ```
//! CHANNEL holds what was opened, as notes ([`crate::kept::channel`]); the N paths are removed at the end.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use signal_hook::consts::SIGXFSZ;
use tracing::Level;

use super::holdings::Holdings;
use super::pace::Pace;
use super::proxy::FrontEnd;
use super::signals::Signals;
use super::store::Store;
use super::worker::Program;
use super::{Door, Keeper, Stop, say};
use crate::daemon::Failure;
use crate::kept::channel::{Channel, Standing};
use crate::kept::{Arrived, FENCE, SOCKET, arrived};
use crate::log;
use crate::opened::{Opened, Unlink};
use crate::proto::Connection;
use crate::sandbox::privileges;
use crate::server::Endpoint;

/// First argument of a keeper.
const AS_KEEPER: &str = "--as-keeper";
/// First argument of a worker.
pub(super) const AS_WORKER: &str = "--worker";
const SELF: &str = "/proc/self/exe";

/// Makes this process the keeper of the daemon that `args` describe, its name first, with what was opened and what a
/// keeper before had `stored`. Returns only if that failed.
pub fn become_keeper(
    opened: &Opened,
    stored: &[OwnedFd],
    log: &log::LogOptions,
    args: Vec<OsString>,
) -> Failure {
    let begin = || -> Result<io::Error, io::Error> {
        let (ours, theirs) = Channel::pair()?;
        opened.send(&ours)?;
        for fd in stored.iter().map(AsFd::as_fd).chain([theirs.as_fd()]) {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        let mut own = args.into_iter();
        let mut command = Command::new(SELF);
        command.arg0(own.next().unwrap_or_default()).arg(AS_KEEPER).arg(log.to_arg());
        command.arg(theirs.as_fd().as_raw_fd().to_string());
        command.arg(opened.paths().len().to_string()).args(opened.paths());
        Ok(command.arg(std::env::current_exe()?).args(own).exec())
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
    let mut told = Told::of(&mut args)?;
    told.args = std::iter::once(own_name).chain(args).collect();
    Some(keep(name, told).unwrap_or_else(|failure| {
        log::fail(name, &failure.message);
        ExitCode::from(failure.code)
    }))
}

/// What a keeper is told by its arguments.
struct Told {
    arrived: Arrived,
    made: Vec<Unlink>,
    /// The executable.
    path: PathBuf,
    /// The daemon's own, its name first.
    args: Vec<OsString>,
}

impl Told {
    fn of(args: &mut impl Iterator<Item = OsString>) -> Option<Told> {
        let mut number = || args.next()?.to_str()?.parse().ok();
        let (channel, count) = (number()?, number()?);
        let arrived = arrived(&Channel::inherited(channel).ok()?);
        let made = args.take(usize::try_from(count).ok()?).map(|path| Unlink::new(path.into())).collect();
        Some(Told { arrived, made, path: args.next()?.into(), args: Vec::new() })
    }
}

fn keep(name: &'static str, Told { mut arrived, made, path, args }: Told) -> Result<ExitCode, Failure> {
    privileges::stay_hidden()?;
    allow_descriptors();
    crate::sys::set_name(name);
    let signals = Signals::new().map_err(Failure::host)?;
    // A log at its size limit: the line is lost, the keeper goes on.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(Failure::host)?;
    let exe = rustix::fs::open(SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let exe = exe.map_err(|errno| Failure::host(format!("{SELF}: {errno}")))?;
    let socket = arrived.fds.remove(SOCKET).ok_or_else(|| Failure::host("the keeper got no socket"))?;
    let fence = arrived.fds.remove(FENCE);
    let (door, front_end) = open_door(socket).map_err(Failure::host)?;
    let (store, manager) = Store::new();
    let mut keeper = Keeper {
        program: Program { exe, args },
        path,
        proven: None,
        signals,
        door,
        begun: false,
        worker: None,
        pace: Pace::new(Instant::now()),
        front_end,
        sessions: 0,
        standing: Standing { keeper_pid: std::process::id(), workers: 0, began_ms: crate::clock::unix_ms() },
        holdings: Holdings::new(arrived),
        fence,
        stirred: false,
        made,
        store,
    };
    if let Err(error) = manager {
        say(Level::WARN, format_args!("Nothing is stored with the service manager: {error}"));
    }
    keeper.inherit();
    let ended = keeper.run();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    match ended {
        Ok(status) => Ok(code(status.and_then(|status| status.code()), 0)),
        Err(Stop::Unready(status)) if status.code().is_none() => Err(killed(status)),
        Err(Stop::Unready(status)) => Ok(code(status.code(), 1)),
        Err(Stop::Failed(error)) => Err(Failure::host(format!("Cannot go on: {error}"))),
        Err(stop) => Err(Failure::host(format!("Cannot go on: {stop:?}"))),
    }
}

/// A worker that could not say why it ended.
fn killed(status: ExitStatus) -> Failure {
    let cure = match status.signal() {
        Some(libc::SIGSYS) => "it called what the sandbox does not allow; see what by --sandbox log",
        _ => "see the kernel's log",
    };
    Failure::host(format!("The worker ended before it was ready ({status}): {cure}"))
}

/// Where front-ends come from, and the only one if it is there already.
fn open_door(socket: OwnedFd) -> io::Result<(Door, Option<FrontEnd>)> {
    match Endpoint::of(socket)? {
        Endpoint::Listening(listener) => {
            listener.set_nonblocking(true)?;
            Ok((Door::Listening(listener), None))
        }
        Endpoint::Connected(stream) => {
            let connection = Connection::new(stream).map_err(io::Error::other)?;
            Ok((Door::Single, Some(FrontEnd::new(connection))))
        }
        // Keepers have no keepers.
        Endpoint::Kept(_) => Err(io::ErrorKind::InvalidInput.into()),
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

//! The main path of every daemon: options, open, bind, serve; and how it ends.
//!
//! A daemon is a [`Program`]: its own options, what to open for them, and its device. [`main`] does the rest, in an order
//! that confinement relies on: the first process opens everything, with the rights of whoever started it; it becomes the
//! keeper; each worker makes its device of what was opened. Without a keeper one process does all that.
//! Exit codes: 0 asked to end, 1 failure, 2 bad option or configuration, 3 this host cannot, 4 resource in use.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use rustix::process::{Signal, set_parent_process_death_signal};
use sd_notify::NotifyState;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

use crate::clock;
use crate::config::{self, ConfigError, Origin};
use crate::control::Control;
use crate::control::changes::Changes;
use crate::control::daemon::{About, Daemon};
use crate::device::Device;
use crate::keeper::role::{self, become_keeper, is_worker};
use crate::keeper::store;
use crate::kept::channel::Channel;
use crate::kept::{CONTROL, FENCE, Kept, SOCKET};
use crate::log::{self, LogError};
use crate::opened::Opened;
use crate::options::{Common, PathProblem, SocketError, Switch, one_line};
use crate::sandbox::bounds::{Bounds, data_path};
use crate::sandbox::{Account, SandboxError};
use crate::server::{Endpoint, Server, Settings};
use crate::stats::{self, Count};

/// What one daemon is, beside what all are.
pub trait Program: clap::Args + Sized {
    /// The device it serves.
    type Device: Device;
    /// What it does beside serving; [`Infallible`] for nothing.
    type Tool: Tool;
    /// Name of the program.
    const NAME: &'static str;
    /// Type in the vhost-user program conventions (`vhost-user.json`).
    const TYPE: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// Examples for `--help`.
    const EXAMPLES: &'static str;
    /// Optional features of the conventions that its options have.
    const CAPABILITIES: &'static [&'static str] = &[];
    /// What it may do beside what every daemon may: a [`crate::sandbox::policy`].
    const POLICY: &'static str = "";

    /// Parts of [`Program::POLICY`] that these options need beside those of every daemon.
    fn parts(&self) -> &'static [&'static str] {
        &[]
    }

    /// Looks at what [`Program::prepare`] would open, and leaves it as it is: a daemon may be serving it.
    ///
    /// # Errors
    /// As from [`Program::prepare`].
    fn check(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Opens all that the device needs, with the rights of whoever started the daemon, and gives each a name. What a
    /// keeper before this one had ([`Opened::before`]) is opened no second time, if it is still what the options mean.
    ///
    /// # Errors
    /// What to tell the user, and the exit code.
    fn prepare(&self, _opened: &mut Opened) -> Result<(), Failure> {
        Ok(())
    }

    /// Makes the device of what was opened, and of what a worker before this one had kept. Opens nothing by a path.
    ///
    /// # Errors
    /// What to tell the user, and the exit code.
    fn open(self, kept: &Kept) -> Result<Self::Device, Failure>;
}

/// What a program does beside serving a device, each by a subcommand.
pub trait Tool: clap::Subcommand {
    /// Does it.
    ///
    /// # Errors
    /// What to tell the user, and the exit code: those of daemons.
    fn run(self) -> Result<(), Failure>;
}

impl Tool for Infallible {
    fn run(self) -> Result<(), Failure> {
        match self {}
    }
}

/// Why a daemon does not start: one line for the user, and an exit code.
#[derive(Debug)]
pub struct Failure {
    /// Names the option, the value and the cure.
    pub message: String,
    /// 1 to 4, see the module.
    pub code: u8,
}

impl Failure {
    /// Something on this host failed.
    pub fn host(message: impl ToString) -> Failure {
        Failure { message: message.to_string(), code: 1 }
    }

    /// An option is wrong.
    pub fn option(message: impl ToString) -> Failure {
        Failure { message: message.to_string(), code: 2 }
    }

    /// Somebody else uses it.
    pub fn in_use(message: impl ToString) -> Failure {
        Failure { message: message.to_string(), code: 4 }
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Failure {
        match error {
            SocketError::Path { problem: PathProblem::InUse, .. } => Failure::in_use(error),
            SocketError::Path { problem: PathProblem::Bind(_), .. } => Failure::host(error),
            _ => Failure::option(error),
        }
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        match error {
            LogError::File { .. } => Failure::host(error),
            LogError::Journal { .. } => Failure { message: error.to_string(), code: 3 },
            LogError::FileAndJournal => Failure::option(error),
        }
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Failure {
        match error {
            SandboxError::Missing { .. } => Failure { message: error.to_string(), code: 3 },
            SandboxError::NoUser { .. } => Failure::option(error),
            _ => Failure::host(error),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::option(error)
    }
}

#[derive(Parser)]
struct CommandLine<P: Program> {
    #[command(flatten)]
    own: P,
    #[command(flatten)]
    common: Common,
}

/// What `--help` says of every daemon after what it is.
const SERVICE: &str = "\
It listens on a unix socket for a front-end, that is a virtual machine monitor, and serves one after the other. It stays \
in the foreground and ends cleanly on SIGTERM. The front-end's connection is held by a keeper, a small process that puts \
another worker in the place of one that died, or takes a new executable up, without the guest noticing.";

/// What `--help` says of every daemon after its examples.
const FILE_AND_CODES: &str = "\
Configuration file:
  # Each key is the name of an option. Numbers, true and false have no quotes.
  socket-path = \"/run/outboard/vm1/device.sock\"
  keeper = \"off\"
  # What a flag says here, --no-FLAG takes back on the command line.
  require-sealed-memory = true

Exit codes:
  0  asked to end
  1  failure
  2  bad option or configuration
  3  this host cannot
  4  resource in use";

/// Its command line, as clap has it.
pub fn command<P: Program>() -> clap::Command {
    P::Tool::augment_subcommands(config::negatable(CommandLine::<P>::command()))
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .name(P::NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(P::ABOUT)
        .long_about(format!("{}\n\n{SERVICE}", P::ABOUT))
        .after_help(format!("{}\n\n{FILE_AND_CODES}", P::EXAMPLES))
}

/// Runs the daemon.
pub fn main<P: Program>() -> ExitCode {
    if let Some(ended) = role::main(P::NAME) {
        return ended;
    }
    let args: Vec<OsString> = std::env::args_os().collect();
    // The conventions: with --print-capabilities every other option is ignored, required ones too.
    if args.iter().any(|arg| arg == "--print-capabilities") {
        return end::<P>(say(&json!({ "type": P::TYPE, "features": P::CAPABILITIES })));
    }
    end::<P>(start::<P>(args))
}

/// Tells why it ended, if that was not asked for.
fn end<P: Program>(ended: Result<(), Failure>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::fail(P::NAME, &failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Becomes the keeper, or runs.
fn start<P: Program>(args: Vec<OsString>) -> Result<(), Failure> {
    let command = command::<P>();
    // Behind a keeper, it has read the file.
    let (args, origin) =
        if is_worker(&args) { (args, Origin::default()) } else { config::expand(&command, args)? };
    let located = |failure: Failure| Failure { message: origin.located(failure.message), ..failure };
    begin::<P>(command, args).map_err(located)
}

/// What a command line is about.
enum Asked<P: Program> {
    Daemon(Box<CommandLine<P>>),
    Tool(P::Tool),
}

fn understood<P: Program>(given: &ArgMatches) -> Result<Asked<P>, clap::Error> {
    if given.subcommand().is_some() {
        return P::Tool::from_arg_matches(given).map(Asked::Tool);
    }
    CommandLine::from_arg_matches(given).map(|line| Asked::Daemon(Box::new(line)))
}

/// The same with all options on the command line.
fn begin<P: Program>(command: clap::Command, args: Vec<OsString>) -> Result<(), Failure> {
    let line = match command.try_get_matches_from(&args).and_then(|given| understood::<P>(&given)) {
        Ok(Asked::Tool(tool)) => return tool.run(),
        Ok(Asked::Daemon(line)) => line,
        Err(error) if error.use_stderr() => return Err(Failure::option(one_line(&error))),
        // Help and version.
        Err(error) => return error.print().map_err(unsaid),
    };
    if line.common.check {
        return check(&line);
    }
    if let Some(keeper) = line.common.keeper_channel()? {
        log::begin_worker(P::NAME, &line.common.log);
        crate::sys::set_name(P::NAME);
        return work(*line, keeper);
    }
    log::begin(P::NAME, &line.common.log)?;
    // Open until all is prepared: what else systemd passed is looked for among the same numbers.
    let stored = store::passed();
    if line.common.keeper == Switch::Off {
        // What it locked is to be locked anew.
        store::disown(&stored);
        let opened = prepare(&line, Opened::default())?;
        drop(stored);
        let bounds = Bounds::alone(&opened);
        let (kept, _made) = opened.into_kept();
        let socket = kept.take(SOCKET).ok_or(SocketError::Missing)?;
        let endpoint = Endpoint::of(socket).map_err(Failure::host)?;
        return serve(*line, &kept, endpoint, bounds);
    }
    let opened = prepare(&line, Opened::after(store::kept(&stored)))?;
    Bounds::keeper(&opened)?.confine::<P>(&line.common, line.own.parts())?;
    Err(become_keeper(&opened, &stored, &line.common.log, args))
}

/// Opens everything. The socket comes last: nobody can connect to a daemon that will not serve.
fn prepare<P: Program>(line: &CommandLine<P>, mut opened: Opened) -> Result<Opened, Failure> {
    crate::sys::hold_signals(true);
    outlive_full_files()?;
    line.own.prepare(&mut opened)?;
    line.common.prepare(&mut opened)?;
    [FENCE, stats::NAME].into_iter().for_each(|name| opened.go_on(name));
    Ok(opened)
}

/// A file at its size limit: the write fails, the program goes on.
///
/// # Errors
/// The signal's handler cannot be installed.
pub fn outlive_full_files() -> Result<(), Failure> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop).map_err(Failure::host)
}

/// Says that all is well, if it is.
fn check<P: Program>(line: &CommandLine<P>) -> Result<(), Failure> {
    line.common.check()?;
    line.common.log.check()?;
    line.common.user.as_deref().map(Account::named).transpose()?;
    line.own.check()?;
    say(&config::praise(P::NAME, line.common.config.as_deref()))
}

/// One line on standard output.
fn say(line: &dyn Display) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(unsaid)
}

fn unsaid(cause: io::Error) -> Failure {
    Failure::host(format!("Cannot write to standard output: {cause}"))
}

/// Runs as the worker of this keeper.
fn work<P: Program>(line: CommandLine<P>, keeper: Arc<Channel>) -> Result<(), Failure> {
    // A front-end whose keeper was killed goes to the next daemon with its rings: this one may touch them no more.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(Failure::host)?;
    serve(line, &Kept::by(&keeper), Endpoint::Kept(keeper), Bounds::worker())
}

fn serve<P: Program>(
    line: CommandLine<P>,
    kept: &Kept,
    endpoint: Endpoint,
    bounds: Bounds,
) -> Result<(), Failure> {
    let began_ms = clock::unix_ms();
    log::report_to(kept.clone());
    let parts = line.own.parts();
    let device = line.own.open(kept)?;
    let end = readable_after(&[SIGTERM, SIGINT]).map_err(Failure::host)?;
    crate::sys::hold_signals(false);
    outlive_full_files()?;
    let common = &line.common;
    let settings = Settings {
        engine: common.engine,
        cpus: common.cpus.clone().unwrap_or_default(),
        require_sealed_memory: common.require_sealed_memory,
        fence: kept.take(FENCE).map(Arc::new),
    };
    let mut server = Server::new(device, settings, kept).map_err(Failure::host)?;
    crate::sys::cut_clean_mappings();
    let about = About { name: P::NAME, kind: P::TYPE, engine: server.engine(), began_ms };
    let mut control = control(about, kept, &server).map_err(Failure::host)?;
    server.confine(data_path::<P>(common.sandbox, parts)?);
    bounds.confine::<P>(common, parts)?;
    control.iter_mut().try_for_each(Control::start).map_err(Failure::host)?;
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    log::settle();
    // Behind a keeper, that is who listens.
    if line.common.worker.is_none() {
        tracing::info!("Listening");
    }
    let served = server.serve(endpoint, end.as_fd());
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    report(&server);
    served.map_err(|cause: io::Error| Failure::host(format!("Cannot go on accepting front-ends: {cause}")))
}

/// What answers on the control socket, if there is one.
fn control<D: Device>(about: About, kept: &Kept, server: &Server<D>) -> io::Result<Option<Control>> {
    let Some(socket) = kept.take(CONTROL) else { return Ok(None) };
    let changes = Changes::go_on(kept, server.device().as_ref())?;
    let daemon = Daemon::new(about, kept.clone(), server, changes);
    Control::new(socket.into(), Arc::new(daemon)).map(Some)
}

/// A socket that becomes readable with each of these signals.
pub(crate) fn readable_after(signals: &[i32]) -> io::Result<UnixStream> {
    let (heard, raised) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, raised.try_clone()?)?;
    }
    Ok(heard)
}

fn report<D: Device>(server: &Server<D>) {
    let total = |count| server.stats().total(count);
    let (requests, bytes) = (total(Count::Requests), total(Count::Bytes));
    let (malformed, replayed) = (total(Count::Malformed), total(Count::Replayed));
    let interrupts = total(Count::Interrupts);
    tracing::info!(requests, bytes, malformed, replayed, interrupts, "served");
}

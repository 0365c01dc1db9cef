//! `outboard ctl`: asks running daemons and machines over their control sockets, and shows what they answer.
//!
//! ```text
//! options ─► socket ─► backends::control::client ─► a daemon, or `outboard run`
//!               │
//!               └─► answer, exposition ─► state, queues, list, metrics, settings ─► screen ─► watch ─► standard output
//! ```
//! What stands left of `watch` in the lower line is pure: an answer, the one before it, a width in; text out.
//!
//! It opens, with the operator's rights, what a change needs, and passes it over the socket: a daemon opens nothing.
//! Whoever is on the socket may have been taken over: answers are bounded in size and in time, and nothing in them
//! reaches the terminal but printable text. Exit codes: 0 done, 1 not to be asked or refused, 2 bad option or value.

mod answer;
mod error;
mod exposition;
mod list;
mod log;
mod metrics;
mod options;
mod queues;
mod rates;
mod screen;
mod settings;
mod socket;
mod state;
mod upgrade;
mod watch;

use std::path::Path;
use std::time::Duration;

use backends::control::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::error::CtlError;
pub use self::options::{CtlOptions, EXAMPLES};

use self::answer::{DaemonState, State};
use self::options::CtlCommand;
use self::rates::Sample;
use self::screen::Fields;
use self::socket::{PATIENCE, Target, resolve};

/// Whom commands are for.
const DAEMON: &str = "a daemon of a device";
const MACHINE: &str = "a machine (outboard run --api-socket)";

/// Does what the options say.
///
/// # Errors
/// One line to show.
pub fn run(options: CtlOptions) -> Result<(), CtlError> {
    let CtlOptions { socket, json, command } = options;
    if let CtlCommand::List { dir, watch } = command {
        return match socket {
            Some(socket) => Err(CtlError::ListOfOne(socket)),
            None => list(&dir, json, watch.watch),
        };
    }
    let socket = resolve(socket.as_deref())?;
    let ctl = Ctl { socket: &socket, json };
    match command {
        CtlCommand::List { .. } => Ok(()),
        CtlCommand::State { watch } => ctl.look("/state", watch.watch, state::screen),
        CtlCommand::Metrics { watch } => ctl.metrics(watch.watch),
        CtlCommand::Device { watch } => {
            ctl.look("/device", watch.watch, settings_screen).map_err(for_whom("device", DAEMON))
        }
        CtlCommand::Set { settings } => ctl.set(&settings).map_err(for_whom("set", DAEMON)),
        CtlCommand::Log { level, reopen } => log::run(&ctl, level, reopen),
        CtlCommand::Upgrade => upgrade::run(&ctl).map_err(for_whom("upgrade", DAEMON)),
        CtlCommand::Pause => ctl.post("/pause").map_err(for_whom("pause", MACHINE)),
        CtlCommand::Resume => ctl.post("/resume").map_err(for_whom("resume", MACHINE)),
    }
}

/// Whom to ask, and how to show it.
struct Ctl<'a> {
    socket: &'a Path,
    json: bool,
}

impl Ctl<'_> {
    fn connect(&self) -> Result<Target, CtlError> {
        Target::connect(self.socket, PATIENCE)
    }

    /// The state of a daemon, which is asked for that command.
    fn daemon(&self, target: &mut Target, command: &'static str) -> Result<DaemonState, CtlError> {
        match target.read("/state")? {
            State::Daemon(state) => Ok(*state),
            State::Machine(_) => {
                Err(CtlError::WrongProgram { socket: self.socket.to_owned(), command, whom: DAEMON })
            }
        }
    }

    /// Shows what `GET path` answers.
    fn look<T: DeserializeOwned>(
        &self,
        path: &str,
        pause: Option<Duration>,
        screen: impl Fn(&Sample<T>, Option<&Sample<T>>, Option<usize>) -> String,
    ) -> Result<(), CtlError> {
        let mut target = self.connect()?;
        if self.json {
            return watch::show(pause, || target.read(path), |now, _, _| as_json(&now.value, pause));
        }
        watch::show(pause, || target.read(path), screen)
    }

    fn metrics(&self, pause: Option<Duration>) -> Result<(), CtlError> {
        let mut target = self.connect()?;
        let mut ask = || Ok(String::from_utf8_lossy(&target.get("/metrics")?).into_owned());
        if self.json {
            return watch::show(pause, ask, |now, _, _| now.value.clone());
        }
        watch::show(pause, || Ok(exposition::parse(&ask()?)), metrics::screen)
    }

    fn set(&self, changes: &[String]) -> Result<(), CtlError> {
        let mut target = self.connect()?;
        let before: Value = target.read("/device")?;
        let asked = settings::apply(&before, changes)?;
        let body = target.change(Method::Put, "/device", Some(&asked), None)?;
        let after = target.understand(&body)?;
        self.say(&after, || settings::screen(&after, None))
    }

    /// Orders something of a machine, and shows how it stands then.
    fn post(&self, path: &str) -> Result<(), CtlError> {
        let mut target = self.connect()?;
        let body = target.change(Method::Post, path, None, None)?;
        let answer: Value = target.understand(&body)?;
        self.say(&answer, || format!("{}\n", settings::readable("state", &answer["state"])))
    }

    /// An answer as it came, or in words.
    fn say(&self, answer: &Value, words: impl FnOnce() -> String) -> Result<(), CtlError> {
        watch::print(&if self.json { as_json(answer, None) } else { words() })
    }
}

fn list(dir: &Path, json: bool, pause: Option<Duration>) -> Result<(), CtlError> {
    if json {
        return watch::show(pause, || list::ask(dir), |now, _, _| as_json(&list::json(&now.value), pause));
    }
    watch::show(pause, || list::ask(dir), |now, before, width| list::screen(dir, now, before, width))
}

fn settings_screen(now: &Sample<Value>, _: Option<&Sample<Value>>, width: Option<usize>) -> String {
    settings::screen(&now.value, width)
}

/// For people on many lines; one line an answer where answers follow each other.
fn as_json(value: &Value, pause: Option<Duration>) -> String {
    if pause.is_some() { format!("{value}\n") } else { format!("{value:#}\n") }
}

/// What is not found was asked of somebody else.
fn for_whom(command: &'static str, whom: &'static str) -> impl Fn(CtlError) -> CtlError {
    move |error| match error {
        CtlError::Refused { status: 404, socket, .. } => CtlError::WrongProgram { socket, command, whom },
        error => error,
    }
}

#[cfg(test)]
#[path = "screens_tests.rs"]
mod tests;

//! The log: lines on standard error, in a file, or in the journal.
//!
//! ```text
//! tracing::warn!(…)       host and operator ──────────────┐
//! log::line!(warn, C, …)  guest, front-end, peer ─ gate ──┤► subscriber ► Line ─┬ text, JSON ► standard error, or a file in its place
//! keeper                                           gate ──┴────────────►        └ fields ────► journald
//! ```
//! What others can cause goes through the gate of its [`Class`]: one line a second, the others counted. What a guest
//! wrote into its memory is never logged ([`GuestData`]). Promises: a line is one line whatever it carries; writing it
//! waits for nobody ([`sink`]); level and file may change at any time ([`change`]). The keeper writes by [`write`] and has no subscriber,
//! which keeps its image small.

mod change;
mod class;
mod guest;
mod line;
mod options;
mod sink;
mod subscriber;

use std::fmt::{self, Display};
use std::io::IsTerminal;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Level;

pub use crate::log_line as line;
pub use change::{ReopenError, file, is_on, level, reopen, set_level};
pub(crate) use change::{follow, note, report_to};
pub use class::{Cause, Class, Gate, Through, counts};
pub use guest::GuestData;
pub use line::{Line, MAX_LINE_BYTES, Origin};
pub use options::{LogError, LogOptions};
pub use sink::lost;

/// Writes a line that somebody else can cause, if the gate of its class lets it through:
/// `log::line!(warn, Class::RingBroken, queue, %error, "Ring broken by its driver")`. After level and class it takes
/// what `tracing`'s macros take.
#[macro_export]
macro_rules! log_line {
    ($level:ident, $class:expr, $($what:tt)+) => {{
        let class = $class;
        if $crate::log::is_on(stringify!($level))
            && let Some(left_out) = class.pass()
        {
            let left_out = (left_out > 0).then_some(left_out);
            ::tracing::$level!(class = class.name(), left_out, $($what)+);
        }
    }};
}

/// How lines look, and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// journald's fields.
    Journal,
}

impl Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Text => "text",
            Format::Json => "json",
            Format::Journal => "journal",
        })
    }
}

/// The log of this process, once it has begun.
#[derive(Debug)]
struct Log {
    origin: Origin,
    format: Format,
    /// Standard error is a terminal that shows them.
    colours: AtomicBool,
    journal: Option<UnixDatagram>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// How lines look.
pub fn format() -> Format {
    LOG.get().map_or(Format::Text, |log| log.format)
}

/// Begins the log of the process that the operator started: a log file takes the place of standard error, which is kept
/// for the reason why this process could not begin ([`fail`]).
///
/// # Errors
/// [`LogError`]
pub fn begin(name: &'static str, options: &LogOptions) -> Result<(), LogError> {
    let file = options.open_file()?;
    let (format, journal) = options.choose()?;
    let path = file.map(|(fd, path)| sink::divert(&fd).map(|()| path)).transpose();
    let path = path.map_err(|cause| options.refuse(cause))?;
    set(name, options.log_level, format, journal, path);
    subscribe();
    Ok(())
}

/// Begins the log of a worker: it goes where the process before had it go. A journald that is away by now ends nothing:
/// then lines are text.
pub(crate) fn begin_worker(name: &'static str, options: &LogOptions) {
    let (format, journal) = options.choose().unwrap_or((Format::Text, None));
    set(name, options.log_level, format, journal, options.whole_path());
    subscribe();
}

/// Begins the log of a keeper, which writes its lines by itself.
pub(crate) fn begin_keeper(name: &'static str, options: &LogOptions) {
    let (format, journal) = options.choose().unwrap_or((Format::Text, None));
    set(name, options.log_level, format, journal, None);
}

fn set(
    name: &'static str,
    level: Level,
    format: Format,
    journal: Option<UnixDatagram>,
    file: Option<PathBuf>,
) {
    change::take_level(level);
    let origin = Origin { name, pid: std::process::id() };
    // A second log of one process is a test's.
    let _ = LOG.set(Log { origin, format, colours: AtomicBool::default(), journal });
    change::call_file(file.map(|path| path.display().to_string()));
    look_at_stderr();
    if format != Format::Text {
        // Whoever reads objects or fields has no use for anything between them.
        std::panic::set_hook(Box::new(|panic| write(&Line::new(Level::ERROR).message(panic))));
    }
}

/// Whether standard error shows colours may be another matter now.
fn look_at_stderr() {
    if let Some(log) = LOG.get() {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        log.colours.store(colours, Ordering::Relaxed);
    }
}

fn subscribe() {
    let _ = tracing::subscriber::set_global_default(subscriber::Lines);
}

/// Says why a program ends: `NAME: MESSAGE`, or as a line of the log where that is for programs; both on the standard
/// error it was started with and in its log.
pub fn fail(name: &str, message: &dyn Display) {
    let plain = format!("{name}: {message}\n");
    match LOG.get() {
        Some(log) if log.format != Format::Text => write(&Line::new(Level::ERROR).message(message)),
        Some(_) | None => sink::to_stderr(&plain),
    }
    sink::to_first_stderr(&plain);
}

/// From now on what happens is told in the log only.
pub fn settle() {
    sink::forget_first_stderr();
}

/// Writes a line, if its level is wanted.
pub(crate) fn write(line: &Line) {
    let Some(log) = LOG.get() else { return };
    if line.level() > level() {
        return;
    }
    if let Some(journal) = &log.journal
        && journal.send(line.journal(log.origin).as_bytes()).is_ok()
    {
        return;
    }
    sink::to_stderr(&match log.format {
        Format::Json => line.json(log.origin),
        Format::Text | Format::Journal => line.text(log.origin, log.colours.load(Ordering::Relaxed)),
    });
}

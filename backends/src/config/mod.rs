//! Options from a file: `--config FILE`.
//!
//! In: a program's options, as clap knows them, and its command line. Out: the same command line with what the file
//! says put before it, for clap to parse:
//!
//! ```text
//! disk.toml:  queues = 4            outboard-blk --config disk.toml --engine epoll
//!             read-only = true   →  outboard-blk --queues=4 --read-only --config disk.toml --engine epoll
//! ```
//! So there is one list of options, and a key means what its option means. A key is the long name of an option that
//! people are shown. A number is written as a TOML number, a flag as `true` or `false`, an option that may be repeated
//! as a list, one whose help shows several parts (`bytes=SIZE,ops=N`) as a table too ([`shape`]), everything else as
//! the string that the command line would take.
//!
//! Promises: the command line wins, over the key of the same name and over keys that cannot stand beside what it says
//! (`--fd` over `socket-path`); only an option that may be repeated is joined, the file's first. A flag that the file
//! sets is taken back by `--no-FLAG`. Every mistake in the file is told with its line and its cure, before anything is
//! opened; what is found when an option of the file is used, a missing image or a port that is taken, has its line too
//! ([`Origin`]).
//! Refuses: keys that are no option, twice the same key, values of another type or out of range, keys that exclude each
//! other, what belongs on the command line only (`--config` itself), and a file over 1 MiB.
//!
//! The file is read once, by the process that the operator starts. A keeper is handed the command line that came out,
//! and starts each of its workers with that: what replaces a worker that died serves the same device in the same way,
//! whatever became of the file since, and an upgrade changes the program, not its options. A changed file counts from
//! the next start of the daemon; `--check` tries it before.

mod origin;
mod shape;
mod value;

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use thiserror::Error;
use toml::de::DeTable;

pub use origin::Origin;
use value::{Entry, Key, Said};

/// Id and name of the option that names the file.
const CONFIG: &str = "config";
/// What is done now, and is no setting.
const COMMAND_LINE_ONLY: [&str; 3] = [CONFIG, "check", "print-capabilities"];
/// Longest file: what is much longer than all options together is another file, or has no end.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("--config {}: {cause}; give a TOML file that this user may read", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// It has no end.
    #[error("--config {}: longer than {MAX_BYTES} bytes; give a TOML file of options", .0.display())]
    TooLong(PathBuf),
    /// It says something that cannot be.
    #[error("--config {}, line {line}: {mistake}", path.display())]
    Mistake {
        /// Its path.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong there.
        mistake: Mistake,
    },
}

/// What is wrong in a line.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Mistake {
    /// It is no TOML.
    #[error("{0}")]
    Syntax(String),
    /// No option has this name.
    #[error("unknown key `{key}`; {cure}")]
    Unknown {
        /// As given.
        key: String,
        /// The nearest key, or all of them.
        cure: String,
    },
    /// An option that is no setting.
    #[error("`{0}` cannot stand in a file; give --{0} on the command line")]
    CommandLineOnly(String),
    /// A value of another type.
    #[error("{key} = {value}: give {wanted}")]
    Type {
        /// Key.
        key: String,
        /// As it stands in the file.
        value: String,
        /// What would be right.
        wanted: String,
    },
    /// A value that its option refuses.
    #[error("{key} = {value}: {cause}")]
    Value {
        /// Key.
        key: String,
        /// As it stands in the file.
        value: String,
        /// What the option says.
        cause: String,
    },
    /// A table that its option refuses.
    #[error("{key}: {cause}")]
    Table {
        /// Key.
        key: String,
        /// What the option says.
        cause: String,
    },
    /// Two keys of which only one can be.
    #[error("{key} cannot stand beside {other} of line {line}; leave one of them out")]
    Beside {
        /// Key.
        key: String,
        /// The other key.
        other: String,
        /// Where the other one is.
        line: usize,
    },
}

/// What a key of the file asks for.
struct Setting<'a> {
    arg: &'a Arg,
    said: Vec<Said>,
    line: usize,
}

/// The same program, which also takes `--no-FLAG` for each flag that a file may set.
pub fn negatable(command: Command) -> Command {
    let flags = command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    let names = flags.filter_map(|arg| Some((arg.get_id().to_string(), negation(key(arg)?))));
    let names: Vec<(String, String)> = names.collect();
    command.args(names.into_iter().map(|(flag, no_flag)| {
        Arg::new(no_flag.clone()).long(no_flag).action(ArgAction::SetTrue).hide(true).overrides_with(flag)
    }))
}

/// Name, and id, of the option that takes a flag back.
fn negation(flag: &str) -> String {
    format!("no-{flag}")
}

/// The command line `args`, name of the program first, with what the file that it names says before it, and where that
/// stands there; `args` itself where it names none.
///
/// # Errors
/// [`ConfigError`], about the file only. A mistake on the command line is for whoever parses what is returned.
pub fn expand(command: &Command, args: Vec<OsString>) -> Result<(Vec<OsString>, Origin), ConfigError> {
    let Ok(given) = command.clone().ignore_errors(true).try_get_matches_from(&args) else {
        return Ok((args, Origin::default()));
    };
    let Some(path) = given.get_one::<PathBuf>(CONFIG) else { return Ok((args, Origin::default())) };
    let text = read(path)?;
    let settings = settings(command, &text).map_err(|(offset, mistake)| {
        let line = line(&text, offset);
        ConfigError::Mistake { path: path.clone(), line, mistake }
    })?;
    let counted = settings.into_iter().filter(|setting| !overruled(command, setting.arg, &given));
    let said = counted.flat_map(|setting| setting.said).map(|said| (said.arg, line(&text, said.at)));
    let origin = Origin { path: path.clone(), lines: said.collect() };
    let mut args = args.into_iter();
    let name = args.next();
    let from_file = origin.lines.iter().map(|(arg, _)| OsString::from(arg));
    Ok((name.into_iter().chain(from_file).chain(args).collect(), origin))
}

/// The keys that a file may have, each the long name of an option.
pub fn keys(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter_map(key)
}

/// What `--check` says where nothing is wrong.
pub fn praise(program: &str, file: Option<&Path>) -> String {
    let file = file.map(|file| format!(" with {}", file.display())).unwrap_or_default();
    format!("{program}: the command line{file} can be used")
}

/// The key of this option, if it has one.
fn key(arg: &Arg) -> Option<&str> {
    arg.get_long().filter(|name| !arg.is_hide_set() && !COMMAND_LINE_ONLY.contains(name))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|cause| ConfigError::Read { path: path.into(), cause })
        .and_then(|bytes| match u64::try_from(bytes) {
            Ok(bytes) if bytes <= MAX_BYTES => Ok(text),
            _ => Err(ConfigError::TooLong(path.into())),
        })
}

/// The line of this byte, from 1.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// A mistake, and at which byte.
type Located = (usize, Mistake);

/// What the keys of the file ask for, in their order.
fn settings<'a>(command: &'a Command, text: &str) -> Result<Vec<Setting<'a>>, Located> {
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        (offset, Mistake::Syntax(error.message().replace('\n', " ")))
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut settings: Vec<Setting<'a>> = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let arg = option(command, key)?;
        let said = said(command, &Entry { text, arg, key, value })?;
        let at = key.span().start;
        let says_so = |other: &&Setting<'_>| !other.said.is_empty() && exclusive(command, arg, other.arg);
        if let Some(other) = settings.iter().filter(|_| !said.is_empty()).find(says_so) {
            let (key, line) = (key.get_ref().to_string(), other.line);
            let other = other.arg.get_long().unwrap_or_default().to_owned();
            return Err((at, Mistake::Beside { key, other, line }));
        }
        settings.push(Setting { arg, said, line: line(text, at) });
    }
    Ok(settings)
}

/// The option of this key.
fn option<'a>(command: &'a Command, name: &Key<'_>) -> Result<&'a Arg, Located> {
    let found = command.get_arguments().find(|arg| key(arg) == Some(name.get_ref()));
    found.ok_or_else(|| (name.span().start, unknown(command, name.get_ref())))
}

/// The arguments that mean this entry, which their option takes.
fn said(command: &Command, entry: &Entry<'_>) -> Result<Vec<Said>, Located> {
    let said = entry.to_args()?;
    match said.iter().find_map(|said| Some((said, refusal(command, &said.arg)?))) {
        Some((said, cause)) => Err(refused(entry, said, cause)),
        None => Ok(said),
    }
}

/// A refusal in words of the file: of the part that it is about, where it names one of a table.
fn refused(entry: &Entry<'_>, said: &Said, cause: String) -> Located {
    let key = entry.key.get_ref().to_string();
    let about = |(part, at): &(String, usize)| {
        let cause = cause.strip_prefix(part)?.strip_prefix(": ")?.to_owned();
        let (name, value) = part.split_once('=')?;
        Some((*at, Mistake::Value { key: format!("{key}.{name}"), value: value.to_owned(), cause }))
    };
    match said.parts.iter().find_map(about) {
        Some(located) => located,
        None if said.parts.is_empty() => {
            let value = value::shown(entry.text, entry.value.span());
            (said.at, Mistake::Value { key, value, cause })
        }
        None => (said.at, Mistake::Table { key, cause }),
    }
}

fn unknown(command: &Command, key: &str) -> Mistake {
    if COMMAND_LINE_ONLY.contains(&key) && command.get_arguments().any(|arg| arg.get_long() == Some(key)) {
        return Mistake::CommandLineOnly(key.to_owned());
    }
    let all = || format!("the keys are {}", keys(command).collect::<Vec<_>>().join(", "));
    let negated = key.strip_prefix("no-").and_then(|flag| keys(command).find(|key| *key == flag));
    let cure = match negated {
        Some(flag) => format!("give {flag} = false"),
        None => nearest(command, key).map_or_else(all, |near| format!("did you mean `{near}`?")),
    };
    Mistake::Unknown { key: key.to_owned(), cure }
}

/// What clap would suggest to somebody who mistyped an option.
fn nearest(command: &Command, key: &str) -> Option<String> {
    let error = command.clone().try_get_matches_from(["", &format!("--{key}")]).err()?;
    let Some(ContextValue::String(near)) = error.get(ContextKind::SuggestedArg) else { return None };
    let near = near.trim_start_matches('-');
    keys(command).find(|key| *key == near).map(str::to_owned)
}

/// Why its option does not take this one argument.
fn refusal(command: &Command, arg: &str) -> Option<String> {
    // TOML can say this, a command line could not.
    if arg.contains('\0') {
        return Some("it holds a NUL character; leave it out".to_owned());
    }
    let error = command.clone().try_get_matches_from(["", arg]).err()?;
    match error.kind() {
        ErrorKind::ValueValidation => std::error::Error::source(&error).map(ToString::to_string),
        ErrorKind::InvalidValue => Some(match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                format!("give one of {}", valid.join(", "))
            }
            _ => "give a value".to_owned(),
        }),
        // What the rest of the file and the command line say is not known yet.
        _ => None,
    }
}

/// Whether the command line says something else instead.
fn overruled(command: &Command, arg: &Arg, given: &ArgMatches) -> bool {
    let is_given = |id: &str| {
        given.try_contains_id(id).is_ok() && given.value_source(id) == Some(ValueSource::CommandLine)
    };
    let given = |arg: &Arg| is_given(arg.get_id().as_str());
    (given(arg) && !matches!(arg.get_action(), ArgAction::Append))
        || key(arg).is_some_and(|flag| is_given(&negation(flag)))
        || command.get_arguments().any(|other| given(other) && exclusive(command, arg, other))
}

/// Whether two options cannot stand beside each other: one says so, or they are of a group that allows one only.
fn exclusive(command: &Command, one: &Arg, other: &Arg) -> bool {
    let conflicts = |one: &Arg, other: &Arg| command.get_arg_conflicts_with(one).contains(&other);
    let mut grouped = command.get_groups().filter(|group| {
        let holds = |arg: &Arg| group.get_args().any(|id| id == arg.get_id());
        !(*group).clone().is_multiple() && holds(one) && holds(other)
    });
    one.get_id() != other.get_id()
        && (conflicts(one, other) || conflicts(other, one) || grouped.next().is_some())
}

#[cfg(test)]
mod tests;

//! Options of volumes: which there are, of what type, and what a file says of them.
//!
//! In: the settings that a translator declares, and the words of a volume. Out: [`Values`], each of its type and in its
//! range, preset where the file says nothing. Everything that is told of an option, in errors, manuals and `graph
//! types`, is made of the declaration. Refuses, with the value, what would be right and the cure: keys that there are
//! not, values of another type or out of range, and options that are missing.
//!
//! | type | written | |
//! |---|---|---|
//! | bool | `on`, `off` | also yes, no, true, false |
//! | size | `4096`, `64K`, `1M`, `10G`, `2T` | bytes; powers of 1024 |
//! | number | `128` | |
//! | percent | `5`, `0.01%` | up to four decimals |
//! | duration | `10ms`, `2s`, `1m 30s` | |
//! | one of | one of the words listed | |
//! | path, text | anything, in quotes if there are blanks | |

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::error::{GraphError, OPTION, Shown, nearest};
use super::volfile::VolumeText;

/// Longest path of the host, with its end (PATH_MAX).
const MAX_PATH_BYTES: usize = 4095;
/// A percent, in millionths.
const PERCENT: u32 = 10_000;
/// Letters of sizes, each 1024 times the one before it.
const UNITS: [(char, u64); 4] = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)];

/// An option that a volume may have.
#[derive(Debug)]
pub struct Setting {
    /// Its key.
    pub name: &'static str,
    /// What may be said.
    pub kind: Type,
    /// What counts if nothing is.
    pub preset: Preset,
    /// One line for people.
    pub about: &'static str,
}

/// What an option may be.
#[derive(Debug)]
pub enum Type {
    /// On or off.
    Bool,
    /// Bytes.
    Size(RangeInclusive<u64>),
    /// A count.
    Number(RangeInclusive<u64>),
    /// A share, from 0 to 100 %.
    Percent,
    /// A time.
    Duration(RangeInclusive<Duration>),
    /// One of these words.
    Enum(&'static [&'static str]),
    /// A file of the host.
    Path,
    /// Any text of so many bytes.
    Text(RangeInclusive<usize>),
}

/// What an option is that the file does not mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// It must.
    Required,
    /// Nothing.
    Absent,
    /// As if this was written.
    Is(&'static str),
}

/// Why a volume is refused: becomes a [`GraphError`] by [`VolumeText::refuse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    option: Option<String>,
    problem: String,
    code: u8,
}

impl Bad {
    /// The option is wrong: `problem; cure`.
    pub fn option(name: &str, problem: impl fmt::Display) -> Bad {
        Bad { option: Some(name.to_owned()), problem: problem.to_string(), code: OPTION }
    }

    /// The volume is wrong: `problem; cure`.
    pub fn volume(problem: impl fmt::Display) -> Bad {
        Bad { option: None, problem: problem.to_string(), code: OPTION }
    }

    /// The same, but nothing is wrong with what is written: it fails for another reason, with this exit code of daemons.
    pub fn with_code(self, code: u8) -> Bad {
        Bad { code, ..self }
    }
}

impl VolumeText {
    /// What is wrong with it, and in which line.
    pub fn refuse(&self, bad: &Bad) -> GraphError {
        GraphError { code: bad.code, ..self.located(bad) }
    }

    fn located(&self, bad: &Bad) -> GraphError {
        let (name, problem) = (&self.name, &bad.problem);
        let Some(option) = &bad.option else {
            return GraphError::at(self.line, format_args!("volume {name}: {problem}"));
        };
        match self.option(option) {
            Some((value, line)) => {
                let value = Shown(value);
                GraphError::at(line, format_args!("volume {name}: option {option} {value}: {problem}"))
            }
            None => GraphError::at(self.line, format_args!("volume {name}: option {option}: {problem}")),
        }
    }

    /// Its options as these settings have them.
    ///
    /// # Errors
    /// [`GraphError`] about the first that is wrong.
    pub fn values(&self, settings: &'static [Setting]) -> Result<Values, GraphError> {
        Values::of(settings, self).map_err(|bad| self.refuse(&bad))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Bool(bool),
    /// A size or a number.
    Number(u64),
    Percent(u32),
    Duration(Duration),
    Word(&'static str),
    Path(PathBuf),
    Text(String),
}

/// The options of a volume. What is asked for by a name or type that was not declared, is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<&'static str, Said>);

/// A value, and how it came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    value: Value,
    text: String,
    given: bool,
}

impl Values {
    fn of(settings: &'static [Setting], volume: &VolumeText) -> Result<Values, Bad> {
        let known = || settings.iter().map(|setting| setting.name);
        let stranger = volume.options.iter().find(|(key, _, _)| known().all(|name| name != key));
        if let Some((key, _, _)) = stranger {
            return Err(unknown(key, known(), &volume.kind));
        }
        let mut values = BTreeMap::new();
        for setting in settings {
            let given = volume.option(setting.name).map(|(value, _)| value);
            if let Some(text) = setting.text(given)? {
                let said = Said { value: setting.read(text)?, text: text.to_owned(), given: given.is_some() };
                values.insert(setting.name, said);
            }
        }
        Ok(Values(values))
    }

    /// On or off; off where absent.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Bool(true)))
    }

    /// A size in bytes, or a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        if let Some(Value::Number(number)) = self.value(name) { Some(*number) } else { None }
    }

    /// A percentage, in millionths of the whole.
    pub fn millionths(&self, name: &str) -> Option<u32> {
        if let Some(Value::Percent(share)) = self.value(name) { Some(*share) } else { None }
    }

    /// A time.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        if let Some(Value::Duration(time)) = self.value(name) { Some(*time) } else { None }
    }

    /// One of the words of an [`Type::Enum`].
    pub fn word(&self, name: &str) -> Option<&'static str> {
        if let Some(Value::Word(word)) = self.value(name) { Some(word) } else { None }
    }

    /// A path.
    pub fn path(&self, name: &str) -> Option<&Path> {
        if let Some(Value::Path(path)) = self.value(name) { Some(path) } else { None }
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        if let Some(Value::Text(text)) = self.value(name) { Some(text) } else { None }
    }

    /// Whether the file says so, and it is no preset.
    pub fn is_given(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|said| said.given)
    }

    /// Names and values as they are written, presets too.
    pub fn written(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, said)| (*name, said.text.as_str()))
    }

    /// Names whose values are others there.
    pub fn changed<'a>(&'a self, other: &'a Values) -> impl Iterator<Item = &'static str> + 'a {
        let names = self.0.keys().chain(other.0.keys().filter(|name| !self.0.contains_key(*name)));
        names.filter(|name| self.value(name) != other.value(name)).copied()
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).map(|said| &said.value)
    }
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>, kind: &str) -> Bad {
    let known: Vec<&str> = known.collect();
    let cure = match nearest(key, known.iter().copied()) {
        _ if known.is_empty() => "it takes none, leave this out".to_owned(),
        Some(meant) => format!("`{meant}` is meant, perhaps; it takes {}", known.join(", ")),
        None => format!("it takes {}", known.join(", ")),
    };
    Bad::option(key, format_args!("{} has no such option; {cure}", Shown(kind)))
}

impl Setting {
    /// What is written, or stands for it.
    fn text<'a>(&self, given: Option<&'a str>) -> Result<Option<&'a str>, Bad> {
        match (given, self.preset) {
            (Some(text), _) => Ok(Some(text)),
            (None, Preset::Is(text)) => Ok(Some(text)),
            (None, Preset::Absent) => Ok(None),
            (None, Preset::Required) => {
                let example = self.kind.example();
                Err(Bad::option(
                    self.name,
                    format_args!("it is missing; add `option {} {example}`", self.name),
                ))
            }
        }
    }

    fn read(&self, text: &str) -> Result<Value, Bad> {
        self.kind.read(text).ok_or_else(|| {
            Bad::option(self.name, format_args!("{}; give {}", self.kind.fault(text), self.kind))
        })
    }

    /// Whether what stands for nothing is right itself.
    pub fn preset_is_valid(&self) -> bool {
        if let Preset::Is(text) = self.preset { self.read(text).is_ok() } else { true }
    }

    /// For programs.
    pub fn to_json(&self) -> Json {
        let preset = if let Preset::Is(text) = self.preset { Some(text) } else { None };
        json!({
            "name": self.name,
            "type": self.kind.name(),
            "takes": self.kind.to_string(),
            "required": self.preset == Preset::Required,
            "default": preset,
            "about": self.about,
        })
    }
}

impl Type {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::Size(_) => "size",
            Type::Number(_) => "number",
            Type::Percent => "percent",
            Type::Duration(_) => "duration",
            Type::Enum(_) => "enum",
            Type::Path => "path",
            Type::Text(_) => "text",
        }
    }

    fn read(&self, text: &str) -> Option<Value> {
        match self {
            Type::Bool => bool(text).map(Value::Bool),
            Type::Size(range) => size(text).filter(|bytes| range.contains(bytes)).map(Value::Number),
            Type::Number(range) => number(text).filter(|number| range.contains(number)).map(Value::Number),
            Type::Percent => percent(text).map(Value::Percent),
            Type::Duration(range) => duration(text).filter(|time| range.contains(time)).map(Value::Duration),
            Type::Enum(words) => words.iter().find(|word| **word == text).map(|word| Value::Word(word)),
            Type::Path => {
                (1..=MAX_PATH_BYTES).contains(&text.len()).then(|| Value::Path(PathBuf::from(text)))
            }
            Type::Text(bytes) => bytes.contains(&text.len()).then(|| Value::Text(text.to_owned())),
        }
    }

    /// In what way a text is none.
    fn fault(&self, text: &str) -> &'static str {
        let is_other = match self {
            Type::Size(_) => size(text).is_none(),
            Type::Number(_) => number(text).is_none(),
            Type::Duration(_) => duration(text).is_none(),
            Type::Bool | Type::Percent | Type::Enum(_) => true,
            Type::Path | Type::Text(_) => false,
        };
        match self {
            Type::Path | Type::Text(_) if text.is_empty() => "it is empty",
            Type::Path | Type::Text(_) => "it is too long",
            _ if !is_other => "it is out of range",
            Type::Bool => "it is neither on nor off",
            Type::Size(_) => "it is no size",
            Type::Number(_) => "it is no number",
            Type::Percent => "it is no percentage",
            Type::Duration(_) => "it is no duration",
            Type::Enum(_) => "it is none of the words there are",
        }
    }

    fn example(&self) -> &'static str {
        match self {
            Type::Bool => "on",
            Type::Size(_) => "SIZE",
            Type::Number(_) => "N",
            Type::Percent => "PERCENT",
            Type::Duration(_) => "TIME",
            Type::Enum(_) => "WORD",
            Type::Path => "PATH",
            Type::Text(_) => "TEXT",
        }
    }
}

impl fmt::Display for Type {
    /// What may be given, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Bool => f.write_str("on or off"),
            Type::Size(range) => write!(f, "a size{}, as in 512, 64K, 1M or 10G", between(range, in_units)),
            Type::Number(range) => write!(f, "a number{}", between(range, u64::to_string)),
            Type::Percent => f.write_str("a percentage from 0 to 100, as in 5 or 0.01%"),
            Type::Duration(range) => {
                let time = |time: &Duration| humantime::format_duration(*time).to_string();
                write!(
                    f,
                    "a duration from {} to {}, as in 10ms or 2s",
                    time(range.start()),
                    time(range.end())
                )
            }
            Type::Enum(words) => write!(f, "one of {}", words.join(", ")),
            Type::Path => write!(f, "a path of at most {MAX_PATH_BYTES} bytes"),
            Type::Text(bytes) => write!(f, "a text of {} to {} bytes", bytes.start(), bytes.end()),
        }
    }
}

/// The ends of a range, behind a blank.
fn between(range: &RangeInclusive<u64>, shown: impl Fn(&u64) -> String) -> String {
    match (*range.start(), *range.end()) {
        (0, u64::MAX) => String::new(),
        (least, u64::MAX) => format!(" of at least {}", shown(&least)),
        (least, most) => format!(" from {} to {}", shown(&least), shown(&most)),
    }
}

/// Bytes with the largest unit that leaves no rest.
pub fn in_units(bytes: &u64) -> String {
    let units = UNITS.iter().rev();
    let whole = units.filter(|(_, unit)| *bytes > 0 && bytes.is_multiple_of(*unit));
    let shown =
        whole.map(|(letter, unit)| format!("{}{letter}", bytes.checked_div(*unit).unwrap_or(0))).next();
    shown.unwrap_or_else(|| bytes.to_string())
}

fn bool(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" => Some(true),
        "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// Digits, and nothing else.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A number of bytes, or of KiB, MiB, GiB or TiB.
pub fn size(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find_map(|(letter, unit)| Some((text.strip_suffix(*letter)?, *unit)));
    let (digits, unit) = unit.unwrap_or((text, 1));
    number(digits)?.checked_mul(unit)
}

fn percent(text: &str) -> Option<u32> {
    let text = text.strip_suffix('%').unwrap_or(text);
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if !(1..=4).contains(&decimals.len()) {
        return None;
    }
    let whole = u32::try_from(number(whole)?).ok()?.checked_mul(PERCENT)?;
    let rest = u32::try_from(number(&format!("{decimals:0<4}"))?).ok()?;
    whole.checked_add(rest).filter(|share| *share <= PERCENT.saturating_mul(100))
}

fn duration(text: &str) -> Option<Duration> {
    if text == "0" { Some(Duration::ZERO) } else { humantime::parse_duration(text).ok() }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;

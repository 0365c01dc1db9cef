//! A value of the file as what the command line would say.
//!
//! In: an option, its key and a TOML value. Out: the arguments that mean the same, each with its place in the file, or
//! why there are none: `queues = "4"` is refused like `serial = 4`, so that a file reads the same to everybody.

use std::any::TypeId;
use std::borrow::Cow;
use std::ops::Range;

use clap::{Arg, ArgAction};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::shape::{self, Kind, Part};
use super::{Located, Mistake};

/// Most characters of a value that an error shows.
const SHOWN: usize = 60;

/// A key of the file.
pub(super) type Key<'a> = Spanned<Cow<'a, str>>;

/// An argument that the file stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// As on a command line.
    pub(super) arg: String,
    /// At which byte of the file.
    pub(super) at: usize,
    /// If it was a table: the parts that it became, as on a command line, and where they are.
    pub(super) parts: Vec<(String, usize)>,
}

/// An option's key and value in the text of the file.
pub(super) struct Entry<'a> {
    pub(super) text: &'a str,
    pub(super) arg: &'a Arg,
    pub(super) key: &'a Key<'a>,
    pub(super) value: &'a Spanned<DeValue<'a>>,
}

impl Entry<'_> {
    /// The arguments that mean this: none where a flag is false.
    pub(super) fn to_args(&self) -> Result<Vec<Said>, Located> {
        let at = self.key.span().start;
        match (self.arg.get_action(), self.value.get_ref()) {
            (ArgAction::SetTrue, DeValue::Boolean(on)) => {
                let arg = format!("--{}", self.key.get_ref());
                Ok(on.then_some(Said { arg, at, parts: Vec::new() }).into_iter().collect())
            }
            (ArgAction::Append, DeValue::Array(values)) => {
                values.iter().map(|value| self.one(value.get_ref(), value.span().start)).collect()
            }
            (ArgAction::Set, value) => Ok(vec![self.one(value, at)?]),
            _ => Err(self.mistyped()),
        }
    }

    fn one(&self, value: &DeValue<'_>, at: usize) -> Result<Said, Located> {
        let parts = shape::parts(self.arg);
        let (text, parts) = match value {
            DeValue::Table(table) if !parts.is_empty() => self.table(table, &parts, at)?,
            plain => (kind(self.arg).text(plain).ok_or_else(|| self.mistyped())?, Vec::new()),
        };
        Ok(Said { arg: format!("--{}={text}", self.key.get_ref()), at, parts })
    }

    /// A table as the one string of a command line, and its parts.
    fn table(
        &self,
        table: &DeTable<'_>,
        parts: &[Part<'_>],
        at: usize,
    ) -> Result<(String, Vec<(String, usize)>), Located> {
        let known = |key: &Key<'_>| parts.iter().any(|part| part.key == *key.get_ref());
        if let Some((key, _)) = table.iter().find(|(key, _)| !known(key)) {
            return Err((key.span().start, self.stranger(key.get_ref(), parts)));
        }
        let mut written = Vec::new();
        for part in parts {
            match table.iter().find(|(key, _)| *key.get_ref() == part.key) {
                Some((key, value)) => written.push((self.part(part, value)?, key.span().start)),
                None if part.bare => return Err((at, self.missing(part))),
                None => {}
            }
        }
        let text: Vec<&str> = written.iter().map(|(text, _)| text.as_str()).collect();
        Ok((text.join(","), written))
    }

    fn part(&self, part: &Part<'_>, value: &Spanned<DeValue<'_>>) -> Result<String, Located> {
        let (at, key) = (value.span().start, format!("{}.{}", self.key.get_ref(), part.key));
        let shown = || shown(self.text, value.span());
        match part.kind.text(value.get_ref()) {
            Some(text) if text.contains(',') => {
                let cause = "it holds a comma, which would end it; use another value".to_owned();
                Err((at, Mistake::Value { key, value: shown(), cause }))
            }
            Some(text) => Ok(part.written(&text)),
            None => {
                let wanted = part.kind.wanted().to_owned();
                Err((at, Mistake::Type { key, value: shown(), wanted }))
            }
        }
    }

    fn stranger(&self, key: &str, parts: &[Part<'_>]) -> Mistake {
        let own = self.key.get_ref();
        let keys: Vec<&str> = parts.iter().map(|part| part.key.as_ref()).collect();
        let cure = format!("its keys are {}; other options stand above the first [table]", keys.join(", "));
        Mistake::Unknown { key: format!("{own}.{key}"), cure }
    }

    fn missing(&self, part: &Part<'_>) -> Mistake {
        let own = self.key.get_ref().to_string();
        Mistake::Table { cause: format!("{} is missing; give {}", part.key, part.kind.wanted()), key: own }
    }

    fn mistyped(&self) -> Located {
        let (key, value) = (self.key.get_ref().to_string(), shown(self.text, self.value.span()));
        (self.key.span().start, Mistake::Type { key, value, wanted: wanted(self.arg) })
    }
}

/// How the value of this option is written.
fn kind(arg: &Arg) -> Kind {
    let name = arg.get_value_names().and_then(|names| names.first());
    if is_number(arg) { Kind::Number } else { name.map_or(Kind::Text, |name| Kind::of(name)) }
}

/// Whether the option is parsed into a number.
fn is_number(arg: &Arg) -> bool {
    let parsed = arg.get_value_parser().type_id();
    let signed = [TypeId::of::<i8>(), TypeId::of::<i16>(), TypeId::of::<i32>(), TypeId::of::<i64>()];
    let unsigned = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
    let sized = [TypeId::of::<usize>(), TypeId::of::<isize>()];
    [&signed[..], &unsigned, &sized].concat().iter().any(|id| parsed == *id)
}

/// What the option takes, in words.
fn wanted(arg: &Arg) -> String {
    let plain = kind(arg).wanted();
    let table = !shape::parts(arg).is_empty();
    let name = arg.get_long().unwrap_or_default();
    match arg.get_action() {
        ArgAction::SetTrue => "true or false".to_owned(),
        ArgAction::Append if table => {
            format!("a table [[{name}]] for each, or a list in brackets, each {plain}")
        }
        ArgAction::Append => format!("a list in brackets, each {plain}"),
        _ if table => format!("{plain} or a table [{name}]"),
        _ => plain.to_owned(),
    }
}

/// The value as it stands in the file, of one line.
pub(super) fn shown(text: &str, span: Range<usize>) -> String {
    let written = text.get(span).unwrap_or_default();
    let start: String = written.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    if start.len() < written.len() { format!("{start}...") } else { start }
}

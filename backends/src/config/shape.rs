//! What a structured option is made of, which its help says already.
//!
//! In: the name of an option's value, like `TYPE,socket=PATH[,queues=N]`. Out: its parts, each a key of the table that
//! may stand in a file for the one string of a command line:
//!
//! ```text
//! --device <TYPE,socket=PATH[,queues=N]>      [[device]]
//!                                             type = "blk"        a part without a key of its own has its name's
//! --device blk,socket=/s,queues=4        ←    socket = "/s"       a string
//!                                             queues = 4          N is a number
//! ```
//! Refuses: a part that holds a comma, which would be read as two.

use std::borrow::Cow;

use clap::Arg;
use toml::de::DeValue;

/// How a value is written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As a number.
    Number,
    /// As a string.
    Text,
    /// As either: a number of bytes, or one with its unit.
    Size,
}

impl Kind {
    /// Of a value that is called so.
    pub(super) fn of(placeholder: &str) -> Kind {
        match placeholder {
            "N" => Kind::Number,
            "SIZE" => Kind::Size,
            _ => Kind::Text,
        }
    }

    /// In words.
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Kind::Number => "a number without quotes",
            Kind::Text => "a string in quotes",
            Kind::Size => "a number, or a string like \"64M\"",
        }
    }

    /// What the command line says for this value, if it is of this kind.
    pub(super) fn text(self, value: &DeValue<'_>) -> Option<String> {
        match value {
            DeValue::Integer(number) if self != Kind::Text => {
                i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
            }
            DeValue::String(text) if self != Kind::Number => Some(text.to_string()),
            _ => None,
        }
    }
}

/// One part of a structured value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// Its key in a table.
    pub(super) key: Cow<'a, str>,
    /// It has no key on the command line, and cannot be left out.
    pub(super) bare: bool,
    /// How it is written.
    pub(super) kind: Kind,
}

impl<'a> Part<'a> {
    fn new(text: &'a str) -> Part<'a> {
        match text.split_once('=') {
            Some((key, placeholder)) => Part { key: key.into(), bare: false, kind: Kind::of(placeholder) },
            None => Part { key: text.to_lowercase().into(), bare: true, kind: Kind::of(text) },
        }
    }

    /// The part with this value, as the command line has it.
    pub(super) fn written(&self, value: &str) -> String {
        if self.bare { value.to_owned() } else { format!("{}={value}", self.key) }
    }
}

/// The parts of this option's value; none where it is a plain one.
pub(super) fn parts(arg: &Arg) -> Vec<Part<'_>> {
    let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    if !name.contains('=') {
        return Vec::new();
    }
    let ends = |char: char| matches!(char, '[' | ']' | ',');
    name.split(ends).filter(|part| !part.is_empty()).map(Part::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_what_the_name_of_the_value_shows() {
        let arg = Arg::new("device").value_name("TYPE,socket=PATH[,id=NAME][,size=SIZE][,queues=N]");
        let part = |key, bare, kind| Part { key: Cow::Borrowed(key), bare, kind };
        let text = |key| part(key, false, Kind::Text);
        let size = part("size", false, Kind::Size);
        let expected = [
            part("type", true, Kind::Text),
            text("socket"),
            text("id"),
            size,
            part("queues", false, Kind::Number),
        ];
        assert_eq!(parts(&arg), expected);
        for plain in ["PATH", "N", "SIZE", "LIST"] {
            assert!(parts(&Arg::new("plain").value_name(plain)).is_empty(), "{plain}");
        }
        assert!(parts(&Arg::new("flag")).is_empty());
    }
}

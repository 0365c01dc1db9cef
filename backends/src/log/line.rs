//! One line of the log, as text, as JSON, and as journald's fields.
//!
//! In: a level, a message, fields. Out: bytes that end with a newline, at most [`MAX_LINE_BYTES`] of them, so that a
//! pipe takes a line whole or not at all. Promises: what a line carries stays in that line, whoever wrote it: control
//! characters are escaped, so nothing begins a line of its own, moves a terminal's cursor or adds a field; what is too
//! long is cut and ends with `…`. The keeper writes by this, too: nothing here needs a subscriber.

use std::fmt::{self, Display, Write};

use humantime::Rfc3339Timestamp;
use tracing::Level;

/// Longest line, its newline included: what a pipe takes at once (PIPE_BUF).
pub const MAX_LINE_BYTES: usize = 4096;
/// Most bytes of a line's message and values together: JSON writes two for one, of those that are left.
const MAX_VALUES_BYTES: usize = 1600;
/// Most fields; no line of ours has half of them.
const MAX_FIELDS: usize = 16;

/// Which process speaks.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Name of the program.
    pub name: &'static str,
    /// Its process.
    pub pid: u32,
}

/// What a line says.
#[derive(Debug)]
pub struct Line {
    level: Level,
    at: Rfc3339Timestamp,
    message: String,
    fields: Vec<Field>,
    room: usize,
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    value: String,
    /// A number or a truth value: JSON has them without quotes.
    bare: bool,
}

impl Line {
    /// A line that says nothing yet.
    pub fn new(level: Level) -> Line {
        Line {
            level,
            at: crate::clock::stamp(),
            message: String::new(),
            fields: Vec::new(),
            room: MAX_VALUES_BYTES,
        }
    }

    /// How much it matters.
    pub fn level(&self) -> Level {
        self.level
    }

    /// With this message.
    pub fn message(mut self, message: impl Display) -> Line {
        self.say(message);
        self
    }

    /// With another field.
    pub fn with(mut self, name: &'static str, value: impl Display) -> Line {
        self.field(name, value, false);
        self
    }

    /// As one of a class, after so many that were left out.
    pub fn of(mut self, class: &'static str, left_out: u64) -> Line {
        self.field("class", class, false);
        if left_out > 0 {
            self.field("left_out", left_out, true);
        }
        self
    }

    /// Adds to the message.
    pub fn say(&mut self, message: impl Display) {
        append(&mut self.message, &mut self.room, message);
    }

    /// Adds a field.
    pub fn field(&mut self, name: &'static str, value: impl Display, bare: bool) {
        if self.fields.len() < MAX_FIELDS {
            let mut field = Field { name, value: String::new(), bare };
            append(&mut field.value, &mut self.room, value);
            self.fields.push(field);
        }
    }

    /// For people: `TIME LEVEL NAME[PID]: MESSAGE FIELD=VALUE...`.
    pub fn text(&self, from: Origin, colours: bool) -> String {
        let (on, off) = if colours { (colour(self.level), "\x1b[0m") } else { ("", "") };
        let (time, level) = (&self.at, self.level);
        let mut out = format!("{time} {on}{level:>5}{off} {}[{}]: ", from.name, from.pid);
        self.sentence(&mut out);
        out.push('\n');
        out
    }

    /// The message and its fields. What is about lines, not about what happened, is for machines.
    fn sentence(&self, out: &mut String) {
        out.push_str(&self.message);
        for Field { name, value, bare } in self.fields.iter().filter(|field| field.name != "class") {
            let plain = *bare || !value.is_empty() && !value.contains([' ', '"', '=']);
            let _ =
                if plain { write!(out, " {name}={value}") } else { write!(out, " {name}={}", quoted(value)) };
        }
    }

    /// For programs: one JSON object.
    pub fn json(&self, from: Origin) -> String {
        let time = &self.at;
        let mut out = format!(
            r#"{{"time":"{time}","level":"{}","program":"{}","pid":{},"message":{}"#,
            self.level,
            from.name,
            from.pid,
            quoted(&self.message)
        );
        for Field { name, value, bare } in &self.fields {
            let _ = match bare {
                true => write!(out, r#","{name}":{value}"#),
                false => write!(out, r#","{name}":{}"#, quoted(value)),
            };
        }
        out.push_str("}\n");
        out
    }

    /// A datagram for journald (systemd.journal-fields(7)): its message has the fields too, since that is what
    /// journalctl shows; each also stands for itself, in capitals.
    pub fn journal(&self, from: Origin) -> String {
        let mut out = format!("PRIORITY={}\nSYSLOG_IDENTIFIER={}\nMESSAGE=", priority(self.level), from.name);
        self.sentence(&mut out);
        for Field { name, value, .. } in &self.fields {
            let _ = write!(out, "\n{}={value}", name.to_ascii_uppercase());
        }
        out.push('\n');
        out
    }
}

/// A string as JSON has it.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// syslog's severities (syslog(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    }
}

fn append(out: &mut String, room: &mut usize, what: impl Display) {
    // It writes into a string; what does not fit is meant to be lost.
    let _ = write!(Clean { out, room }, "{what}");
}

/// Takes text of whatever origin, as far as there is room.
struct Clean<'a> {
    out: &'a mut String,
    room: &'a mut usize,
}

impl Write for Clean<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|char| match char.is_control() {
            true => char.escape_default().try_for_each(|char| self.push(char)),
            false => self.push(char),
        })
    }
}

impl Clean<'_> {
    fn push(&mut self, char: char) -> fmt::Result {
        match self.room.checked_sub(char.len_utf8()) {
            Some(left) => {
                *self.room = left;
                self.out.push(char);
                Ok(())
            }
            None => {
                if !self.out.ends_with('…') {
                    self.out.push('…');
                }
                Err(fmt::Error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Origin = Origin { name: "outboard-rng", pid: 42 };

    fn line() -> Line {
        let mut line = Line::new(Level::WARN).message("Ring broken by its driver");
        line.field("class", "ring-broken", false);
        line.field("queue", 3, true);
        line.field("error", "index 7 says \"no\"", false);
        line.at = crate::clock::at(std::time::Duration::from_micros(1_795_000_000_000_001));
        line
    }

    #[test]
    fn text_is_for_people() {
        let said = r#"2026-11-18T11:06:40.000001Z  WARN outboard-rng[42]: Ring broken by its driver queue=3 error="index 7 says \"no\"""#;
        assert_eq!(line().text(FROM, false), format!("{said}\n"));
        assert!(line().text(FROM, true).contains("\x1b[33m WARN\x1b[0m"));
    }

    #[test]
    fn json_is_one_object_with_every_field() {
        let said: serde_json::Value = serde_json::from_str(&line().json(FROM)).unwrap();
        let expected = serde_json::json!({
            "time": "2026-11-18T11:06:40.000001Z", "level": "WARN", "program": "outboard-rng", "pid": 42,
            "message": "Ring broken by its driver", "class": "ring-broken", "queue": 3,
            "error": "index 7 says \"no\"",
        });
        assert_eq!(said, expected);
    }

    #[test]
    fn the_journal_gets_fields_in_capitals() {
        let fields = line().journal(FROM);
        let message = r#"MESSAGE=Ring broken by its driver queue=3 error="index 7 says \"no\"""#;
        let expected = [
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=outboard-rng",
            message,
            "CLASS=ring-broken",
            "QUEUE=3",
            "ERROR=index 7 says \"no\"",
            "",
        ];
        assert_eq!(fields.split('\n').collect::<Vec<_>>(), expected);
    }

    #[test]
    fn nothing_in_a_line_begins_another_or_moves_the_cursor() {
        let mut line = Line::new(Level::INFO).message("a\nb\x1b[2J\r\u{9b}");
        line.field("path", "x\nPRIORITY=0", false);
        for said in [line.text(FROM, false), line.json(FROM), line.journal(FROM)] {
            let fields = said.lines().filter(|line| line.contains("PRIORITY=0")).count();
            assert!(said.contains("PRIORITY=0") && !said.lines().any(|line| line == "PRIORITY=0"), "{said}");
            assert!(fields <= 2 && !said.trim_end_matches('\n').contains(['\x1b', '\r', '\u{9b}']), "{said}");
        }
        assert_eq!(line.text(FROM, false).lines().count(), 1);
        assert_eq!(line.json(FROM).lines().count(), 1);
        assert_eq!(line.journal(FROM).lines().count(), 4);
    }

    #[test]
    fn a_line_is_never_longer_than_a_pipe_takes_at_once() {
        for worst in ["\"", "\\", "\u{1}", "\u{301}", "€", "a"] {
            let mut line = Line::new(Level::ERROR).message(worst.repeat(700));
            for _ in 0..40 {
                line.field("a_name_of_some_length", worst.repeat(10_000), false);
            }
            for said in [line.text(FROM, true), line.json(FROM)] {
                assert!(said.len() <= MAX_LINE_BYTES, "{worst:?}: {}", said.len());
                assert!(said.contains('…'), "{said}");
            }
            serde_json::from_str::<serde_json::Value>(&line.json(FROM)).unwrap();
        }
    }
}

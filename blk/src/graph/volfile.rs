//! The text of a graph, in the form of GlusterFS volfiles: words and their lines, nothing of what they mean.
//!
//! ```text
//! # The disk of vm1.                            a comment goes to the end of its line
//! volume image                                  a name: letters, digits, - and _
//!     type storage/file                         what it is
//!     option path "/srv/my disks/vm1.img"       a key and a value; in quotes, \" and \\ stand for " and \
//! end-volume
//!
//! volume slow
//!     type features/throttle
//!     option ops 1000
//!     subvolumes image                          what it stands on, by name
//! end-volume                                    the last volume of the file is what a guest sees
//! ```
//! In: any text. Out: the volumes in their order, each word with its line. Promises: time and memory stay in proportion
//! to the text, which is bounded, as are the volumes. Refuses, with the line and the cure: statements that there are
//! not or that are out of place, words too many or missing, what stands twice in a volume, quotes that do not end,
//! characters that no editor shows. Not taken from GlusterFS: commands in backticks, and statements over several lines.

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

use std::iter::Peekable;
use std::str::CharIndices;

use thiserror::Error;

use super::error::{GraphError, Shown, nearest};

/// Longest text: what is longer is another file, or has no end.
pub const MAX_BYTES: usize = 64 << 10;
/// Most volumes: each is a hop of every request.
pub const MAX_VOLUMES: usize = 64;
/// Longest name of a volume or key: it becomes part of the name of a descriptor.
pub const MAX_NAME_BYTES: usize = 64;
/// Most words of a statement, itself among them.
const MAX_WORDS: usize = MAX_VOLUMES + 1;
/// What separates words.
const BLANKS: [char; 2] = [' ', '\t'];
const STATEMENTS: [&str; 5] = ["volume", "type", "option", "subvolumes", "end-volume"];

/// A volume as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeText {
    /// Its name: not empty, letters, digits, - and _ only.
    pub name: String,
    /// Its type, as `storage/file`.
    pub kind: String,
    /// Line of the type.
    pub kind_line: usize,
    /// Keys, each once, their values and lines.
    pub options: Vec<(String, String, usize)>,
    /// Names of what it stands on, and their line.
    pub subvolumes: Vec<(String, usize)>,
    /// Where it begins.
    pub line: usize,
}

impl VolumeText {
    /// A volume without options.
    pub fn new(name: &str, kind: &str) -> VolumeText {
        VolumeText {
            name: name.to_owned(),
            kind: kind.to_owned(),
            kind_line: 0,
            options: Vec::new(),
            subvolumes: Vec::new(),
            line: 0,
        }
    }

    /// The value of an option and its line.
    pub fn option(&self, key: &str) -> Option<(&str, usize)> {
        let found = self.options.iter().find(|(name, _, _)| name == key);
        found.map(|(_, value, line)| (value.as_str(), *line))
    }
}

/// What is wrong in a line.
#[derive(Debug, PartialEq, Eq, Error)]
enum Problem {
    #[error("the file has more than {MAX_BYTES} bytes; give the text of a graph")]
    TooLong,
    #[error("the line is no UTF-8 text; give the text of a graph")]
    NoText,
    #[error("the file has no volume; begin one with `volume NAME`")]
    Empty,
    #[error("a graph has at most {MAX_VOLUMES} volumes; leave some out")]
    TooMany,
    #[error("unknown statement {word}; {cure}")]
    Statement { word: String, cure: String },
    #[error("{0} stands outside of a volume; begin one with `volume NAME`")]
    Outside(&'static str),
    #[error("volume {0} is not ended; put `end-volume` before this line")]
    Inside(String),
    #[error("volume {0} is not ended; put `end-volume` behind its last line")]
    NotEnded(String),
    #[error("volume {0} has no type; add a line `type CATEGORY/KIND`, as `type storage/file`")]
    NoType(String),
    #[error("volume {name} has its {what} in line {line} already; leave one of them out")]
    Twice { name: String, what: String, line: usize },
    #[error("{0}: words are missing; write `{1}`")]
    Missing(&'static str, &'static str),
    #[error("{statement}: {word} is one word too many; write `{usage}`, a value with blanks in \"quotes\"")]
    Extra { statement: &'static str, word: String, usage: &'static str },
    #[error("the line has more than {MAX_WORDS} words; a graph has at most {MAX_VOLUMES} volumes")]
    Words,
    #[error(
        "{what} {word} is no name; use 1 to {MAX_NAME_BYTES} letters, digits, - and _{}",
        if *.dots { ", and dots" } else { "" }
    )]
    Name { what: &'static str, word: String, dots: bool },
    #[error("the quote is not ended in its line; put \" at the end of the value, or \\\" for a quote in it")]
    Quote,
    #[error(
        "a quote begins or ends within a word; put all of the word in quotes, with \\\" for a quote in it"
    )]
    Glued,
    #[error("\\{} stands for nothing; in quotes, write \\\\ for \\ and \\\" for \"", .0.escape_debug())]
    Escape(char),
    #[error("character {} cannot be seen; take it out", .0.escape_unicode())]
    Unseen(char),
}

/// The text of a file.
///
/// # Errors
/// [`GraphError`]: too long, or no text.
pub fn text(bytes: &[u8]) -> Result<&str, GraphError> {
    if bytes.len() > MAX_BYTES {
        return Err(GraphError::at(0, Problem::TooLong));
    }
    str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        GraphError::at(before.split(|byte| *byte == b'\n').count(), Problem::NoText)
    })
}

/// The volumes of a text, in its order; at least one.
///
/// # Errors
/// [`GraphError`] about the first line that is wrong.
pub fn parse(text: &str) -> Result<Vec<VolumeText>, GraphError> {
    if text.len() > MAX_BYTES {
        return Err(GraphError::at(0, Problem::TooLong));
    }
    let mut parser = Parser::default();
    for (line, words) in (1..).zip(text.lines()) {
        let statement = words_of(words).and_then(|words| parser.statement(line, &words));
        statement.map_err(|problem| GraphError::at(line, problem))?;
    }
    parser.end()
}

/// A volume that is being read, and those before.
#[derive(Default)]
struct Parser {
    done: Vec<VolumeText>,
    current: Option<VolumeText>,
}

impl Parser {
    fn statement(&mut self, line: usize, words: &[String]) -> Result<(), Problem> {
        let Some((statement, rest)) = words.split_first() else { return Ok(()) };
        match statement.as_str() {
            "volume" => self.begin(line, one("volume", "volume NAME", rest)?),
            "type" => self.current("type")?.set_type(line, one("type", "type CATEGORY/KIND", rest)?),
            "option" => self.current("option")?.add_option(line, rest),
            "subvolumes" => self.current("subvolumes")?.set_subvolumes(line, rest),
            "end-volume" => self.end_volume(rest),
            word => Err(Problem::Statement { word: Shown(word).to_string(), cure: statement_cure(word) }),
        }
    }

    fn current(&mut self, statement: &'static str) -> Result<&mut VolumeText, Problem> {
        self.current.as_mut().ok_or(Problem::Outside(statement))
    }

    fn begin(&mut self, line: usize, name: &str) -> Result<(), Problem> {
        if let Some(open) = &self.current {
            return Err(Problem::Inside(open.name.clone()));
        }
        if self.done.len() >= MAX_VOLUMES {
            return Err(Problem::TooMany);
        }
        check_name("volume", name, false)?;
        self.current = Some(VolumeText { line, ..VolumeText::new(name, "") });
        Ok(())
    }

    fn end_volume(&mut self, rest: &[String]) -> Result<(), Problem> {
        if let [word, ..] = rest {
            return Err(extra("end-volume", word, "end-volume"));
        }
        let volume = self.current.take().ok_or(Problem::Outside("end-volume"))?;
        if volume.kind.is_empty() {
            return Err(Problem::NoType(volume.name));
        }
        self.done.push(volume);
        Ok(())
    }

    fn end(self) -> Result<Vec<VolumeText>, GraphError> {
        match (self.current, self.done) {
            (Some(open), _) => Err(GraphError::at(open.line, Problem::NotEnded(open.name))),
            (None, done) if done.is_empty() => Err(GraphError::at(0, Problem::Empty)),
            (None, done) => Ok(done),
        }
    }
}

impl VolumeText {
    fn set_type(&mut self, line: usize, kind: &str) -> Result<(), Problem> {
        if !self.kind.is_empty() {
            return Err(self.twice("type", self.kind_line));
        }
        if kind.is_empty() {
            return Err(Problem::NoType(self.name.clone()));
        }
        (self.kind, self.kind_line) = (kind.to_owned(), line);
        Ok(())
    }

    fn add_option(&mut self, line: usize, rest: &[String]) -> Result<(), Problem> {
        const USAGE: &str = "option KEY VALUE";
        let (key, value) = match rest {
            [key, value] => (key, value),
            [_, _, word, ..] => return Err(extra("option", word, USAGE)),
            _ => return Err(Problem::Missing("option", USAGE)),
        };
        check_name("option", key, true)?;
        if let Some((_, before)) = self.option(key) {
            return Err(self.twice(&format!("option {key}"), before));
        }
        self.options.push((key.clone(), value.clone(), line));
        Ok(())
    }

    fn set_subvolumes(&mut self, line: usize, names: &[String]) -> Result<(), Problem> {
        if let Some((_, before)) = self.subvolumes.first() {
            return Err(self.twice("subvolumes", *before));
        }
        if names.is_empty() {
            return Err(Problem::Missing("subvolumes", "subvolumes NAME..."));
        }
        names.iter().try_for_each(|name| check_name("subvolume", name, false))?;
        self.subvolumes = names.iter().map(|name| (name.clone(), line)).collect();
        Ok(())
    }

    fn twice(&self, what: &str, line: usize) -> Problem {
        Problem::Twice { name: self.name.clone(), what: what.to_owned(), line }
    }
}

/// The only word behind a statement.
fn one<'a>(statement: &'static str, usage: &'static str, rest: &'a [String]) -> Result<&'a str, Problem> {
    match rest {
        [] => Err(Problem::Missing(statement, usage)),
        [word] => Ok(word),
        [_, word, ..] => Err(extra(statement, word, usage)),
    }
}

fn extra(statement: &'static str, word: &str, usage: &'static str) -> Problem {
    Problem::Extra { statement, word: Shown(word).to_string(), usage }
}

fn statement_cure(word: &str) -> String {
    match nearest(word, STATEMENTS) {
        Some(meant) => format!("write `{meant}`"),
        None => format!("a line begins with one of {}, or #", STATEMENTS.join(", ")),
    }
}

/// Keys may have dots, as GlusterFS's have; names of volumes become part of dotted names.
fn check_name(what: &'static str, word: &str, dots: bool) -> Result<(), Problem> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || dots && byte == b'.';
    if (1..=MAX_NAME_BYTES).contains(&word.len()) && word.bytes().all(fits) {
        return Ok(());
    }
    Err(Problem::Name { what, word: Shown(word).to_string(), dots })
}

/// The words of a line, without its comment.
fn words_of(line: &str) -> Result<Vec<String>, Problem> {
    if let Some(unseen) = line.chars().find(|char| is_unseen(*char)) {
        return Err(Problem::Unseen(unseen));
    }
    let mut words = Vec::new();
    let mut rest = line.trim_start_matches(BLANKS);
    while !rest.is_empty() && !rest.starts_with('#') {
        if words.len() >= MAX_WORDS {
            return Err(Problem::Words);
        }
        let (word, behind) = word_of(rest)?;
        words.push(word);
        rest = behind.trim_start_matches(BLANKS);
    }
    Ok(words)
}

/// Whether it could make a line look like another: controls, and what joins, separates or turns letters around.
fn is_unseen(char: char) -> bool {
    let joins = '\u{200b}'..='\u{200f}';
    let turns = '\u{202a}'..='\u{202e}';
    let isolates = '\u{2060}'..='\u{206f}';
    (char.is_control() && char != '\t')
        || joins.contains(&char)
        || turns.contains(&char)
        || isolates.contains(&char)
        || char == '\u{feff}'
}

/// The first word of a text that begins with one, and what is behind it.
fn word_of(text: &str) -> Result<(String, &str), Problem> {
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted_word(quoted);
    }
    let (word, behind) = text.split_at(text.find(BLANKS).unwrap_or(text.len()));
    if word.contains('"') { Err(Problem::Glued) } else { Ok((word.to_owned(), behind)) }
}

/// The same behind an opening quote.
fn quoted_word(text: &str) -> Result<(String, &str), Problem> {
    let mut word = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((_, char)) = chars.next() {
        match char {
            '"' => return Ok((word, behind_quote(text, &mut chars)?)),
            '\\' => word.push(escaped(chars.next())?),
            plain => word.push(plain),
        }
    }
    Err(Problem::Quote)
}

fn behind_quote<'a>(text: &'a str, chars: &mut Peekable<CharIndices<'_>>) -> Result<&'a str, Problem> {
    match chars.peek() {
        None => Ok(""),
        Some((at, char)) if BLANKS.contains(char) => Ok(text.get(*at..).unwrap_or_default()),
        Some(_) => Err(Problem::Glued),
    }
}

fn escaped(char: Option<(usize, char)>) -> Result<char, Problem> {
    match char {
        Some((_, char @ ('"' | '\\'))) => Ok(char),
        Some((_, other)) => Err(Problem::Escape(other)),
        None => Err(Problem::Quote),
    }
}

#[cfg(test)]
#[path = "volfile_tests.rs"]
mod tests;

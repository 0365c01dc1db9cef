//! What is wrong with a graph, and where: one line for people, as compilers write it.
//!
//! In: a line of the file, and what is wrong there with its cure, from the module that found it. Out:
//! `FILE:LINE: what is wrong; what to do`, or `FILE: ...` where no line is to blame. What the file says is shown in one
//! line of its own, shortened, so that no file can write to a terminal what it likes.

use std::fmt::{self, Display};
use std::path::Path;

use backends::daemon::Failure;
use thiserror::Error;

/// Most characters of a word that are shown.
const SHOWN: usize = 60;
/// How much of a word may differ from the one that was meant.
const SIMILAR: f64 = 0.7;

/// Exit code where an option or configuration is wrong, see [`backends::daemon`].
pub const OPTION: u8 = 2;

/// A graph that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}{problem}", Place(*.line))]
pub struct GraphError {
    /// From 1; 0 where it is about the file as a whole.
    pub line: usize,
    /// What is wrong, and the cure.
    pub problem: String,
    /// Exit code of a daemon that ends for it.
    pub code: u8,
}

impl GraphError {
    /// It is wrong in this line.
    pub fn at(line: usize, problem: impl Display) -> GraphError {
        GraphError { line, problem: problem.to_string(), code: OPTION }
    }

    /// For whoever ends because of it.
    pub fn failure(&self, file: &Path) -> Failure {
        Failure { message: self.of(file), code: self.code }
    }

    /// With the name of the file.
    pub fn of(&self, file: &Path) -> String {
        let separator = if self.line == 0 { ": " } else { ":" };
        format!("{}{separator}{self}", file.display())
    }
}

struct Place(usize);

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

/// A word of the file, in quotes if it is not plain.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start: String = self.0.chars().take(SHOWN).collect();
        let more = if start.len() < self.0.len() { "..." } else { "" };
        let plain = !start.is_empty() && start.chars().all(|char| char.is_ascii_graphic() && char != '"');
        if plain { write!(f, "{start}{more}") } else { write!(f, "\"{}\"{more}", start.escape_debug()) }
    }
}

/// Which of the known words was most likely meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(SHOWN).collect();
    let rated = known.into_iter().map(|known| (strsim::jaro_winkler(&word, known), known));
    let likely = rated.filter(|(rate, _)| *rate >= SIMILAR);
    likely.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_told_as_compilers_do() {
        let file = Path::new("vm.vol");
        assert_eq!(GraphError::at(7, "wrong; mend it").of(file), "vm.vol:7: wrong; mend it");
        assert_eq!(GraphError::at(0, "empty; fill it").of(file), "vm.vol: empty; fill it");
    }

    #[test]
    fn words_are_shown_in_one_harmless_line() {
        assert_eq!(Shown("/srv/vm1.img").to_string(), "/srv/vm1.img");
        assert_eq!(Shown("").to_string(), "\"\"");
        assert_eq!(Shown("a\u{1b}[2J b").to_string(), "\"a\\u{1b}[2J b\"");
        assert_eq!(Shown(&"x".repeat(100)).to_string(), format!("{}...", "x".repeat(60)));
    }

    #[test]
    fn the_nearest_word_is_found_unless_none_is_near() {
        let known = ["features/throttle", "features/crypt", "storage/file"];
        assert_eq!(nearest("features/trottle", known), Some("features/throttle"));
        assert_eq!(nearest("file", ["file", "mem"]), Some("file"));
        assert_eq!(nearest("zzz", known), None);
    }
}

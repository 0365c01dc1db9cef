//! From values to text for a terminal: numbers with units, tables, and lists of names and values.
//!
//! Pure: a width in, lines out. No line is wider than that where its words allow it, nothing is cut off, and no line
//! ends in blanks. Without a width (standard output is no terminal) nothing is wrapped, so that `grep` and `awk` find a
//! row on one line.

mod fields;
mod table;
pub mod units;

pub use fields::{Fields, paragraph};
pub use table::{Column, Table};

/// What is shown of a value that is not there.
pub const NOTHING: &str = "-";
/// Between two columns, and before what is set in.
const GAP: &str = "  ";

/// Columns of a terminal that a text takes. Nothing that is printed has characters of another width than one.
fn width_of(text: &str) -> usize {
    text.chars().count()
}

/// The text with each character that a terminal would act on, but line ends, written as an escape of JSON: what a daemon
/// sends is shown, whoever has taken it over.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' => clean.push('\n'),
            char if char.is_control() => clean.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => clean.push(char),
        }
    }
    clean
}

/// The text on one line, [`clean`].
pub fn one_line(text: &str) -> String {
    clean(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_cannot_play_with_the_terminal() {
        assert_eq!(clean("a\n\u{1b}[2Jb\u{9b}1m\rµ"), "a\n\\u001b[2Jb\\u009b1m\\u000dµ");
    }
}

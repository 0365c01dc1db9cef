//! Names and values, one below the other. A value that is too long goes on under itself, word by word.

use super::{GAP, width_of};

/// A value is given at least this much room, even where that makes a line too wide.
const LEAST: usize = 24;

/// Pairs of a name and a value, in their order.
#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Adds a pair.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Fields {
        self.0.push((name.into(), value.into()));
        self
    }

    /// The lines, each with its end; names in one column, values in another.
    pub fn render(&self, width: Option<usize>) -> String {
        let names = self.0.iter().map(|(name, _)| width_of(name)).max().unwrap_or(0);
        let indent = names + GAP.len();
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(LEAST));
        let mut text = String::new();
        for (name, value) in &self.0 {
            for (number, line) in wrap(value, room).iter().enumerate() {
                let name = if number == 0 { name } else { "" };
                let line = format!("{name:<names$}{GAP}{line}");
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }
}

/// A sentence on lines that fit, each with its end.
pub fn paragraph(text: &str, width: Option<usize>) -> String {
    wrap(text, width.unwrap_or(usize::MAX)).iter().map(|line| format!("{line}\n")).collect()
}

/// The words in lines of at most that width, where no word alone is wider.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        let used = width_of(line);
        if used > 0 && used + 1 + width_of(word) > room {
            lines.push(word.to_owned());
        } else {
            line.push_str(if used > 0 { " " } else { "" });
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_one_column_and_wrap_under_themselves() {
        let mut fields = Fields::default();
        fields
            .add("engine", "io-uring")
            .add("features", "VERSION_1, EVENT_IDX, INDIRECT_DESC")
            .add("none", "");
        assert_eq!(
            fields.render(Some(36)),
            "engine    io-uring\nfeatures  VERSION_1, EVENT_IDX,\n          INDIRECT_DESC\nnone\n"
        );
        assert_eq!(fields.render(None).lines().count(), 3);
        assert_eq!(fields.render(Some(1)), fields.render(Some(36)), "a value has some room always");
    }

    #[test]
    fn a_word_that_is_too_long_has_a_line_of_its_own() {
        assert_eq!(wrap("a /very/long/path b", 6), ["a", "/very/long/path", "b"]);
        assert_eq!(wrap("", 6), [""]);
        assert_eq!(paragraph("a b c", Some(3)), "a b\nc\n");
        assert_eq!(paragraph("a b c", None), "a b c\n");
    }
}

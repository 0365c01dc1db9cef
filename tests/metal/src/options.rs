//! Words of the kernel command line: `name` or `name=value`.

/// The command line.
#[derive(Clone, Copy)]
pub struct Options(pub &'static str);

impl Options {
    /// Whether the word `name` stands there.
    pub fn has(self, name: &str) -> bool {
        self.0.split_whitespace().any(|word| word == name)
    }

    /// The value of `name=value`.
    pub fn text(self, name: &str) -> Option<&'static str> {
        let mut pairs = self.0.split_whitespace().filter_map(|word| word.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The value of `name=NUMBER`, or `default`.
    pub fn number(self, name: &str, default: u64) -> u64 {
        self.text(name)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
    }
}

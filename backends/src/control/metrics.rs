//! The text that Prometheus scrapes, format 0.0.4.
//!
//! In: families, each with its samples. Out: the text. Promises: every family has its HELP and TYPE once and its samples
//! together, as the format wants it; label values are escaped, so that nothing they hold is read as anything else.

use std::fmt::{Display, Write};

/// Content-Type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the numbers of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only goes up, and begins at zero again with the daemon.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts of values up to a bound, their sum and their number.
    Histogram,
}

/// A text in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    family: String,
}

impl Exposition {
    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) -> &mut Exposition {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        name.clone_into(&mut self.family);
        let _ = writeln!(self.text, "# HELP {name} {}\n# TYPE {name} {kind}", escape(help, false));
        self
    }

    /// A sample of the family.
    pub fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) -> &mut Exposition {
        self.line("", labels, &value);
        self
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// A histogram of the family: the bounds and how many values were up to each, rising; then the sum of all values and
    /// their number.
    pub fn histogram(
        &mut self,
        labels: &[(&str, &dyn Display)],
        buckets: impl IntoIterator<Item = (f64, u64)>,
        sum: f64,
        count: u64,
    ) {
        let infinite = (f64::INFINITY, count);
        for (bound, below) in buckets.into_iter().chain([infinite]) {
            let bound: &dyn Display = if bound.is_finite() { &bound } else { &"+Inf" };
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound)]).collect();
            self.line("_bucket", &labels, &below);
        }
        self.line("_sum", labels, &sum);
        self.line("_count", labels, &count);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &dyn Display)], value: &dyn Display) {
        let Exposition { text, family } = self;
        let _ = write!(text, "{family}{suffix}");
        for (nth, (name, value)) in labels.iter().enumerate() {
            let before = if nth == 0 { '{' } else { ',' };
            let _ = write!(text, "{before}{name}=\"{}\"", escape(&value.to_string(), true));
        }
        let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn escape(text: &str, quoted: bool) -> String {
    let text = text.replace('\\', r"\\").replace('\n', r"\n");
    if quoted { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_with_their_samples() {
        let mut text = Exposition::default();
        text.family("a_total", Kind::Counter, "Of \"a\".\nMore.").sample(&[("q", &0), ("n", &"x\"\\\n")], 7);
        text.single("b", Kind::Gauge, "Of b.", 0.5);
        text.family("c_seconds", Kind::Histogram, "Of c.").sample(&[], 1);
        text.histogram(&[("q", &1)], [(0.001, 2), (0.01, 5)], 0.25, 6);
        let expected = r#"# HELP a_total Of "a".\nMore.
# TYPE a_total counter
a_total{q="0",n="x\"\\\n"} 7
# HELP b Of b.
# TYPE b gauge
b 0.5
# HELP c_seconds Of c.
# TYPE c_seconds histogram
c_seconds 1
c_seconds_bucket{q="1",le="0.001"} 2
c_seconds_bucket{q="1",le="0.01"} 5
c_seconds_bucket{q="1",le="+Inf"} 6
c_seconds_sum{q="1"} 0.25
c_seconds_count{q="1"} 6
"#;
        assert_eq!(text.finish(), expected);
    }
}

//! What came out: single cases, the skips that are expected, the summary.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// Not as it should; the reason, where the runner's own output has not shown it.
    Failed(String),
    /// It could not run here, for this reason.
    Skipped(String),
}

/// A test, or a step of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// A test's binary and name, or a step's name; of a skip, its id in `tests/expected-skips.toml`.
    pub id: String,
    /// How it ended.
    pub verdict: Verdict,
}

impl Case {
    /// A case that passed.
    pub fn passed(id: &str) -> Self {
        Self { id: id.to_owned(), verdict: Verdict::Passed }
    }

    /// A case that failed.
    pub fn failed(id: &str, reason: impl Into<String>) -> Self {
        Self { id: id.to_owned(), verdict: Verdict::Failed(reason.into()) }
    }

    /// A case that did not run.
    pub fn skipped(id: &str, reason: impl Into<String>) -> Self {
        Self { id: id.to_owned(), verdict: Verdict::Skipped(reason.into()) }
    }
}

/// The skips that are no failure: `tests/expected-skips.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedSkips {
    #[serde(default)]
    skip: Vec<ExpectedSkip>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedSkip {
    id: String,
    reason: String,
}

impl ExpectedSkips {
    /// From the text of the file; each entry needs a reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        match expected.skip.iter().find(|skip| skip.reason.trim().is_empty()) {
            Some(skip) => Err(format!("the skip {:?} has no reason", skip.id)),
            None => Ok(expected),
        }
    }

    fn has(&self, id: &str) -> bool {
        self.skip.iter().any(|skip| skip.id == id)
    }
}

/// The skips that tests reported while they ran (see [`crate::skip`]).
pub fn reported_skips(text: &str) -> Vec<Case> {
    let entry = |line: &str| line.split_once('\t').map(|(id, reason)| Case::skipped(id, reason));
    text.lines().filter_map(entry).collect()
}

/// The end of a test run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    passed: usize,
    failed: BTreeMap<String, String>,
    skipped: Vec<(String, String)>,
}

impl Summary {
    /// Counts `cases`; `reported` are those that the runner counted as passed and the tests themselves as skipped. A
    /// skip that nobody expects is a failure.
    pub fn new(cases: Vec<Case>, reported: Vec<Case>, expected: &ExpectedSkips) -> Self {
        let mut summary = Self::default();
        let falsely_passed = reported.len();
        for case in cases.into_iter().chain(reported) {
            match case.verdict {
                Verdict::Passed => summary.passed += 1,
                Verdict::Failed(reason) => drop(summary.failed.insert(case.id, reason)),
                Verdict::Skipped(reason) if expected.has(&case.id) => summary.skipped.push((case.id, reason)),
                Verdict::Skipped(reason) => {
                    let reason = format!("skipped, and not in tests/expected-skips.toml: {reason}");
                    summary.failed.insert(case.id, reason);
                }
            }
        }
        summary.passed = summary.passed.saturating_sub(falsely_passed);
        summary
    }

    /// Whether nothing failed.
    pub fn ok(&self) -> bool {
        self.failed.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, reason) in &self.skipped {
            writeln!(f, "skipped: {id}: {reason}")?;
        }
        for (id, reason) in &self.failed {
            writeln!(f, "FAILED: {id}{}{reason}", if reason.is_empty() { "" } else { ": " })?;
        }
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> ExpectedSkips {
        ExpectedSkips::parse("[[skip]]\nid = \"kvm\"\nreason = \"no hardware\"\n").unwrap()
    }

    #[test]
    fn an_expected_skip_is_counted_and_shown_and_a_pass_less() {
        let cases = vec![Case::passed("a"), Case::passed("b")];
        let summary = Summary::new(cases, reported_skips("kvm\tno /dev/kvm\n"), &expected());
        assert!(summary.ok());
        assert_eq!(summary.to_string(), "skipped: kvm: no /dev/kvm\n1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn an_unexpected_skip_fails() {
        let summary = Summary::new(vec![Case::passed("a")], reported_skips("net\tno netns\n"), &expected());
        assert!(!summary.ok());
        let text = summary.to_string();
        assert!(text.starts_with("FAILED: net: skipped, and not in"), "{text}");
        assert!(text.ends_with("0 passed, 1 failed, 0 skipped"), "{text}");
    }

    #[test]
    fn an_expected_skip_needs_a_reason() {
        assert!(ExpectedSkips::parse("[[skip]]\nid = \"kvm\"\nreason = \" \"\n").is_err());
        assert!(ExpectedSkips::parse("[[skip]]\nid = \"kvm\"\n").is_err());
        assert!(ExpectedSkips::parse("[[skips]]\n").is_err());
    }
}

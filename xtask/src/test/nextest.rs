//! cargo-nextest as the runner: each test a process, in parallel, with a time limit (.config/nextest.toml).

use std::collections::BTreeMap;
use std::fs::{self, File};

use serde::Deserialize;

use super::case::Case;
use super::setting::Setting;
use crate::cargo;

/// Whether it is installed.
pub fn is_installed() -> bool {
    let asked = cargo::cargo().args(["nextest", "--version"]).output();
    asked.is_ok_and(|answer| answer.status.success())
}

/// Runs all tests but those that need a KVM that runs Linux, which the configuration leaves out.
pub fn run(setting: &Setting) -> Result<Vec<Case>, cargo::Error> {
    let events = setting.file("nextest.json");
    let mut nextest = cargo::cargo();
    nextest.args([
        "nextest",
        "run",
        "--workspace",
        "--cargo-quiet",
        "--no-fail-fast",
        "--show-progress",
        "none",
    ]);
    nextest.args(["--message-format", "libtest-json", "--status-level", "slow", "--run-ignored"]);
    nextest.arg(if setting.full { "all" } else { "default" });
    nextest.args(setting.filter.into_iter().flat_map(|filter| ["-E", filter]));
    nextest.env("NEXTEST_EXPERIMENTAL_LIBTEST_JSON", "1").envs(setting.variables());
    nextest.stdout(File::create(&events)?);
    let outcome = cargo::run("cargo nextest run", &mut nextest);
    let mut cases = parse(&fs::read_to_string(&events)?);
    if let Err(error) = outcome
        && !cases.iter().any(|case| matches!(case.verdict, super::case::Verdict::Failed(_)))
    {
        cases.push(Case::failed("nextest", error.to_string()));
    }
    Ok(cases)
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    event: String,
    name: Option<String>,
    reason: Option<String>,
}

/// From the events of tests, one JSON object a line. A test may have several: one that was retried, or ignored.
fn parse(events: &str) -> Vec<Case> {
    let parsed = events.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok());
    let mut cases = BTreeMap::new();
    for event in parsed.filter(|event| event.r#type == "test") {
        let name = event.name.unwrap_or_default();
        let case = match event.event.as_str() {
            "started" => Case::failed(&name, "it never ended"),
            "ok" => Case::passed(&name),
            "ignored" => Case::skipped(&name, "it takes long: --full runs it"),
            _ => Case::failed(&name, event.reason.unwrap_or_default()),
        };
        cases.insert(name, case);
    }
    cases.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_event_of_a_test_counts() {
        let events = r#"{"type":"suite","event":"started","test_count":4}
{"type":"test","event":"started","name":"a::b$good"}
{"type":"test","event":"ok","name":"a::b$good","exec_time":0.1}
{"type":"test","event":"started","name":"a::b$slow"}
{"type":"test","event":"failed","name":"a::b$slow","reason":"time limit exceeded"}
{"type":"test","event":"ignored","name":"a::b$long"}
{"type":"test","event":"started","name":"a::b$lost"}
{"type":"suite","event":"failed","passed":1}
"#;
        let cases = parse(events);
        assert_eq!(
            cases,
            [
                Case::passed("a::b$good"),
                Case::skipped("a::b$long", "it takes long: --full runs it"),
                Case::failed("a::b$lost", "it never ended"),
                Case::failed("a::b$slow", "time limit exceeded"),
            ]
        );
    }
}

//! `cargo xtask coverage`: how many lines that hostile bytes reach the committed fuzz corpus covers.
//!
//! Builds the replay of the corpus with the compiler's own instrumentation, runs it, and has LLVM's tools count. What
//! is asked for is [`ASKED_PERCENT`] of the lines of [`ASKED`] together; less is a failure.

use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::{cargo, packages, workspace};

/// Of which files, below `backends/src`.
const ASKED: [&str; 2] = ["session", "chain.rs"];
/// Looked at beside them.
const SHOWN: [&str; 2] = ["memory", "ring"];
/// Lines of [`ASKED`] that the corpus must cover.
const ASKED_PERCENT: f64 = 90.0;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// LLVM's tools are not there.
    #[error(transparent)]
    Packages(#[from] packages::Error),
    /// A program could not be started, or a file not be kept.
    #[error("Cannot run {program}")]
    Start {
        /// Which.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {message}")]
    Failed {
        /// Which.
        program: String,
        /// What it said.
        message: String,
    },
    /// What came out is not what was expected.
    #[error("{0} printed nothing that can be read")]
    Output(&'static str),
    /// Too little is covered.
    #[error("The corpus covers {0:.1} % of the lines asked for, less than {ASKED_PERCENT} %; add seeds")]
    TooLittle(f64),
}

/// Measures and prints.
///
/// # Errors
/// There is no figure, or it is too low.
pub fn run() -> Result<(), Error> {
    packages::ensure_coverage()?;
    let place = workspace::root().join("target/coverage");
    let profiles = place.join("profiles");
    let kept = |source| Error::Start { program: format!("rm -r {}", profiles.display()), source };
    if profiles.exists() {
        fs::remove_dir_all(&profiles).map_err(kept)?;
    }
    let replay = build(&place)?;
    output(Command::new(&replay).env("LLVM_PROFILE_FILE", profiles.join("%p.profraw")))?;
    let merged = profiles.join("all");
    let raw = fs::read_dir(&profiles).map_err(kept)?.filter_map(|file| Some(file.ok()?.path()));
    output(Command::new("llvm-profdata-19").args(["merge", "-sparse", "-o"]).arg(&merged).args(raw))?;
    for part in SHOWN {
        println!("{:<24} {:6.1} %", part, percent(&replay, &merged, &[part])?);
    }
    for part in ASKED {
        println!("{:<24} {:6.1} %", part, percent(&replay, &merged, &[part])?);
    }
    let asked = percent(&replay, &merged, &ASKED)?;
    println!("{:<24} {asked:6.1} % (asked: {ASKED_PERCENT} %)", ASKED.join(" and "));
    if asked < ASKED_PERCENT { Err(Error::TooLittle(asked)) } else { Ok(()) }
}

/// The replay of the corpus, instrumented.
fn build(place: &Path) -> Result<PathBuf, Error> {
    let mut build = cargo::cargo();
    build.args(["test", "--package", "tests", "--test", "fuzz_corpus", "--no-run", "--message-format=json"]);
    build.env("RUSTFLAGS", "-Cinstrument-coverage").env("CARGO_TARGET_DIR", place);
    // Build scripts are instrumented too, and would leave their profiles where they stand.
    build.env("LLVM_PROFILE_FILE", place.join("build.profraw"));
    let messages = output(&mut build)?.stdout;
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "fuzz_corpus")
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    let found = String::from_utf8_lossy(&messages).lines().find_map(executable);
    found.filter(|path| path.extension().is_none_or(|end| end == EXE_SUFFIX)).ok_or(Error::Output("cargo"))
}

/// Lines covered of these parts of `backends/src` together.
fn percent(replay: &Path, merged: &Path, parts: &[&str]) -> Result<f64, Error> {
    let mut export = Command::new("llvm-cov-19");
    export.args(["export", "-summary-only", "-instr-profile"]).arg(merged).arg(replay);
    export.args(parts.iter().map(|part| workspace::root().join("backends/src").join(part)));
    let summary: Value =
        serde_json::from_slice(&output(&mut export)?.stdout).map_err(|_| Error::Output("llvm-cov-19"))?;
    summary["data"][0]["totals"]["lines"]["percent"].as_f64().ok_or(Error::Output("llvm-cov-19"))
}

fn output(command: &mut Command) -> Result<Output, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => {
            Err(Error::Failed { program, message: String::from_utf8_lossy(&output.stderr).into_owned() })
        }
        Err(source) => Err(Error::Start { program, source }),
    }
}

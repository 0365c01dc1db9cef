//! What a restart costs: the pause that a guest sees, and what the keeper and the tracking of requests take when
//! nobody restarts.
//!
//! Pauses come from `soak-restart` (package `tests`): from the kill of a worker under load to the next interrupt that
//! brings something back, over all daemons and kinds of ring. The return of a whole daemon is measured under our VMM,
//! by `vmm-resume`. Tracking is measured as outboard-null with a keeper, which always tracks, against one without: the
//! load generator knows no in-flight regions, and control messages do not count while requests run.

use std::fs;
use std::path::Path;

use super::Suite;
use super::null::{DEEP, Kind, Place};
use super::row::{Better, Claim, Round, Row};
use crate::cargo;
use crate::explain::explain;
use crate::process::{command, output};
use crate::workspace;

/// Kills a round, over six combinations: not more of each than a keeper forgives in a burst.
const KILLS: usize = 60;
/// Returns of a daemon a round.
const RETURNS: usize = 10;

const PAUSE_P99: Claim = claim(
    "restart.keeper.pause_p99_ms",
    "ms",
    50.0,
    "worker killed under load until the next interrupt that brings something; blk, rng, console, split and packed, p99",
);
const PAUSE_MAX: Claim = claim("restart.keeper.pause_max_ms", "ms", 200.0, "the longest of the same pauses");
const RESUME: Claim = claim(
    "restart.reconnect.resume_ms",
    "ms",
    20.0,
    "our VMM: socket listens again until the guest is served, serial line included; p99",
);
const RSS: Claim = claim(
    "keeper.rss_kb",
    "KiB",
    1024.0,
    "resident memory of the keeper of an outboard-rng with a front-end, two seconds after the last message",
);
const LINES: Claim =
    claim("keeper.lines", "lines", 1000.0, "backends/src/keeper without tests, comments and blank lines");
const INFLIGHT: Claim = claim(
    "inflight.cost_ns",
    "ns",
    15.0,
    "CPU of outboard-null a request, tracked less not tracked; 4 KiB reads, split ring of 512, depth 128",
);

const fn claim(name: &'static str, unit: &'static str, most: f64, note: &'static str) -> Claim {
    Claim { name, unit, better: Better::Lower, target: most, floor: most, note }
}

/// The suite.
#[derive(Debug)]
pub struct Restart;

impl Suite for Restart {
    fn name(&self) -> &'static str {
        "restart"
    }

    fn claims(&self) -> Vec<Claim> {
        vec![PAUSE_P99, PAUSE_MAX, RESUME, RSS, LINES, INFLIGHT]
    }

    fn run(&self, rounds: usize, scratch: &Path) -> Result<Vec<Row>, String> {
        build().map_err(|error| explain(&error))?;
        let programs = cargo::programs_dir("release");
        let place = Place { programs: programs.clone(), scratch: scratch.to_owned() };
        let (p99, max) = match pauses(&programs, rounds) {
            Ok((p99, max)) => (Ok(p99), Ok(max)),
            Err(reason) => (Err(reason.clone()), Err(reason)),
        };
        Ok(vec![
            row(&PAUSE_P99, p99),
            row(&PAUSE_MAX, max),
            row(&RESUME, resume(&programs, rounds)),
            row(&RSS, place.keeper_rss_kib()),
            row(&LINES, keeper_lines()),
            rows(&INFLIGHT, (0..rounds).map(|_| inflight_cost_ns(&place)).collect()),
        ])
    }
}

fn row(claim: &Claim, figure: Result<f64, String>) -> Row {
    rows(claim, figure.map(|figure| vec![figure]))
}

fn rows(claim: &Claim, figures: Result<Vec<f64>, String>) -> Row {
    match figures {
        Ok(figures) => Row::measured(claim, &figures.into_iter().map(Round::alone).collect::<Vec<_>>()),
        Err(reason) => Row::missing(claim, &reason),
    }
}

fn build() -> Result<(), cargo::Error> {
    cargo::build_programs("release")?;
    let mut build = cargo::cargo();
    cargo::run("cargo build", build.args(["build", "--quiet", "--release", "--package", "tests", "--bins"]))
}

/// What a program of ours says, with the programs of this build.
fn said(programs: &Path, program: &str, args: &[&str]) -> Result<String, String> {
    let mut program = command(programs.join(program));
    output(program.args(args).env("OUTBOARD_BIN_DIR", programs)).map_err(|error| explain(&error))
}

/// p99 and maximum of the pauses, in milliseconds.
fn pauses(programs: &Path, rounds: usize) -> Result<(f64, f64), String> {
    let kills = (KILLS * rounds).to_string();
    let text = said(programs, "soak-restart", &["--kills", &kills, "--mode", "keeper"])?;
    eprint!("{text}");
    let figure = |name: &str| {
        let word = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.and_then(|number| number.parse().ok())
            .ok_or_else(|| format!("soak-restart gave no {name}: {text}"))
    };
    Ok((figure("p99_ms")?, figure("max_ms")?))
}

/// p99 of the time until a guest is served again.
fn resume(programs: &Path, rounds: usize) -> Result<f64, String> {
    let text = said(programs, "vmm-resume", &[&(RETURNS * rounds).to_string()])?;
    let mut times: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    let at = (times.len() * 99).div_ceil(100).saturating_sub(1);
    times.get(at).copied().ok_or_else(|| "vmm-resume gave no times".to_owned())
}

/// What tracking adds to the CPU time of a request.
fn inflight_cost_ns(place: &Place) -> Result<f64, String> {
    let (tracked, alone) = (place.load(Kind::Ours, DEEP)?, place.load(Kind::Untracked, DEEP)?);
    Ok((tracked.backend_cpu_us - alone.backend_cpu_us) * 1e3)
}

/// Lines of the keeper that a person has to understand as code.
fn keeper_lines() -> Result<f64, String> {
    let folder = workspace::root().join("backends/src/keeper");
    let files = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = files.flatten().map(|file| file.path());
    let code = paths.filter(|path| !is_tests(path)).filter_map(|path| fs::read_to_string(path).ok());
    u32::try_from(code.map(|text| code_lines(&text)).sum::<usize>()).map(f64::from).map_err(|e| e.to_string())
}

fn is_tests(path: &Path) -> bool {
    path.is_dir() || path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"))
}

/// Lines before the tests that are neither blank nor a comment.
fn code_lines(text: &str) -> usize {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_comments_and_blank_lines_are_not_code() {
        let text =
            "//! What.\n\n/// Why.\nfn f() {\n    // how\n    g(); // so\n}\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(code_lines(text), 3);
    }
}

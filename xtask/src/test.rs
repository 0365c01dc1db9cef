//! `cargo xtask test`: all that must hold before a change lands, in one command.
//!
//! ```text
//! packages ─► fmt ─► clippy ─► kernels ─► bare-metal guest ─► build ─► unit tests, doubles, VMM, QEMU ─► doc tests
//!          ─► tests that need a KVM that runs Linux (here, or on the emulated host) ─► the demo
//! ```
//!
//! A step that fails does not stop those after it. The last line is a contract: `N passed, N failed, N skipped`. Tests
//! count as their runners report them, and each step of ours counts as one.

mod binaries;
mod case;
mod cases;
mod libtest;
mod metal;
mod nextest;
mod setting;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use case::{Case, ExpectedSkips, Summary, reported_skips};
use cases::Table;
use setting::Setting;

use crate::cargo::{self, cargo};
use crate::demo::Demo;
use crate::explain::explain;
use crate::kernel::{self, Flavour, Kernel};
use crate::{interrupt, kvm_host, packages, workspace};

/// Cases of these names say that a runner itself failed.
const RUNNERS: [&str; 2] = ["nextest", "libtest"];

/// Runs everything and prints the summary; `full` includes long tests. Whether nothing failed.
pub fn run(full: bool) -> Result<bool, packages::Error> {
    let started = Instant::now();
    packages::ensure()?;
    let mut cases = checks();
    let reported = match workspace::scratch() {
        Ok(scratch) => tests(&mut cases, &Setting { scratch: scratch.path().to_owned(), full, filter: None }),
        Err(error) => {
            cases.push(Case::failed("scratch", error.to_string()));
            Vec::new()
        }
    };
    cases.push(demo());
    if interrupt::asked() {
        cases.push(Case::failed("interrupted", "not everything ran"));
    }
    let expected = expected_skips().unwrap_or_else(|error| {
        cases.push(Case::failed("tests/expected-skips.toml", error));
        ExpectedSkips::default()
    });
    let summary = Summary::new(cases, reported, &expected);
    eprintln!("test: all of it took {:.0} s", started.elapsed().as_secs_f64());
    println!("{summary}");
    Ok(summary.ok())
}

/// Runs the tests of the threat model's cases and prints what came of each, as a table or as JSON. Whether none
/// failed and none is missing.
pub fn run_cases(json: bool) -> Result<bool, packages::Error> {
    packages::ensure()?;
    let table = match case_table() {
        Ok(table) => table,
        Err(reason) => {
            eprintln!("test: FAILED: {reason}");
            println!("0 passed, 1 failed, 0 skipped");
            return Ok(false);
        }
    };
    if json {
        println!("{}", table.json());
    } else {
        print!("{table}");
    }
    table.complaints().iter().for_each(|line| eprintln!("FAILED: {line}"));
    if json {
        eprintln!("{}", table.summary())
    } else {
        println!("{}", table.summary())
    }
    Ok(table.ok())
}

fn case_table() -> Result<Table, String> {
    let scratch = workspace::scratch().map_err(|error| error.to_string())?;
    let setting = Setting { scratch: scratch.path().to_owned(), full: false, filter: Some(cases::FILTER) };
    cargo::build_programs("dev").map_err(|error| explain(&error))?;
    let results = if nextest::is_installed() {
        nextest::run(&setting).map_err(|error| explain(&error))?
    } else {
        let built = binaries::build(&setting.scratch).map_err(|error| explain(&error))?;
        let anywhere: Vec<_> = built.iter().filter(|binary| !binary.needs_kvm_linux()).collect();
        libtest::run(&anywhere, kvm_host::Place::Direct, &setting)
    };
    // Without it every case would seem to have no test.
    match results.iter().find(|case| RUNNERS.contains(&case.id.as_str())) {
        Some(Case { verdict: case::Verdict::Failed(reason), .. }) => Err(format!("no tests: {reason}")),
        _ => Table::new(workspace::root(), &results),
    }
}

/// What needs no test binary.
fn checks() -> Vec<Case> {
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    vec![
        step("fmt", || run_cargo(cargo().args(["fmt", "--all", "--check"]))),
        step("clippy", || run_cargo(cargo().args(clippy))),
        step("kernels", || kernels().map_err(|error| explain(&error))),
        step("bare-metal guest", || metal::build().map_err(|error| explain(&error))),
    ]
}

/// Fetched here, because the emulated host has no network.
fn kernels() -> Result<(), kernel::Error> {
    Kernel::debian(Flavour::Full).and_then(|_| Kernel::debian(Flavour::Cloud)).map(drop)
}

/// Builds and runs the tests; gives the skips they reported.
fn tests(cases: &mut Vec<Case>, setting: &Setting) -> Vec<Case> {
    let mut built = Vec::new();
    cases.push(step("build", || {
        built = binaries::build(&setting.scratch).map_err(|error| explain(&error))?;
        Ok(())
    }));
    cases.push(step("programs", || cargo::build_programs("dev").map_err(|error| explain(&error))));
    let (linux, anywhere): (Vec<_>, Vec<_>) = built.iter().partition(|binary| binary.needs_kvm_linux());
    if !anywhere.is_empty() {
        cases.extend(run_anywhere(&anywhere, setting));
        cases.push(step("doc tests", || doc_tests(&setting.file("doc-tests"))));
    }
    if !linux.is_empty() {
        eprintln!("test: tests on a KVM that runs Linux");
        let place = kvm_host::choose(None, &cargo::programs_dir("dev"));
        cases.extend(libtest::run(&linux, place, setting));
    }
    reported_skips(&fs::read_to_string(setting.skips()).unwrap_or_default())
}

fn run_anywhere(binaries: &[&binaries::Binary], setting: &Setting) -> Vec<Case> {
    if !nextest::is_installed() {
        eprintln!("test: cargo-nextest is not installed: running the test binaries one after another");
        return libtest::run(binaries, kvm_host::Place::Direct, setting);
    }
    eprintln!("test: tests, with cargo-nextest");
    nextest::run(setting).unwrap_or_else(|error| vec![Case::failed("nextest", explain(&error))])
}

/// libtest has something to say of every crate without a single doc test: shown only when one fails.
fn doc_tests(output: &Path) -> Result<(), String> {
    let file = File::create(output).map_err(|error| error.to_string())?;
    let outcome = run_cargo(cargo().args(["test", "--quiet", "--workspace", "--doc"]).stdout(file));
    if outcome.is_err() {
        eprint!("{}", fs::read_to_string(output).unwrap_or_default());
    }
    outcome
}

/// The demo as a user would run it, but with the build that the tests have just made.
fn demo() -> Case {
    step("demo", || {
        let demo = Demo { kernel: None, place: None, profile: "dev".to_owned() };
        let report = demo.run().map_err(|failure| explain(&failure))?;
        eprintln!("{report}");
        Ok(())
    })
}

/// One step of ours, with its time.
fn step(name: &str, work: impl FnOnce() -> Result<(), String>) -> Case {
    if interrupt::asked() {
        return Case::failed(name, "interrupted");
    }
    eprintln!("test: {name}");
    let started = Instant::now();
    let outcome = work();
    let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
    eprintln!("test: {name}: {verdict} ({:.1} s)", started.elapsed().as_secs_f64());
    match outcome {
        Ok(()) => Case::passed(name),
        Err(reason) => Case::failed(name, reason),
    }
}

fn run_cargo(command: &mut Command) -> Result<(), String> {
    cargo::run("cargo", command).map_err(|error| explain(&error))
}

fn expected_skips() -> Result<ExpectedSkips, String> {
    let text = fs::read_to_string(workspace::root().join("tests/expected-skips.toml"));
    ExpectedSkips::parse(&text.map_err(|error| error.to_string())?)
}

//! Who may write a line without a class: only what no guest, front-end, peer or client can cause.

use std::fs;
use std::path::{Path, PathBuf};

use backends::log::Class;

/// Crates whose code stands between a guest and this host.
const CRATES: [&str; 7] = ["backends", "balloon", "blk", "console", "net-overlay", "rng", "vmm"];

/// The lines without a class, each by its file and a part of it: the operator or the host alone causes them, or they are
/// written once a process.
const HOST_ONLY: &[(&str, &str)] = &[
    ("backends/src/daemon.rs", r#""Listening""#),
    ("backends/src/daemon.rs", r#""served""#),
    ("backends/src/engine/mod.rs", "io_uring is not to be had here"),
    // Every line of it is what the operator asked for: `option log on`, at level debug.
    ("blk/src/debug/trace.rs", "An operation is over"),
    ("console/src/port.rs", r#""port""#),
    ("vmm/src/builder.rs", "device attached"),
    ("vmm/src/kvm/registers.rs", "does not take an MSR"),
    ("backends/src/sandbox/mod.rs", "No sandbox (--sandbox off)"),
    ("backends/src/sandbox/mod.rs", "No sandbox: what it would refuse"),
    ("backends/src/sandbox/mod.rs", "\"Confined\""),
    ("vmm/src/kvm/vcpu.rs", "stands still"),
    ("vmm/src/machine.rs", "asked to end by a signal"),
    ("vmm/src/machine.rs", "the guest is paused"),
    ("vmm/src/machine.rs", "the guest goes on"),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Code without its tests, which stand at the end of a file or in one of their own.
fn shipped() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    CRATES.iter().for_each(|name| sources(&root.join(name).join("src"), &mut found));
    let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
    let is_test = |path: &PathBuf| name(path).ends_with("tests.rs") || name(path).contains("testing");
    let code = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        (name(path), lines.collect::<Vec<_>>().join("\n"))
    };
    found.iter().filter(|path| !is_test(path)).map(code).collect()
}

/// Each use of these macros, up to the end of its statement.
fn uses(code: &str, macros: &[&str]) -> Vec<String> {
    let end = |at: usize| code[at..].find(");").map_or(code.len(), |length| at + length);
    let alone = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let of = |name: &&str| {
        let places: Vec<_> = code.match_indices(*name).map(|(at, _)| at).collect();
        places.into_iter().filter(|at| alone(*at)).map(|at| code[at..end(at)].to_owned()).collect::<Vec<_>>()
    };
    macros.iter().flat_map(of).collect()
}

#[test]
fn what_others_can_cause_has_a_class() {
    let mut expected = HOST_ONLY.to_vec();
    for (file, code) in shipped() {
        for line in uses(&code, &["trace!(", "debug!(", "info!(", "warn!(", "error!(", "event!("]) {
            let known = expected.iter().position(|(of, part)| *of == file && line.contains(part));
            let known = known.unwrap_or_else(|| panic!("{file} logs without log::line! and a class: {line}"));
            expected.remove(known);
        }
    }
    assert_eq!(expected, [], "these lines are no more");
}

/// They panic when standard error is gone, and know no format.
#[test]
fn nobody_prints_past_the_log() {
    for (file, code) in shipped() {
        let printed = uses(&code, &["eprintln!(", "eprint!(", "dbg!("]);
        assert_eq!(printed, [] as [String; 0], "{file} prints to standard error; use log::fail or a line");
    }
}

/// The keeper has no subscriber; its lines that others can cause go by `say_of`.
#[test]
fn the_keeper_says_without_a_class_only_what_the_host_causes() {
    const HOST: [&str; 8] = [
        "The host has not ended the I/O of the worker before",
        "The new executable does not start",
        "The new executable does not take the session",
        "What the keeper before this one had stored makes no sense",
        "Listening",
        "Cannot upgrade",
        "Nothing is stored with the service manager",
        "Line::new(level).message(what)",
    ];
    for (file, code) in shipped().into_iter().filter(|(file, _)| file.contains("keeper/")) {
        for line in uses(&code, &["say(", "log::write("]) {
            let known = HOST.iter().any(|part| line.contains(part)) || line.contains("line.of(class");
            assert!(known || line.starts_with("say(level: Level"), "{file}: {line}");
        }
    }
}

#[test]
fn every_class_has_a_line() {
    let code: String = shipped().into_iter().map(|(_, code)| code).collect();
    for class in Class::ALL {
        assert!(code.contains(&format!("Class::{class:?}")), "{class:?}");
    }
}

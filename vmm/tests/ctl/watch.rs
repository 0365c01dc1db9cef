//! `--watch`: screen after screen, while something happens.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::{Controlled, command};

/// A watch, read line by line; ended when dropped.
struct Watch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(args: &[&str]) -> Watch {
        let mut child = command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Watch { child, lines }
    }

    /// The first line for which that holds; its time limit ends a watch that never shows one.
    fn line(&mut self, holds: impl Fn(&str) -> bool) -> String {
        let line = self.lines.by_ref().map(|line| line.unwrap()).find(|line| holds(line));
        line.unwrap_or_else(|| panic!("it was never shown"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // `timeout` passes it on, and ends with its child.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// The cell under a heading that ends where it does.
fn cell<'a>(head: &str, row: &'a str, column: &str) -> &'a str {
    let end = head.find(column).unwrap() + column.len();
    row[..end].rsplit("  ").next().unwrap().trim()
}

/// Sets it when dropped.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn rates_are_those_of_what_happens_meanwhile() {
    let rng = Controlled::rng(&[]);
    let (_frontend, mut guest) = rng.guest();
    let mut watch = Watch::start(&["--socket", rng.socket(), "state", "--watch", "0.2"]);
    let head = watch.line(|line| line.contains("REQ/S"));
    let first = watch.line(|line| line.contains("running"));
    assert_eq!(cell(&head, &first, "REQ/S"), "-", "{first}");
    let seen = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !seen.load(Ordering::Relaxed) {
                guest.fill(64).unwrap();
            }
        });
        // When this is dropped, also by a panic, the guest has done enough.
        let _enough = Raised(&seen);
        let busy =
            watch.line(|line| line.contains("running") && !["-", "0"].contains(&cell(&head, line, "REQ/S")));
        assert!(!["-", "0 B"].contains(&cell(&head, &busy, "BYTES/S")), "{busy}");
    });
    watch.line(|line| line.contains("running") && cell(&head, line, "REQ/S") == "0");
}

#[test]
fn a_daemon_that_goes_is_told_of_and_asked_again() {
    let mut rng = Controlled::rng(&[]);
    let mut watch = Watch::start(&["--socket", rng.socket(), "state", "--watch", "0.1"]);
    watch.line(|line| line.starts_with("outboard-rng "));
    rng.daemon.kill9();
    watch.line(|line| line.contains("nobody listens there"));
    rng.daemon.restart().unwrap();
    watch.line(|line| line.starts_with("outboard-rng "));
}

#[test]
fn programs_get_one_answer_a_line() {
    let rng = Controlled::rng(&[]);
    let mut watch = Watch::start(&["--socket", rng.socket(), "state", "--json", "--watch", "0.1"]);
    for _ in 0..3 {
        let line = watch.line(|line| !line.is_empty());
        let state: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(state["daemon"]["name"], "outboard-rng");
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    let rng = Controlled::rng(&[]);
    let mut watch =
        Watch::start(&["--socket", rng.socket(), "list", rng.dir().to_str().unwrap(), "--watch", "0.1"][2..]);
    watch.line(|line| line.contains("outboard-rng"));
    let Watch { child, lines } = &mut watch;
    drop(std::mem::replace(lines, empty().lines()));
    assert!(child.wait().unwrap().success());
}

/// Nothing to read.
fn empty() -> BufReader<ChildStdout> {
    let mut child = std::process::Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    child.wait().unwrap();
    BufReader::new(child.stdout.take().unwrap())
}

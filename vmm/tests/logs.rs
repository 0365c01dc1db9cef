//! The log of a machine: its formats, its file, and that it keeps no guest waiting.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tests::daemon::{Daemon, Launch};
use tests::vmm::{Run, Vmm};
use tests::wait;

const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");

/// A guest with an entropy device.
struct Guest {
    vmm: Vmm,
    daemon: Daemon,
    api: PathBuf,
    alive: usize,
}

impl Guest {
    fn start(options: &[(&str, &str)]) -> Guest {
        let daemon = Launch::new("outboard-rng").args(["--keeper", "off"]).serve().unwrap();
        let run = Run::metal(OUTBOARD, "metal=hold").device("rng", daemon.socket());
        let api = run.dir().join("vm.control");
        let run = run.option("--api-socket", &api.display().to_string());
        let run = options.iter().fold(run, |run, (name, value)| run.option(name, value));
        let vmm = run.start();
        vmm.wait_for("metal: hold ready\n", 1);
        Guest { vmm, daemon, api, alive: 0 }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.api.with_file_name(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Something to log: the daemon goes, and comes back.
    fn lose_daemon(&mut self) {
        self.daemon.kill9();
        self.daemon.restart().unwrap();
    }

    /// The guest is not disturbed.
    fn assert_alive(&mut self) {
        self.alive += 1;
        self.vmm.type_in("a");
        self.vmm.wait_for("metal: alive\n", self.alive);
    }

    #[track_caller]
    fn ctl(&self, args: &[&str]) {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "20", OUTBOARD, "ctl", "--socket"]).arg(&self.api).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}

#[track_caller]
fn await_that(mut so: impl FnMut() -> bool) {
    let until = wait::deadline();
    while !so() {
        assert!(Instant::now() < until, "it does not come to be so");
        std::thread::yield_now();
    }
}

#[test]
fn every_line_is_an_object_with_json() {
    let mut guest = Guest::start(&[("--log-format", "json"), ("--log-level", "trace")]);
    guest.lose_daemon();
    guest.vmm.wait_for_stderr("its daemon is back");
    guest.assert_alive();
    for line in guest.vmm.stderr().lines() {
        let object: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&object["program"], &object["pid"]), (&"outboard".into(), &guest.vmm.pid().into()));
        if object["message"].as_str().unwrap().contains("its daemon") {
            assert_eq!(object["class"], "daemon-lost", "{line}");
        }
    }
}

#[test]
fn why_it_does_not_run_is_told_on_standard_error_and_in_the_file() {
    let run = Run::new(OUTBOARD).option("--kernel", "/no/such/kernel").option("--log-file", "log");
    let log = run.dir().join("log");
    let ended = run.start();
    await_that(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("/no/such/kernel")));
    let ended = ended.finish();
    assert!(ended.stderr.starts_with("outboard: --kernel /no/such/kernel: "), "{ended:?}");
}

#[test]
fn the_file_can_be_another_while_the_guest_runs() {
    let mut guest = Guest::start(&[("--log-file", "log")]);
    guest.lose_daemon();
    await_that(|| guest.text("log").contains("its daemon is back"));
    fs::rename(guest.file("log"), guest.file("log.1")).unwrap();
    guest.ctl(&["log", "--reopen"]);
    let old = guest.text("log.1");
    guest.ctl(&["pause"]);
    guest.ctl(&["resume"]);
    await_that(|| guest.text("log").contains("the guest goes on"));
    assert_eq!(guest.text("log.1"), old);
    guest.ctl(&["log", "--level", "error"]);
    let quiet = guest.text("log");
    guest.ctl(&["pause"]);
    guest.ctl(&["resume"]);
    guest.assert_alive();
    assert_eq!((guest.text("log"), guest.vmm.stderr().as_str()), (quiet, ""));
}

#[test]
fn a_full_disk_under_the_log_disturbs_no_guest() {
    let mut guest = Guest::start(&[("--log-file", "/dev/full")]);
    guest.lose_daemon();
    guest.assert_alive();
    guest.ctl(&["pause"]);
    guest.ctl(&["resume"]);
    guest.assert_alive();
}

#[test]
fn a_log_at_its_size_limit_disturbs_no_guest() {
    let mut guest = Guest::start(&[("--log-file", "log")]);
    let size = guest.text("log").len() as u64;
    let pid = Pid::from_raw(i32::try_from(guest.vmm.pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(size), maximum: None }).unwrap();
    guest.lose_daemon();
    guest.ctl(&["pause"]);
    guest.ctl(&["resume"]);
    guest.assert_alive();
    assert_eq!(guest.text("log").len() as u64, size);
}

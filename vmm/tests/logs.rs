//! The log of a machine: its formats, its file, and that it keeps no guest waiting.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tests::vmm::Run;
use tests::vmm::held::Held;
use tests::wait;

const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");

/// A guest with an entropy device.
fn start(options: &[(&str, &str)]) -> Held {
    Held::start(OUTBOARD, "", options)
}

fn file(guest: &Held, name: &str) -> PathBuf {
    guest.api.with_file_name(name)
}

fn text(guest: &Held, name: &str) -> String {
    fs::read_to_string(file(guest, name)).unwrap_or_default()
}

/// Something to log: the daemon goes, and comes back.
fn lose_daemon(guest: &mut Held) {
    guest.daemon.kill9();
    guest.daemon.restart().unwrap();
}

#[test]
fn every_line_is_an_object_with_json() {
    let mut guest = start(&[("--log-format", "json"), ("--log-level", "trace")]);
    lose_daemon(&mut guest);
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
    wait::until(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("/no/such/kernel")));
    let ended = ended.finish();
    assert!(ended.stderr.starts_with("outboard: --kernel /no/such/kernel: "), "{ended:?}");
}

#[test]
fn the_file_can_be_another_while_the_guest_runs() {
    let mut guest = start(&[("--log-file", "log")]);
    lose_daemon(&mut guest);
    wait::until(|| text(&guest, "log").contains("its daemon is back"));
    fs::rename(file(&guest, "log"), file(&guest, "log.1")).unwrap();
    guest.says(&["log", "--reopen"]);
    let old = text(&guest, "log.1");
    guest.says(&["pause"]);
    guest.says(&["resume"]);
    wait::until(|| text(&guest, "log").contains("the guest goes on"));
    assert_eq!(text(&guest, "log.1"), old);
    guest.says(&["log", "--level", "error"]);
    let quiet = text(&guest, "log");
    guest.says(&["pause"]);
    guest.says(&["resume"]);
    guest.assert_alive();
    assert_eq!((text(&guest, "log"), guest.vmm.stderr().as_str()), (quiet, ""));
}

#[test]
fn a_full_disk_under_the_log_disturbs_no_guest() {
    let mut guest = start(&[("--log-file", "/dev/full")]);
    lose_daemon(&mut guest);
    guest.assert_alive();
    guest.says(&["pause"]);
    guest.says(&["resume"]);
    guest.assert_alive();
}

#[test]
fn a_log_at_its_size_limit_disturbs_no_guest() {
    let mut guest = start(&[("--log-file", "log")]);
    let size = text(&guest, "log").len() as u64;
    let pid = Pid::from_raw(i32::try_from(guest.vmm.pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(size), maximum: None }).unwrap();
    lose_daemon(&mut guest);
    guest.says(&["pause"]);
    guest.says(&["resume"]);
    guest.assert_alive();
    assert_eq!(text(&guest, "log").len() as u64, size);
}

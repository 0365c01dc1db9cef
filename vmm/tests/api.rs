//! The API of a running machine, asked by `outboard ctl` and by hand.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tests::vmm::Run;
use tests::vmm::held::{Held, assert_refused, ctl};

const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");

/// A guest with an entropy device, and its API.
fn start(cmdline: &str) -> Held {
    Held::start(OUTBOARD, cmdline, &[])
}

/// The value of a metric without labels.
fn metric(guest: &Held, name: &str) -> u64 {
    let text = guest.says(&["metrics", "--json"]);
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
    line.parse().unwrap()
}

#[test]
fn a_machine_tells_of_itself_and_its_devices() {
    let guest = start("");
    let state = guest.state();
    assert_eq!(state["vmm"]["pid"], guest.vmm.pid());
    assert_eq!((&state["vmm"]["state"], &state["vmm"]["cpus"]), (&"running".into(), &1.into()));
    assert_eq!(state["vmm"]["memory_bytes"], 64 << 20);
    let device = &state["devices"][0];
    assert_eq!((&device["id"], &device["type"]), (&"rng".into(), &"rng".into()));
    assert_eq!(device["socket"], guest.daemon.socket().to_str().unwrap());
    assert!(device["since_unix_s"].as_f64() >= state["vmm"]["started_unix_s"].as_f64());
    let table = guest.says(&["state"]);
    assert!(table.contains("guest    running, 1 CPU, 64 MiB\n"), "{table}");
    let list = ctl(OUTBOARD, &["list", guest.api.parent().unwrap().to_str().unwrap()]);
    let list = String::from_utf8(list.stdout).unwrap();
    let pid = guest.vmm.pid().to_string();
    assert!(["outboard", "running", &pid].iter().all(|word| list.contains(word)), "{list}");
}

#[test]
fn a_guest_pauses_and_goes_on_whoever_asks() {
    let mut guest = start("");
    guest.assert_alive();
    assert_eq!(guest.says(&["pause"]), "paused\n");
    guest.vmm.type_in("a");
    assert_eq!(guest.says(&["pause"]), "paused\n", "it is paused already");
    assert_eq!(guest.vmm.serial().matches("metal: alive\n").count(), 1, "a paused guest says nothing");
    assert_eq!(guest.state()["vmm"]["state"], "paused");
    assert_eq!(guest.says(&["resume"]), "running\n");
    guest.vmm.wait_for("metal: alive\n", 2);
    guest.alive = 2;
    let vmm = Pid::from_raw(guest.vmm.pid().try_into().unwrap()).unwrap();
    kill_process(vmm, Signal::USR1).unwrap();
    guest.vmm.wait_for_stderr("the guest is paused");
    assert_eq!(guest.says(&["resume"]), "running\n");
    assert_eq!(guest.says(&["pause"]), "paused\n");
    kill_process(vmm, Signal::USR2).unwrap();
    guest.assert_alive();
    assert_eq!(guest.state()["vmm"]["state"], "running");
}

#[test]
fn a_daemon_that_is_away_is_told_of_and_one_that_came_back_counted() {
    let mut guest = start("");
    guest.daemon.kill9();
    guest.vmm.wait_for_stderr("waits for its daemon");
    assert_eq!(guest.state()["devices"][0]["connected"], false);
    let table = guest.says(&["state"]);
    assert!(table.contains("away"), "{table}");
    guest.daemon.restart().unwrap();
    guest.vmm.wait_for_stderr("its daemon is back");
    let device = &guest.state()["devices"][0];
    assert_eq!((&device["connected"], &device["returns"]), (&true.into(), &1.into()));
    let metrics = guest.says(&["metrics", "--json"]);
    for line in [
        "outboard_device_connected{device=\"rng\",type=\"rng\"} 1",
        "outboard_device_returns_total{device=\"rng\"} 1",
        "outboard_machine_state{state=\"running\"} 1",
    ] {
        assert!(metrics.lines().any(|said| said == line), "{line} in {metrics}");
    }
}

#[test]
fn questions_do_not_wake_the_machine_and_half_a_request_holds_nobody_up() {
    let mut guest = start("");
    let wakes = metric(&guest, "outboard_loop_wakes_total");
    for _ in 0..10 {
        guest.state();
    }
    assert_eq!(metric(&guest, "outboard_loop_wakes_total"), wakes);
    let mut mute = UnixStream::connect(&guest.api).unwrap();
    mute.write_all(b"POST /pause HTTP/1.1\r\nHost: x\r\nContent-Len").unwrap();
    guest.assert_alive();
    guest.state();
    assert_eq!(guest.says(&["pause"]), "paused\n");
    assert_eq!(guest.says(&["resume"]), "running\n");
    guest.assert_alive();
}

#[test]
fn a_machine_that_started_again_still_answers() {
    let mut guest = start("then-reset");
    guest.vmm.type_in("q");
    guest.vmm.wait_for("metal: hold ready\n", 2);
    assert_eq!(guest.state()["vmm"]["state"], "running");
    assert_eq!(guest.says(&["pause"]), "paused\n");
    assert_eq!(guest.says(&["resume"]), "running\n");
    guest.assert_alive();
}

#[test]
fn the_log_of_a_machine_is_asked_and_changed_as_that_of_a_daemon() {
    let guest = start("");
    assert!(guest.says(&["log", "--level", "debug"]).starts_with("level   debug\n"));
    let state = guest.says(&["state"]);
    assert!(state.contains("log      debug and above, as text, to standard error\n"), "{state}");
    assert_refused(&guest.ctl(&["log", "--reopen"]), 2, &["standard error", "--reopen FILE"]);
}

#[test]
fn what_only_a_daemon_has_is_told() {
    let guest = start("");
    for command in [&["device"][..], &["set", "a=1"], &["upgrade"]] {
        assert_refused(&guest.ctl(command), 2, &[command[0], "for a daemon of a device"]);
    }
}

#[test]
fn the_socket_goes_with_the_machine_and_is_not_taken_from_another() {
    let guest = start("");
    let taken = guest.api.display().to_string();
    let second = Run::metal(OUTBOARD, "metal=hold").option("--api-socket", &taken).finish();
    assert!(second.code(2).stderr.contains("--api-socket") && second.stderr.contains("listens there"));
    assert!(second.timings.is_empty(), "a start that is refused leaves nothing behind");
    let Held { vmm, api, .. } = guest;
    assert!(api.exists());
    kill_process(Pid::from_raw(vmm.pid().try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
    let dir = api.parent().unwrap().to_owned();
    wait_removed(&dir, &api);
    vmm.finish().code(0);
}

/// Returns when the file is gone from its directory.
fn wait_removed(dir: &Path, file: &Path) {
    use rustix::fs::inotify;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, dir, inotify::WatchFlags::DELETE | inotify::WatchFlags::DELETE_SELF).unwrap();
    while file.exists() {
        assert!(tests::wait::one_readable(&watch, tests::wait::deadline()), "{} stays", file.display());
        let mut events = [std::mem::MaybeUninit::uninit(); 512];
        inotify::Reader::new(&watch, &mut events).next().unwrap();
    }
}

#[test]
fn bad_paths_are_told_before_anything_starts() {
    let long = format!("/tmp/{}", "x".repeat(120));
    for (path, words) in [(long.as_str(), "too long"), ("/nowhere/x.control", "must exist")] {
        let ended = Run::metal(OUTBOARD, "metal=hold").option("--api-socket", path).finish();
        assert!(ended.code(2).stderr.contains("--api-socket") && ended.stderr.contains(words), "{ended:#?}");
        let kernel = tests::metal::image().unwrap();
        let check = ["run", "--check", "--memory", "64M", "--api-socket", path, "--kernel"];
        let checked = Command::new(OUTBOARD).args(check).arg(&kernel).output().unwrap();
        assert_refused(&checked, 2, &["--api-socket", words]);
    }
}

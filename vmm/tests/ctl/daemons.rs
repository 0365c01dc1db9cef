//! What is asked of daemons, and done to them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use rustix::process::{Pid, Signal, kill_process};

use super::{Controlled, OUTBOARD, assert_refused, command, ctl, said};

#[test]
fn the_list_shows_what_can_be_asked_and_leaves_other_sockets_alone() {
    let rng = Controlled::rng(&[]);
    let (_frontend, mut guest) = rng.guest();
    guest.fill(32).unwrap();
    drop(UnixListener::bind(rng.dir().join("left.control")).unwrap());
    let dir = rng.dir().to_str().unwrap();
    let list = said(&ctl(&["list", dir]));
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SOCKET", "PROGRAM", "STATE", "UP", "PID", "REQUESTS"]);
    assert!(rows[1][0].ends_with("left.control") && rows[1][2..4] == ["no", "answer"], "{list}");
    assert_eq!(rows[2][..3], [rng.socket(), "outboard-rng", "connected"]);
    let pid = rng.daemon.pid().to_string();
    assert!(rows[2].ends_with(&[&pid, "1"]), "{list}");
    assert!(list.contains("left.control: nobody listens there"), "{list}");
    let json: serde_json::Value = serde_json::from_str(&said(&ctl(&["list", "--json", dir]))).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2, "the socket of front-ends is none of them");
    assert_eq!(json[1]["state"]["daemon"]["name"], "outboard-rng");
    guest.fill(32).unwrap();
}

/// In a `/run` of its own.
const USUAL_PLACE: &str = r#"
mount -t tmpfs none /run
mkdir -p /run/outboard/vm1 /run/vm1/rng
cd /run
"$1" --socket-path /run/rng.sock --control-socket /run/outboard/vm1/rng.control 2>/dev/null &
until "$0" ctl --socket vm1/rng state >/dev/null 2>&1; do :; done
"$0" ctl list
"$0" ctl --socket vm1/rng device
"$0" ctl state 2>&1 || echo "code $?"
kill $!
wait
"#;

#[test]
fn sockets_in_the_usual_place_go_by_their_names() {
    let rng = tests::daemon::binary("outboard-rng").display().to_string();
    let mut shell = std::process::Command::new("timeout");
    shell.args(["--kill-after=1", "30", "unshare", "--mount", "--", "sh", "-c", USUAL_PLACE, OUTBOARD, &rng]);
    let text = said(&shell.output().unwrap());
    for words in
        ["vm1/rng  outboard-rng  waiting", "limit  null\n", "these are in /run/outboard: vm1/rng\ncode 2\n"]
    {
        assert!(text.contains(words), "{words:?} in {text}");
    }
}

#[test]
fn an_empty_directory_is_no_error_and_a_missing_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    assert!(said(&ctl(&["list", dir])).contains("--control-socket"));
    assert_eq!(said(&ctl(&["list", dir, "--json"])), "[]\n");
    assert_refused(&ctl(&["list", "/nowhere"]), 2, &["/nowhere", "No such file", "name the directory"]);
    assert_refused(&ctl(&["list", "--socket", "x"]), 2, &["--socket x", "leave --socket out"]);
}

#[test]
fn the_state_of_a_daemon_under_its_guest() {
    let rng = Controlled::rng(&[]);
    assert!(said(&rng.ctl(&["state"])).contains("front-end  none is connected\n"));
    let (frontend, mut guest) = rng.guest();
    for _ in 0..100 {
        guest.fill(64).unwrap();
    }
    let state = said(&rng.ctl(&["state"]));
    let worker = format!("process {}, up ", rng.daemon.worker_pid());
    for words in ["outboard-rng ", &worker, "16 MiB at ", " VERSION_1", "    0  running          0  "] {
        assert!(state.contains(words), "{words:?} in {state}");
    }
    let row = state.lines().last().unwrap();
    assert!(row.split_whitespace().any(|cell| cell == "100") && row.contains("6.2 KiB"), "{state}");
    let state = rng.json("state");
    assert_eq!(state["queues"][0]["requests"], 100);
    assert_eq!(state["daemon"]["keeper_pid"], rng.daemon.pid());
    drop(frontend);
}

#[test]
fn counters_are_shown_and_given_to_programs_as_prometheus_reads_them() {
    let rng = Controlled::rng(&[]);
    let (_frontend, mut guest) = rng.guest();
    guest.fill(64).unwrap();
    let table = said(&rng.ctl(&["metrics"]));
    let row = table.lines().find(|line| line.starts_with("outboard_queue_requests_total{queue=0} "));
    assert!(row.is_some_and(|row| row.ends_with(" 1")), "{table}");
    assert!(
        table.contains("outboard_request_duration_seconds{queue=0}") && table.contains("--json shows all")
    );
    let text = said(&rng.ctl(&["metrics", "--json"]));
    assert!(text.lines().any(|line| line == "outboard_queue_requests_total{queue=\"0\"} 1"), "{text}");
}

#[test]
fn settings_change_one_by_one_while_the_device_works() {
    let rng = Controlled::rng(&["--limit", "bytes=1M,ops=1000"]);
    assert!(said(&rng.ctl(&["device"])).contains("limit.bytes     1048576 (1 MiB)\n"));
    let changed = said(&rng.ctl(&["set", "limit.bytes=2M"]));
    assert!(changed.contains("2097152 (2 MiB)") && changed.contains("limit.ops       1000"), "{changed}");
    assert_refused(&rng.ctl(&["set", "limit.ops=0"]), 2, &["limit", "ops"]);
    assert_refused(&rng.ctl(&["set", "colour=red"]), 2, &["colour"]);
    assert_refused(&rng.ctl(&["set", "limit"]), 2, &["limit: no setting", "KEY=VALUE"]);
    assert_eq!(rng.json("device")["limit"]["ops"], 1000, "a change that is refused changes nothing");
    assert_eq!(said(&rng.ctl(&["set", "limit=null", "--json"])), "{\n  \"limit\": null\n}\n");
    let (_frontend, mut guest) = rng.guest();
    assert_eq!(guest.fill(32).unwrap().len(), 32);
}

#[test]
fn a_log_tells_more_and_goes_on_in_a_new_file_after_the_old_one_was_moved() {
    let rng = Controlled::rng(&["--log-file", "log"]);
    assert!(said(&rng.ctl(&["log", "--level", "debug"])).starts_with("level   debug\n"));
    assert_eq!(rng.json("state")["log"]["level"], "debug");
    let (log, old) = (rng.dir().join("log"), rng.dir().join("old"));
    fs::rename(&log, &old).unwrap();
    let shown = said(&rng.ctl(&["log", "--reopen"]));
    assert!(shown.contains(log.to_str().unwrap()), "{shown}");
    let before = fs::read_to_string(&old).unwrap();
    let (frontend, _guest) = rng.guest();
    assert!(fs::read_to_string(&log).unwrap().contains("Front-end connected"));
    assert_eq!(fs::read_to_string(&old).unwrap(), before);
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o137, 0, "not for everybody");
    drop(frontend);
    let other = rng.dir().join("other").display().to_string();
    let shown = said(&rng.ctl(&["log", "--reopen", &other]));
    assert!(shown.ends_with(&format!("file    {other}\n")) && fs::exists(&other).unwrap(), "{shown}");
    said(&rng.ctl(&["upgrade"]));
    assert_eq!(rng.json("state")["log"]["file"], other, "the next worker knows it too");
    assert_refused(&rng.ctl(&["log", "--level", "loud"]), 2, &["--level", "loud", "debug"]);
    assert_refused(&rng.ctl(&["log", "--reopen", "/nowhere/x"]), 2, &["--reopen /nowhere/x", "can write"]);
}

#[test]
fn a_log_that_is_no_file_cannot_be_begun_anew() {
    let rng = Controlled::rng(&[]);
    assert_refused(&rng.ctl(&["log", "--reopen"]), 2, &["standard error", "--reopen FILE"]);
}

#[test]
fn an_upgrade_is_over_when_ctl_says_so_and_no_request_is_lost() {
    let rng = Controlled::rng(&[]);
    let (_frontend, mut guest) = rng.guest();
    for _ in 0..3 {
        guest.fill(32).unwrap();
        let old = rng.daemon.worker_pid();
        let told = said(&rng.ctl(&["upgrade"]));
        let new = rng.daemon.worker_pid();
        assert_ne!(new, old);
        assert!(told.starts_with(&format!("worker {new} serves in place of {old}, after ")), "{told}");
        guest.fill(32).unwrap();
    }
    assert_eq!(rng.json("state")["queues"][0]["requests"], 6, "counted on over the upgrades");
    assert_eq!(rng.json("state")["daemon"]["workers_started"], 4);
}

#[test]
fn what_a_daemon_cannot_do_is_told_with_the_cure() {
    let rng = Controlled::rng(&["--keeper", "off"]);
    assert_refused(&rng.ctl(&["upgrade"]), 1, &[rng.socket(), "keeper"]);
    for command in ["pause", "resume"] {
        assert_refused(&rng.ctl(&[command]), 2, &[command, "outboard run --api-socket"]);
    }
}

#[test]
fn who_may_not_connect_is_told_so() {
    let rng = Controlled::rng(&[]);
    fs::set_permissions(rng.dir(), PermissionsExt::from_mode(0o755)).unwrap();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let mut refused = std::process::Command::new("setpriv");
    // Where nobody may go as well, so that it is the socket that refuses.
    let copy = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let program = copy.path().join("outboard");
    fs::copy(OUTBOARD, &program).unwrap();
    refused.args(nobody).arg(&program).args(["ctl", "state", "--socket", rng.socket()]);
    assert_refused(&refused.output().unwrap(), 1, &[rng.socket(), "may not connect", "as root"]);
}

#[test]
fn a_socket_that_is_not_there_or_not_named_is_told() {
    assert_refused(&ctl(&["state", "--socket", "/nowhere/x"]), 1, &["/nowhere/x", "no such socket", "list"]);
    assert_refused(&ctl(&["state"]), 2, &["--socket is missing"]);
    let rng = Controlled::rng(&[]);
    let front_ends = rng.daemon.socket().to_str().unwrap().to_owned();
    assert_refused(&ctl(&["state", "--socket", &front_ends]), 1, &[&front_ends]);
}

#[test]
fn a_daemon_that_stands_still_is_not_waited_for_for_ever() {
    let rng = Controlled::rng(&[]);
    let worker = Pid::from_raw(rng.daemon.worker_pid().try_into().unwrap()).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    let list = said(&ctl(&["list", rng.dir().to_str().unwrap()]));
    assert!(list.contains("no answer within 2 s; see that the program there is not stopped"), "{list}");
    kill_process(worker, Signal::CONT).unwrap();
    said(&rng.ctl(&["state"]));
}

#[test]
fn an_answer_that_nobody_can_take_is_told() {
    let rng = Controlled::rng(&[]);
    let full = fs::File::create("/dev/full").unwrap();
    let output = command(&["--socket", rng.socket(), "state"]).stdout(full).output().unwrap();
    assert_refused(&output, 1, &["standard output", "No space left"]);
}

//! The control socket of real daemons: what it answers, what it changes, and clients that would disturb somebody.
//!
//! `answers`: state and metrics of every daemon. `changes`: a limit, an upgrade, over the lives of workers. `clients`:
//! those that are no good. `document`: `docs/openapi.json` against the code and against live answers.

mod answers;
mod changes;
mod clients;
mod document;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backends::control::Method::{self, Get};
use backends::control::client::{Client, Reply};
use serde_json::Value;
use tests::daemon::Launch;
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;
use tests::machine::{BLK, CONSOLE, Device, Machine, RAM_BYTES, RNG};
use tests::wait;

/// Longer than any answer takes on a busy machine, shorter than what a test may take.
const PATIENCE: Duration = Duration::from_secs(15);
const DEVICES: [Device; 3] = [RNG, BLK.on(RingKind::Packed), CONSOLE];
/// Debian's, which has Debian's modules.
const PYTHON: &str = "/usr/bin/python3";

/// Where it listens.
fn socket(dir: &Path) -> PathBuf {
    dir.join("own.control")
}

/// With a control socket.
fn launch(device: Device) -> Launch {
    let launch = device.launch();
    let socket = socket(launch.dir()).display().to_string();
    launch.args(["--control-socket".to_owned(), socket])
}

/// A daemon with a control socket, and a guest.
fn boot(device: Device, options: &[&str]) -> Machine {
    device.boot_with(launch(device).args(options.iter().copied()), &Ram::new(RAM_BYTES), device.wants())
}

fn connect(dir: &Path) -> Client {
    Client::connect(&socket(dir), PATIENCE).unwrap()
}

/// Asks once.
#[track_caller]
fn ask(machine: &Machine, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
    let Reply { status, body } = connect(machine.daemon.dir()).call(method, path, body, None).unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[track_caller]
fn state(machine: &Machine) -> Value {
    let (status, state) = ask(machine, Get, "/state", None);
    assert_eq!(status, 200, "{state}");
    state
}

/// What a Python program says to this input, as JSON.
#[track_caller]
fn python(program: &str, args: &[&str], input: &[u8]) -> Value {
    let mut child = Command::new("timeout")
        .args(["60", PYTHON, "-c", program])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The state once that many requests of the device's queue are counted, which is a moment after the guest has them.
#[track_caller]
fn state_after(machine: &Machine, requests: u64) -> Value {
    let until = wait::deadline();
    loop {
        let state = state(machine);
        let counted = &state["queues"][usize::from(machine.device.queue)]["requests"];
        if *counted == requests {
            return state;
        }
        assert!(Instant::now() < until, "{counted} requests, not {requests}");
    }
}

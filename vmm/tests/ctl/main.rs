//! `outboard ctl` against real daemons, and against something else in their place.
#![allow(clippy::unwrap_used)]

mod daemons;
mod hostile;
mod watch;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tests::daemon::{Daemon, Launch};
use tests::frontend::{Frontend, Wants};
use tests::guest::memory::Ram;
use tests::guest::rng::Rng;
use tests::machine::RAM_BYTES;
use tests::vmm::held::assert_refused;

const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");

/// `outboard ctl` with these arguments, under a time limit.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", "30", OUTBOARD, "ctl"]).args(args).stdin(Stdio::null());
    command
}

/// Runs it to its end.
fn ctl(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// What it prints when it succeeds.
#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A daemon with a control socket.
struct Controlled {
    daemon: Daemon,
    socket: PathBuf,
}

impl Controlled {
    /// An `outboard-rng` with these options.
    fn rng(options: &[&str]) -> Controlled {
        let launch = Launch::new("outboard-rng");
        let socket = launch.dir().join("rng.control");
        let control = ["--control-socket", socket.to_str().unwrap()];
        let daemon = launch.args(control).args(options.iter().copied()).serve().unwrap();
        Controlled { daemon, socket }
    }

    fn ctl(&self, args: &[&str]) -> Output {
        ctl(&[&["--socket", self.socket()], args].concat())
    }

    fn socket(&self) -> &str {
        self.socket.to_str().unwrap()
    }

    fn dir(&self) -> &Path {
        self.daemon.dir()
    }

    fn json(&self, command: &str) -> Value {
        serde_json::from_str(&said(&self.ctl(&[command, "--json"]))).unwrap()
    }

    /// A guest that has random bytes given to it.
    fn guest(&self) -> (Frontend, Rng) {
        let mut frontend =
            Frontend::session(self.daemon.socket(), &Ram::new(RAM_BYTES), Wants::default()).unwrap();
        let rng = Rng::new(frontend.start_new(0, 16).unwrap());
        (frontend, rng)
    }
}

//! A machine that stays: the bare-metal guest that says `metal: alive` for each letter that is typed, with an entropy
//! device and an API, asked by `outboard ctl`.
//!
//! In: the binary, what to add to the guest's command line, options. Out: what `outboard ctl` says of it. Every command has
//! a time limit.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use super::{Run, Vmm};
use crate::daemon::{Daemon, Launch};

/// A machine that runs.
#[derive(Debug)]
pub struct Held {
    program: &'static str,
    /// The machine.
    pub vmm: Vmm,
    /// What serves its device.
    pub daemon: Daemon,
    /// Its API.
    pub api: PathBuf,
    /// Times that the guest has said so.
    pub alive: usize,
}

impl Held {
    /// Starts one.
    ///
    /// # Panics
    /// The guest does not come up.
    pub fn start(program: &'static str, cmdline: &str, options: &[(&str, &str)]) -> Held {
        let launch = Launch::new("outboard-rng").args(["--keeper", "off"]);
        let daemon = launch.serve().unwrap_or_else(|error| panic!("{error}"));
        let run = Run::metal(program, &format!("metal=hold {cmdline}")).device("rng", daemon.socket());
        let api = run.dir().join("vm.control");
        let run = run.option("--api-socket", &api.display().to_string());
        let vmm = options.iter().fold(run, |run, (name, value)| run.option(name, value)).start();
        vmm.wait_for("metal: hold ready\n", 1);
        Held { program, vmm, daemon, api, alive: 0 }
    }

    /// `outboard ctl --socket` of it.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let socket = self.api.display().to_string();
        ctl(self.program, &[&["--socket", &socket], args].concat())
    }

    /// What a command prints when it succeeds.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn says(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How it stands.
    ///
    /// # Panics
    /// It does not tell.
    #[track_caller]
    pub fn state(&self) -> Value {
        let text = self.says(&["state", "--json"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The guest is not disturbed.
    ///
    /// # Panics
    /// It says nothing any more.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        self.alive += 1;
        self.vmm.type_in("a");
        self.vmm.wait_for("metal: alive\n", self.alive);
    }
}

/// `outboard ctl`, to its end.
///
/// # Panics
/// It cannot be started.
pub fn ctl(program: &str, args: &[&str]) -> Output {
    let output = Command::new("timeout").args(["--kill-after=1", "20", program, "ctl"]).args(args).output();
    output.unwrap_or_else(|error| panic!("timeout(1): {error}"))
}

/// One line with all these words, and this exit code.
///
/// # Panics
/// Something else.
#[track_caller]
pub fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(stderr.lines().count(), 1, "{output:?}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{words:?}: {output:?}");
}

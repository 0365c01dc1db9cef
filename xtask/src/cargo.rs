//! Calls of cargo: the build, and where its results are.

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{self, Running, command};
use crate::workspace;

/// The packages whose programs the demo runs.
const PROGRAMS: [&str; 4] = ["outboard", "outboard-rng", "outboard-blk", "outboard-console"];

/// No call of cargo takes longer than this.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Why there is no build.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cargo did not run to its end.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// What it printed could not be kept.
    #[error("Cannot keep the output of cargo")]
    Io(#[from] io::Error),
    /// cargo failed; it has said why on standard error.
    #[error("{0} failed: it says why above")]
    Failed(String),
}

/// The cargo that runs us, in the source tree.
pub fn cargo() -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    cargo
}

/// Builds the VMM and the daemons.
pub fn build_programs(profile: &str) -> Result<(), Error> {
    eprintln!("build: {} (profile {profile})", PROGRAMS.join(", "));
    let mut build = cargo();
    build.args(["build", "--quiet", "--profile", profile, "--bins"]);
    build.args(PROGRAMS.iter().flat_map(|package| ["--package", package]));
    run("cargo build", &mut build)
}

/// Runs a cargo command to its end; `name` is for messages.
pub fn run(name: &str, command: &mut Command) -> Result<(), Error> {
    let status = Running::start(name, command.stdin(Stdio::null()))?.wait(LIMIT, || ())?;
    if status.success() { Ok(()) } else { Err(Error::Failed(name.to_owned())) }
}

/// Where the programs of a profile are.
pub fn programs_dir(profile: &str) -> PathBuf {
    workspace::target_dir().join(if profile == "dev" { "debug" } else { profile })
}

//! Calls of cargo: the build, and where its results are.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{self, Running, command};
use crate::workspace;

/// The packages whose programs the demo runs.
const PROGRAMS: [&str; 4] = ["outboard", "outboard-rng", "outboard-blk", "outboard-console"];

/// A build takes no longer than this.
const BUILD_LIMIT: std::time::Duration = std::time::Duration::from_secs(40 * 60);

/// Why there is no build.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cargo did not run to its end.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// cargo failed; it has said why on standard error.
    #[error("{0} failed: see above")]
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
    let status = Running::start("cargo build", &mut build)?.wait(BUILD_LIMIT, || ())?;
    if status.success() { Ok(()) } else { Err(Error::Failed("cargo build".to_owned())) }
}

/// Where the programs of a profile are.
pub fn programs_dir(profile: &str) -> PathBuf {
    workspace::target_dir().join(if profile == "dev" { "debug" } else { profile })
}

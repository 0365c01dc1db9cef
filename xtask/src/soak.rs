//! `cargo xtask soak restart`: kills daemons under verified I/O, for as long as is asked.
//!
//! In: how many kills, what chooses their moments, which daemon. Out: the words of `soak-restart` (package `tests`),
//! which does it with the daemons as they are shipped; its last line on standard output is a contract.

use crate::cargo::{self, cargo};
use crate::cli::SoakRestart;
use crate::explain::explain;
use crate::process::{Running, command};

use std::process::Stdio;
use std::time::Duration;

const DRIVER: &str = "soak-restart";
/// A kill and all that belongs to it take this long at most, and the rest of a run this.
const A_KILL: Duration = Duration::from_secs(2);
const LEAST: Duration = Duration::from_secs(120);

/// Runs it; whether it went well. The last line is written whatever happens.
pub fn restart(options: &SoakRestart) -> bool {
    match build(&options.profile).and_then(|()| soak(options)) {
        Ok(well) => well,
        Err(reason) => {
            println!("soak: FAILED: {}", reason.split_whitespace().collect::<Vec<_>>().join(" "));
            false
        }
    }
}

fn build(profile: &str) -> Result<(), String> {
    cargo::build_programs(profile).map_err(|error| explain(&error))?;
    let mut build = cargo();
    build.args(["build", "--quiet", "--profile", profile, "--package", "tests", "--bin", DRIVER]);
    cargo::run("cargo build", &mut build).map_err(|error| explain(&error))
}

fn soak(options: &SoakRestart) -> Result<bool, String> {
    let programs = cargo::programs_dir(&options.profile);
    let mut driver = command(programs.join(DRIVER));
    driver.env("OUTBOARD_BIN_DIR", &programs).stdin(Stdio::null());
    driver.args(["--kills", &options.kills.to_string(), "--seed", &options.seed.to_string()]);
    driver.args(options.daemon.iter().flat_map(|daemon| ["--daemon", daemon.as_str()]));
    let limit = LEAST + A_KILL * options.kills;
    let mut running = Running::start(DRIVER, &mut driver).map_err(|error| explain(&error))?;
    let status = running.wait(limit, || ()).map_err(|error| explain(&error))?;
    // It has said why, unless it could not even do that.
    if status.code() == Some(0) || status.code() == Some(1) {
        Ok(status.success())
    } else {
        Err(format!("{DRIVER} ended with {status}"))
    }
}

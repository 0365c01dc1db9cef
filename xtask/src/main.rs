//! `cargo xtask`: parses the command line, runs one subcommand, turns its result into an exit code.
#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use xtask::cli::{Cli, Command, KvmHost};
use xtask::emulated::EmulatedHost;
use xtask::{interrupt, kvm_host, packages};

/// Packages are missing, and we may not install them.
const PACKAGES_MISSING: u8 = 3;
/// A command could not be run at all; as env(1) and timeout(1) have it.
const HOST_FAILED: u8 = 125;
/// The user asked to stop; as a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = interrupt::watch() {
        eprintln!("xtask: cannot watch for Ctrl-C: {error}");
        return ExitCode::FAILURE;
    }
    match cli.command {
        Command::KvmHost(options) => kvm_host(&options).into(),
    }
}

fn kvm_host(options: &KvmHost) -> u8 {
    let host = EmulatedHost { limit: Duration::from_secs(options.time_limit), memory_mib: options.memory };
    match kvm_host::run(kvm_host::choose(options.place.chosen()), &options.command, &host) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            match error {
                _ if interrupt::asked() => INTERRUPTED,
                kvm_host::Error::Packages(packages::Error::Missing { .. }) => PACKAGES_MISSING,
                _ => HOST_FAILED,
            }
        }
    }
}

/// The error and what caused it, on one line where it is one.
fn complain(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    eprintln!("xtask: {text}");
}

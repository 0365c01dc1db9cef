//! `cargo xtask`: parses the command line, runs one subcommand, turns its result into an exit code.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use xtask::cli::{self, Cli, Command, KvmHost};
use xtask::demo::{self, Demo};
use xtask::emulated::EmulatedHost;
use xtask::explain::explain;
use xtask::{cargo, interrupt, kvm_host, packages};

/// As clap has it.
const BAD_OPTION: u8 = 2;
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
        Command::Demo(options) => demo(options).into(),
        Command::DemoBoot { plan } => demo_boot(&plan),
        Command::Test(options) => test(&options).into(),
        Command::Bench(options) => bench(&options).into(),
        Command::Soak(cli::Soak::Restart(options)) => u8::from(!xtask::soak::restart(&options)).into(),
        Command::Coverage => coverage().into(),
        Command::Man => man().into(),
        Command::KvmHost(options) => kvm_host(&options).into(),
    }
}

fn demo(options: cli::Demo) -> u8 {
    let demo = Demo { kernel: options.kernel, place: options.place.chosen(), profile: options.profile };
    match demo.run() {
        Ok(report) => {
            println!("{report}\ndemo: ok");
            0
        }
        Err(failure) => {
            println!("demo: FAILED: {}", one_line(&failure));
            if matches!(failure, demo::Failure::Packages(packages::Error::Missing { .. })) {
                PACKAGES_MISSING
            } else {
                1
            }
        }
    }
}

fn demo_boot(plan: &Path) -> ExitCode {
    match demo::boot_from_file(plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn test(options: &cli::Test) -> u8 {
    let outcome =
        if options.cases { xtask::test::run_cases(options.json) } else { xtask::test::run(options.full) };
    match outcome {
        Ok(ok) => u8::from(!ok),
        Err(error) => {
            complain(&error);
            if matches!(error, packages::Error::Missing { .. }) { PACKAGES_MISSING } else { 1 }
        }
    }
}

fn bench(options: &cli::Bench) -> u8 {
    match xtask::bench::run(&options.names, options.rounds, options.json) {
        Ok(all_hold) => u8::from(!all_hold),
        Err(error) => {
            complain(&error);
            BAD_OPTION
        }
    }
}

fn coverage() -> u8 {
    match xtask::coverage::run() {
        Ok(()) => 0,
        Err(error) => {
            complain(&error);
            if matches!(error, xtask::coverage::Error::Packages(_)) { PACKAGES_MISSING } else { 1 }
        }
    }
}

fn man() -> u8 {
    match xtask::manuals::write() {
        Ok(()) => 0,
        Err(error) => {
            complain(&error);
            1
        }
    }
}

fn kvm_host(options: &KvmHost) -> u8 {
    let host = EmulatedHost { limit: Duration::from_secs(options.time_limit), memory_mib: options.memory };
    let place = kvm_host::choose(options.place.chosen(), &cargo::programs_dir("dev"));
    match kvm_host::run(place, &options.command, &host) {
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

fn complain(error: &dyn Error) {
    eprintln!("xtask: {}", explain(error));
}

/// The same as one line, for where the last line is a contract.
fn one_line(error: &dyn Error) -> String {
    explain(error).split_whitespace().collect::<Vec<_>>().join(" ")
}

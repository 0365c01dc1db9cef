//! The command line of `cargo xtask`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::kvm_host::Place;

/// Builds, tries and tests Outboard: the one entry for people and for CI.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a Debian guest whose disk, entropy and console are served by three processes, and prove it.
    Demo(Demo),
    /// The boot part of the demo, on the emulated host.
    #[command(hide = true)]
    DemoBoot {
        /// The plan.
        plan: PathBuf,
    },
    /// Check and test everything, as CI does.
    Test(Test),
    /// Measure, ours against others'.
    Bench(Bench),
    /// Try something for long.
    #[command(subcommand)]
    Soak(Soak),
    /// Say how much of the code that hostile bytes reach the fuzz corpus covers; below 90 % is a failure.
    Coverage,
    /// Write man pages and shell completions of the programs to target/man and target/completions.
    Man,
    /// Run a command on a host whose KVM runs Linux: this one, or an emulated one.
    KvmHost(KvmHost),
}

/// Options of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Builds the programs, fetches Debian's cloud kernel (as a package, not installed), starts
outboard-rng, outboard-blk, outboard-console and the VMM, and checks in the guest what each of
them serves. Where this host's KVM cannot run Linux the boot happens on an emulated host (see
`cargo xtask kvm-host --help`).

The last line is `demo: ok` or `demo: FAILED: reason`; the exit code 0 or 1, 3 when packages
are missing.

Examples:
  cargo xtask demo
  cargo xtask demo --emulated
  cargo xtask demo --kernel /boot/vmlinuz-6.1.0-56-amd64")]
pub struct Demo {
    /// Where to boot.
    #[command(flatten)]
    pub place: PlaceOptions,
    /// A kernel (bzImage, or ELF with a PVH entry) instead of Debian's; its modules are those installed here for its
    /// version, and without any its virtio drivers must be built in.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The build profile of cargo.
    #[arg(long, value_name = "NAME", default_value = "release")]
    pub profile: String,
}

/// Options of `kvm-host`.
#[derive(Debug, Args)]
#[command(after_help = "\
The emulated host (QEMU, no KVM needed) shares this host's file tree; COMMAND finds the same
files, directory and environment there, with an empty standard input, and TMPDIR in memory. It
takes some four seconds to start and end.

The exit code is that of COMMAND; 125 when the host itself failed, 3 when packages are
missing.

Examples:
  cargo xtask kvm-host -- target/debug/outboard check
  cargo xtask kvm-host --emulated -- sh -c 'ls -l /dev/kvm; uname -r'")]
pub struct KvmHost {
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceOptions,
    /// End COMMAND and its host after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub time_limit: u64,
    /// Memory of the emulated host, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub memory: u32,
    /// The command and its arguments.
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

/// Options of `test`.
#[derive(Debug, Args)]
#[command(after_help = "\
Formatting, lints, unit tests, daemons against the doubles, the VMM with the bare-metal guest,
QEMU with a Debian guest, tests that need a KVM that runs Linux (on an emulated host where
this one's does not), and the demo. A step that fails does not stop those after it.

The last line is `N passed, N failed, N skipped`; the exit code 0 or 1, 3 when packages are
missing. A skip that tests/expected-skips.toml does not list counts as failed.

Examples:
  cargo xtask test
  cargo xtask test --full
  cargo xtask test --cases --json")]
pub struct Test {
    /// Also the tests that take long (`#[ignore]`).
    #[arg(long)]
    pub full: bool,
    /// Only the cases of the threat model (tests/cases.toml): prints case, daemon, ring and result, and fails
    /// where a case applies and has no test.
    #[arg(long, conflicts_with = "full")]
    pub cases: bool,
    /// With --cases: print one JSON array of rows instead of a table.
    #[arg(long, requires = "cases")]
    pub json: bool,
}

/// Options of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Ours and the peer's figures are measured in turn, round by round; the ratio is the median of the
rounds. Measure on a quiet machine: a compiler beside it costs three to fifteen times.

The exit code is 0 when every row holds its floor, else 1.

Examples:
  cargo xtask bench
  cargo xtask bench engine --rounds 9
  cargo xtask bench engine.uring --json")]
pub struct Bench {
    /// Rows, or suites of them; all without any.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Print one JSON array of rows instead of a table.
    #[arg(long)]
    pub json: bool,
    /// How often each is measured.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: usize,
}

/// What to try for long.
#[derive(Debug, Subcommand)]
pub enum Soak {
    /// Kill daemons under verified I/O, and see that a guest notices nothing but time.
    Restart(SoakRestart),
}

/// Options of `soak restart`.
#[derive(Debug, Args)]
#[command(after_help = "\
Kills the worker, and in half of the runs the whole daemon, while it is idle, while the front-end
is sending it a message, and while requests are in flight, on split and packed rings. Every byte
is verified; a seed chooses the moments, and the same seed chooses them again.

The last line is `soak: ok kills=N lost=0 doubled=0 p99_ms=X` or `soak: FAILED: reason`; the exit
code 0 or 1.

Examples:
  cargo xtask soak restart --kills 1000
  cargo xtask soak restart --kills 200 --seed 7 --daemon blk
  cargo xtask soak restart --daemon blk-graph      (the disk over a graph of five layers)")]
pub struct SoakRestart {
    /// How many kills, over all.
    #[arg(long, default_value_t = 240)]
    pub kills: u32,
    /// What chooses the moments.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only this daemon.
    #[arg(long, value_name = "NAME", value_parser = ["blk", "blk-graph", "rng", "console"])]
    pub daemon: Option<String>,
    /// The build profile of cargo.
    #[arg(long, value_name = "NAME", default_value = "release")]
    pub profile: String,
}

/// Where to run; without either, this host when its KVM can run Linux.
#[derive(Debug, Args, Clone, Copy)]
pub struct PlaceOptions {
    /// On this host, whatever its KVM can do.
    #[arg(long)]
    direct: bool,
    /// On the emulated host.
    #[arg(long, conflicts_with = "direct")]
    emulated: bool,
}

impl PlaceOptions {
    /// The user's choice, if there is one.
    pub fn chosen(self) -> Option<Place> {
        match (self.direct, self.emulated) {
            (true, _) => Some(Place::Direct),
            (_, true) => Some(Place::Emulated),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

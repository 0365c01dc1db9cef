//! The bare-metal test guest (tests/metal): built for a target without an operating system.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::{self, cargo};
use crate::process::{self, command};
use crate::workspace;

const TARGET: &str = "x86_64-unknown-none";

/// Settings of the surrounding build that would override those of `tests/metal/.cargo/config.toml`.
const FOREIGN: [&str; 6] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS",
    "RUSTFLAGS",
];

/// Where [`build`] leaves the guest: where the tests would build it themselves.
pub fn image() -> PathBuf {
    target_dir().join(TARGET).join("release/metal")
}

/// Formats, lints and builds it; its target is added with rustup when it is not there.
pub fn build() -> Result<(), cargo::Error> {
    ensure_target()?;
    cargo::run("cargo fmt", guest_cargo("fmt").arg("--check"))?;
    cargo::run("cargo clippy", build_options(&mut guest_cargo("clippy")).args(["--", "-D", "warnings"]))?;
    cargo::run("cargo build", build_options(&mut guest_cargo("build")))
}

/// cargo in the guest's folder, whose configuration says where the guest is loaded.
fn guest_cargo(subcommand: &str) -> Command {
    let mut cargo = cargo();
    cargo.arg(subcommand).current_dir(workspace::root().join("tests/metal"));
    for name in FOREIGN {
        cargo.env_remove(name);
    }
    cargo
}

fn build_options(cargo: &mut Command) -> &mut Command {
    cargo.args(["--quiet", "--locked", "--release", "--target", TARGET, "--target-dir"]).arg(target_dir())
}

fn target_dir() -> PathBuf {
    workspace::target_dir().join("metal")
}

fn ensure_target() -> Result<(), process::Error> {
    let library = process::output(command("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(library.trim()).is_dir() {
        return Ok(());
    }
    eprintln!("rustup: adding target {TARGET}");
    process::output(command("rustup").args(["target", "add", TARGET])).map(drop)
}

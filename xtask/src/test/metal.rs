//! The bare-metal test guest (tests/metal): built for a target without an operating system.

use std::path::Path;
use std::process::Command;

use crate::cargo::{self, cargo};
use crate::process::{self, command};
use crate::workspace;

const TARGET: &str = "x86_64-unknown-none";

/// Formats, lints and builds it; its target is added with rustup when it is not there.
pub fn build() -> Result<(), cargo::Error> {
    ensure_target()?;
    cargo::run("cargo fmt", guest_cargo().args(["fmt", "--check"]))?;
    cargo::run(
        "cargo clippy",
        guest_cargo().args(["clippy", "--quiet", "--release", "--", "-D", "warnings"]),
    )?;
    cargo::run("cargo build", guest_cargo().args(["build", "--quiet", "--release"]))
}

/// cargo in the guest's folder, whose configuration names the target and where the guest is loaded.
fn guest_cargo() -> Command {
    let mut cargo = cargo();
    cargo.current_dir(workspace::root().join("tests/metal"));
    cargo
}

fn ensure_target() -> Result<(), process::Error> {
    let library = process::output(command("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(library.trim()).is_dir() {
        return Ok(());
    }
    eprintln!("rustup: adding target {TARGET}");
    process::output(command("rustup").args(["target", "add", TARGET])).map(drop)
}

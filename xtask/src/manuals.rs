//! `cargo xtask man`: man pages and completions, made by the package `manuals`.

use crate::cargo::{self, cargo};
use crate::workspace;

/// Writes `man/` and `completions/` where cargo puts what it builds, and says so.
pub fn write() -> Result<(), cargo::Error> {
    let dir = workspace::target_dir();
    cargo::run("cargo run", cargo().args(["run", "--quiet", "--package", "manuals", "--"]).arg(&dir))?;
    println!("{0}/man, {0}/completions", dir.display());
    Ok(())
}

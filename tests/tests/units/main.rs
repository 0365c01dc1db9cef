//! The systemd units in `packaging/systemd`: what they say, and what a real systemd makes of them.

mod files;
mod live;

use std::path::PathBuf;

/// Kinds of daemons that have units, `outboard-KIND`.
const KINDS: [&str; 3] = ["rng", "blk", "console"];

/// Where the units are.
fn units() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd"))
}

/// The text of this unit.
fn unit(name: &str) -> String {
    let path = units().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

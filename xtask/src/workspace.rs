//! Where things are: the source tree, the build's results, and a temporary directory of one run.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The root of the source tree.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Where cargo puts what it builds: `$CARGO_TARGET_DIR`, or `target/` in the source tree.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// A directory of its own for one run, removed at its end.
pub fn scratch() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("outboard-").tempdir()
}

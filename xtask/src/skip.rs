//! How a test says that it could not run here.
//!
//! libtest knows no skip at run time: the test calls [`skip`] and returns. `cargo xtask test` collects these, prints
//! each with its reason, counts it as skipped instead of passed, and fails when `tests/expected-skips.toml` does not
//! list its id.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

/// Names the file that collects skips, one line each: id, a tab, the reason.
pub const VARIABLE: &str = "OUTBOARD_SKIPS";

/// Reports that the calling test, one of those that `id` stands for, cannot run here for `reason`.
///
/// # Panics
/// When the report cannot be written: a skip must not pass for a success.
pub fn skip(id: &str, reason: &str) {
    eprintln!("skipped: {id}: {reason}");
    if let Some(path) = env::var_os(VARIABLE) {
        // One write in append mode: tests of other processes do the same at the same time.
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(format!("{id}\t{reason}\n").as_bytes()));
        assert!(written.is_ok(), "cannot report a skip to {}: {written:?}", path.display());
    }
}

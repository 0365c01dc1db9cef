//! What tests are told by their environment, so that they build nothing themselves.

use std::path::{Path, PathBuf};

use super::metal;
use crate::{cargo, skip};

/// Where a run's tests find what was built for them, and leave their skips.
#[derive(Debug)]
pub struct Setting {
    /// The directory of this run.
    pub scratch: PathBuf,
    /// Whether long tests run too.
    pub full: bool,
    /// Which tests nextest runs, in its own language; all without.
    pub filter: Option<&'static str>,
}

impl Setting {
    /// Collects skips (see [`crate::skip`]).
    pub fn skips(&self) -> PathBuf {
        self.scratch.join("skips")
    }

    /// A file of this run.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch.join(name)
    }

    /// The variables that the `tests` crate and [`crate::skip`] look at.
    pub fn variables(&self) -> [(&'static str, PathBuf); 3] {
        [
            (skip::VARIABLE, self.skips()),
            ("OUTBOARD_BIN_DIR", cargo::programs_dir("dev")),
            ("OUTBOARD_METAL", metal::image()),
        ]
    }
}

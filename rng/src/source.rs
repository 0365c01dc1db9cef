//! Where random bytes come from.

use backends::memory::Segment;
use backends::sys;
use rustix::io::Errno;

/// A source of random bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// The kernel's generator, by getrandom(2). Never dry once the host has booted.
    #[default]
    Getrandom,
}

impl Source {
    /// Fills guest memory from the front; the bytes filled.
    ///
    /// # Errors
    /// The host's.
    pub fn fill(self, segment: &Segment) -> Result<u32, Errno> {
        match self {
            Source::Getrandom => sys::getrandom(segment),
        }
    }
}

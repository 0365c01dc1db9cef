//! `outboard-blk create`: makes a raw image.
//!
//! In: a path, a size, and how much room is taken at once. Out: the image, whole and durable, and what became of it: the
//! room it has and in how many pieces. It is filled as a [`draft`] that has no name, and gets its name as the last step:
//! whatever ends this before, a full disk, a signal, the power, leaves no half image and no old one damaged.
//! Refuses: what exists, unless told to replace it; an image that somebody uses, even then; sizes that are no disk's;
//! a file system that cannot do what is asked.

mod draft;
mod fill;
mod fragments;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backends::daemon::{Failure, outlive_full_files};
use rustix::fs::fstat;
use serde_json::json;
use thiserror::Error;

use crate::graph::options::{in_units, size};
use crate::storage::lock::Holder;
use crate::tool::say;
use draft::Draft;
use fill::Stop;

/// What `--help` says first.
pub const ABOUT: &str = "\
Make a raw image for --image. It appears under its name only when it is whole and durable: whatever ends this before that \
leaves nothing behind. Only its owner may read and write it.";
/// And last.
pub const EXAMPLES: &str = "\
Examples:
  outboard-blk create /srv/vm1.img --size 10G
  outboard-blk create /srv/vm2.img --size 10G --preallocation falloc

Preallocation:
  off      takes room as the guest writes; a full disk shows then
  falloc   takes all room now; the first write to each part costs a little more
  full     takes all room now and writes zeros to it: the guest is as fast as it
           gets from the start, and this takes as long as the disk needs

Exit codes:
  0  the image is there
  1  failure, as a full disk, or ended by a signal; nothing was left behind
  2  bad option, or the image is there already
  3  this file system cannot
  4  the image to be replaced is in use";

/// Smallest disk, and what sizes are multiples of: a sector (virtio 1.3 §5.2.5).
const SECTOR_BYTES: u64 = 512;
/// Largest file of any file system (loff_t), in sectors.
const MAX_BYTES: u64 = i64::MAX.unsigned_abs() / SECTOR_BYTES * SECTOR_BYTES;

/// What the image is to be.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The image
    path: PathBuf,

    /// Bytes of the disk, as 512M, 10G or 2T
    #[arg(long, value_name = "SIZE", value_parser = disk_size)]
    size: u64,

    /// Room that is taken at once
    #[arg(long, value_name = "WAY", default_value = "off", value_enum)]
    preallocation: Preallocation,

    /// Replace what is there, once the new image is whole, unless it is in use
    #[arg(long)]
    force: bool,

    /// Say what became of it as JSON
    #[arg(long)]
    json: bool,
}

/// How much room is taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Preallocation {
    /// None: it is taken as the guest writes
    Off,
    /// All, not written
    Falloc,
    /// All, written with zeros
    Full,
}

impl Preallocation {
    fn name(self) -> &'static str {
        match self {
            Preallocation::Off => "off",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        }
    }
}

/// Why there is no image.
#[derive(Debug, Error)]
#[error("create {}: {problem}", path.display())]
pub struct CreateError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, Error)]
enum Problem {
    #[error("it is there already; give another path, or --force to replace it")]
    Exists,
    #[error("this is {0}, which is not replaced; give the path of a file")]
    Kind(&'static str),
    #[error("{0} uses what is there; end that one, or give another path")]
    InUse(Holder),
    #[error("there is no such directory; make it, or correct the path")]
    NoDirectory,
    #[error("cannot make it: {0}; use a directory that this user may write to")]
    Make(io::Error),
    #[error("--size {}: no room for so much is left here; free some, or give a smaller size", in_units(.0))]
    Full(u64),
    #[error("--size {}: more than a file may have here (file system, quota or ulimit -f); give a smaller size", in_units(.0))]
    TooLong(u64),
    #[error("--preallocation falloc: this file system cannot keep room; give --preallocation full or off")]
    CannotKeep,
    #[error("a signal asked to end; nothing is left behind")]
    Signal,
    #[error("cannot write it: {0}; look at the disk")]
    Write(io::Error),
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Failure {
        match error.problem {
            Problem::Exists | Problem::Kind(_) | Problem::NoDirectory => Failure::option(error),
            Problem::CannotKeep => Failure { message: error.to_string(), code: 3 },
            Problem::InUse(_) => Failure::in_use(error),
            _ => Failure::host(error),
        }
    }
}

/// What became of an image.
#[derive(Debug)]
struct Made<'a> {
    options: &'a Options,
    /// Room it has.
    allocated_bytes: u64,
    /// Pieces of its room on the device, where that can be told.
    fragments: Option<u64>,
    took: Duration,
}

impl Options {
    /// Makes the image and says so.
    ///
    /// # Errors
    /// What to tell the user; then there is no image.
    pub fn run(&self) -> Result<(), Failure> {
        outlive_full_files()?;
        let stop = Stop::on_signals().map_err(Failure::host)?;
        let made = self.make(&stop);
        let made = made.map_err(|problem| CreateError { path: self.path.clone(), problem })?;
        if self.json { say(made.to_json()) } else { say(made) }
    }

    fn make(&self, stop: &Stop) -> Result<Made<'_>, Problem> {
        let began = Instant::now();
        let draft = Draft::begin(&self.path, self.force)?;
        fill::fill(draft.file(), self.size, self.preallocation, stop)?;
        draft.file().sync_all().map_err(|cause| self.failed(cause))?;
        let stat = fstat(draft.file()).map_err(|errno| Problem::Write(errno.into()))?;
        let allocated_bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(SECTOR_BYTES);
        let fragments = fragments::count(draft.file());
        stop.check()?;
        draft.publish()?;
        Ok(Made { options: self, allocated_bytes, fragments, took: began.elapsed() })
    }

    fn failed(&self, cause: io::Error) -> Problem {
        fill::problem(cause, self.size)
    }
}

impl Made<'_> {
    fn to_json(&self) -> serde_json::Value {
        json!({
            "path": self.options.path.to_string_lossy(),
            "size_bytes": self.options.size,
            "preallocation": self.options.preallocation.name(),
            "allocated_bytes": self.allocated_bytes,
            "fragments": self.fragments,
            "seconds": self.took.as_secs_f64(),
        })
    }
}

impl fmt::Display for Made<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { path, size, preallocation, .. } = self.options;
        write!(f, "{}: {}, preallocation {}", path.display(), in_units(size), preallocation.name())?;
        if *preallocation == Preallocation::Off {
            return Ok(());
        }
        match self.fragments {
            Some(1) => f.write_str(", in one fragment"),
            Some(count) => write!(f, ", in {count} fragments"),
            None => f.write_str(", in an unknown number of fragments"),
        }
    }
}

pub(crate) fn disk_size(text: &str) -> Result<u64, String> {
    match size(text) {
        None => Err("it is no size; give bytes, also as in 512M, 10G or 2T".to_owned()),
        Some(bytes)
            if !(SECTOR_BYTES..=MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(SECTOR_BYTES) =>
        {
            Err(format!(
                "it is no size of a disk; give a multiple of {SECTOR_BYTES} from {SECTOR_BYTES} to {MAX_BYTES}"
            ))
        }
        Some(bytes) => Ok(bytes),
    }
}

/// The directory that a path is in.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

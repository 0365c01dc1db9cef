//! A raw image file or a block device as storage.
//!
//! In: the path and how to open it. Out: an image that is opened and locked once, exclusively or shared with other
//! readers if it is read-only, and in each worker a [`File`] of it. The lock belongs to the open file description, which
//! the keeper holds: it stays while workers come and go, and after all of them until the kernel has finished their last
//! I/O. With `direct` the page cache is passed by; what the guest does not align as the host wants it goes through the
//! page cache instead, which the kernel keeps coherent.
//! Promises: once the host failed to make writes durable, every later sync fails too, also in the workers that follow:
//! the kernel reports lost writes once, and a guest that tries again must not be told that all is well.
//! Refuses, each with one line for the user: what is no file or block device, is empty or no multiple of the
//! block size, may not be opened so, cannot do direct I/O in such blocks, or is in use by somebody else.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use backends::daemon::Failure;
use backends::engine::Op;
use backends::kept::Kept;
use backends::log::{self, Class};
use backends::opened::Opened;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags, fstat, seek, statx};
use rustix::io::Errno;
use thiserror::Error;

use crate::lock::{LockError, Ways};
use crate::storage::{Host, Job, Owner, Step, Storage};

/// Names of what is opened: by way of the page cache, and past it.
const CACHED: &str = "blk.image";
const DIRECT: &str = "blk.direct";
/// Name of an eventfd that is raised once the host has lost writes to the image.
const LOST: &str = "blk.lost";
/// How to open an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The file or block device.
    pub path: PathBuf,
    /// Only read it.
    pub read_only: bool,
    /// Pass the page cache by.
    pub direct: bool,
    /// Bytes of a logical block.
    pub block_bytes: u32,
}

/// Why an image is not served.
#[derive(Debug, Error)]
#[error("--image {}: {problem}", path.display())]
pub struct ImageError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, Error)]
enum Problem {
    #[error("there is no such file; create it, for example by truncate -s 10G")]
    Missing,
    #[error("this is {0}; give a raw image file or a block device")]
    Kind(&'static str),
    #[error("cannot open it for writing: {0}; let this user write to it, or add --read-only")]
    NotWritable(io::Error),
    #[error("cannot open it: {0}; let this user read it")]
    Open(io::Error),
    #[error("it is empty; give it the size of the disk, for example by truncate -s 10G")]
    Empty,
    #[error(
        "its {bytes} bytes are no multiple of --block-size {block}; enlarge it by truncate -s %{block}, or use another block size"
    )]
    Size { bytes: u64, block: u32 },
    #[error("its file system does not take --direct: {0}; leave --direct out")]
    NotDirect(io::Error),
    #[error("it takes --direct in blocks of {0} bytes only; add --block-size {0}, or leave --direct out")]
    DirectBlocks(u32),
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl Problem {
    fn of(self, image: &Image) -> ImageError {
        ImageError { path: image.path.clone(), problem: self }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Failure {
        match error.problem {
            Problem::Lock(LockError::InUse(_)) => Failure::in_use(error),
            Problem::Open(_) | Problem::NotWritable(_) | Problem::Lock(_) => Failure::host(error),
            _ => Failure::option(error),
        }
    }
}

/// An open image.
#[derive(Debug)]
pub struct File {
    cached: OwnedFd,
    /// The same without the page cache.
    direct: Option<OwnedFd>,
    size_bytes: u64,
    block_bytes: u32,
    read_only: bool,
    /// The host has lost writes.
    sync_failed: AtomicBool,
    /// Tells the workers after this one so.
    lost: OwnedFd,
}

impl File {
    /// Opens and locks an image. What a keeper before had open, with its lock, stays open if it is the same file opened
    /// in the same way.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn prepare(image: &Image, opened: &mut Opened) -> Result<(), ImageError> {
        let mut prepare = || {
            let before = Ways { cached: opened.before(CACHED), direct: opened.before(DIRECT) };
            let now = open_both(image)?;
            let lost =
                opened.before(LOST).filter(|_| before.cached.as_ref().is_some_and(|fd| now.lead_to(fd)));
            let lost = lost.map_or_else(|| eventfd(0, EventfdFlags::CLOEXEC), Ok);
            opened.insert(LOST, lost.map_err(|errno| Problem::Open(errno.into()))?);
            let ways = before.go_on(now);
            ways.lock(image.read_only)?;
            ways.cached.into_iter().for_each(|fd| opened.insert(CACHED, fd));
            ways.direct.into_iter().for_each(|fd| opened.insert(DIRECT, fd));
            Ok(())
        };
        prepare().map_err(|problem: Problem| problem.of(image))
    }

    /// Whether an image could be served if nobody else used it.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn check(image: &Image) -> Result<(), ImageError> {
        open_both(image).map(drop).map_err(|problem| problem.of(image))
    }

    /// The image that was prepared.
    ///
    /// # Errors
    /// [`ImageError`]: it was not, or has changed since then.
    pub fn open(image: &Image, kept: &Kept) -> Result<File, ImageError> {
        let open = || {
            let cached = kept.opened(CACHED).map_err(Problem::Open)?;
            let lost = kept.opened(LOST).map_err(Problem::Open)?;
            Ok(File {
                size_bytes: size(image, &cached)?,
                cached,
                direct: kept.take(DIRECT),
                block_bytes: image.block_bytes,
                read_only: image.read_only,
                sync_failed: AtomicBool::new(is_raised(&lost)),
                lost,
            })
        };
        open().map_err(|problem: Problem| problem.of(image))
    }

    fn submit<O: Owner>(&self, job: Job<O>, host: &mut impl Host<O>) -> Step<O> {
        host.submit(self.way(&job), job);
        Step::UnderWay
    }

    /// The descriptor to use: both show the same bytes.
    fn way<O: Owner>(&self, job: &Job<O>) -> RawFd {
        let direct = self.direct.as_ref().filter(|_| !job.on_detour());
        direct.unwrap_or(&self.cached).as_raw_fd()
    }

    /// How a sync went, in the light of those before it: the kernel tells only one caller of a loss.
    fn settle_sync(&self, outcome: Result<(), Errno>) -> Result<(), Errno> {
        match outcome {
            Ok(()) if self.sync_failed.load(Ordering::Relaxed) => Err(Errno::IO),
            Ok(()) => Ok(()),
            Err(errno) => {
                if !self.sync_failed.swap(true, Ordering::Relaxed) {
                    let _ = rustix::io::write(&self.lost, &1u64.to_ne_bytes());
                    log::line!(error, Class::WritesLost.once(), %errno, "The host lost writes; flushes fail until this daemon is stopped and started");
                }
                Err(errno)
            }
        }
    }
}

impl Storage for File {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn start<O: Owner>(&self, job: Job<O>, host: &mut impl Host<O>) -> Step<O> {
        if job.op() == Op::Sync && self.sync_failed.load(Ordering::Relaxed) {
            return job.end(Err(Errno::IO));
        }
        self.submit(job, host)
    }

    fn proceed<O: Owner>(
        &self,
        mut job: Job<O>,
        answer: Result<u32, Errno>,
        host: &mut impl Host<O>,
    ) -> Step<O> {
        // Direct I/O says so when an address, an offset or a length is not aligned as it wants.
        if answer == Err(Errno::INVAL) && self.direct.is_some() && !job.on_detour() {
            job.take_detour();
            return self.submit(job, host);
        }
        match job.after(answer) {
            Ok(job) => self.submit(job, host),
            Err(Step::Done(owner, Op::Sync, outcome)) => {
                Step::Done(owner, Op::Sync, self.settle_sync(outcome))
            }
            Err(done) => done,
        }
    }
}

/// Whether an eventfd was raised; it stays so.
fn is_raised(fd: &OwnedFd) -> bool {
    let ready = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec::default()));
    ready.is_ok_and(|count| count > 0)
}

/// An image that can be served, and the way past the page cache if that is asked for.
fn open_both(image: &Image) -> Result<Ways, Problem> {
    let cached = open(image)?;
    size(image, &cached)?;
    let direct = image.direct.then(|| open_direct(image, &cached)).transpose()?;
    Ok(Ways { cached: Some(cached), direct })
}

fn open(image: &Image) -> Result<OwnedFd, Problem> {
    // Non-blocking: opening a pipe that nobody writes to must not hang.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = OpenOptions::new().read(true).write(!image.read_only).custom_flags(flags).open(&image.path);
    opened.map(OwnedFd::from).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Problem::Missing,
        io::ErrorKind::IsADirectory => Problem::Kind("a directory"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !image.read_only => {
            Problem::NotWritable(error)
        }
        _ => Problem::Open(error),
    })
}

/// Bytes of the disk.
fn size(image: &Image, fd: &OwnedFd) -> Result<u64, Problem> {
    let stat = fstat(fd).map_err(|errno| Problem::Open(errno.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => {}
        FileType::Directory => return Err(Problem::Kind("a directory")),
        _ => return Err(Problem::Kind("neither a file nor a block device")),
    }
    // A block device has no size in its inode; its end is where seeking ends.
    let bytes = seek(fd, SeekFrom::End(0)).map_err(|errno| Problem::Open(errno.into()))?;
    let block = image.block_bytes;
    match bytes {
        0 => Err(Problem::Empty),
        _ if !bytes.is_multiple_of(u64::from(block)) => Err(Problem::Size { bytes, block }),
        _ => Ok(bytes),
    }
}

/// Opens what `cached` has open once more, whatever its path names by now.
fn open_direct(image: &Image, cached: &OwnedFd) -> Result<OwnedFd, Problem> {
    let again = format!("/proc/self/fd/{}", cached.as_raw_fd());
    let access = if image.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let fd = rustix::fs::open(again, access | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Problem::NotDirect(errno.into()))?;
    match direct_alignment(&fd) {
        Some(align) if !image.block_bytes.is_multiple_of(align) => Err(Problem::DirectBlocks(align)),
        _ => Ok(fd),
    }
}

/// What offsets and lengths of direct I/O must be multiples of, if this kernel tells (STATX_DIOALIGN).
fn direct_alignment(fd: &OwnedFd) -> Option<u32> {
    let stat = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    Some(stat.stx_dio_offset_align).filter(|align| *align > 0)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;

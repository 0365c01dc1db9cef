//! A raw image file or a block device: opened once, locked, and found again by each worker.
//!
//! In: the path and how to open it. Out: descriptors by name for the workers ([`Image::prepare`]), and from them in each
//! worker the [`Ways`] to the image ([`Image::find`]). It is locked, exclusively or shared with other readers if it is
//! read-only. The lock belongs to the open file description, which the keeper holds: it stays while workers come and go,
//! and after all of them until the kernel has finished their last I/O.
//! Refuses, each with one line for the user: what is no file or block device, is empty or no multiple of the
//! block size, may not be opened so, cannot do direct I/O in such blocks, or is in use by somebody else.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backends::daemon::Failure;
use backends::kept::Kept;
use backends::log::{self, Class};
use backends::memory::words::Words;
use backends::opened::Opened;
use rustix::fs::{
    AtFlags, FileType, MemfdFlags, Mode, OFlags, SeekFrom, StatxFlags, fstat, memfd_create, seek, statx,
};
use rustix::io::Errno;
use thiserror::Error;

use super::file::{File, Shape};
use super::lock::{LockError, Ways};
use crate::graph::Volume;
use crate::graph::options::Bad;
use crate::graph::registry::name;
use crate::uevents;

/// What is opened for a volume, by [`name`]: the image by way of the page cache, and past it.
pub(super) const CACHED: &str = "image";
const DIRECT: &str = "direct";
/// A flag, a file of memory that is empty until the host has lost writes to the image: keepers keep files.
pub(super) const LOST: &str = "lost";
/// A word: the bytes of the disk, as its graph has taken them. A worker that follows another finds the same disk, whatever
/// the file has become meanwhile.
const SIZE: &str = "size";
/// What the host's files are written in.
const PAGE_BYTES: u32 = 4096;

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
    #[error("there is no such file; make it by `outboard-blk create PATH --size 10G`")]
    Missing,
    #[error("this is {0}; give a raw image file or a block device")]
    Kind(&'static str),
    #[error("cannot open it for writing: {0}; let this user write to it, or make it read-only")]
    NotWritable(io::Error),
    #[error("cannot open it: {0}; let this user read it")]
    Open(io::Error),
    #[error("it is empty; give it the size of the disk, for example by truncate -s 10G")]
    Empty,
    #[error(
        "its {bytes} bytes are no multiple of block-size {block}; enlarge it by truncate -s %{block}, or use another block size"
    )]
    Size { bytes: u64, block: u32 },
    #[error("its file system does not take direct I/O: {0}; leave direct out")]
    NotDirect(io::Error),
    #[error("it takes direct I/O in blocks of {0} bytes only; set block-size to {0}, or leave direct out")]
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

impl From<ImageError> for Bad {
    fn from(error: ImageError) -> Bad {
        let bad = Bad::option("path", &error.problem);
        bad.with_code(Failure::from(error).code)
    }
}

/// What a worker finds of an image.
#[derive(Debug)]
pub struct Found {
    /// By way of the page cache.
    pub cached: OwnedFd,
    /// The same bytes without it.
    pub direct: Option<OwnedFd>,
    /// One word: bytes, as the graph of the worker before took them, or as they were found.
    pub size_bytes: Words,
    /// Tells workers that the host has lost writes.
    pub lost: OwnedFd,
}

impl Image {
    /// Opens and locks an image for `volume`. What a keeper before had open, with its lock, stays open if it is the same
    /// file opened in the same way.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn prepare(&self, volume: &str, opened: &mut Opened) -> Result<(), ImageError> {
        let mut prepare = || {
            let before = Ways {
                cached: opened.before(&name(volume, CACHED)),
                direct: opened.before(&name(volume, DIRECT)),
            };
            let now = open_both(self)?;
            let is_same = before.cached.as_ref().is_some_and(|fd| now.lead_to(fd));
            let size = opened.before(&name(volume, SIZE)).filter(|_| is_same);
            let size = size.map_or_else(|| self.told_size(&now), Ok)?;
            opened.insert(&name(volume, SIZE), size);
            let lost = opened.before(&name(volume, LOST)).filter(|_| is_same);
            let lost = lost.map_or_else(flag, Ok);
            opened.insert(&name(volume, LOST), lost.map_err(|errno| Problem::Open(errno.into()))?);
            let ways = before.go_on(now);
            ways.lock(self.read_only)?;
            if ways.cached.as_ref().is_some_and(is_block_device) {
                hear_of_growth(opened);
            }
            ways.cached.into_iter().for_each(|fd| opened.insert(&name(volume, CACHED), fd));
            ways.direct.into_iter().for_each(|fd| opened.insert(&name(volume, DIRECT), fd));
            Ok(())
        };
        prepare().map_err(|problem: Problem| problem.of(self))
    }

    /// Opens an image for `volume` to be looked at: it is not locked, somebody may be serving it.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn look(&self, volume: &str, opened: &mut Opened) -> Result<(), ImageError> {
        let mut look = || {
            let ways = open_both(&Image { read_only: true, ..self.clone() })?;
            let lost = flag().map_err(|errno| Problem::Open(errno.into()))?;
            opened.insert(&name(volume, LOST), lost);
            opened.insert(&name(volume, SIZE), self.told_size(&ways)?);
            ways.cached.into_iter().for_each(|fd| opened.insert(&name(volume, CACHED), fd));
            ways.direct.into_iter().for_each(|fd| opened.insert(&name(volume, DIRECT), fd));
            Ok(())
        };
        look().map_err(|problem: Problem| problem.of(self))
    }

    /// Whether the image could be served if nobody else used it.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn check(&self) -> Result<(), ImageError> {
        open_both(self).map(drop).map_err(|problem| problem.of(self))
    }

    /// The image that was prepared for `volume`.
    ///
    /// # Errors
    /// [`ImageError`]: it was not, or has changed since then.
    pub fn find(&self, volume: &str, kept: &Kept) -> Result<Found, ImageError> {
        let find = || {
            let size = kept.opened(&name(volume, SIZE)).map_err(Problem::Open)?;
            let size = Words::of(size, 1).ok_or_else(|| Problem::Open(io::ErrorKind::InvalidData.into()))?;
            Ok(Found {
                size_bytes: size,
                cached: kept.opened(&name(volume, CACHED)).map_err(Problem::Open)?,
                direct: kept.take(&name(volume, DIRECT)),
                lost: kept.opened(&name(volume, LOST)).map_err(Problem::Open)?,
            })
        };
        find().map_err(|problem: Problem| problem.of(self))
    }

    /// How large the image is now, for workers.
    fn told_size(&self, ways: &Ways) -> Result<OwnedFd, Problem> {
        let bytes = ways.cached.as_ref().map_or(Ok(0), length)?;
        let (words, fd) = Words::create(SIZE, 1).map_err(Problem::Open)?;
        words.iter().for_each(|word| word.store(whole_blocks(bytes, self.block_bytes), Ordering::Relaxed));
        Ok(fd)
    }

    /// How it is to be served.
    pub fn shape(&self, found: &Found) -> Shape {
        Shape {
            block_bytes: self.block_bytes,
            physical_bytes: found.physical_bytes(self.block_bytes),
            read_only: self.read_only,
            durable: true,
            overwrites: false,
            keeps_room: false,
            lifetime: None,
        }
    }

    /// What serves it so.
    pub fn volume(&self, found: Found) -> Arc<dyn Volume> {
        let shape = self.shape(&found);
        Arc::new(File::new(found, shape))
    }
}

impl Found {
    /// What the host writes without reading first, as far as it tells.
    fn physical_bytes(&self, block_bytes: u32) -> u32 {
        let told = fstat(&self.cached).ok().and_then(|stat| u32::try_from(stat.st_blksize).ok());
        let told = told.filter(|bytes| bytes.is_power_of_two()).unwrap_or(PAGE_BYTES);
        told.clamp(block_bytes, PAGE_BYTES.max(block_bytes))
    }
}

fn is_block_device(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
}

/// A flag that nobody has raised.
pub(super) fn flag() -> Result<OwnedFd, Errno> {
    memfd_create(LOST, MemfdFlags::CLOEXEC)
}

/// Has the kernel tell when a block device grows, where this process may listen to it.
fn hear_of_growth(opened: &mut Opened) {
    if opened.get(uevents::NAME).is_some() {
        return;
    }
    match opened.before(uevents::NAME).map_or_else(uevents::listen, Ok) {
        Ok(socket) => opened.insert(uevents::NAME, socket),
        Err(errno) => {
            log::line!(
                warn,
                Class::HostIo,
                %errno,
                "Nobody will tell when the block device grows: this process may not open a netlink socket; use `outboard-blk grow`"
            );
        }
    }
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
    let (bytes, block) = (length(fd)?, image.block_bytes);
    match bytes {
        0 => Err(Problem::Empty),
        _ if whole_blocks(bytes, block) != bytes => Err(Problem::Size { bytes, block }),
        _ => Ok(bytes),
    }
}

/// What the guest may use of an image that has changed since it was opened.
pub fn whole_blocks(bytes: u64, block: u32) -> u64 {
    bytes.saturating_sub(bytes.checked_rem(block.into()).unwrap_or(0))
}

fn length(fd: &OwnedFd) -> Result<u64, Problem> {
    let stat = fstat(fd).map_err(|errno| Problem::Open(errno.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => {}
        FileType::Directory => return Err(Problem::Kind("a directory")),
        _ => return Err(Problem::Kind("neither a file nor a block device")),
    }
    // A block device has no size in its inode; its end is where seeking ends.
    seek(fd, SeekFrom::End(0)).map_err(|errno| Problem::Open(errno.into()))
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

//! `storage/file`: a raw image file or a block device.
//!
//! In: calls, of which offsets are the file's. Out: operations on its descriptors. With `direct` the page cache is passed
//! by; what the guest does not align as the host wants it goes through the page cache instead, which the kernel keeps
//! coherent. What a file system cannot do for a range (make zeros, give room back) is done by writing zeros, or, where
//! nothing was promised, not at all.
//! Promises: once the host failed to make writes durable, every later flush fails too, also in the workers that follow:
//! the kernel reports lost writes once, and a guest that tries again must not be told that all is well.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backends::engine::{self, Room};
use backends::log::{self, Class};
use backends::memory::own;
use backends::sys;
use rustix::fs::{FallocateFlags, FileType, SeekFrom, fallocate, fstat, seek};
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::image::{CACHED, Found, Image, whole_blocks};
use super::lifetime;
use super::transfer::{Next, after};
use crate::call::{Call, Transfer};
use crate::graph::options::{Bad, Preset, Setting, Type, Values};
use crate::graph::registry::{Kind, Purpose};
use crate::graph::{Host, Layer, Outcome, Sees, Step, Volume};
use crate::op::{Bounds, Extent, ExtentKind, Keeps, Lifetime, Op};

/// What can be set.
const OPTIONS: &[Setting] = &[
    Setting {
        name: "path",
        kind: Type::Path,
        preset: Preset::Required,
        about: "A raw image file or a block device; nobody else may use it meanwhile",
    },
    Setting {
        name: "read-only",
        kind: Type::Bool,
        preset: Preset::Is("off"),
        about: "Refuse writes, and share the image with others that only read it",
    },
    Setting {
        name: "direct",
        kind: Type::Bool,
        preset: Preset::Is("off"),
        about: "Pass the host's page cache by (O_DIRECT)",
    },
    Setting {
        name: "preallocation",
        kind: Type::Enum(&["off", "falloc"]),
        preset: Preset::Is("off"),
        about: "With falloc, the room that it needs at the start is reserved, and none is given back",
    },
    Setting {
        name: "secure-erase",
        kind: Type::Enum(&["off", "overwrite"]),
        preset: Preset::Is("off"),
        about: "With overwrite, say so if writing over data erases them: neither the medium nor a layer keeps copies",
    },
    BLOCK_SIZE,
];

/// Of all leaves.
pub(super) const BLOCK_SIZE: Setting = Setting {
    name: "block-size",
    kind: Type::Enum(&["512", "4096"]),
    preset: Preset::Is("512"),
    about: "Bytes of a logical block",
};

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "storage/file",
    about: "A raw image file or a block device",
    subvolumes: 0..=0,
    options: OPTIONS,
    prepare: Some(|values, openings| {
        let image = image(values);
        match openings.purpose {
            Purpose::Serve => image.prepare(openings.volume, openings.opened)?,
            Purpose::Look => image.look(openings.volume, openings.opened)?,
        }
        let Some(cached) = openings.get(CACHED) else { return Ok(()) };
        if keeps_room(values) && image.read_only {
            return Err(Bad::option(
                "preallocation",
                "a disk that only reads takes no room; leave it or read-only out",
            ));
        }
        if keeps_room(values) && openings.purpose == Purpose::Serve {
            reserve(cached.as_fd())?;
        }
        lifetime::open(cached, openings);
        Ok(())
    }),
    make: |made| {
        let image = image(made.values);
        let found = image.find(made.volume, made.kept)?;
        let shape = Shape {
            overwrites: made.values.word("secure-erase") == Some("overwrite"),
            keeps_room: keeps_room(made.values),
            lifetime: lifetime::read(made),
            ..image.shape(&found)
        };
        Ok(Arc::new(File::new(found, shape)))
    },
};

fn keeps_room(values: &Values) -> bool {
    values.word("preallocation") == Some("falloc")
}

/// Has all of a file reserved, as posix_fallocate(3) does; what is in it stays.
fn reserve(file: BorrowedFd<'_>) -> Result<(), Bad> {
    let refused =
        |errno: Errno, cure| Bad::option("preallocation", format_args!("{errno}; {cure}")).with_code(1);
    let stat = fstat(file).map_err(|errno| refused(errno, "give a file of this host"))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return Ok(());
    }
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let reserved = fallocate(file, FallocateFlags::empty(), 0, bytes);
    reserved.map_err(|errno| match errno {
        Errno::NOSPC | Errno::DQUOT => refused(errno, "make room, or leave preallocation out"),
        _ => refused(errno, "put it on a file system that can, or leave preallocation out"),
    })
}

fn image(values: &Values) -> Image {
    Image {
        path: values.path("path").map(PathBuf::from).unwrap_or_default(),
        read_only: values.bool("read-only"),
        direct: values.bool("direct"),
        block_bytes: block_bytes(values),
    }
}

/// What [`BLOCK_SIZE`] says.
pub(super) fn block_bytes(values: &Values) -> u32 {
    values.word("block-size").and_then(|word| word.parse().ok()).unwrap_or(512)
}

/// Zeros of one write, where a range is filled by writing.
const FILL_BYTES: u64 = 1 << 20;
/// Most bytes of one range: what the host may be busy with until it looks up again.
const MAX_RANGE_BYTES: u64 = 1 << 30;

/// An open file, as all workers share it.
#[derive(Debug)]
pub struct File {
    found: Found,
    shape: Shape,
    size_bytes: AtomicU64,
    /// The host has lost writes.
    lost: AtomicBool,
    /// Its file system has said that it cannot make zeros, or holes.
    no_zeros: AtomicBool,
    no_holes: AtomicBool,
}

/// How a file is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Bytes that the host writes without reading first.
    pub physical_bytes: u32,
    /// Nothing may be written.
    pub read_only: bool,
    /// What is written stays when the host ends.
    pub durable: bool,
    /// Writing over something erases it: the medium keeps no older copies, nor does what is below it.
    pub overwrites: bool,
    /// Its room was reserved and is never given back.
    pub keeps_room: bool,
    /// How worn the device was when the worker began.
    pub lifetime: Option<Lifetime>,
}

impl File {
    /// A file that was found open.
    pub fn new(found: Found, shape: Shape) -> Arc<File> {
        let bytes = found.size_bytes.first().map_or(0, |word| word.load(Ordering::Relaxed));
        let size_bytes = whole_blocks(bytes, shape.block_bytes).into();
        let lost = is_raised(&found.lost).into();
        let [no_zeros, no_holes] = [AtomicBool::new(false), AtomicBool::new(false)];
        Arc::new(File { found, shape, size_bytes, lost, no_zeros, no_holes })
    }

    /// The file itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.found.cached.as_fd()
    }

    /// The descriptor to use: both show the same bytes.
    fn way(&self, transfer: Transfer) -> RawFd {
        let direct = self.found.direct.as_ref().filter(|_| !transfer.detour);
        direct.unwrap_or(&self.found.cached).as_raw_fd()
    }

    /// How something that was to make writes durable went, in the light of those before it: the kernel tells only one
    /// caller of a loss.
    fn settle(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Ok(()) if self.lost.load(Ordering::Relaxed) => Err(Errno::IO),
            // It was given up; whoever serves the request next flushes again.
            Ok(()) | Err(Errno::CANCELED) => outcome,
            Err(errno) => {
                if !self.lost.swap(true, Ordering::Relaxed) {
                    let _ = rustix::io::write(&self.found.lost, &1u64.to_ne_bytes());
                    log::line!(error, Class::WritesLost.once(), %errno, "The host lost writes; flushes fail until this daemon is stopped and started");
                }
                outcome
            }
        }
    }

    /// What the file system is to do about a range; `None`: zeros are written.
    fn room(&self, op: Op) -> Option<Room> {
        let can = |cannot: &AtomicBool| !cannot.load(Ordering::Relaxed);
        match op {
            Op::Discard { .. } => Some(Room::Hole),
            Op::Zeroes { unmap: true, .. } if can(&self.no_holes) => Some(Room::Hole),
            Op::Zeroes { .. } if can(&self.no_zeros) => Some(Room::Zeros),
            _ => None,
        }
    }

    /// The file system has refused to.
    pub(super) fn cannot(&self, room: Room) {
        match room {
            Room::Hole => self.no_holes.store(true, Ordering::Relaxed),
            Room::Zeros => self.no_zeros.store(true, Ordering::Relaxed),
            Room::Kept => {}
        }
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, Errno> {
        let until = |from| match seek(self.fd(), from) {
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => Ok(u64::MAX),
            other => other,
        };
        let (kind, end) = match until(SeekFrom::Data(offset)) {
            // It has no holes to tell of.
            Err(Errno::INVAL) => (ExtentKind::Data, u64::MAX),
            Ok(data) if data > offset => (ExtentKind::Hole, data),
            Ok(_) => (ExtentKind::Data, until(SeekFrom::Hole(offset))?),
            Err(errno) => return Err(errno),
        };
        Ok(Extent { kind, bytes: end.saturating_sub(offset).min(bytes) })
    }
}

impl Volume for Arc<File> {
    fn keeps(&self, _: &[Keeps]) -> Result<Keeps, String> {
        let Shape { block_bytes, physical_bytes, read_only, durable, overwrites, keeps_room, lifetime } =
            self.shape;
        let range = Bounds { max_bytes: MAX_RANGE_BYTES, align_bytes: physical_bytes };
        let ranges = Some(range).filter(|_| !read_only);
        Ok(Keeps {
            physical_bytes,
            read_only,
            flush: durable,
            fua: durable,
            discard: ranges.filter(|_| !keeps_room),
            zeroes: ranges,
            unmap: !read_only && !keeps_room,
            secure_erase: ranges.filter(|_| overwrites),
            extents: true,
            lifetime,
            ..Keeps::plain(self.size_bytes.load(Ordering::Relaxed), block_bytes)
        })
    }

    fn sees(&self) -> Sees {
        Sees::DOWN
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(FileLayer(Arc::clone(self))))
    }

    fn look_again(&self) {
        let Ok(bytes) = seek(self.fd(), SeekFrom::End(0)) else { return };
        let bytes = whole_blocks(bytes, self.shape.block_bytes);
        let before = self.size_bytes.fetch_max(bytes, Ordering::Relaxed);
        if bytes < before {
            log::line!(
                warn,
                Class::HostIo,
                bytes,
                before,
                "The image is shorter than it was; the disk keeps its size, and what is missing fails"
            );
        }
    }

    fn took(&self) {
        let bytes = self.size_bytes.load(Ordering::Relaxed);
        self.found.size_bytes.iter().for_each(|word| word.store(bytes, Ordering::Relaxed));
    }

    fn make_durable(&self) -> Outcome {
        if self.shape.read_only || !self.shape.durable {
            return Ok(());
        }
        self.settle(sys::fdatasync(self.found.cached.as_raw_fd()).map(drop))
    }

    /// The keeper has it open as long as it lives; its lock it gives back here.
    fn let_go(&self) {
        for way in [Some(&self.found.cached), self.found.direct.as_ref()].into_iter().flatten() {
            let _ = sys::lock_file(way.as_fd(), sys::Lock::Open, 0, None);
        }
    }

    fn state(&self) -> Map<String, Value> {
        let members: [(&str, Value); 3] = [
            ("size_bytes", self.size_bytes.load(Ordering::Relaxed).into()),
            ("direct", self.found.direct.is_some().into()),
            ("writes_lost", self.lost.load(Ordering::Relaxed).into()),
        ];
        Map::from_iter(members.map(|(name, value)| (name.to_owned(), value)))
    }
}

struct FileLayer(Arc<File>);

impl Layer for FileLayer {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        *call.transfer() = Transfer::default();
        match call.op() {
            Op::Flush if self.0.lost.load(Ordering::Relaxed) => Step::Up(call, Err(Errno::IO)),
            Op::Extents { offset, bytes } => {
                let outcome = self.0.extent(offset, bytes).map(|extent| call.set_extent(extent));
                Step::Up(call, outcome)
            }
            _ => self.issue(call, host),
        }
    }

    fn answered(&mut self, mut call: Call, answer: Result<u32, Errno>, host: &mut Host<'_>) -> Step {
        match call.op() {
            Op::Read { bytes, .. } | Op::Write { bytes, .. } => self.moved(call, bytes, answer, host),
            Op::Flush => match after(&mut call, 0, answer) {
                Next::Again => self.issue(call, host),
                Next::Over(outcome) => Step::Up(call, self.0.settle(outcome)),
            },
            Op::Discard { bytes, .. } | Op::Zeroes { bytes, .. } | Op::SecureErase { bytes, .. } => {
                self.ranged(call, bytes, answer, host)
            }
            Op::Extents { .. } => Step::Up(call, answer.map(drop)),
        }
    }
}

impl FileLayer {
    /// Begins what is left of a call.
    fn issue(&self, mut call: Call, host: &mut Host<'_>) -> Step {
        let transfer = *call.transfer();
        let op = match call.op() {
            Op::Read { offset, .. } => engine::Op::Read { offset: offset.saturating_add(transfer.done) },
            Op::Write { offset, fua, .. } => {
                let durable = fua && !transfer.again;
                engine::Op::Write { offset: offset.saturating_add(transfer.done), durable }
            }
            Op::Flush => engine::Op::Sync,
            op => return self.change(op, call, host),
        };
        host.submit(self.0.way(transfer), op, call)
    }

    /// What came of a read or a write.
    fn moved(&self, mut call: Call, bytes: u64, answer: Result<u32, Errno>, host: &mut Host<'_>) -> Step {
        // Direct I/O says so when an address, an offset or a length is not aligned as it wants.
        if answer == Err(Errno::INVAL) && self.0.found.direct.is_some() && !call.transfer().detour {
            call.transfer().detour = true;
            return self.issue(call, host);
        }
        let durable = matches!(call.op(), Op::Write { fua: true, .. });
        let no_room = |outcome: &Outcome| matches!(outcome, Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG));
        match after(&mut call, bytes, answer) {
            Next::Again => self.issue(call, host),
            // Room was missing for these bytes, or for some that were written before and are lost now: the same write, but
            // not durable, tells.
            Next::Over(outcome) if durable && no_room(&outcome) && !call.transfer().again => {
                call.transfer().again = true;
                self.issue(call, host)
            }
            Next::Over(outcome) if durable && !no_room(&outcome) => {
                let lost = call.transfer().again && outcome.is_ok();
                Step::Up(call, self.0.settle(if lost { Err(Errno::NOSPC) } else { outcome }))
            }
            Next::Over(outcome) => Step::Up(call, outcome),
        }
    }

    /// Begins what is left of a change of a range: by the file system, or by writing zeros.
    fn change(&self, op: Op, mut call: Call, host: &mut Host<'_>) -> Step {
        let Some((offset, bytes)) = op.range() else { return Step::Up(call, Err(Errno::INVAL)) };
        let fd = self.0.fd().as_raw_fd();
        call.transfer().room = self.0.room(op);
        let Transfer { room, done, .. } = *call.transfer();
        if let Some(room) = room {
            return host.submit(fd, engine::Op::Reserve { room, offset, bytes }, call);
        }
        call.set_data(own::zeros(bytes.saturating_sub(done).min(FILL_BYTES)));
        // What was there must be gone from the medium, too.
        let durable = matches!(op, Op::SecureErase { .. });
        host.submit(fd, engine::Op::Write { offset: offset.saturating_add(done), durable }, call)
    }

    /// What came of a change of a range.
    fn ranged(&self, mut call: Call, bytes: u64, answer: Result<u32, Errno>, host: &mut Host<'_>) -> Step {
        let room = call.transfer().room;
        if let (Some(room), Err(Errno::OPNOTSUPP | Errno::INVAL)) = (room, answer) {
            self.0.cannot(room);
            // Nothing was promised but that the bytes are of no use any more.
            let is_hint = matches!(call.op(), Op::Discard { .. });
            return if is_hint { Step::Up(call, Ok(())) } else { self.issue(call, host) };
        }
        let to_do = if room.is_some() { 0 } else { bytes };
        match after(&mut call, to_do, answer) {
            Next::Again => self.issue(call, host),
            Next::Over(outcome) => Step::Up(call, outcome),
        }
    }
}

/// Whether something was written to a flag; it stays so.
fn is_raised(flag: &OwnedFd) -> bool {
    fstat(flag).is_ok_and(|file| file.st_size > 0)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;

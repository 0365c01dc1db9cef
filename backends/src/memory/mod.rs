//! Guest memory: the regions a front-end shared, and the only way to touch them.
//!
//! In: regions with their file descriptors (SET_MEM_TABLE, ADD_MEM_REG). Out: a [`Memory`], never changed
//! once built (a new table makes a new one), which translates whole ranges: guest-physical ones into
//! [`Segment`]s for host I/O, front-end addresses of rings into [`Area`]s.
//! Promises: a range is translated whole or not at all (a half mapped range was CVE-2018-1059); a region lies
//! within its file, so touching it does not fault as long as the file keeps its size; an `Area` keeps its
//! mapping alive; a `Segment` is good as long as its `Memory`, which [`crate::queue::Queue`] sees to; a file that
//! is cut short afterwards ends the session and not the process (`guard`).
//! Refuses: regions that are empty, overlap, wrap, or reach past the end of their file; files that are no
//! regular memory (pipes, sockets); ranges that leave memory.
//!
//! The guest writes to all this while we read it. So what is decided upon is fetched once, by
//! [`Area::read_words`] and [`Segment::read`], which use volatile loads that the compiler cannot repeat.

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

pub mod dirty;
pub mod guard;
pub mod own;
pub mod words;

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use thiserror::Error;

use crate::proto::MemoryRegion;
use guard::Guard;

/// Most regions at a time: what CONFIGURE_MEM_SLOTS announces (the number that vhost-user front-ends expect).
pub const MAX_SLOTS: usize = 509;
const SMALL_PAGE_BYTES: u64 = 4096;
/// `f_type` of hugetlbfs (linux/magic.h).
const HUGETLBFS_MAGIC: u64 = 0x958458f6;

/// Why a region or a table is refused.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Empty, or its addresses wrap around.
    #[error("Region {0:x?} is empty or its addresses wrap")]
    Range(MemoryRegion),
    /// Two regions share an address.
    #[error("Region {0:x?} overlaps another")]
    Overlap(MemoryRegion),
    /// The file is not memory or is too short.
    #[error("Region {region:x?} is not within its file of {file_bytes} bytes")]
    File {
        /// Region.
        region: MemoryRegion,
        /// Size of the file, 0 for what is no regular file.
        file_bytes: u64,
    },
    /// A region that is not there cannot be removed.
    #[error("No region {0:x?} to remove")]
    Unknown(MemoryRegion),
    /// All slots are taken.
    #[error("More than {MAX_SLOTS} memory regions")]
    Slots,
    /// The file can be cut short, and `--require-sealed-memory` refuses that.
    #[error("Memory is not sealed against shrinking, which --require-sealed-memory asks for")]
    Unsealed,
    /// The kernel would not map it.
    #[error("Region cannot be mapped")]
    Map(#[source] std::io::Error),
}

/// The memory of one guest, as one table described it.
#[derive(Debug, Default)]
pub struct Memory {
    /// Sorted by guest address.
    regions: Vec<Arc<Region>>,
    /// The same as the data path looks at it: side by side, without a pointer to follow.
    spans: Vec<Span>,
}

/// A region's guest addresses, and where they are here.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    bytes: u64,
    host: *mut u8,
}

impl Span {
    /// `len` bytes at `offset`, which the region has.
    #[inline]
    fn segment(&self, offset: u64, len: u64) -> Option<Segment> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        Some(Segment(libc::iovec { iov_base: self.host.wrapping_add(offset).cast(), iov_len: len }))
    }
}

// SAFETY: an address of a mapping, which may be used from any thread (see `Mapping`).
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

#[derive(Debug)]
struct Region {
    table: MemoryRegion,
    mapping: Mapping,
}

impl Region {
    fn span(&self) -> Option<Span> {
        let MemoryRegion { guest_addr: start, size_bytes: bytes, .. } = self.table;
        Some(Span { start, bytes, host: self.mapping.segment(0, bytes)?.as_ptr() })
    }
}

impl Memory {
    /// Maps a whole table.
    ///
    /// # Errors
    /// Any region refused refuses the table; what was mapped is unmapped.
    pub fn map(table: Vec<(MemoryRegion, OwnedFd)>) -> Result<Memory, MemoryError> {
        table.into_iter().try_fold(Memory::default(), |memory, (region, fd)| memory.with(region, fd))
    }

    /// This memory and one more region.
    ///
    /// # Errors
    /// [`MemoryError`]; `self` is unhurt.
    pub fn with(&self, table: MemoryRegion, fd: OwnedFd) -> Result<Memory, MemoryError> {
        check_range(&table)?;
        if self.regions.len() >= MAX_SLOTS {
            return Err(MemoryError::Slots);
        }
        if self.regions.iter().any(|other| overlap(&other.table, &table)) {
            return Err(MemoryError::Overlap(table));
        }
        let mapping = Mapping::new(&table, fd)?;
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|other| other.table.guest_addr < table.guest_addr);
        regions.insert(at, Arc::new(Region { table, mapping }));
        Ok(Memory::of(regions))
    }

    fn of(regions: Vec<Arc<Region>>) -> Memory {
        let spans = regions.iter().filter_map(|region| region.span()).collect();
        Memory { regions, spans }
    }

    /// This memory less one region, named by its addresses and size.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`]
    pub fn without(&self, table: MemoryRegion) -> Result<Memory, MemoryError> {
        let same = |other: &MemoryRegion| {
            (other.guest_addr, other.size_bytes, other.user_addr)
                == (table.guest_addr, table.size_bytes, table.user_addr)
        };
        let mut regions = self.regions.clone();
        regions.retain(|region| !same(&region.table));
        if regions.len() == self.regions.len() {
            Err(MemoryError::Unknown(table))
        } else {
            Ok(Memory::of(regions))
        }
    }

    /// No region's file can be cut short.
    pub fn is_sealed(&self) -> bool {
        self.regions.iter().all(|region| region.mapping.guard.is_none())
    }

    /// A region's file was cut short, and somebody touched what was not there any more.
    pub fn is_torn(&self) -> bool {
        self.regions.iter().filter_map(|region| region.mapping.guard.as_ref()).any(Guard::is_torn)
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Guest-physical address and bytes of each region, by address.
    pub fn areas(&self) -> impl Iterator<Item = (u64, u64)> {
        self.regions.iter().map(|region| (region.table.guest_addr, region.table.size_bytes))
    }

    /// Appends the host's view of guest-physical `addr..addr+len` to `out`: one segment, or more where the
    /// range goes on in an adjacent region. `false`, and nothing appended, if any byte is outside memory.
    pub fn translate(&self, addr: u64, len: u32, out: &mut Vec<Segment>) -> bool {
        let before = out.len();
        let (mut addr, mut left) = (addr, u64::from(len));
        while left > 0 {
            let Some(segment) = self.piece(addr, left) else {
                out.truncate(before);
                return false;
            };
            out.push(segment);
            let took = segment.len() as u64;
            left = left.saturating_sub(took);
            // Within a region whose end was checked not to wrap; past it the next look-up decides.
            addr = addr.wrapping_add(took);
        }
        true
    }

    /// The host's view of a guest range that lies in one region.
    #[inline]
    pub fn translate_one(&self, addr: u64, len: u32) -> Option<Segment> {
        let (span, offset) = self.span(addr)?;
        let len = u64::from(len);
        if offset.checked_add(len)? > span.bytes {
            return None;
        }
        span.segment(offset, len)
    }

    /// The front of guest range `addr..addr+len`, up to the end of its region.
    fn piece(&self, addr: u64, len: u64) -> Option<Segment> {
        let (span, offset) = self.span(addr)?;
        let room = span.bytes.checked_sub(offset).filter(|room| *room > 0)?;
        span.segment(offset, len.min(room))
    }

    /// The last region that begins at or before an address, and how far after that it is.
    #[inline]
    fn span(&self, addr: u64) -> Option<(&Span, u64)> {
        let after = self.spans.partition_point(|span| span.start <= addr);
        let span = self.spans.get(after.wrapping_sub(1))?;
        Some((span, addr.wrapping_sub(span.start)))
    }

    /// The guest-physical address of a front-end address, if it is in memory.
    pub fn guest_addr(&self, user_addr: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.table.user_addr)?;
            (offset < region.table.size_bytes).then(|| region.table.guest_addr.checked_add(offset))?
        })
    }

    /// The ring part at front-end address `addr`: `len` bytes within one region, aligned to `align`.
    pub fn ring_area(&self, addr: u64, len: usize, align: usize) -> Option<Area> {
        let region = self.regions.iter().find(|region| {
            addr.checked_sub(region.table.user_addr).is_some_and(|offset| offset < region.table.size_bytes)
        })?;
        let offset = addr.checked_sub(region.table.user_addr)?;
        let len = u64::try_from(len).ok()?;
        // The mapping goes on to the end of the page, which may be another region's.
        if offset.checked_add(len)? > region.table.size_bytes {
            return None;
        }
        let segment = region.mapping.segment(offset, len)?;
        segment.start().is_multiple_of(align).then(|| Area::new(segment, region))
    }
}

fn check_range(region: &MemoryRegion) -> Result<(), MemoryError> {
    let size = region.size_bytes;
    let wraps = |start: u64| start.checked_add(size).is_none();
    if size == 0 || wraps(region.guest_addr) || wraps(region.user_addr) || wraps(region.mmap_offset) {
        return Err(MemoryError::Range(*region));
    }
    Ok(())
}

/// Neither guest nor front-end addresses may be shared: one address, one byte.
fn overlap(a: &MemoryRegion, b: &MemoryRegion) -> bool {
    let meet = |x: u64, y: u64| x < y.saturating_add(b.size_bytes) && y < x.saturating_add(a.size_bytes);
    meet(a.guest_addr, b.guest_addr) || meet(a.user_addr, b.user_addr)
}

/// One `mmap` of a region, unmapped when the last user lets go.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Where the region begins in the mapping: its file offset need not be a page's.
    skip: usize,
    /// None where the file is sealed against shrinking.
    guard: Option<Guard>,
}

// SAFETY: the mapping is plain shared memory; every access through it is volatile, atomic or a copy, and
// none assumes that nobody else writes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(region: &MemoryRegion, fd: OwnedFd) -> Result<Mapping, MemoryError> {
        let stat = fstat(&fd).map_err(|errno| MemoryError::Map(errno.into()))?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let file_bytes = if regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        let end = region.mmap_offset.saturating_add(region.size_bytes);
        let outside = MemoryError::File { region: *region, file_bytes };
        if end > file_bytes {
            return Err(outside);
        }
        let page = page_bytes(&fd).map_err(|errno| MemoryError::Map(errno.into()))?;
        let offset = region.mmap_offset.checked_div(page).unwrap_or(0).saturating_mul(page);
        // Whole pages: nothing less can be unmapped where pages are huge.
        let pages = end.saturating_sub(offset).checked_next_multiple_of(page).unwrap_or(u64::MAX);
        let (Ok(len), Ok(skip)) =
            (usize::try_from(pages), usize::try_from(region.mmap_offset.saturating_sub(offset)))
        else {
            return Err(outside);
        };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, &fd, offset) }
            .map_err(|errno| MemoryError::Map(errno.into()))?;
        let base = NonNull::new(base.cast()).ok_or(outside)?;
        let mut mapping = Mapping { base, len, skip, guard: None };
        if !fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            let page = usize::try_from(page).unwrap_or(4096);
            mapping.guard = Some(Guard::new(base.as_ptr().addr(), len, page).ok_or(MemoryError::Slots)?);
        }
        Ok(mapping)
    }

    /// Bytes `offset..offset+len` of the region, if it has them.
    fn segment(&self, offset: u64, len: u64) -> Option<Segment> {
        let start = self.skip.checked_add(usize::try_from(offset).ok()?)?;
        let len = usize::try_from(len).ok()?;
        if start.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `start` is within the mapping, as just checked.
        let base = unsafe { self.base.as_ptr().add(start) };
        Some(Segment(libc::iovec { iov_base: base.cast(), iov_len: len }))
    }
}

/// Bytes of a page of this file's mappings: only hugetlbfs has others than 4096. (The block size of a file says
/// nothing: file systems choose it, and some let their users choose.)
fn page_bytes(fd: &OwnedFd) -> Result<u64, Errno> {
    let fs = fstatfs(fd)?;
    let huge = u64::try_from(fs.f_type).is_ok_and(|kind| kind == HUGETLBFS_MAGIC);
    Ok(if huge { u64::try_from(fs.f_bsize).unwrap_or(0).max(SMALL_PAGE_BYTES) } else { SMALL_PAGE_BYTES })
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The handler must not mend what somebody else gets next.
        self.guard = None;
        // SAFETY: `base` and `len` are those of the mapping, and an `Area` or a `Queue` that could still reach
        // it would hold the region that owns us.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A contiguous piece of guest memory in our address space, laid out as an `iovec`.
///
/// Only [`Memory`] makes one, within a mapping. It is good as long as that `Memory`; the queue that a request
/// came from keeps it until the request is back (see [`crate::queue`]).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Segment(libc::iovec);

// SAFETY: an address of memory that other programs write to anyway; a thread more makes no difference.
unsafe impl Send for Segment {}

impl Segment {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    fn start(&self) -> usize {
        self.0.iov_base.addr()
    }

    /// Its address, for the kernel.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Takes the first `count` bytes (or all there are) off the front.
    pub fn take_front(&mut self, count: usize) -> Segment {
        let count = count.min(self.len());
        let front = Segment(libc::iovec { iov_len: count, ..self.0 });
        // SAFETY: `count` is at most the length, so this is in the piece or one past its end.
        self.0.iov_base = unsafe { self.0.iov_base.add(count) };
        self.0.iov_len = self.0.iov_len.saturating_sub(count);
        front
    }

    /// Takes the last `count` bytes (or all there are) off the back.
    pub fn take_back(&mut self, count: usize) -> Segment {
        let mut whole = *self;
        *self = whole.take_front(self.len().saturating_sub(count));
        whole
    }

    /// Copies to `to`, as many bytes as both have; the number is returned. Each byte is fetched once.
    // Not by the lesser of both lengths: where that of `to` is known it is a load or two, and no call.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let count = to.len();
        if self.len() < count {
            return to.get_mut(..self.len()).map_or(0, |to| self.copy_to(to));
        }
        // SAFETY: both sides have `count` bytes, and a Rust slice is never guest memory.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), to.as_mut_ptr(), count) };
        count
    }

    /// Copies from `from`, as many bytes as both have; the number is returned.
    // As in `copy_to`.
    #[inline]
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let count = from.len();
        if self.len() < count {
            return from.get(..self.len()).map_or(0, |from| self.copy_from(from));
        }
        // SAFETY: as in `copy_to`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.as_ptr(), count) };
        count
    }

    /// `N` bytes at `offset`, each fetched once; `None` past the end.
    pub fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset.checked_add(N)? > self.len() {
            return None;
        }
        // SAFETY: the range was just checked.
        Some(std::array::from_fn(|at| unsafe { self.as_ptr().add(offset).add(at).read_volatile() }))
    }

    /// Two little-endian words at `offset`, fetched once; `None` past the end.
    #[inline]
    pub fn read_words(&self, offset: usize) -> Option<[u64; 2]> {
        if offset.checked_add(16)? > self.len() {
            return None;
        }
        // SAFETY: the range was just checked.
        let from = unsafe { self.as_ptr().add(offset) };
        if !from.addr().is_multiple_of(8) {
            return self.read_unaligned(offset);
        }
        // SAFETY: aligned, and within the range.
        Some([0, 1].map(|at| u64::from_le(unsafe { from.cast::<u64>().add(at).read_volatile() })))
    }

    /// The rare case, kept apart: merged with the usual one it would make that one put words together from bytes.
    #[inline(never)]
    fn read_unaligned(&self, offset: usize) -> Option<[u64; 2]> {
        let bytes = u128::from_le_bytes(self.read(offset)?);
        // Both halves.
        #[allow(clippy::cast_possible_truncation)]
        Some([bytes as u64, (bytes >> 64) as u64])
    }
}

/// A part of a ring, or of a region beside guest memory: memory of fixed size that stays mapped as long as this value
/// lives.
///
/// Offsets past the end read as `None` and write nothing; ring indices are masked, so it does not happen.
#[derive(Clone, Debug)]
pub struct Area {
    segment: Segment,
    /// Its bytes, if it begins at a multiple of 8; otherwise 0.
    word_bytes: usize,
    region: Arc<Region>,
}

impl Area {
    fn new(segment: Segment, region: &Arc<Region>) -> Area {
        let word_bytes = if segment.start().is_multiple_of(8) { segment.len() } else { 0 };
        Area { segment, word_bytes, region: Arc::clone(region) }
    }

    /// Maps `size_bytes` of a file from `mmap_offset`: memory that is shared, but not the guest's.
    ///
    /// # Errors
    /// They are not within the file, or not aligned to words of 8 bytes.
    pub fn map(fd: OwnedFd, size_bytes: u64, mmap_offset: u64) -> Result<Area, MemoryError> {
        let table = MemoryRegion { guest_addr: 0, size_bytes, user_addr: 0, mmap_offset };
        check_range(&table)?;
        let mapping = Mapping::new(&table, fd)?;
        let segment = mapping.segment(0, size_bytes).filter(|whole| whole.start().is_multiple_of(8));
        let segment = segment.ok_or(MemoryError::Range(table))?;
        Ok(Area::new(segment, &Arc::new(Region { table, mapping })))
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.segment.len()
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.segment.is_empty()
    }

    /// `len` bytes from `offset`, if it has them.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Area> {
        let mut segment = self.segment;
        if offset.checked_add(len)? > segment.len() {
            return None;
        }
        segment.take_front(offset);
        Some(Area::new(segment.take_front(len), &self.region))
    }

    /// Its file was cut short, and somebody touched what was not there any more.
    pub fn is_torn(&self) -> bool {
        self.region.mapping.guard.as_ref().is_some_and(Guard::is_torn)
    }

    /// A copy of its first `len` bytes, or of all it has. Each byte is fetched once.
    pub fn snapshot(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min(self.len())];
        self.segment.copy_to(&mut bytes);
        bytes
    }

    /// Stores a little-endian word whole. Such stores happen in the order of the program: whoever looks at the memory
    /// after this process was killed sees all of them up to one, and none after it.
    #[inline]
    pub fn put_u64(&self, offset: usize, value: u64) {
        self.put(offset, value.to_le());
    }

    /// As [`Area::put_u64`], two words, one after the other.
    #[inline]
    pub fn put_words(&self, offset: usize, [first, second]: [u64; 2]) {
        if !offset.is_multiple_of(8) || offset.checked_add(16).is_none_or(|end| end > self.word_bytes) {
            return;
        }
        // SAFETY: in range, as just checked.
        let place = unsafe { self.segment.as_ptr().add(offset).cast::<u64>() };
        for (place, word) in [(place, first), (place.wrapping_add(1), second)] {
            if may_store() {
                // SAFETY: both words are in range and aligned, as just checked; memory of which every bit may be anything.
                unsafe { place.write_volatile(word.to_le()) };
            }
        }
    }

    /// As [`Area::put_u64`], four bytes.
    #[inline]
    pub fn put_u32(&self, offset: usize, value: u32) {
        self.put(offset, value.to_le());
    }

    /// As [`Area::put_u64`], two bytes.
    #[inline]
    pub fn put_u16(&self, offset: usize, value: u16) {
        self.put(offset, value.to_le());
    }

    /// As [`Area::put_u64`], one byte.
    #[inline]
    pub fn put_u8(&self, offset: usize, value: u8) {
        self.put(offset, value);
    }

    #[inline]
    fn put<T: Copy>(&self, offset: usize, value: T) {
        let fits = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.segment.len());
        if fits && self.segment.start().wrapping_add(offset).is_multiple_of(align_of::<T>()) && may_store() {
            // SAFETY: in range and aligned, as just checked; plain memory, in which every value of every bit is allowed.
            unsafe { self.segment.as_ptr().add(offset).cast::<T>().write_volatile(value) };
        }
    }

    /// `N` bytes at `offset`, each fetched once.
    pub fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.segment.read(offset)
    }

    /// Two little-endian words at `offset`, each fetched once: a descriptor.
    #[inline]
    pub fn read_words(&self, offset: usize) -> Option<[u64; 2]> {
        self.segment.read_words(offset)
    }

    /// Writes plain bytes; order against the other side comes from [`Area::store_u16`].
    #[inline]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        if offset.checked_add(N).is_some_and(|end| end <= self.segment.len()) && may_store() {
            // SAFETY: the range was just checked.
            unsafe { self.segment.as_ptr().add(offset).cast::<[u8; N]>().write_unaligned(bytes) };
        }
    }

    /// Loads a little-endian 16-bit field.
    #[inline]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> Option<u16> {
        self.atomic(offset).map(|field| u16::from_le(field.load(order)))
    }

    /// Stores a little-endian 16-bit field.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        if let Some(field) = self.atomic(offset).filter(|_| may_store()) {
            field.store(value.to_le(), order);
        }
    }

    #[inline]
    fn atomic(&self, offset: usize) -> Option<&AtomicU16> {
        let end = offset.checked_add(2)?;
        if end > self.segment.len() || !self.segment.start().wrapping_add(offset).is_multiple_of(2) {
            return None;
        }
        // SAFETY: in range and aligned; the other side is another program, so atomics are the only right access.
        Some(unsafe { AtomicU16::from_ptr(self.segment.as_ptr().add(offset).cast()) })
    }
}

/// Always; in unit tests until the process is to be dead ([`crate::testing::die_after`]).
#[cfg(not(test))]
#[inline]
fn may_store() -> bool {
    true
}

#[cfg(test)]
use crate::testing::may_store;

#[cfg(test)]
mod tests;

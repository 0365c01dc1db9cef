//! The region as a file: made, taken over, cleared, cut into parts.
//!
//! In: what GET_INFLIGHT_FD asks for, or what SET_INFLIGHT_FD brings. Out: a [`Part`] for a ring. Promises: a region of
//! ours is sealed against shrinking; pages that no ring uses are never touched, so that a region for many long queues
//! costs what is used of it. Refuses: counts that make no sense, regions that are not within their file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use thiserror::Error;

use super::{Bytes, Part, packed, poison, split};
use crate::memory::{Area, MemoryError};
use crate::proto::Inflight;
use crate::session::MAX_QUEUE_SIZE;

/// Alignment of each queue's part: what other back-ends have (libvhost-user, DPDK), and a cache line.
const ALIGNMENT: u64 = 64;

/// Why a region is refused.
#[derive(Debug, Error)]
pub enum RegionError {
    /// Queues or sizes that there cannot be.
    #[error("{queues} queues of {queue_size} entries, on a device of {limit} queues")]
    Counts {
        /// Queues of the region.
        queues: u16,
        /// Entries of each.
        queue_size: u16,
        /// Queues of the device.
        limit: u16,
    },
    /// Fewer bytes than the parts need.
    #[error("{size_bytes} bytes, and {needed_bytes} are needed")]
    Short {
        /// Bytes of the region.
        size_bytes: u64,
        /// Bytes of its parts.
        needed_bytes: u64,
    },
    /// Not within its file, or not to be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host refuses.
    #[error("Host refuses it: {0}")]
    Host(#[from] std::io::Error),
}

/// An in-flight region.
#[derive(Debug)]
pub struct Region {
    area: Area,
    fd: OwnedFd,
    shape: Inflight,
    /// There is a tail of ours.
    tail: bool,
}

impl Region {
    /// A region of our own in which nothing is in flight.
    ///
    /// # Errors
    /// The counts make no sense, or the host has no memory.
    pub fn create(queues: u16, queue_size: u16, limit: u16) -> Result<Region, RegionError> {
        check_counts(queues, queue_size, limit)?;
        let size_bytes = parts_bytes(queues, queue_size, true).saturating_add(tail_bytes(queues));
        let fd = memfd_create("inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(std::io::Error::from)?;
        ftruncate(&fd, size_bytes).map_err(std::io::Error::from)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(std::io::Error::from)?;
        let shape = Inflight { size_bytes, mmap_offset: 0, queues, queue_size };
        let region = Region { area: Area::map(fd.try_clone()?, size_bytes, 0)?, fd, shape, tail: true };
        region.area.put_u64(region.tail_at(), poison::MAGIC);
        Ok(region)
    }

    /// Takes a region over that somebody kept; `packed` says for which kind of ring it must be long enough.
    ///
    /// # Errors
    /// [`RegionError`]
    pub fn adopt(fd: OwnedFd, shape: Inflight, limit: u16, packed: bool) -> Result<Region, RegionError> {
        let Inflight { size_bytes, mmap_offset, queues, queue_size } = shape;
        check_counts(queues, queue_size, limit)?;
        let needed_bytes = parts_bytes(queues, queue_size, packed);
        if size_bytes < needed_bytes {
            return Err(RegionError::Short { size_bytes, needed_bytes });
        }
        let area = Area::map(fd.try_clone()?, size_bytes, mmap_offset)?;
        let mut region = Region { area, fd, shape, tail: false };
        let ours = parts_bytes(queues, queue_size, true).saturating_add(tail_bytes(queues));
        region.tail = size_bytes == ours && {
            let header = region.area.slice(region.tail_at(), poison::HEADER_BYTES);
            header.is_some_and(|header| Bytes(&header.snapshot(8)).u64(0) == poison::MAGIC)
        };
        Ok(region)
    }

    /// What GET_INFLIGHT_FD answers.
    pub fn shape(&self) -> Inflight {
        self.shape
    }

    /// Made by us, for so many queues of this size.
    pub fn is_ours(&self, queues: u16, queue_size: u16) -> bool {
        self.tail && (self.shape.queues, self.shape.queue_size) == (queues, queue_size)
    }

    /// Its file was cut short under us.
    pub fn is_torn(&self) -> bool {
        self.area.is_torn()
    }

    /// The share of a queue; `None` when the region has none for it, or none long enough.
    pub fn part(&self, index: u16, ring_size: u16, packed: bool) -> Option<Part> {
        if index >= self.shape.queues || ring_size > self.shape.queue_size {
            return None;
        }
        let bytes = usize::try_from(stride_bytes(self.shape.queue_size, packed)).ok()?;
        let area = self.area.slice(usize::from(index).checked_mul(bytes)?, bytes)?;
        let record = || {
            let at =
                usize::from(index).checked_mul(poison::RECORD_BYTES)?.checked_add(poison::HEADER_BYTES)?;
            self.area.slice(self.tail_at().checked_add(at)?, poison::RECORD_BYTES)
        };
        Some(Part { area, record: self.tail.then(record).flatten() })
    }

    /// Forgets everything, and gives the pages back.
    pub fn clear(&self) {
        let (start, bytes) = (self.shape.mmap_offset, self.shape.size_bytes);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.fd, hole, start, bytes).is_err() {
            // A file that knows no holes.
            (0..self.area.len()).step_by(8).for_each(|at| self.area.put_u64(at, 0));
        }
        if self.tail {
            self.area.put_u64(self.tail_at(), poison::MAGIC);
        }
    }

    /// Where the tail is in a region of ours.
    fn tail_at(&self) -> usize {
        usize::try_from(parts_bytes(self.shape.queues, self.shape.queue_size, true)).unwrap_or(usize::MAX)
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn check_counts(queues: u16, queue_size: u16, limit: u16) -> Result<(), RegionError> {
    if (1..=limit).contains(&queues) && (1..=MAX_QUEUE_SIZE).contains(&queue_size) {
        return Ok(());
    }
    Err(RegionError::Counts { queues, queue_size, limit })
}

/// Bytes of a queue's part.
fn stride_bytes(queue_size: u16, packed: bool) -> u64 {
    let (header, entry) = if packed {
        (packed::HEADER_BYTES, packed::ENTRY_BYTES)
    } else {
        (split::HEADER_BYTES, split::ENTRY_BYTES)
    };
    let bytes = usize::from(queue_size).saturating_mul(entry).saturating_add(header);
    u64::try_from(bytes).unwrap_or(u64::MAX).next_multiple_of(ALIGNMENT)
}

fn parts_bytes(queues: u16, queue_size: u16, packed: bool) -> u64 {
    stride_bytes(queue_size, packed).saturating_mul(u64::from(queues))
}

fn tail_bytes(queues: u16) -> u64 {
    let records = usize::from(queues).saturating_mul(poison::RECORD_BYTES);
    u64::try_from(records.saturating_add(poison::HEADER_BYTES)).unwrap_or(u64::MAX)
}

//! Words that outlive the process: counters in a memfd that somebody else keeps.
//!
//! In: a number of words, or a file that an earlier process made of them. Out: [`Words`], 64-bit atomics that are read
//! and written in place. Promises: the file is sealed at its size, so that touching a word never faults; any content is
//! a valid one. Refuses: a file that can shrink or has another size.

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};

use super::Area;

const WORD_BYTES: usize = size_of::<u64>();

/// Words of a file, or of this process alone.
#[derive(Debug)]
pub struct Words(Place);

#[derive(Debug)]
enum Place {
    Own(Box<[AtomicU64]>),
    Shared(Area),
}

// SAFETY: all that a `&Words` gives are atomics.
unsafe impl Sync for Words {}

impl Words {
    /// Zeros that nobody else sees.
    pub fn own(count: usize) -> Words {
        Words(Place::Own((0..count).map(|_| AtomicU64::new(0)).collect()))
    }

    /// Zeros in a new file, which is returned to be kept.
    ///
    /// # Errors
    /// The host has no descriptor or memory left.
    pub fn create(name: &str, count: usize) -> io::Result<(Words, OwnedFd)> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, bytes(count))?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let words = Words::of(fd.try_clone()?, count);
        Ok((words.ok_or(io::ErrorKind::OutOfMemory)?, fd))
    }

    /// The first words of a file that others map as well, and may cut short: what is behind its end then reads as zeros
    /// and is written for nobody (`guard`). `None`: it has fewer.
    pub fn shared(fd: OwnedFd, count: usize) -> Option<Words> {
        Area::map(fd, bytes(count), 0).ok().map(|area| Words(Place::Shared(area)))
    }

    /// The words of a file that [`Words::create`] made, for as many; `None`: it is not one.
    pub fn of(fd: OwnedFd, count: usize) -> Option<Words> {
        let size = u64::try_from(fstat(&fd).ok()?.st_size).ok()?;
        let sealed = fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed || size != bytes(count) {
            return None;
        }
        Area::map(fd, size, 0).ok().map(|area| Words(Place::Shared(area)))
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        match &self.0 {
            Place::Own(words) => words,
            Place::Shared(area) => {
                let count = area.len().checked_div(WORD_BYTES).unwrap_or(0);
                // SAFETY: an area is mapped for as long as it lives, and at a multiple of 8 (`Area::map`); its file cannot
                // shrink, or is guarded; every bit of an atomic may be anything, and nobody writes here but by atomics.
                unsafe { std::slice::from_raw_parts(area.segment.as_ptr().cast(), count) }
            }
        }
    }
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count.saturating_mul(WORD_BYTES)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::testing::memfd;

    #[test]
    fn what_one_process_counted_the_next_one_finds() {
        let (words, fd) = Words::create("words", 600).unwrap();
        words[599].store(7, Relaxed);
        let again = Words::of(fd.try_clone().unwrap(), 600).unwrap();
        assert_eq!((again.len(), again[599].load(Relaxed), again[0].load(Relaxed)), (600, 7, 0));
        again[0].store(1, Relaxed);
        assert_eq!(words[0].load(Relaxed), 1);
    }

    #[test]
    fn words_are_shared_and_a_file_that_is_cut_short_ends_nothing() {
        let fd = memfd(4096);
        let [one, other] = [0, 1].map(|_| Words::shared(fd.try_clone().unwrap(), 8).unwrap());
        one[7].store(3, Relaxed);
        assert_eq!(other[7].load(Relaxed), 3);
        ftruncate(&fd, 0).unwrap();
        one[7].store(4, Relaxed);
        assert_eq!(other[7].load(Relaxed), 0);
        assert!(Words::shared(fd, 8).is_none());
    }

    #[test]
    fn a_file_of_another_size_or_one_that_can_shrink_is_refused() {
        let (_, fd) = Words::create("words", 8).unwrap();
        assert!(Words::of(fd, 9).is_none());
        assert!(Words::of(memfd(64), 8).is_none());
    }
}

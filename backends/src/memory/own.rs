//! Memory of our own that host I/O works on as on the guest's: where the guest could change bytes under a cipher, a
//! checksum or a mirror, they are copied here first.
//!
//! In: a size. Out: a [`Buffer`], aligned as direct I/O wants it, and [`Segment`]s of it for the engine.
//! Promises: the bytes stay where they are as long as the buffer lives. Whoever hands out segments keeps the buffer until
//! the host has answered, as [`crate::queue::Queue`] keeps guest memory.

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::io;
use std::ptr::NonNull;

use super::Segment;

/// Zeros to write from, for those who have nothing else to write.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A piece of memory, at a page's start.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its mapping, and nobody else has its address but the host, for an operation.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `bytes` zeros, whole pages of them. Pages that are never touched take no memory.
    ///
    /// # Errors
    /// The kernel has no memory left, or `bytes` is 0.
    pub fn new(bytes: usize) -> io::Result<Buffer> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::PRIVATE)? };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Buffer { base, len: bytes })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first `bytes`, or all there are, for the engine.
    pub fn segment(&self, bytes: usize) -> Segment {
        let mut whole = Segment(libc::iovec { iov_base: self.base.as_ptr().cast(), iov_len: self.len });
        whole.take_front(bytes)
    }

    /// Its bytes. Not while the host works on them: that is why it takes the buffer alone.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours for as long as we live, and all of it was zeroed by the kernel.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Segments of `bytes` zeros, to be written from and never into.
pub fn zeros(bytes: u64) -> impl Iterator<Item = Segment> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        left = left.saturating_sub(count as u64);
        let base = ZEROS.as_ptr().cast_mut().cast();
        (count > 0).then_some(Segment(libc::iovec { iov_base: base, iov_len: count }))
    })
}

/// Fills memory of the guest's, or of our own, with zeros.
pub fn fill_with_zeros(mut segment: Segment) {
    while !segment.is_empty() {
        segment.take_front(ZEROS.len()).copy_from(&ZEROS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_written_by_segment_and_read_as_bytes() {
        let mut buffer = Buffer::new(8192).unwrap();
        assert!(buffer.bytes_mut().iter().all(|byte| *byte == 0));
        assert!(buffer.segment(8192).as_ptr().addr().is_multiple_of(4096));
        assert_eq!(buffer.segment(3).copy_from(b"abcdef"), 3);
        assert_eq!(&buffer.bytes_mut()[..4], b"abc\0");
        assert_eq!(buffer.segment(10_000).len(), 8192);
        assert!(Buffer::new(0).is_err());
    }

    #[test]
    fn zeros_are_as_many_as_asked_for() {
        for bytes in [0, 1, 65_536, 65_537, 1 << 20] {
            assert_eq!(zeros(bytes).map(|segment| segment.len() as u64).sum::<u64>(), bytes);
        }
        assert_eq!(zeros(4).next().unwrap().read(0), Some([0; 4]));
    }
}

//! Taking headers and status bytes off a chain, whatever descriptors they are spread over.
//!
//! The driver chooses the framing (virtio 1.3 §2.7.4.1): a header may end anywhere in a descriptor, or be
//! spread over many. These methods consume bytes at the ends, so that what remains in [`Chain::readable`] and
//! [`Chain::writable`] is the data, ready for host I/O. Each byte is fetched once. They return `None` when
//! the chain is too short, and then have consumed nothing that the caller could still use.

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

use crate::chain::Chain;
use crate::memory::Segment;

impl Chain {
    /// Takes `N` bytes off the front of the readable part.
    pub fn read_front<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut out = [0; N];
        let mut rest = out.as_mut_slice();
        let (front, segments) = self.readable_mut();
        while !rest.is_empty() {
            let segment = segments.get_mut(*front)?;
            let count = segment.take_front(rest.len()).copy_to(rest);
            rest = rest.get_mut(count..)?;
            step_over_empty(front, segment);
        }
        Some(out)
    }

    /// The readable part in records of `N` bytes, without taking them off: the driver may have changed them when they
    /// are taken. What is left over after the last whole record is not told.
    pub fn records<const N: usize>(&self) -> impl Iterator<Item = [u8; N]> {
        let mut segments = self.readable().iter().copied();
        let mut current = segments.next();
        std::iter::from_fn(move || {
            let mut out = [0; N];
            let mut rest = out.as_mut_slice();
            while !rest.is_empty() {
                let segment = current.as_mut()?;
                let count = segment.take_front(rest.len()).copy_to(rest);
                rest = rest.get_mut(count..)?;
                if segment.is_empty() {
                    current = segments.next();
                }
            }
            Some(out)
        })
    }

    /// Writes `bytes` at the front of the writable part and takes that room off it.
    pub fn write_front(&mut self, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        let (front, segments) = self.writable_mut();
        while !rest.is_empty() {
            let segment = segments.get_mut(*front)?;
            let count = segment.take_front(rest.len()).copy_from(rest);
            rest = rest.get(count..)?;
            step_over_empty(front, segment);
        }
        Some(())
    }

    /// Takes the last writable byte, for a status that is written at the end.
    pub fn take_last_byte(&mut self) -> Option<Segment> {
        let (front, segments) = self.writable_mut();
        if segments.len() <= *front {
            return None;
        }
        let last = segments.last_mut()?;
        let byte = last.take_back(1);
        if last.is_empty() {
            segments.pop();
        }
        Some(byte)
    }

    /// Takes `bytes` (or all there are) off the front of the readable part: host I/O has carried them.
    pub fn skip_readable(&mut self, bytes: usize) {
        let (front, segments) = self.readable_mut();
        skip(front, segments, bytes);
    }

    /// Takes `bytes` (or all there are) off the front of the writable part: host I/O has filled them.
    pub fn skip_writable(&mut self, bytes: usize) {
        let (front, segments) = self.writable_mut();
        skip(front, segments, bytes);
    }

    /// Bytes the device may still read.
    pub fn readable_bytes(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes the device may still write.
    pub fn writable_bytes(&self) -> u64 {
        total(self.writable())
    }
}

fn skip(front: &mut usize, segments: &mut [Segment], mut bytes: usize) {
    while bytes > 0 {
        let Some(segment) = segments.get_mut(*front) else { return };
        bytes = bytes.saturating_sub(segment.take_front(bytes).len());
        step_over_empty(front, segment);
    }
}

fn step_over_empty(front: &mut usize, segment: &Segment) {
    if segment.is_empty() {
        *front = front.saturating_add(1);
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().fold(0, |sum, s| sum.saturating_add(u64::try_from(s.len()).unwrap_or(u64::MAX)))
}

//! Guest RAM, and beside it an image of what should be in it.
//!
//! The driver writes to both; what the device ought to write goes to the image alone. As long as the two are the same,
//! the device wrote what it should, and nowhere else. Expectations are drawn from the image only.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use backends::memory::Memory;

use super::pattern;
use crate::guest::memory::{Backing, Ram};

/// Two regions that touch and one apart, which has the ring.
const PIECES: [(u64, u64); 3] = [(0x10_0000, 0x2000), (0x10_2000, 0x2000), (RING, 0x3000)];
/// Where the region with the ring begins.
pub(super) const RING: u64 = 0x20_0000;
/// Its bytes.
pub(super) const RING_BYTES: u16 = 0x3000;

/// What the region at `start` is filled with in the beginning.
fn filling(start: u64, bytes: u64) -> &'static [u8] {
    static FILLED: OnceLock<Vec<u8>> = OnceLock::new();
    let from = PIECES[0].0;
    let all = FILLED.get_or_init(|| (from..from + PIECES[0].1 + PIECES[1].1).map(pattern).collect());
    &all[size(start - from)..size(start - from + bytes)]
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// RAM and its image.
pub(super) struct Shadow {
    pub(super) ram: Arc<Ram>,
    pub(super) memory: Arc<Memory>,
    image: Vec<(u64, Vec<u8>)>,
}

impl Shadow {
    pub(super) fn new() -> Shadow {
        let ram = Ram::with(&PIECES, Backing::Sealed);
        let fd = |region: &crate::guest::memory::Region| -> OwnedFd {
            region.fd().try_clone_to_owned().unwrap_or_else(|e| panic!("dup: {e}"))
        };
        let table = ram.regions().iter().map(|region| (region.table, fd(region))).collect();
        let memory = Arc::new(Memory::map(table).unwrap_or_else(|e| panic!("guest memory: {e}")));
        let image = PIECES.iter().map(|(start, bytes)| (*start, vec![0; size(*bytes)])).collect();
        let mut shadow = Shadow { ram, memory, image };
        for (nth, (start, bytes)) in PIECES[..2].iter().enumerate() {
            let contents = filling(*start, *bytes);
            shadow.ram.write(*start, contents);
            shadow.image[nth].1.copy_from_slice(contents);
        }
        shadow
    }

    /// The driver writes.
    pub(super) fn write(&mut self, addr: u64, bytes: &[u8]) {
        self.ram.write(addr, bytes);
        self.expect(addr, bytes);
    }

    /// The device should have written.
    pub(super) fn expect(&mut self, addr: u64, bytes: &[u8]) {
        for (place, byte) in (addr..).zip(bytes) {
            let region = self.image.iter_mut().rfind(|(start, _)| *start <= place);
            let (start, image) = region.unwrap_or_else(|| panic!("{place:#x} is outside RAM"));
            image[size(place - *start)] = *byte;
        }
    }

    /// A range, cut where regions end, if all of it is RAM.
    pub(super) fn pieces(&self, addr: u64, len: u32) -> Option<Vec<&[u8]>> {
        let (mut addr, mut left, mut pieces) = (addr, len as usize, Vec::new());
        while left > 0 {
            let (start, image) = self.image.iter().find(|(start, image)| {
                addr.checked_sub(*start).is_some_and(|offset| offset < image.len() as u64)
            })?;
            let rest = &image[size(addr - start)..];
            let piece = &rest[..left.min(rest.len())];
            pieces.push(piece);
            (addr, left) = (addr.wrapping_add(piece.len() as u64), left - piece.len());
        }
        Some(pieces)
    }

    /// `N` bytes that are in RAM.
    pub(super) fn read<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        self.pieces(addr, u32::try_from(N).ok()?)?.concat().try_into().ok()
    }

    pub(super) fn u16(&self, addr: u64) -> u16 {
        self.read(addr).map_or(0, u16::from_le_bytes)
    }

    /// RAM is as it should be.
    pub(super) fn check(&self) {
        for (start, image) in &self.image {
            let now = self.ram.read(*start, image.len());
            if now != *image {
                let at = (0..image.len()).find(|at| now[*at] != image[*at]).unwrap_or(0);
                panic!("{:#x} is {:#x}, should be {:#x}", start + at as u64, now[at], image[at]);
            }
        }
    }
}

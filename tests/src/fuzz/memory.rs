//! The memory table: regions as front-ends may describe them, and ranges looked up in them.
//!
//! In: records that replace the table, add or remove a region, or look for a range, a ring part, an address. All of
//! it is done a second time by a list of regions in 128-bit numbers, and must agree: what is accepted, which bytes
//! a range is (by their contents, since every place has another), and that a range is there whole or not at all.
//! Promises besides: what is refused changes nothing; in the end no mapping and no descriptor is left; a good table
//! is taken whatever came before it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use backends::memory::{Memory, Segment};
use backends::proto::MemoryRegion;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Input, pattern};

const FILE_BYTES: u64 = 0x4000;
const MAX_RECORDS: usize = 64;
/// Addresses, lengths and offsets are near these.
const LANDMARKS: [u64; 10] =
    [0, 0x1000, 0x2000, 0x4000, 0x1_0000, 0x7f00_0000_0000, 1 << 32, 1 << 63, u64::MAX - 0x2000, u64::MAX];

/// Descriptors that a front-end may send.
struct Files {
    name: String,
    /// Sealed memory; memory of an odd length; memory that may only be read; a pipe; an empty file.
    files: [OwnedFd; 5],
}

/// Which files are regular, and their lengths.
const LENGTHS: [u64; 5] = [FILE_BYTES, FILE_BYTES - 100, 0, 0, 0];

impl Files {
    fn new() -> Files {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("fuzz-{}-", COUNT.fetch_add(1, Ordering::Relaxed));
        let made = || {
            let sealed = memfd(&name, LENGTHS[0]);
            fcntl_add_seals(&sealed, SealFlags::SHRINK)?;
            let read_only =
                rustix::fs::open(own_path(&sealed), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let (pipe, _) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::Result::Ok([sealed, memfd(&name, LENGTHS[1]), read_only, pipe, memfd(&name, 0)])
        };
        let files = made().unwrap_or_else(|e| panic!("files: {e}"));
        Files { name, files }
    }

    fn get(&self, file: usize) -> OwnedFd {
        self.files[file].try_clone().unwrap_or_else(|e| panic!("dup: {e}"))
    }

    /// Descriptors of ours that are open anywhere in this process.
    fn open(&self) -> usize {
        let links = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains(&self.name)).count()
    }

    /// The kernel lets nobody forbid writes to a file while it is mapped for writing.
    fn mapped(&self) -> bool {
        [0, 1].iter().any(|file| fcntl_add_seals(&self.files[*file], SealFlags::WRITE).is_err())
    }
}

fn own_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()))
}

fn memfd(name: &str, bytes: u64) -> OwnedFd {
    let made = || {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, bytes)?;
        let contents: Vec<u8> = (0..bytes).map(|place| pattern(place ^ bytes << 32)).collect();
        rustix::io::pwrite(&fd, &contents, 0)?;
        rustix::io::Result::Ok(fd)
    };
    made().unwrap_or_else(|e| panic!("memfd of {bytes} bytes: {e}"))
}

/// Regions that should be there, with their files.
type Model = Vec<(MemoryRegion, usize)>;

struct Play {
    files: Files,
    memory: Memory,
    model: Model,
}

/// A table's life.
pub fn memory(data: &[u8]) {
    let mut play = Play { files: Files::new(), memory: Memory::default(), model: Model::new() };
    let open = play.files.open();
    let mut input = Input(data);
    for _ in 0..MAX_RECORDS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0 => play.replace(&mut input),
            1 | 2 => play.add(&mut input),
            3 => play.remove(&mut input),
            4 | 5 => play.range(&mut input),
            6 => play.ring_part(&mut input),
            _ => play.address(&mut input),
        }
        assert_eq!(play.memory.regions(), play.model.len());
        assert_eq!(play.memory.is_sealed(), play.model.iter().all(|(_, file)| *file == 0));
        assert!(!play.memory.is_torn());
    }
    play.takes_a_good_table();
    drop(play.memory);
    assert_eq!(play.files.open(), open, "descriptors after the last region has gone");
    assert!(!play.files.mapped(), "a mapping is left");
}

impl Play {
    fn replace(&mut self, input: &mut Input<'_>) {
        let wanted: Model = (0..input.u8() % 5).map(|_| region(input)).collect();
        let good = (1..=wanted.len()).all(|count| fits(&wanted[..count - 1], &wanted[count - 1]));
        let table = wanted.iter().map(|(region, file)| (*region, self.files.get(*file))).collect();
        let made = Memory::map(table);
        assert_eq!(made.is_ok(), good, "{wanted:x?}: {:?}", made.err());
        if let Ok(memory) = made {
            (self.memory, self.model) = (memory, wanted);
        }
    }

    fn add(&mut self, input: &mut Input<'_>) {
        let wanted = region(input);
        let made = self.memory.with(wanted.0, self.files.get(wanted.1));
        assert_eq!(made.is_ok(), fits(&self.model, &wanted), "{wanted:x?}: {:?}", made.err());
        if let Ok(memory) = made {
            self.memory = memory;
            self.model.push(wanted);
        }
    }

    /// One that is there, or another.
    fn remove(&mut self, input: &mut Input<'_>) {
        let which = usize::from(input.u8());
        let region = self.model.get(which).map_or_else(|| region(input).0, |(region, _)| *region);
        let same = |other: &MemoryRegion| {
            (other.guest_addr, other.user_addr, other.size_bytes)
                == (region.guest_addr, region.user_addr, region.size_bytes)
        };
        let made = self.memory.without(region);
        assert_eq!(made.is_ok(), self.model.iter().any(|(other, _)| same(other)));
        if let Ok(memory) = made {
            self.memory = memory;
            self.model.retain(|(other, _)| !same(other));
        }
    }

    fn range(&self, input: &mut Input<'_>) {
        let addr = self.some_address(input, |region| region.guest_addr);
        let len = u32::try_from(input.near(&LANDMARKS) % (1 << 32)).unwrap_or(0);
        let (mut segments, expected) = (Vec::new(), self.walk(addr, len));
        let whole = self.memory.translate(addr, len, &mut segments);
        assert_eq!(whole, expected.is_some(), "{addr:#x}+{len:#x}");
        let expected = expected.unwrap_or_default();
        assert_eq!(segments.iter().map(contents).collect::<Vec<_>>(), expected);
        let one = self.memory.translate_one(addr, len).filter(|_| len > 0).as_ref().map(contents);
        assert_eq!(one, expected.into_iter().next().filter(|first| first.len() == len as usize));
    }

    fn ring_part(&self, input: &mut Input<'_>) {
        let addr = self.some_address(input, |region| region.user_addr);
        let (len, align) = (usize::from(input.u16()), input.pick(&[1, 2, 4, 16]));
        let place = self.find(addr, |region| region.user_addr);
        let place = place.filter(|((region, _), offset)| offset + len as u64 <= region.size_bytes);
        let place = place.map(|((region, file), offset)| (*file, region.mmap_offset + offset));
        let place = place.filter(|(_, at)| at % align as u64 == 0);
        let part = self.memory.ring_area(addr, len, align);
        assert_eq!(
            part.is_some(),
            place.is_some(),
            "{addr:#x}+{len:#x} aligned to {align}: {:x?}",
            self.model
        );
        let (Some(part), Some((file, at))) = (part, place) else { return };
        for offset in [0, len / 2, len.saturating_sub(1)].into_iter().filter(|offset| *offset < len) {
            assert_eq!(part.read(offset), Some([byte(file, at + offset as u64)]));
        }
        assert_eq!(part.read::<1>(len), None, "past its end");
        assert_eq!(part.read::<16>(len.saturating_sub(15)), None, "past its end");
    }

    fn address(&self, input: &mut Input<'_>) {
        let addr = self.some_address(input, |region| region.user_addr);
        let expected = self.find(addr, |region| region.user_addr);
        let expected = expected.map(|((region, _), offset)| region.guest_addr + offset);
        assert_eq!(self.memory.guest_addr(addr), expected, "{addr:#x}");
    }

    /// An address in or beside a region, or anywhere.
    fn some_address(&self, input: &mut Input<'_>, start: impl Fn(&MemoryRegion) -> u64) -> u64 {
        match self.model.get(usize::from(input.u8() % 8)) {
            Some((region, _)) => input.near(&[start(region), start(region).wrapping_add(region.size_bytes)]),
            None => input.near(&LANDMARKS),
        }
    }

    fn find(&self, addr: u64, start: impl Fn(&MemoryRegion) -> u64) -> Option<(&(MemoryRegion, usize), u64)> {
        let holds = |region: &MemoryRegion| {
            let offset = u128::from(addr).checked_sub(u128::from(start(region)))?;
            u64::try_from(offset).ok().filter(|offset| *offset < region.size_bytes)
        };
        self.model.iter().find_map(|entry| Some((entry, holds(&entry.0)?)))
    }

    /// The bytes of a guest range region by region, if all of it is memory.
    fn walk(&self, addr: u64, len: u32) -> Option<Vec<Vec<u8>>> {
        let (mut addr, mut left, mut pieces) = (addr, u64::from(len), Vec::new());
        while left > 0 {
            let ((region, file), offset) = self.find(addr, |region| region.guest_addr)?;
            let count = left.min(region.size_bytes - offset);
            let from = region.mmap_offset + offset;
            pieces.push((from..from + count).map(|place| byte(*file, place)).collect());
            (addr, left) = (addr.wrapping_add(count), left - count);
        }
        Some(pieces)
    }

    fn takes_a_good_table(&mut self) {
        let good = |nth: u64| MemoryRegion {
            guest_addr: nth * 0x1000,
            size_bytes: 0x1000,
            user_addr: 0x7f00_0000_0000 - nth * 0x10_0000,
            mmap_offset: nth * 0x1000,
        };
        self.model = vec![(good(0), 0), (good(1), 1)];
        let table = self.model.iter().map(|(region, file)| (*region, self.files.get(*file))).collect();
        self.memory = Memory::map(table).unwrap_or_else(|e| panic!("a good table: {e}"));
        let mut segments = Vec::new();
        assert!(self.memory.translate(0xff0, 0x20, &mut segments));
        assert_eq!(Some(segments.iter().map(contents).collect()), self.walk(0xff0, 0x20));
    }
}

fn region(input: &mut Input<'_>) -> (MemoryRegion, usize) {
    let mut next = || input.near(&LANDMARKS);
    let region =
        MemoryRegion { guest_addr: next(), size_bytes: next(), user_addr: next(), mmap_offset: next() };
    // Mostly good files.
    (region, input.pick(&[0, 1, 0, 1, 0, 1, 2, 3, 4]))
}

/// The table may have this region besides those.
fn fits(others: &[(MemoryRegion, usize)], (region, file): &(MemoryRegion, usize)) -> bool {
    let size = u128::from(region.size_bytes);
    let end = |start: u64| u128::from(start) + size;
    let wraps = |start| end(start) > u128::from(u64::MAX);
    let meets = |a: u64, b: u64, bytes: u64| {
        u128::from(a) < u128::from(b) + u128::from(bytes) && u128::from(b) < end(a)
    };
    let shares = |(other, _): &(MemoryRegion, usize)| {
        meets(region.guest_addr, other.guest_addr, other.size_bytes)
            || meets(region.user_addr, other.user_addr, other.size_bytes)
    };
    size > 0
        && !wraps(region.guest_addr)
        && !wraps(region.user_addr)
        && end(region.mmap_offset) <= u128::from(LENGTHS[*file])
        && !others.iter().any(shares)
}

fn byte(file: usize, place: u64) -> u8 {
    pattern(place ^ LENGTHS[file] << 32)
}

fn contents(segment: &Segment) -> Vec<u8> {
    let mut bytes = vec![0; segment.len()];
    assert_eq!(segment.copy_to(&mut bytes), bytes.len());
    bytes
}

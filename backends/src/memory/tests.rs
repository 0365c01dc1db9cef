use super::*;
use crate::testing::{memfd, region};

const MIB: u64 = 1 << 20;

fn one(table: MemoryRegion, file_bytes: u64) -> Result<Memory, MemoryError> {
    Memory::map(vec![(table, memfd(file_bytes))])
}

#[test]
fn f09_regions_that_make_no_sense_are_refused() {
    assert!(matches!(one(region(0, 0, 0, 0), MIB), Err(MemoryError::Range(_))));
    assert!(matches!(one(region(u64::MAX - 4095, MIB, 0, 0), MIB), Err(MemoryError::Range(_))));
    assert!(matches!(one(region(0, MIB, u64::MAX - 4095, 0), MIB), Err(MemoryError::Range(_))));
    assert!(matches!(one(region(0, MIB, 0, u64::MAX - 4095), MIB), Err(MemoryError::Range(_))));
    assert!(matches!(one(region(0, MIB + 1, 0, 0), MIB), Err(MemoryError::File { .. })));
    assert!(matches!(one(region(0, MIB, 0, 4096), MIB), Err(MemoryError::File { .. })));
}

#[test]
fn f09_a_pipe_is_no_memory() {
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let refused = Memory::map(vec![(region(0, 4096, 0, 0), pipe)]);
    assert!(matches!(refused, Err(MemoryError::File { file_bytes: 0, .. })));
}

#[test]
fn f09_overlapping_regions_are_refused() {
    let memory = one(region(MIB, MIB, 16 * MIB, 0), MIB).unwrap();
    let guest = memory.with(region(MIB + MIB / 2, MIB, 64 * MIB, 0), memfd(MIB));
    assert!(matches!(guest, Err(MemoryError::Overlap(_))));
    let user = memory.with(region(32 * MIB, MIB, 16 * MIB + MIB - 1, 0), memfd(MIB));
    assert!(matches!(user, Err(MemoryError::Overlap(_))));
    assert_eq!(memory.with(region(2 * MIB, MIB, 17 * MIB, 0), memfd(MIB)).unwrap().regions(), 2);
}

#[test]
fn slots_are_bounded() {
    let memory = (0..509).try_fold(Memory::default(), |memory, at| {
        memory.with(region(at * MIB, 4096, at * MIB, 0), memfd(4096))
    });
    let more = memory.unwrap().with(region(1 << 40, 4096, 1 << 40, 0), memfd(4096));
    assert!(matches!(more, Err(MemoryError::Slots)));
}

#[test]
fn g08_ranges_are_translated_whole_or_not_at_all() {
    let memory = one(region(MIB, MIB, 0, 0), MIB).unwrap();
    let translate = |addr, len| memory.translate(addr, len, &mut Vec::new());
    assert!(translate(MIB, 1 << 20));
    assert!(translate(2 * MIB - 1, 1));
    assert!(!translate(2 * MIB - 1, 2));
    assert!(!translate(MIB - 1, 2));
    assert!(!translate(2 * MIB, 1));
    assert!(!translate(u64::MAX, u32::MAX));
    assert!(!translate(0, u32::MAX));
}

#[test]
fn g08_a_range_over_two_adjacent_regions_works() {
    let first = one(region(MIB, MIB, 0, 0), MIB).unwrap();
    let memory = first.with(region(2 * MIB, MIB, 64 * MIB, 0), memfd(MIB)).unwrap();
    let mut segments = Vec::new();
    assert!(memory.translate(2 * MIB - 100, 300, &mut segments));
    assert_eq!(segments.iter().map(Segment::len).collect::<Vec<_>>(), [100, 200]);
    // A failure takes back what it appended, and nothing else.
    assert!(!memory.translate(3 * MIB - 100, 300, &mut segments));
    assert_eq!(segments.len(), 2);
}

#[test]
fn a_region_can_be_removed_by_its_addresses() {
    let memory = one(region(MIB, MIB, 16 * MIB, 0), MIB).unwrap();
    assert!(matches!(memory.without(region(MIB, MIB, 0, 0)), Err(MemoryError::Unknown(_))));
    assert_eq!(memory.without(region(MIB, MIB, 16 * MIB, 0)).unwrap().regions(), 0);
}

#[test]
fn a_region_in_the_middle_of_its_file_maps_there() {
    let fd = memfd(MIB);
    let file = std::fs::File::from(fd.try_clone().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, b"here", 4096 + 100).unwrap();
    let memory = Memory::map(vec![(region(0, 8192, 0, 4096 + 100), fd)]).unwrap();
    assert_eq!(memory.translate_one(0, 4).unwrap().read::<4>(0), Some(*b"here"));
}

#[test]
fn segments_split_at_both_ends() {
    let memory = one(region(0, MIB, 0, 0), MIB).unwrap();
    let mut segment = memory.translate_one(0, 10).unwrap();
    assert_eq!(segment.copy_from(b"0123456789"), 10);
    let (front, back) = (segment.take_front(3), segment.take_back(2));
    let text = |s: Segment| {
        let mut bytes = [0; 16];
        let count = s.copy_to(&mut bytes);
        bytes[..count].to_vec()
    };
    assert_eq!(
        (text(front), text(segment), text(back)),
        (b"012".to_vec(), b"34567".to_vec(), b"89".to_vec())
    );
    assert_eq!(segment.take_front(100).len(), 5);
    assert!(segment.is_empty());
}

#[test]
fn f08_a_ring_part_ends_with_its_region_and_not_with_the_page() {
    let memory = one(region(MIB, 100, 4 * MIB, 0), MIB).unwrap();
    assert!(memory.ring_area(4 * MIB, 100, 16).is_some());
    assert!(memory.ring_area(4 * MIB, 101, 16).is_none());
    assert!(memory.ring_area(4 * MIB + 96, usize::MAX, 16).is_none());
}

#[test]
fn ring_areas_are_aligned_and_within_one_region() {
    let memory = one(region(0, MIB, 4 * MIB, 0), MIB).unwrap();
    assert!(memory.ring_area(4 * MIB, 1 << 20, 16).is_some());
    assert!(memory.ring_area(4 * MIB + 8, 64, 16).is_none());
    assert!(memory.ring_area(5 * MIB - 16, 32, 16).is_none());
    assert!(memory.ring_area(0, 16, 16).is_none());
    let area = memory.ring_area(4 * MIB, 16, 16).unwrap();
    area.store_u16(14, 0xabcd, Ordering::Release);
    assert_eq!(area.load_u16(14, Ordering::Acquire), Some(0xabcd));
    assert_eq!(area.load_u16(15, Ordering::Acquire), None);
    assert_eq!(area.read::<4>(13), None);
}

#[test]
fn f10_a_file_cut_short_tears_the_memory_and_not_the_process() {
    let fd = memfd(MIB);
    let file = fd.try_clone().unwrap();
    let memory = Memory::map(vec![(region(0, MIB, 0, 0), fd)]).unwrap();
    let segment = memory.translate_one(0, 1 << 20).unwrap();
    assert_eq!(segment.copy_from(b"there"), 5);
    assert!(!memory.is_sealed() && !memory.is_torn());
    rustix::fs::ftruncate(&file, 4096).unwrap();
    assert_eq!(segment.read::<5>(0), Some(*b"there"), "what is left stays");
    assert!(!memory.is_torn());
    assert_eq!(segment.read::<8>(8192), Some([0; 8]), "what is lost reads as zeros");
    assert!(memory.is_torn());
    let mut rest = memory.translate_one(MIB - 4096, 4096).unwrap();
    assert_eq!(rest.take_back(100).copy_from(&[1; 100]), 100, "and takes writes that nobody sees");
}

#[test]
fn f10_memory_sealed_against_shrinking_needs_no_guard() {
    let fd = rustix::fs::memfd_create("sealed", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, MIB).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    assert!(Memory::map(vec![(region(0, MIB, 0, 0), fd)]).unwrap().is_sealed());
}

#[test]
fn f21_a_dirty_log_marks_pages_within_its_file_and_no_others() {
    use super::dirty::DirtyLog;
    let fd = memfd(4096);
    let file = std::fs::File::from(fd.try_clone().unwrap());
    let log = DirtyLog::map(fd, 4, 8).unwrap();
    log.mark(0, 1);
    log.mark(4095, 2);
    log.mark(9 * 4096, 3 * 4096);
    log.mark(5 * 4096, 0);
    log.mark(31 * 4096, u64::MAX);
    log.mark(u64::MAX, u64::MAX);
    let mut bytes = [0; 16];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0b11, 0b1110, 0, 0x80, 0, 0, 0, 0]);
    for (size, offset) in [(0, 0), (4097, 0), (1, 4096), (u64::MAX, 8), (8, u64::MAX)] {
        assert!(DirtyLog::map(memfd(4096), size, offset).is_err(), "{size} at {offset}");
    }
}

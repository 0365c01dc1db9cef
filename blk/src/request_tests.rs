//! Requests of every kind, in every framing, as a table: what is asked for, and what `parse` makes of it.

use std::fs::File;

use backends::chain::{Chain, Limits as ChainLimits};
use backends::descriptor::Table;
use backends::memory::Memory;
use backends::proto::MemoryRegion;
use backends::ring::Descriptor;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::op::Lifetime;

const BOUNDS: Option<Bounds> = Some(Bounds { max_bytes: 50 * SECTOR_BYTES, align_bytes: 512 });
/// A disk of 100 sectors that takes everything.
fn disk() -> Keeps {
    Keeps {
        discard: BOUNDS,
        zeroes: BOUNDS,
        unmap: true,
        secure_erase: BOUNDS,
        lifetime: Some(Lifetime::default()),
        ..plain()
    }
}

fn plain() -> Keeps {
    Keeps::plain(100 * SECTOR_BYTES, 512)
}

fn read_only() -> Keeps {
    Keeps { read_only: true, ..disk() }
}

const IN: u32 = spec::VIRTIO_BLK_T_IN;
const OUT: u32 = spec::VIRTIO_BLK_T_OUT;
const FLUSH: u32 = spec::VIRTIO_BLK_T_FLUSH;
const GET_ID: u32 = spec::VIRTIO_BLK_T_GET_ID;
const GET_LIFETIME: u32 = wire::VIRTIO_BLK_T_GET_LIFETIME;
const DISCARD: u32 = spec::VIRTIO_BLK_T_DISCARD;
const ZEROES: u32 = spec::VIRTIO_BLK_T_WRITE_ZEROES;
const ERASE: u32 = spec::VIRTIO_BLK_T_SECURE_ERASE;
const CHANGES: [(u32, Fate); 3] =
    [(DISCARD, Fate::Discard), (ZEROES, Fate::Zeroes), (ERASE, Fate::SecureErase)];

/// Descriptors by number.
struct Descriptors(Vec<Descriptor>);

impl Table for Descriptors {
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        self.0.get(usize::from(index)).copied()
    }
}

/// A megabyte of guest memory from address 0 on, with `bytes` at its front.
fn memory(bytes: &[u8]) -> Memory {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&File::from(fd.try_clone().unwrap()), bytes, 0).unwrap();
    let region = MemoryRegion { guest_addr: 0, size_bytes: 1 << 20, user_addr: 0x1000, mmap_offset: 0 };
    Memory::map(vec![(region, fd)]).unwrap()
}

/// A request whose readable bytes are `header` and what follows it in memory, cut into descriptors of the
/// lengths in `out` and `room`. The memory comes along, as the chain points into it.
fn request(header: &[u8], out: &[u32], room: &[u32]) -> (Chain, Memory) {
    let memory = memory(header);
    let cuts = out.iter().map(|len| (*len, 0)).chain(room.iter().map(|len| (*len, Descriptor::WRITE)));
    let (mut table, mut addr) = (Vec::new(), 0);
    for (next, (len, flags)) in (1..).zip(cuts) {
        table.push(Descriptor { addr, len, flags: flags | Descriptor::NEXT, next });
        addr += u64::from(len);
    }
    table.last_mut().unwrap().flags &= !Descriptor::NEXT;
    let mut chain = Chain::default();
    let limits = ChainLimits { descriptors: 1024, bytes: u64::MAX, indirect: false, log: false };
    chain.load(&Descriptors(table), 0, &memory, limits).unwrap();
    (chain, memory)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0xff; 4], &sector.to_le_bytes()].concat()
}

/// What a request with `out` bytes after its header and `room` bytes before its status is taken for.
fn taken_for(kind: u32, sector: u64, out: u32, room: u32, keeps: &Keeps) -> Result<Command, Status> {
    let (mut chain, _memory) = request(&header(kind, sector), &[16 + out], &[room + 1]);
    parse(&mut chain, keeps).unwrap().command
}

fn read(offset: u64, bytes: u64) -> Result<Command, Status> {
    Ok(Command::Read { offset, bytes })
}

fn write(offset: u64, bytes: u64) -> Result<Command, Status> {
    Ok(Command::Write { offset, bytes })
}

#[test]
fn what_is_asked_for_5_2_6() {
    use Status::{IoErr, Unsupported};
    let table = [
        // kind, sector, data out, data in, read-only, expected
        (IN, 0, 0, 512, false, read(0, 512)),
        (IN, 3, 0, 1024, true, read(1536, 1024)),
        (IN, 99, 0, 512, false, read(99 * 512, 512)),
        (IN, 0, 0, 51_200, false, read(0, 51_200)),
        (OUT, 7, 4096, 0, false, write(3584, 4096)),
        // B02: past the end, and numbers that wrap.
        (IN, 100, 0, 512, false, Err(IoErr)),
        (IN, 99, 0, 1024, false, Err(IoErr)),
        (OUT, 99, 1024, 0, false, Err(IoErr)),
        (IN, u64::MAX, 0, 512, false, Err(IoErr)),
        (OUT, u64::MAX / 512, 512, 0, false, Err(IoErr)),
        (IN, (1 << 55) + 1, 0, 512, false, Err(IoErr)),
        // B03: whole sectors, or none.
        (IN, 0, 0, 511, false, Err(IoErr)),
        (IN, 0, 0, 513, false, Err(IoErr)),
        (OUT, 0, 1, 0, false, Err(IoErr)),
        (IN, 5, 0, 0, false, read(2560, 0)),
        (OUT, 100, 0, 0, false, write(51_200, 0)),
        (IN, 101, 0, 0, false, Err(IoErr)),
        // B04: unknown types, SCSI, the old barrier bit.
        (spec::VIRTIO_BLK_T_SCSI_CMD, 0, 0, 0, false, Err(Unsupported)),
        (spec::VIRTIO_BLK_T_BARRIER | OUT, 0, 512, 0, false, Err(Unsupported)),
        (0xffff, 0, 0, 0, true, Err(Unsupported)),
        // B05: no writing to a read-only disk.
        (OUT, 0, 512, 0, true, Err(IoErr)),
        (OUT, 0, 0, 0, true, Err(IoErr)),
        (FLUSH, 0, 0, 0, true, Ok(Command::Flush)),
        (FLUSH, u64::MAX, 0, 0, false, Ok(Command::Flush)),
        // B07: the serial number needs its room.
        (GET_ID, 0, 0, 20, false, Ok(Command::GetId)),
        (GET_ID, 0, 0, 512, false, Ok(Command::GetId)),
        (GET_ID, 0, 0, 19, false, Err(IoErr)),
        (GET_ID, 0, 0, 0, false, Err(IoErr)),
    ];
    for (kind, sector, out, room, read_only, expected) in table {
        let keeps = Keeps { read_only, ..plain() };
        let command = taken_for(kind, sector, out, room, &keeps);
        assert_eq!(command, expected, "type {kind:#x}, sector {sector:#x}, {out} out, {room} in");
    }
}

#[test]
fn a_header_may_be_cut_anywhere_2_7_4_1() {
    for cut in 1..16 {
        let (mut chain, _memory) = request(&header(OUT, 1), &[cut, 16 - cut, 512], &[1]);
        let parsed = parse(&mut chain, &plain()).unwrap();
        assert_eq!((parsed.command, parsed.room), (write(512, 512), 1), "cut after {cut} bytes");
    }
    let (mut chain, _memory) = request(&header(OUT, 1), &[1; 528], &[1]);
    assert_eq!(parse(&mut chain, &plain()).unwrap().command, write(512, 512));
}

#[test]
fn the_status_is_the_last_writable_byte_wherever_it_lies() {
    for room in [&[512, 1][..], &[513], &[1; 513], &[100, 400, 13]] {
        let (mut chain, memory) = request(&header(IN, 0), &[16], room);
        let parsed = parse(&mut chain, &plain()).unwrap();
        assert_eq!((parsed.command, parsed.room, parsed.status.len()), (read(0, 512), 513, 1));
        // The byte is the 529th of memory: 16 of header and 512 of data stand before it.
        parsed.status.copy_from(&[0x5a]);
        let mut last = [0];
        memory.translate_one(528, 1).unwrap().copy_to(&mut last);
        assert_eq!(last, [0x5a]);
        assert_eq!(chain.writable_bytes(), 512, "the data is what remains");
    }
}

#[test]
fn b01_no_whole_header_or_no_status_is_malformed() {
    for (out, room) in
        [(&[15][..], &[513][..]), (&[], &[513]), (&[16], &[]), (&[16, 513], &[]), (&[7, 8], &[1])]
    {
        let (mut chain, _memory) = request(&header(IN, 0), out, room);
        assert!(parse(&mut chain, &plain()).is_none(), "{out:?} {room:?}");
    }
}

#[test]
fn requests_are_of_whole_blocks_5_2_4() {
    let large = Keeps { block_bytes: 4096, size_bytes: 8 << 12, ..disk() };
    assert_eq!(taken_for(IN, 8, 0, 8192, &large), read(4096, 8192));
    assert_eq!(taken_for(OUT, 4, 4096, 0, &large), Err(Status::IoErr));
    assert_eq!(taken_for(IN, 8, 0, 512, &large), Err(Status::IoErr));
    assert_eq!(asked(DISCARD, &[(8, 8, 0)], &large), Ok(vec![Op::Discard { offset: 4096, bytes: 4096 }]));
    assert_eq!(asked(DISCARD, &[(8, 4, 0)], &large), Err(Status::IoErr));
}

#[test]
fn b04_what_a_disk_does_not_keep_is_not_supported() {
    for kind in [DISCARD, ZEROES, ERASE, GET_LIFETIME] {
        assert_eq!(taken_for(kind, 0, 16, 64, &plain()), Err(Status::Unsupported), "{kind}");
    }
}

#[test]
fn b05_nothing_alters_a_read_only_disk_whatever_is_wrong_besides() {
    for (kind, _) in CHANGES {
        for range in [(0, 1, 0), (0, 1, 2), (u64::MAX, 1, 1)] {
            assert_eq!(asked(kind, &[range], &read_only()), Err(Status::IoErr), "{kind} {range:?}");
            assert_eq!(asked(kind, &[range], &Keeps { read_only: true, ..plain() }), Err(Status::IoErr));
        }
    }
}

#[test]
fn b07_a_lifetime_needs_its_room() {
    assert_eq!(taken_for(GET_LIFETIME, 0, 0, 6, &disk()), Ok(Command::GetLifetime));
    assert_eq!(taken_for(GET_LIFETIME, 0, 0, 5, &disk()), Err(Status::IoErr));
}

/// Bytes of ranges: first sector, sectors, flags.
fn ranges_of(list: &[(u64, u32, u32)]) -> Vec<u8> {
    let bytes = |(sector, sectors, flags): &(u64, u32, u32)| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    list.iter().flat_map(bytes).collect()
}

/// A request with these ranges, in descriptors of at most `cut` bytes.
fn ranges_request(kind: u32, list: &[(u64, u32, u32)], cut: u32) -> (Chain, Memory) {
    let bytes = [header(kind, 7), ranges_of(list)].concat();
    let len = u32::try_from(bytes.len()).unwrap();
    let cuts: Vec<u32> = (0..len).step_by(cut as usize).map(|at| cut.min(len - at)).collect();
    request(&bytes, &cuts, &[1])
}

/// All that a request with these ranges asks for.
fn asked(kind: u32, list: &[(u64, u32, u32)], keeps: &Keeps) -> Result<Vec<Op>, Status> {
    let (mut chain, _memory) = ranges_request(kind, list, 1 << 20);
    let Command::Ranges(fate) = parse(&mut chain, keeps).unwrap().command? else { panic!("{kind}") };
    std::iter::from_fn(|| next_range(fate, &mut chain, keeps)).collect()
}

#[test]
fn ranges_are_what_the_driver_wrote_wherever_they_are_cut_5_2_6() {
    let list = [(0, 50, 0), (99, 1, 0), (100, 0, 0), (3, 4, 1)];
    let expected = [
        Op::Zeroes { offset: 0, bytes: 25_600, unmap: false },
        Op::Zeroes { offset: 99 * 512, bytes: 512, unmap: false },
        Op::Zeroes { offset: 51_200, bytes: 0, unmap: false },
        Op::Zeroes { offset: 1536, bytes: 2048, unmap: true },
    ];
    for cut in 1..90 {
        let (mut chain, _memory) = ranges_request(ZEROES, &list, cut);
        let command = parse(&mut chain, &disk()).unwrap().command;
        assert_eq!(command, Ok(Command::Ranges(Fate::Zeroes)), "cut at {cut}");
        for op in expected {
            assert_eq!(next_range(Fate::Zeroes, &mut chain, &disk()), Some(Ok(op)), "cut at {cut}");
        }
        assert_eq!(next_range(Fate::Zeroes, &mut chain, &disk()), None);
    }
    let keeps_room = Keeps { unmap: false, ..disk() };
    let ops = asked(ZEROES, &[(3, 4, 1)], &keeps_room).unwrap();
    assert_eq!(ops, [Op::Zeroes { offset: 1536, bytes: 2048, unmap: false }]);
    assert_eq!(asked(DISCARD, &[], &disk()), Ok(vec![]));
}

#[test]
fn b06_ranges_that_are_wrong_are_refused_and_with_them_the_right_ones() {
    use Status::{IoErr, Unsupported};
    let most = vec![(0, 1, 0); 256];
    let more = vec![(0, 1, 0); 257];
    for (kind, _) in CHANGES {
        assert_eq!(asked(kind, &most, &disk()).map(|ops| ops.len()), Ok(256));
        assert_eq!(asked(kind, &more, &disk()), Err(IoErr));
        let unmap = if kind == ZEROES { Ok(()) } else { Err(Unsupported) };
        for (range, expected) in [
            ((0, 51, 0), Err(IoErr)),
            ((0, u32::MAX, 0), Err(IoErr)),
            ((51, 50, 0), Err(IoErr)),
            ((101, 0, 0), Err(IoErr)),
            ((u64::MAX, 1, 0), Err(IoErr)),
            ((u64::MAX / 512, 2, 0), Err(IoErr)),
            ((0, 1, 2), Err(Unsupported)),
            ((0, 1, 3), Err(Unsupported)),
            ((0, 1, 1 << 31), Err(Unsupported)),
            ((0, 1, 1), unmap),
        ] {
            let last = asked(kind, &[(0, 1, 0), range], &disk()).map(drop);
            assert_eq!(last, expected, "{kind}: {range:?}");
        }
    }
    // Not whole ranges.
    for out in [1, 15, 17, 31] {
        assert_eq!(taken_for(DISCARD, 0, out, 0, &disk()), Err(IoErr), "{out} bytes");
    }
}

#[test]
fn b06_g11_a_range_rewritten_after_the_check_is_checked_again() {
    let (mut chain, memory) = ranges_request(DISCARD, &[(0, 1, 0), (1, 1, 0)], 1 << 20);
    parse(&mut chain, &disk()).unwrap().command.unwrap();
    memory.translate_one(32, 16).unwrap().copy_from(&ranges_of(&[(1, 1 << 30, 0)]));
    assert!(next_range(Fate::Discard, &mut chain, &disk()).unwrap().is_ok());
    assert_eq!(next_range(Fate::Discard, &mut chain, &disk()), Some(Err(Status::IoErr)));
}

/// What §5.2.6 says of one range, in numbers that cannot wrap.
fn expected(kind: u32, (sector, sectors, flags): (u64, u32, u32), keeps: &Keeps) -> Option<Status> {
    let unmap_is_known = kind == ZEROES;
    if flags > 1 || flags == 1 && !unmap_is_known {
        return Some(Status::Unsupported);
    }
    let end = (u128::from(sector) + u128::from(sectors)) * 512;
    let too_long = sectors > 50;
    (too_long || end > u128::from(keeps.size_bytes)).then_some(Status::IoErr)
}

fn range() -> impl Strategy<Value = (u64, u32, u32)> {
    let sector =
        prop_oneof![6 => 0..110u64, 1 => any::<u64>(), 1 => Just(u64::MAX / 512), 1 => Just(u64::MAX - 9)];
    let sectors = prop_oneof![6 => 0..55u32, 1 => any::<u32>()];
    let flags = prop_oneof![8 => Just(0u32), 2 => Just(1), 1 => any::<u32>()];
    (sector, sectors, flags)
}

proptest! {
    /// B06: of any ranges, the first that is wrong decides; without one all are carried out as they stand there.
    #[test]
    fn b06_any_ranges(
        which in 0..3usize, list in prop::collection::vec(range(), 0..6), cut in 1..60u32, odd in 0..20u32,
    ) {
        let (kind, fate) = CHANGES[which];
        let bytes = [header(kind, 0), ranges_of(&list)].concat();
        let len = u32::try_from(bytes.len()).unwrap() + odd.saturating_sub(10);
        let cuts: Vec<u32> = (0..len).step_by(cut as usize).map(|at| cut.min(len - at)).collect();
        let (mut chain, _memory) = request(&bytes, &cuts, &[1]);
        let command = parse(&mut chain, &disk()).unwrap().command;
        let wrong = list.iter().find_map(|range| expected(kind, *range, &disk()));
        let wrong = if odd > 10 { Some(Status::IoErr) } else { wrong };
        prop_assert_eq!(command, wrong.map_or(Ok(Command::Ranges(fate)), Err));
        if wrong.is_none() {
            let ops = std::iter::from_fn(|| next_range(fate, &mut chain, &disk())).map(Result::unwrap);
            let places = list.iter().map(|(sector, sectors, _)| (sector * 512, u64::from(*sectors) * 512));
            prop_assert!(ops.map(|op| op.range().unwrap()).eq(places));
        }
    }
}

//! Requests of every kind, in every framing, as a table: what is asked for, and what `parse` makes of it.

use std::fs::File;

use backends::chain::{Chain, Limits as ChainLimits};
use backends::descriptor::Table;
use backends::memory::Memory;
use backends::proto::MemoryRegion;
use backends::ring::Descriptor;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;

const LIMITS: Limits = Limits { size_bytes: 100 * SECTOR_BYTES, read_only: false };
const READ_ONLY: Limits = Limits { read_only: true, ..LIMITS };
const IN: u32 = spec::VIRTIO_BLK_T_IN;
const OUT: u32 = spec::VIRTIO_BLK_T_OUT;
const FLUSH: u32 = spec::VIRTIO_BLK_T_FLUSH;
const GET_ID: u32 = spec::VIRTIO_BLK_T_GET_ID;

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
fn taken_for(kind: u32, sector: u64, out: u32, room: u32, limits: Limits) -> Result<Command, Status> {
    let (mut chain, _memory) = request(&header(kind, sector), &[16 + out], &[room + 1]);
    parse(&mut chain, limits).unwrap().command
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
        (spec::VIRTIO_BLK_T_DISCARD, 0, 16, 0, false, Err(Unsupported)),
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
        let limits = if read_only { READ_ONLY } else { LIMITS };
        let command = taken_for(kind, sector, out, room, limits);
        assert_eq!(command, expected, "type {kind:#x}, sector {sector:#x}, {out} out, {room} in");
    }
}

#[test]
fn a_header_may_be_cut_anywhere_2_7_4_1() {
    for cut in 1..16 {
        let (mut chain, _memory) = request(&header(OUT, 1), &[cut, 16 - cut, 512], &[1]);
        let parsed = parse(&mut chain, LIMITS).unwrap();
        assert_eq!((parsed.command, parsed.room), (write(512, 512), 1), "cut after {cut} bytes");
    }
    let (mut chain, _memory) = request(&header(OUT, 1), &[1; 528], &[1]);
    assert_eq!(parse(&mut chain, LIMITS).unwrap().command, write(512, 512));
}

#[test]
fn the_status_is_the_last_writable_byte_wherever_it_lies() {
    for room in [&[512, 1][..], &[513], &[1; 513], &[100, 400, 13]] {
        let (mut chain, memory) = request(&header(IN, 0), &[16], room);
        let parsed = parse(&mut chain, LIMITS).unwrap();
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
        assert!(parse(&mut chain, LIMITS).is_none(), "{out:?} {room:?}");
    }
}

use super::*;
use crate::graph::Graph;
use crate::graph::build::Misfit;
use crate::op::{Extent, ExtentKind};
use crate::testing::{Disk, Ram, part};

fn graph(below: &[&Ram], ranges: Option<&[(usize, u64, u64)]>) -> Result<Graph, Misfit> {
    let range =
        |(below, offset, bytes): &(usize, u64, u64)| Range { below: *below, offset: *offset, bytes: *bytes };
    let map = Map::new(ranges.map(|ranges| ranges.iter().map(range).collect()));
    let count = u16::try_from(below.len()).unwrap();
    let mut parts: Vec<_> = (0..).zip(below).map(|(at, ram)| part(at, ram.volume(), vec![])).collect();
    parts.push(part(count, Box::new(map), (0..count).collect()));
    Graph::new(parts)
}

fn problem(below: &[&Ram], ranges: Option<&[(usize, u64, u64)]>) -> String {
    graph(below, ranges).unwrap_err().problem
}

#[test]
fn volumes_stand_one_after_the_other_and_calls_are_cut_at_the_border() {
    let (a, b) = (Ram::new(8192, 512).late(1), Ram::new(4096, 512).late(2));
    let graph = graph(&[&a, &b], None).unwrap();
    assert_eq!(graph.disk().size_bytes, 12288);
    let mut disk = Disk::new(&graph);
    let data: Vec<u8> = (0..2048_u32).flat_map(u32::to_le_bytes).collect();
    disk.write(4096, &data).unwrap();
    assert_eq!((a.bytes(4096, 4096), b.bytes(0, 4096)), (data[..4096].to_vec(), data[4096..].to_vec()));
    assert_eq!(disk.read(4096, 8192).unwrap(), data);
    assert_eq!(disk.read(8192, 512).unwrap(), data[4096..4608]);
    assert_eq!(disk.read(0, 512).unwrap(), [255; 512]);
    disk.run(Op::Zeroes { offset: 7680, bytes: 1024, unmap: false }).unwrap();
    assert_eq!(disk.read(7680, 1024).unwrap(), [0; 1024]);
}

#[test]
fn a_flush_goes_to_all_and_the_first_error_comes_up() {
    let (a, b) = (Ram::new(4096, 512), Ram::new(4096, 512));
    let mut disk = Disk::new(&graph(&[&a, &b], None).unwrap());
    disk.write(0, &[1; 8192]).unwrap();
    assert_eq!((a.unflushed(), b.unflushed()), (1, 1));
    disk.run(Op::Flush).unwrap();
    assert_eq!((a.unflushed(), b.unflushed()), (0, 0));
    b.fail(OpKind::Flush, Some(Errno::IO));
    assert_eq!(disk.run(Op::Flush), Err(Errno::IO));
    a.fail(OpKind::Write, Some(Errno::NOSPC));
    assert_eq!(disk.write(0, &[2; 8192]), Err(Errno::NOSPC));
    assert_eq!(disk.write(4096, &[2; 4096]), Ok(()));
    a.fail(OpKind::Write, None);
    assert_eq!(disk.write(0, &[2; 8192]), Ok(()));
}

#[test]
fn ranges_are_where_they_are_said_to_be() {
    let (a, b) = (Ram::new(8192, 512), Ram::new(8192, 512));
    let graph =
        graph(&[&a, &b], Some(&[(1, 4096, 512), (0, 0, 1024), (1, 0, 2048), (0, 4096, 512)])).unwrap();
    assert_eq!(graph.disk().size_bytes, 4096);
    let mut disk = Disk::new(&graph);
    let data: Vec<u8> = (0..1024_u32).flat_map(u32::to_le_bytes).collect();
    disk.write(0, &data).unwrap();
    assert_eq!(b.bytes(4096, 512), data[..512]);
    assert_eq!(a.bytes(0, 1024), data[512..1536]);
    assert_eq!(b.bytes(0, 2048), data[1536..3584]);
    assert_eq!(a.bytes(4096, 512), data[3584..]);
    assert_eq!(disk.read(0, 4096).unwrap(), data);
    assert_eq!(disk.run(Op::Discard { offset: 3584, bytes: 1024 }), Err(Errno::INVAL));
}

#[test]
fn an_extent_is_told_up_to_the_border() {
    let (a, b) = (Ram::new(4096, 512), Ram::new(4096, 512));
    let mut disk = Disk::new(&graph(&[&a, &b], None).unwrap());
    disk.run(Op::Zeroes { offset: 3072, bytes: 2048, unmap: true }).unwrap();
    let zero = |bytes| Some(Extent { kind: ExtentKind::Zero, bytes });
    assert_eq!(disk.answer(Op::Extents { offset: 3072, bytes: 5120 }).extent, zero(1024));
    assert_eq!(disk.answer(Op::Extents { offset: 4096, bytes: 4096 }).extent, zero(1024));
    let data = Some(Extent { kind: ExtentKind::Data, bytes: 3072 });
    assert_eq!(disk.answer(Op::Extents { offset: 0, bytes: 8192 }).extent, data);
}

#[test]
fn what_does_not_fit_is_told() {
    let (a, b) = (Ram::new(8192, 512), Ram::new(8192, 4096));
    let odd = Ram::new(512, 512);
    assert_eq!(
        problem(&[&odd, &b], None),
        "the 512 bytes of subvolume 0 end within a block of 4096 bytes, which the disk has; cut it to a multiple by features/offset"
    );
    assert_eq!(
        problem(&[&a, &b], Some(&[(0, 512, 4096), (1, 0, 4096)])),
        "range 512+4096 of subvolume 0 cuts a block of 4096 bytes; give multiples of 4096"
    );
    assert_eq!(
        problem(&[&a], Some(&[(0, 4096, 8192)])),
        "range 4096+8192 of subvolume 0 leaves its 8192 bytes; give a shorter one"
    );
    assert_eq!(
        problem(&[&a], Some(&[(0, 0, 1024), (0, 4096, 512), (0, 512, 512)])),
        "ranges 0+1024 of subvolume 0 and 512+512 of subvolume 0 overlap; each byte can be in one place"
    );
}

#[test]
fn ranges_are_read() {
    let range = |below, offset, bytes| Range { below, offset, bytes };
    let all = ranges("a:0+1G  b:1M+2M\ta:1G+512", &["a", "b"]).unwrap();
    assert_eq!(all, [range(0, 0, 1 << 30), range(1, 1 << 20, 2 << 20), range(0, 1 << 30, 512)]);
    for (text, told) in [
        ("a", "a is no range; write NAME:OFFSET+LENGTH, as in a:0+1G"),
        ("a:0+0", "a:0+0 is no range; write NAME:OFFSET+LENGTH, as in a:0+1G"),
        (
            "a:1+18446744073709551615",
            "a:1+18446744073709551615 is no range; write NAME:OFFSET+LENGTH, as in a:0+1G",
        ),
        ("c:0+1", "c is no subvolume of it; name one of a, b"),
        ("a:0+1", "subvolume b is in none of them; add one, or take it out"),
    ] {
        assert_eq!(ranges(text, &["a", "b"]), Err(Bad::option("ranges", told)));
    }
}

#[test]
fn what_all_keep_is_kept_in_the_largest_block() {
    let all = Ram::new(8192, 512).volume().keeps(&[]).unwrap();
    let keeps = |other: Keeps| Map::new(None).keeps(&[all, other]).unwrap();
    assert_eq!(keeps(all), Keeps { size_bytes: 16384, ..all });
    let less = keeps(Keeps { physical_bytes: 16384, lifetime: None, ..Keeps::plain(4096, 4096) });
    assert_eq!(less, Keeps::plain(12288, 4096));
    assert!(keeps(Keeps { read_only: true, ..all }).read_only);
    let bounds = Some(Bounds { max_bytes: 4096, align_bytes: 8192 });
    assert_eq!(keeps(Keeps { discard: bounds, ..all }).discard, bounds);
    assert_eq!(keeps(Keeps { discard: None, ..all }).discard, None);
}

#[test]
fn the_last_volume_may_grow_and_no_other() {
    let map = Map::new(None);
    let of = |bytes| Keeps::plain(bytes, 512);
    map.keeps(&[of(4096), of(4096)]).unwrap();
    assert_eq!(map.keeps(&[of(4096), of(8192)]).unwrap().size_bytes, 12288);
    let moved = map.keeps(&[of(8192), of(8192)]).unwrap_err();
    assert!(moved.starts_with("subvolume 0 has another size than before"), "{moved}");
}

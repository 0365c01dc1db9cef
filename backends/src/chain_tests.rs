use super::*;
use crate::testing::{GUEST_BASE, GUEST_BYTES, Guest, memfd, region};

const NEXT: u16 = Descriptor::NEXT;
const WRITE: u16 = Descriptor::WRITE;
const INDIRECT: u16 = Descriptor::INDIRECT;
/// Where tests put buffers and indirect tables.
const DATA: u64 = 0x2_0000;
const TABLE: u64 = 0x4_0000;

fn load(guest: &Guest, head: u16) -> Result<Chain, Malformed> {
    let limits = Limits { descriptors: guest.size, bytes: u64::from(u32::MAX), indirect: true, log: false };
    let mut chain = Chain::default();
    chain.load(&guest.ring(0), head, &guest.memory, limits).map(|()| chain)
}

fn lengths(segments: &[Segment]) -> Vec<usize> {
    segments.iter().map(Segment::len).collect()
}

/// Writes an indirect table at `TABLE` and its descriptor as head 0.
fn indirect(guest: &Guest, table: &[Descriptor], outer_flags: u16) {
    for (at, descriptor) in (0u64..).zip(table) {
        guest.write(TABLE + 16 * at, &descriptor.to_bytes());
    }
    guest.descriptor(0, TABLE, u32::try_from(table.len()).unwrap() * 16, INDIRECT | outer_flags, 0);
}

fn buffer(at: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { addr: GUEST_BASE + at, len, flags, next }
}

#[test]
fn readable_then_writable_buffers() {
    let guest = Guest::new(8, false);
    guest.descriptor(5, DATA, 16, NEXT, 2);
    guest.descriptor(2, DATA + 100, 32, NEXT, 7);
    guest.descriptor(7, DATA + 200, 64, WRITE, 0);
    let chain = load(&guest, 5).unwrap();
    assert_eq!(lengths(chain.readable()), [16, 32]);
    assert_eq!(lengths(chain.writable()), [64]);
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (48, 64));
}

#[test]
fn g03_loops_and_wild_next_fields_end_within_the_queue_size() {
    let guest = Guest::new(8, false);
    guest.descriptor(0, DATA, 1, NEXT, 0);
    assert_eq!(load(&guest, 0).unwrap_err(), Malformed::TooLong);
    guest.descriptor(1, DATA, 1, NEXT, 2);
    guest.descriptor(2, DATA, 1, NEXT, 1);
    assert_eq!(load(&guest, 1).unwrap_err(), Malformed::TooLong);
    guest.descriptor(3, DATA, 1, NEXT, 8);
    assert_eq!(load(&guest, 3).unwrap_err(), Malformed::Next);
    guest.descriptor(4, DATA, 1, NEXT, u16::MAX);
    assert_eq!(load(&guest, 4).unwrap_err(), Malformed::Next);
}

#[test]
fn g04_chains_may_be_as_long_as_the_queue_and_no_longer() {
    let guest = Guest::new(8, false);
    let full: Vec<_> =
        (0..8).map(|i| buffer(DATA + u64::from(i), 1, if i < 7 { NEXT } else { 0 }, i + 1)).collect();
    indirect(&guest, &full, 0);
    assert_eq!(load(&guest, 0).unwrap().readable_bytes(), 8);
    let long: Vec<_> = (0..9).map(|i| buffer(DATA, 1, if i < 8 { NEXT } else { 0 }, i + 1)).collect();
    indirect(&guest, &long, 0);
    assert_eq!(load(&guest, 0).unwrap_err(), Malformed::TooLong);
}

#[test]
fn g05_indirect_tables_that_are_not_allowed() {
    let guest = Guest::new(8, false);
    for len in [0, 1, 15, 17] {
        guest.descriptor(0, TABLE, len, INDIRECT, 0);
        assert_eq!(load(&guest, 0).unwrap_err(), Malformed::Indirect, "length {len}");
    }
    guest.descriptor(0, GUEST_BYTES - 8, 16, INDIRECT, 0);
    assert_eq!(load(&guest, 0).unwrap_err(), Malformed::Indirect, "outside memory");
    indirect(&guest, &[buffer(DATA, 1, 0, 0)], NEXT);
    assert_eq!(load(&guest, 0).unwrap_err(), Malformed::Indirect, "with NEXT");
    indirect(&guest, &[buffer(TABLE, 16, INDIRECT, 0)], 0);
    assert_eq!(load(&guest, 0).unwrap_err(), Malformed::Indirect, "nested");
    indirect(&guest, &[buffer(DATA, 1, NEXT, 1)], 0);
    assert_eq!(load(&guest, 0).unwrap_err(), Malformed::Next, "next past the table");

    indirect(&guest, &[buffer(DATA, 1, 0, 0)], 0);
    let limits = Limits { descriptors: 8, bytes: 100, indirect: false, log: false };
    let refused = Chain::default().load(&guest.ring(0), 0, &guest.memory, limits);
    assert_eq!(refused.unwrap_err(), Malformed::Indirect, "not negotiated");
}

#[test]
fn g05_the_write_flag_of_an_indirect_descriptor_is_ignored() {
    let guest = Guest::new(8, false);
    indirect(&guest, &[buffer(DATA, 5, 0, 0)], WRITE);
    assert_eq!(load(&guest, 0).unwrap().readable_bytes(), 5);
}

#[test]
fn g06_plain_descriptors_may_be_followed_by_an_indirect_one() {
    let guest = Guest::new(8, false);
    indirect(&guest, &[buffer(DATA, 5, NEXT, 1), buffer(DATA, 6, WRITE, 0)], 0);
    guest.descriptor(3, DATA, 16, NEXT, 0);
    let chain = load(&guest, 3).unwrap();
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (21, 6));
}

#[test]
fn g07_zero_lengths_are_passed_over_and_nothing_else_is_empty() {
    let guest = Guest::new(8, false);
    guest.descriptor(0, DATA, 0, NEXT, 1);
    guest.descriptor(1, DATA, 4, NEXT, 2);
    guest.descriptor(2, DATA, 0, WRITE, 0);
    assert_eq!(lengths(load(&guest, 0).unwrap().readable()), [4]);
    guest.descriptor(3, DATA, 0, 0, 0);
    assert_eq!(load(&guest, 3).unwrap_err(), Malformed::Empty);
    // Nothing is fetched for no bytes, so the address does not matter.
    guest.descriptor(4, u64::MAX - GUEST_BASE, 0, NEXT, 1);
    assert!(load(&guest, 4).is_ok());
}

#[test]
fn g08_buffers_outside_memory_and_sums_over_the_limit() {
    let guest = Guest::new(8, false);
    for (at, len) in [(GUEST_BYTES, 1), (GUEST_BYTES - 1, 2), (DATA, u32::MAX), (u64::MAX - GUEST_BASE, 2)] {
        guest.descriptor(0, at, len, 0, 0);
        assert_eq!(load(&guest, 0).unwrap_err(), Malformed::Outside);
    }
    guest.descriptor(0, DATA, 60, NEXT, 1);
    guest.descriptor(1, DATA, 41, WRITE, 0);
    let limits = Limits { descriptors: 8, bytes: 100, indirect: true, log: false };
    let refused = Chain::default().load(&guest.ring(0), 0, &guest.memory, limits);
    assert_eq!(refused.unwrap_err(), Malformed::TooManyBytes);
}

#[test]
fn g09_readable_after_writable_is_refused() {
    let guest = Guest::new(8, false);
    guest.descriptor(0, DATA, 4, WRITE | NEXT, 1);
    guest.descriptor(1, DATA, 4, 0, 0);
    assert_eq!(load(&guest, 0).unwrap_err(), Malformed::Order);
}

#[test]
fn an_indirect_table_may_lie_across_two_regions() {
    let guest = Guest::new(8, false);
    let end = GUEST_BASE + GUEST_BYTES;
    let second = memfd(4096);
    let file = std::fs::File::from(second.try_clone().unwrap());
    let memory = guest.memory.with(region(end, 4096, 0, 0), second).unwrap();
    // Three descriptors, of which the second straddles the border.
    let table = [buffer(DATA, 1, NEXT, 1), buffer(DATA, 2, NEXT, 2), buffer(DATA, 3, WRITE, 0)];
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.to_bytes()).collect();
    guest.write(GUEST_BYTES - 24, &bytes[..24]);
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[24..], 0).unwrap();
    guest.descriptor(0, GUEST_BYTES - 24, 48, INDIRECT, 0);
    let mut chain = Chain::default();
    let limits = Limits { descriptors: 8, bytes: 100, indirect: true, log: false };
    chain.load(&guest.ring(0), 0, &memory, limits).unwrap();
    assert_eq!((lengths(chain.readable()), lengths(chain.writable())), (vec![1, 2], vec![3]));
}

#[test]
fn headers_and_status_come_off_whatever_the_framing() {
    // Every way to cut 16 + 10 readable and 5 + 1 writable bytes into two descriptors each.
    let guest = Guest::new(8, false);
    guest.write(DATA, b"0123456789abcdefDATADATADA");
    for cut in 0..=26u32 {
        for status_cut in 0..=6u32 {
            guest.descriptor(0, DATA, cut, NEXT, 1);
            guest.descriptor(1, DATA + u64::from(cut), 26 - cut, NEXT, 2);
            guest.descriptor(2, DATA + 64, status_cut, NEXT | WRITE, 3);
            guest.descriptor(3, DATA + 64 + u64::from(status_cut), 6 - status_cut, WRITE, 0);
            let mut chain = load(&guest, 0).unwrap();
            assert_eq!(chain.read_front::<16>().as_ref(), Some(b"0123456789abcdef"));
            assert_eq!(chain.take_last_byte().unwrap().copy_from(b"S"), 1);
            assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (10, 5));
            assert!(chain.readable().iter().chain(chain.writable()).all(|s| !s.is_empty()));
            assert_eq!(chain.write_front(b"hello"), Some(()));
            assert_eq!(&guest.read::<6>(DATA + 64), b"helloS");
            guest.write(DATA + 64, &[0; 6]);
        }
    }
}

#[test]
fn what_is_too_short_says_so() {
    let guest = Guest::new(8, false);
    guest.descriptor(0, DATA, 15, NEXT, 1);
    guest.descriptor(1, DATA, 4, WRITE, 0);
    let mut chain = load(&guest, 0).unwrap();
    assert_eq!(chain.read_front::<16>(), None);
    assert_eq!(chain.write_front(b"12345"), None);
    guest.descriptor(2, DATA, 4, 0, 0);
    assert!(load(&guest, 2).unwrap().take_last_byte().is_none());
}

#[test]
fn buffers_over_many_regions_do_not_grow_without_bound() {
    // One buffer over 500 one-page regions, 1,000 times: half a million segments.
    let guest = Guest::new(1024, false);
    let base = GUEST_BASE + GUEST_BYTES;
    let memory = (0..500u64).fold(std::sync::Arc::clone(&guest.memory), |memory, page| {
        let region = region(base + page * 4096, 4096, page * 4096, 0);
        std::sync::Arc::new(memory.with(region, memfd(4096)).unwrap())
    });
    for index in 0..1000 {
        guest.descriptor(index, GUEST_BYTES, 500 * 4096, NEXT, index + 1);
    }
    let limits = Limits { descriptors: 1024, bytes: u64::MAX, indirect: true, log: false };
    let mut chain = Chain::default();
    assert_eq!(chain.load(&guest.ring(0), 0, &memory, limits), Err(Malformed::TooLong));
    assert!(chain.segments() < MAX_CHAIN_SEGMENTS + 501);
}

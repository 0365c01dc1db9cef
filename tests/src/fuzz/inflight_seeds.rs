//! Regions to begin from: as workers leave them when they die, and as nobody leaves them.

use super::seeds::Seed;
use crate::guest::raw::{Desc, NEXT, WRITE};

const DATA: u64 = 0x10_0000;
const AVAIL: u16 = 1 << 7;

/// A ring of four with four writable buffers, of which `ahead` are available after index `used`; then the region.
fn split(name: &str, used: u16, ahead: u8, region: &[u8]) -> Seed {
    let descs: Vec<u8> = (0..4).flat_map(|_| Desc::new(DATA, 64, WRITE).to_bytes()).collect();
    let mut bytes = vec![0, 0];
    bytes.extend(used.to_le_bytes());
    bytes.extend([ahead, 64]);
    bytes.extend(descs);
    bytes.extend([12, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 3, 0, 0]);
    bytes.extend(region);
    (name.to_owned(), bytes)
}

/// A packed ring of three: a chain of two with id 1, and one with id 2, both available.
fn packed(name: &str, region: &[u8]) -> Seed {
    let desc = |id: u16, flags: u16| {
        Desc { addr: DATA, len: 64, flags: flags | WRITE | AVAIL, next: id }.to_packed_bytes()
    };
    let mut bytes = vec![1, 0, 0, 0, 0, 48];
    bytes.extend([desc(1, NEXT), desc(1, 0), desc(2, 0)].concat());
    bytes.extend([0, 0]);
    bytes.extend(region);
    (name.to_owned(), bytes)
}

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Features, then version, entries, head of the last batch, used index; and (mark, next, counter) for each head.
fn split_part(version: u16, entries: u16, batch: (u16, u16), heads: &[(u16, u16, u16)]) -> Vec<u8> {
    let entry = |(mark, next, counter): &(u16, u16, u16)| words(&[*mark, 0, 0, *next, *counter, 0, 0, 0]);
    let header = words(&[0, 0, 0, 0, version, entries, batch.0, batch.1]);
    [header, heads.iter().flat_map(entry).collect()].concat()
}

/// Free heads and used places (new, old; the lap in bit 15); and (mark, next, last, num, counter, id) for each entry.
fn packed_part(free: [u16; 2], used: [u16; 2], entries: &[[u16; 6]]) -> Vec<u8> {
    let laps = used[0] >> 15 | used[1] >> 15 << 8;
    let [new, old] = used.map(|place| place & 0x7fff);
    let header = [0, 0, 0, 0, 1, 3, free[0], free[1], new, old, laps, 0, 0, 0, 0, 0];
    let entry = |[mark, next, last, num, counter, id]: &[u16; 6]| {
        let mut bytes = words(&[*mark, *next, *last, *num, *counter, 0, 0, 0]);
        // All are writable; whether there is one after it the number of entries says.
        bytes.extend(words(&[*id, WRITE | if *num > 1 { NEXT } else { 0 }, 64, 0]));
        bytes.extend(DATA.to_le_bytes());
        bytes
    };
    [words(&header), entries.iter().flat_map(entry).collect()].concat()
}

/// All of them.
pub(super) fn seeds() -> Vec<Seed> {
    const LAP: u16 = 1 << 15;
    let three = [[1, 1, 1, 2, 5, 1], [0, 2, 0, 0, 0, 1], [1, 3, 2, 1, 4, 2]];
    let [first, second, third] = three;
    vec![
        split("fresh", 0, 4, &split_part(0, 0, (0, 0), &[(1, 1, 1)])),
        split(
            "k02-two-taken",
            7,
            3,
            &split_part(1, 4, (0, 7), &[(1, 0, 9), (1, 0, 8), (0, 0, 0), (0, 0, 0)]),
        ),
        split("k06-published-not-cleared", 9, 0, &split_part(1, 4, (1, 7), &[(1, 0, 1), (1, 0, 2)])),
        split(
            "indices-wrap",
            1,
            2,
            &split_part(1, 4, (3, 65535), &[(1, 0, 1), (1, 0, 2), (0, 0, 0), (1, 1, 0)]),
        ),
        split("f17-version", 0, 1, &split_part(7, 4, (0, 0), &[])),
        split("f17-entries", 0, 1, &split_part(1, 400, (0, 0), &[])),
        split("f17-mark", 0, 1, &split_part(1, 4, (0, 0), &[(9, 0, 0)])),
        split("f17-batch-loops", 2, 1, &split_part(1, 4, (0, 0), &[(1, 0, 0), (1, 0, 0)])),
        split("f17-batch-leaves", 2, 1, &split_part(1, 4, (9, 0), &[(1, 0, 0), (1, 0, 0)])),
        split("f17-batch-too-long", 99, 1, &split_part(1, 4, (0, 0), &[(1, 0, 0)])),
        split("longer-than-before", 0, 2, &split_part(1, 0, (0, 0), &[(9, 0, 0), (9, 0, 0)])),
        split("more-than-available", 3, 0, &split_part(1, 4, (0, 3), &[(1, 0, 0), (1, 0, 0)])),
        packed("packed-fresh", &[]),
        packed("packed-k02-both-taken", &packed_part([3, 3], [LAP, LAP], &three)),
        packed(
            "packed-k02-half-marked",
            &packed_part([2, 2], [LAP, LAP], &[first, second, [1, 3, 2, 1, 4, 2]]),
        ),
        packed(
            "packed-k05-not-published",
            &packed_part([0, 3], [2 | LAP, LAP], &[first, [0, 3, 0, 0, 0, 1], third]),
        ),
        packed("packed-k06-published", &packed_part([0, 3], [0, LAP], &[first, [0, 2, 0, 0, 0, 1], third])),
        packed(
            "packed-f17-free-loops",
            &packed_part([0, 0], [LAP, LAP], &[[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], third]),
        ),
        packed(
            "packed-f17-shared-entry",
            &packed_part([3, 3], [LAP, LAP], &[first, [1, 2, 1, 1, 0, 0], third]),
        ),
        packed("packed-f17-same-id", &packed_part([3, 3], [LAP, LAP], &[first, second, [1, 3, 2, 1, 4, 1]])),
        packed("packed-f17-id", &packed_part([3, 3], [LAP, LAP], &[first, second, [1, 3, 2, 1, 4, 3]])),
        packed("packed-f17-place", &packed_part([3, 3], [9 | LAP, 9 | LAP], &three)),
    ]
}

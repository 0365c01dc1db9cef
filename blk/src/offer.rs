//! What a driver is told of a disk: features and configuration space (virtio 1.3 §5.2.3, §5.2.4).
//!
//! In: what the top volume keeps, and how the device is set. Out: feature bits, and the bytes of `struct
//! virtio_blk_config`. Promises: nothing is offered that is not kept, and a field whose feature is not offered is zero.
//! Pure. Geometry is not offered: a disk has none, and each driver that wants one makes it up.

use std::mem::offset_of;

use virtio_bindings::virtio_blk::{self as spec, virtio_blk_config};

use crate::op::{Bounds, Keeps};
use crate::wire::{MAX_REQUEST_BYTES, SECTOR_BYTES};

/// Bytes of the configuration space (§5.2.4).
pub const CONFIG_BYTES: usize = size_of::<virtio_blk_config>();
/// Where the driver chooses the mode of the cache: its only field that can be written.
pub const WRITEBACK: usize = offset_of!(virtio_blk_config, wce);
/// Most data segments of a request that we ask drivers for: with header and status it fits the 128 entries
/// that front-ends give a queue. More are served as long as the chain fits the queue.
pub const MAX_SEGMENTS: u32 = 126;
/// Most bytes of one of them: a request of the most segments is one that the device takes.
pub const MAX_SEGMENT_BYTES: u32 = 8 << 20;
const _: () = assert!(MAX_SEGMENTS as u64 * MAX_SEGMENT_BYTES as u64 <= MAX_REQUEST_BYTES - SECTOR_BYTES);
/// Most ranges of one discard, write of zeroes or secure erase: as many as Linux ever sends.
pub const MAX_RANGES: u32 = 256;

/// §5.2.3; the bindings lack it.
const VIRTIO_BLK_F_LIFETIME: u32 = 15;

/// Features that every disk has. FLUSH is always offered, as §5.2.5.2 asks for.
const FEATURES: u64 = 1 << spec::VIRTIO_BLK_F_SIZE_MAX
    | 1 << spec::VIRTIO_BLK_F_SEG_MAX
    | 1 << spec::VIRTIO_BLK_F_BLK_SIZE
    | 1 << spec::VIRTIO_BLK_F_FLUSH
    | 1 << spec::VIRTIO_BLK_F_TOPOLOGY
    | 1 << spec::VIRTIO_BLK_F_CONFIG_WCE
    | 1 << spec::VIRTIO_BLK_F_MQ;

/// What §5.2.3 calls a feature that disks here may have.
pub fn feature_name(bit: u32) -> Option<&'static str> {
    Some(match bit {
        spec::VIRTIO_BLK_F_SIZE_MAX => "VIRTIO_BLK_F_SIZE_MAX",
        spec::VIRTIO_BLK_F_SEG_MAX => "VIRTIO_BLK_F_SEG_MAX",
        spec::VIRTIO_BLK_F_RO => "VIRTIO_BLK_F_RO",
        spec::VIRTIO_BLK_F_BLK_SIZE => "VIRTIO_BLK_F_BLK_SIZE",
        spec::VIRTIO_BLK_F_FLUSH => "VIRTIO_BLK_F_FLUSH",
        spec::VIRTIO_BLK_F_TOPOLOGY => "VIRTIO_BLK_F_TOPOLOGY",
        spec::VIRTIO_BLK_F_CONFIG_WCE => "VIRTIO_BLK_F_CONFIG_WCE",
        spec::VIRTIO_BLK_F_MQ => "VIRTIO_BLK_F_MQ",
        spec::VIRTIO_BLK_F_DISCARD => "VIRTIO_BLK_F_DISCARD",
        spec::VIRTIO_BLK_F_WRITE_ZEROES => "VIRTIO_BLK_F_WRITE_ZEROES",
        VIRTIO_BLK_F_LIFETIME => "VIRTIO_BLK_F_LIFETIME",
        spec::VIRTIO_BLK_F_SECURE_ERASE => "VIRTIO_BLK_F_SECURE_ERASE",
        _ => return None,
    })
}

/// Features of a disk that keeps this.
pub fn features(keeps: &Keeps) -> u64 {
    let keeps = offered(keeps);
    let by_volume = [
        (spec::VIRTIO_BLK_F_RO, keeps.read_only),
        (spec::VIRTIO_BLK_F_DISCARD, keeps.discard.is_some()),
        (spec::VIRTIO_BLK_F_WRITE_ZEROES, keeps.zeroes.is_some()),
        (VIRTIO_BLK_F_LIFETIME, keeps.lifetime.is_some()),
        (spec::VIRTIO_BLK_F_SECURE_ERASE, keeps.secure_erase.is_some()),
    ];
    by_volume.into_iter().fold(FEATURES, |all, (bit, kept)| all | u64::from(kept) << bit)
}

/// `struct virtio_blk_config`.
pub fn config(keeps: &Keeps, queues: u16, write_back: bool) -> [u8; CONFIG_BYTES] {
    let keeps = offered(keeps);
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = space.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            place.copy_from_slice(bytes);
        }
    };
    let capacity = keeps.size_bytes / SECTOR_BYTES;
    put(offset_of!(virtio_blk_config, capacity), &capacity.to_le_bytes());
    put(offset_of!(virtio_blk_config, size_max), &MAX_SEGMENT_BYTES.to_le_bytes());
    put(offset_of!(virtio_blk_config, seg_max), &MAX_SEGMENTS.to_le_bytes());
    put(offset_of!(virtio_blk_config, blk_size), &keeps.block_bytes.to_le_bytes());
    put(offset_of!(virtio_blk_config, physical_block_exp), &topology(&keeps));
    put(WRITEBACK, &[u8::from(write_back)]);
    put(offset_of!(virtio_blk_config, num_queues), &queues.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_discard_sectors), &ranges(keeps.discard));
    let [sectors, count, _] = words(keeps.zeroes);
    put(offset_of!(virtio_blk_config, max_write_zeroes_sectors), &sectors.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_write_zeroes_seg), &count.to_le_bytes());
    let unmap = keeps.zeroes.is_some() && keeps.unmap;
    put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[u8::from(unmap)]);
    put(offset_of!(virtio_blk_config, max_secure_erase_sectors), &ranges(keeps.secure_erase));
    space
}

/// A disk that only reads has no use for what alters it.
fn offered(keeps: &Keeps) -> Keeps {
    if keeps.read_only { Keeps { discard: None, zeroes: None, secure_erase: None, ..*keeps } } else { *keeps }
}

/// Physical block as a power of two of logical ones, how far the first is from one, the smallest and the best size of
/// I/O in logical blocks (§5.2.4).
fn topology(keeps: &Keeps) -> [u8; 8] {
    let blocks = |bytes: u32| bytes.checked_div(keeps.block_bytes).unwrap_or(0);
    let exponent = blocks(keeps.physical_bytes).checked_ilog2().unwrap_or(0);
    let [exponent, ..] = exponent.to_le_bytes();
    let [min0, min1] = u16::try_from(blocks(keeps.physical_bytes)).unwrap_or(1).to_le_bytes();
    let [best0, best1, best2, best3] = blocks(keeps.optimal_bytes).to_le_bytes();
    [exponent, 0, min0, min1, best0, best1, best2, best3]
}

/// Most sectors of a range, most ranges, what ranges are best multiples of, in sectors.
fn words(bounds: Option<Bounds>) -> [u32; 3] {
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR_BYTES).unwrap_or(u32::MAX);
    bounds.map_or([0; 3], |Bounds { max_bytes, align_bytes }| {
        [sectors(max_bytes), MAX_RANGES, sectors(align_bytes.into())]
    })
}

fn ranges(bounds: Option<Bounds>) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes.as_chunks_mut().0.iter_mut().zip(words(bounds)).for_each(|(to, word)| *to = word.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISCARD: Bounds = Bounds { max_bytes: 1 << 30, align_bytes: 4096 };
    const ZEROES: Bounds = Bounds { max_bytes: u64::MAX, align_bytes: 512 };
    const ERASE: Bounds = Bounds { max_bytes: 512, align_bytes: 1024 };

    fn full() -> Keeps {
        Keeps {
            physical_bytes: 4096,
            optimal_bytes: 64 << 10,
            discard: Some(DISCARD),
            zeroes: Some(ZEROES),
            unmap: true,
            secure_erase: Some(ERASE),
            lifetime: Some(Default::default()),
            ..Keeps::plain(0x0102_0304_0506 * 512, 512)
        }
    }

    #[test]
    fn configuration_space_5_2_4() {
        let bytes = config(&full(), 0x0807, true);
        let told: [(usize, &[u8]); 15] = [
            (0, &[6, 5, 4, 3, 2, 1, 0, 0]),
            // size_max, seg_max
            (8, &[0, 0, 0x80, 0]),
            (12, &[126, 0, 0, 0]),
            // No geometry.
            (16, &[0; 4]),
            (20, &[0, 2, 0, 0]),
            // Topology: 8 blocks are a physical one, which is the smallest size; the best are 128.
            (24, &[3, 0, 8, 0, 128, 0, 0, 0]),
            (32, &[1, 0]),
            (34, &[7, 8]),
            (36, &[0, 0, 0x20, 0, 0, 1, 0, 0, 8, 0, 0, 0]),
            (48, &[0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0]),
            (56, &[1]),
            (57, &[0; 3]),
            (60, &[1, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0]),
            // Zoned disks are not offered.
            (72, &[0; 24]),
            (96, &[]),
        ];
        let mut end = 0;
        for (at, expected) in told {
            assert_eq!((at, &bytes[at..at + expected.len()]), (end, expected));
            end = at + expected.len();
        }
    }

    #[test]
    fn what_is_not_offered_is_zero() {
        let bytes = config(&Keeps { unmap: true, ..Keeps::plain(1 << 20, 4096) }, 1, false);
        assert_eq!(bytes[20..36], [0, 16, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(bytes[36..], [0; 60]);
    }

    #[test]
    fn features_are_what_the_volume_keeps_5_2_3() {
        let plain = Keeps::plain(1 << 20, 512);
        let always = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
        assert_eq!(features(&plain), always);
        assert_eq!(features(&full()), always | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 16);
        let read_only = Keeps { read_only: true, ..full() };
        assert_eq!(features(&read_only), always | 1 << 5 | 1 << 15);
        assert_eq!(config(&read_only, 1, true)[36..], [0; 60]);
        for bit in 0..64 {
            let offered = (features(&full()) | 1 << 5) >> bit & 1 == 1;
            assert_eq!(feature_name(bit).is_some(), offered, "{bit}");
        }
    }
}

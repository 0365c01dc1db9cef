//! What the block device and its driver say to each other, as bytes (virtio 1.3 §5.2).
//!
//! In: header bytes that a driver wrote, and a description of the disk. Out: a [`Header`], the configuration
//! space, a status byte. Pure: nothing here touches guest memory.

use std::mem::offset_of;

use virtio_bindings::virtio_blk::{self as spec, virtio_blk_config};

/// Bytes of a sector: the unit of addresses and capacity, whatever the block size (§5.2.4).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of a serial number (§5.2.6).
pub const ID_BYTES: usize = spec::VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of the configuration space (§5.2.4).
pub const CONFIG_BYTES: usize = size_of::<virtio_blk_config>();
/// Most data segments of a request that we ask drivers for: with header and status it fits the 128 entries
/// that front-ends give a queue. More are served as long as the chain fits the queue.
pub const MAX_SEGMENTS: u32 = 126;

/// Features that every disk has (§5.2.3).
const FEATURES: u64 = 1 << spec::VIRTIO_BLK_F_SEG_MAX
    | 1 << spec::VIRTIO_BLK_F_BLK_SIZE
    | 1 << spec::VIRTIO_BLK_F_FLUSH
    | 1 << spec::VIRTIO_BLK_F_MQ;

/// Device features (§5.2.3).
pub fn features(read_only: bool) -> u64 {
    FEATURES | u64::from(read_only) << spec::VIRTIO_BLK_F_RO
}

/// What §5.2.3 calls a feature that disks here may have.
pub fn feature_name(bit: u32) -> Option<&'static str> {
    Some(match bit {
        spec::VIRTIO_BLK_F_SEG_MAX => "VIRTIO_BLK_F_SEG_MAX",
        spec::VIRTIO_BLK_F_RO => "VIRTIO_BLK_F_RO",
        spec::VIRTIO_BLK_F_BLK_SIZE => "VIRTIO_BLK_F_BLK_SIZE",
        spec::VIRTIO_BLK_F_FLUSH => "VIRTIO_BLK_F_FLUSH",
        spec::VIRTIO_BLK_F_MQ => "VIRTIO_BLK_F_MQ",
        _ => return None,
    })
}

/// Whether the driver keeps order by flushing. One that does not wants each write durable when it completes
/// (§5.2.6.2).
pub fn driver_flushes(features: u64) -> bool {
    features & 1 << spec::VIRTIO_BLK_F_FLUSH != 0
}

/// What the configuration space tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of the disk; a multiple of the sector.
    pub size_bytes: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Request queues.
    pub queues: u16,
}

impl Config {
    /// `struct virtio_blk_config`: the fields of the features we offer, zero elsewhere (§5.2.4).
    pub fn to_bytes(self) -> [u8; CONFIG_BYTES] {
        let capacity = self.size_bytes / SECTOR_BYTES;
        let fields: [(usize, &[u8]); 4] = [
            (offset_of!(virtio_blk_config, capacity), &capacity.to_le_bytes()),
            (offset_of!(virtio_blk_config, seg_max), &MAX_SEGMENTS.to_le_bytes()),
            (offset_of!(virtio_blk_config, blk_size), &self.block_bytes.to_le_bytes()),
            (offset_of!(virtio_blk_config, num_queues), &self.queues.to_le_bytes()),
        ];
        let mut space = [0; CONFIG_BYTES];
        for (at, bytes) in fields {
            space[at..at + bytes.len()].copy_from_slice(bytes);
        }
        space
    }
}

/// What a request begins with (`struct virtio_blk_req`, §5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `VIRTIO_BLK_T_*`
    pub kind: u32,
    /// First sector.
    pub sector: u64,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 16;

    /// The header in these bytes: type, a reserved word, sector, all little-endian.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Header {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
        Header { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) }
    }
}

/// What a request ends with (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = spec::VIRTIO_BLK_S_OK.to_le_bytes()[0],
    /// Failed, by the driver's mistake or the host's.
    IoErr = spec::VIRTIO_BLK_S_IOERR.to_le_bytes()[0],
    /// A type of request that this device does not know.
    Unsupported = spec::VIRTIO_BLK_S_UNSUPP.to_le_bytes()[0],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_space_5_2_4() {
        let config = Config { size_bytes: 0x0102_0304_0506 * 512, block_bytes: 4096, queues: 0x0807 };
        let bytes = config.to_bytes();
        assert_eq!(bytes.len(), 96);
        assert_eq!(bytes[..8], [6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!(bytes[8..12], [0; 4], "size_max is not offered");
        assert_eq!(bytes[12..16], [126, 0, 0, 0]);
        assert_eq!(bytes[20..24], [0, 16, 0, 0]);
        assert_eq!(bytes[34..36], [7, 8]);
        let told = [0..8, 12..16, 20..24, 34..36];
        let rest = bytes.iter().enumerate().filter(|(at, _)| !told.iter().any(|range| range.contains(at)));
        assert!(rest.into_iter().all(|(_, byte)| *byte == 0));
    }

    #[test]
    fn header_5_2_6() {
        let bytes = [8, 0, 0, 0x80, 9, 9, 9, 9, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(Header::from_bytes(bytes), Header { kind: 0x8000_0008, sector: 0x0807_0605_0403_0201 });
    }

    #[test]
    fn read_only_is_a_feature_bit() {
        assert_eq!(features(true) ^ features(false), 1 << 5);
        assert_eq!(features(false), 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12);
    }
}

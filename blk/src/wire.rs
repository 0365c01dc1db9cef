//! What the block device and its driver say to each other, as bytes (virtio 1.3 §5.2).
//!
//! In: bytes of headers and ranges that a driver wrote. Out: a [`Header`], a [`Range`]; and the bytes of a status and of
//! a lifetime. Pure: nothing here touches guest memory.

use virtio_bindings::virtio_blk as spec;

use crate::op::Lifetime;

/// Bytes of a sector: the unit of addresses and capacity, whatever the block size (§5.2.4).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of a serial number (§5.2.6).
pub const ID_BYTES: usize = spec::VIRTIO_BLK_ID_BYTES as usize;
/// Longest chain that the device takes: what one request can make a worker touch before anybody else gets a turn.
pub const MAX_REQUEST_BYTES: u64 = 1 << 30;
/// Read how worn the disk is (§5.2.6); the bindings lack it.
pub const VIRTIO_BLK_T_GET_LIFETIME: u32 = 10;

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

/// What a discard, a write of zeroes or a secure erase is about: `struct virtio_blk_discard_write_zeroes` (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`, and bits that mean nothing yet.
    pub flags: u32,
}

impl Range {
    /// Bytes of a range.
    pub const BYTES: usize = 16;

    /// The range in these bytes: sector, number of sectors, flags, all little-endian.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Range {
        let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
        Range {
            sector: u64::from_le_bytes(sector),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }
}

/// Bytes of a lifetime.
pub const LIFETIME_BYTES: usize = 6;

/// `struct virtio_blk_lifetime` (§5.2.6).
pub fn lifetime(Lifetime { pre_eol_info, typ_a, typ_b }: Lifetime) -> [u8; LIFETIME_BYTES] {
    let [[e0, e1], [a0, a1], [b0, b1]] = [pre_eol_info, typ_a, typ_b].map(u16::to_le_bytes);
    [e0, e1, a0, a1, b0, b1]
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
    fn header_5_2_6() {
        let bytes = [8, 0, 0, 0x80, 9, 9, 9, 9, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(Header::from_bytes(bytes), Header { kind: 0x8000_0008, sector: 0x0807_0605_0403_0201 });
    }

    #[test]
    fn range_5_2_6() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 0, 0, 0x80];
        let range = Range { sector: 0x0807_0605_0403_0201, sectors: 0x0c0b_0a09, flags: 0x8000_0001 };
        assert_eq!(Range::from_bytes(bytes), range);
    }

    #[test]
    fn lifetime_5_2_6() {
        assert_eq!(lifetime(Lifetime { pre_eol_info: 1, typ_a: 0x0203, typ_b: 4 }), [1, 0, 3, 2, 4, 0]);
    }
}

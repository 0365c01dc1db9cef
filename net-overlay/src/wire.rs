//! The header before each frame, and the configuration space.
//!
//! In: bytes of a guest. Out: fields, unchecked: a header's offsets mean something only beside the frame they
//! are about. Refuses nothing but what is too short, which the array types exclude.

/// `struct virtio_net_hdr_v1` (virtio 1.3 §5.1.6): twelve bytes before every frame, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// NEEDS_CSUM (1), DATA_VALID (2), RSC_INFO (4).
    pub flags: u8,
    /// NONE (0), TCPV4 (1), UDP (3), TCPV6 (4), UDP_L4 (5), ECN (0x80).
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and transport header.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksummed range begins, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Buffers that the frame was spread over (device to driver, MRG_RXBUF).
    pub num_buffers: u16,
}

impl NetHeader {
    /// Bytes on the ring.
    pub const BYTES: usize = 12;

    /// The header in these bytes.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> NetHeader {
        let [flags, gso_type, a, b, c, d, e, f, g, h, i, j] = bytes;
        NetHeader {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
            num_buffers: u16::from_le_bytes([i, j]),
        }
    }

    /// The header as it stands on the ring.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        let [i, j] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, i, j]
    }
}

/// `struct virtio_net_config` up to `duplex` (virtio 1.3 §5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Station address.
    pub mac: [u8; 6],
    /// LINK_UP (1), ANNOUNCE (2).
    pub status: u16,
    /// Most queue pairs.
    pub max_virtqueue_pairs: u16,
    /// Largest IP packet in bytes.
    pub mtu_bytes: u16,
    /// Megabits a second, `u32::MAX` when unknown.
    pub speed: u32,
    /// Half (0), full (1), unknown (0xff).
    pub duplex: u8,
}

impl NetConfig {
    /// Bytes in the configuration space.
    pub const BYTES: usize = 17;

    /// The space as the driver reads it.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut space = [0; Self::BYTES];
        let fields = [
            self.mac.as_slice(),
            &self.status.to_le_bytes(),
            &self.max_virtqueue_pairs.to_le_bytes(),
            &self.mtu_bytes.to_le_bytes(),
            &self.speed.to_le_bytes(),
            &[self.duplex],
        ];
        for (to, from) in space.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use virtio_bindings::virtio_net::{virtio_net_config, virtio_net_hdr_v1};

    use super::*;

    #[test]
    fn virtio_5_1_6_the_header_has_the_layout_of_the_linux_headers() {
        assert_eq!(NetHeader::BYTES, size_of::<virtio_net_hdr_v1>());
        let bytes = std::array::from_fn(|at| u8::try_from(at + 1).unwrap());
        let header = NetHeader::from_bytes(bytes);
        assert_eq!(header.to_bytes(), bytes);
        let le = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!(header.hdr_len, le(offset_of!(virtio_net_hdr_v1, hdr_len)));
        assert_eq!(header.gso_size, le(offset_of!(virtio_net_hdr_v1, gso_size)));
        assert_eq!(header.num_buffers, le(offset_of!(virtio_net_hdr_v1, num_buffers)));
    }

    #[test]
    fn virtio_5_1_4_the_space_has_the_layout_of_the_linux_headers() {
        let config = NetConfig {
            mac: [1, 2, 3, 4, 5, 6],
            status: 1,
            max_virtqueue_pairs: 0x1234,
            mtu_bytes: 0xffcd,
            speed: 0x5566_7788,
            duplex: 0xff,
        };
        let space = config.to_bytes();
        let at = |offset: usize, len: usize| &space[offset..offset + len];
        assert_eq!(at(offset_of!(virtio_net_config, max_virtqueue_pairs), 2), 0x1234u16.to_le_bytes());
        assert_eq!(at(offset_of!(virtio_net_config, mtu), 2), 0xffcdu16.to_le_bytes());
        assert_eq!(at(offset_of!(virtio_net_config, speed), 4), 0x5566_7788u32.to_le_bytes());
        assert_eq!(at(offset_of!(virtio_net_config, duplex), 1), [0xff]);
    }
}

//! Descriptors: where a buffer is, and which way it goes.
//!
//! In: sixteen bytes of guest memory, fetched once. Out: their fields, unchecked: what they mean is for
//! [`crate::chain`] to say.

/// One descriptor (virtio 1.3 §2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// Next descriptor, if flags say so.
    pub next: u16,
}

impl Descriptor {
    /// Bytes of a descriptor in memory.
    pub const BYTES: usize = 16;
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes to the buffer; otherwise it reads.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;

    /// The descriptor in these two little-endian words.
    // Each field is cut out of its own bits, so nothing is lost.
    #[allow(clippy::cast_possible_truncation)]
    #[inline]
    pub fn from_words([addr, rest]: [u64; 2]) -> Descriptor {
        Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// The same bytes read as a packed descriptor, in which a buffer id and the flags stand where a split one
    /// has flags and next (§2.8.13). The id is then in `next`.
    #[inline]
    pub fn as_packed(self) -> Descriptor {
        Descriptor { flags: self.next, next: self.flags, ..self }
    }

    /// The descriptor as it stands in memory.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let high = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        (u128::from(self.addr) | u128::from(high) << 64).to_le_bytes()
    }

    /// Whether the flag is set.
    #[inline]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Reads descriptor number `index` of a table, if the table has one.
pub trait Table {
    /// The descriptor, fetched once.
    fn descriptor(&self, index: u16) -> Option<Descriptor>;
}

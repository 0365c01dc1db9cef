//! Virtqueues as the device sees them: which heads are available, which are used, who wants to be told.
//!
//! In: the three parts of a ring in guest memory. Out: heads to serve, one at a time; used elements go back
//! the other way. Promises: every index of the driver is bounded before it is used; the used index is
//! published only by `publish`, so that a batch costs one store; event suppression follows virtio 1.3 §2.7.
//! Refuses: an available index further ahead than the queue is long, a head that is no descriptor. Both are
//! [`RingError`]s: they break this ring, because no head is known that could be given back.

pub mod split;

use thiserror::Error;

/// A ring whose driver broke it. Nothing more is read from or written to it until it is set up again.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// The available index moved by more than the queue size, or backwards (virtio 1.3 §2.7.13.3).
    #[error("Available index {index} is not within {size} entries of {next}")]
    AvailableIndex {
        /// Index the driver published.
        index: u16,
        /// Entry that is next.
        next: u16,
        /// Queue size.
        size: u16,
    },
    /// An available entry names no descriptor.
    #[error("Available entry names descriptor {0}, which the queue does not have")]
    Head(u16),
    /// A head was made available again before it was used.
    #[error("Descriptor {0} was made available while it is in flight")]
    InFlight(u16),
    /// The ring's memory cannot be reached.
    #[error("Ring memory cannot be read")]
    Memory,
}

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

    /// The descriptor in these bytes.
    #[inline]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Descriptor {
        let value = u128::from_le_bytes(bytes);
        // Each field is cut out of its own bits, so nothing is lost.
        #[allow(clippy::cast_possible_truncation)]
        Descriptor {
            addr: value as u64,
            len: (value >> 64) as u32,
            flags: (value >> 96) as u16,
            next: (value >> 112) as u16,
        }
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

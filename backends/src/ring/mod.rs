//! Virtqueues as the device sees them: which heads are available, which are used, who wants to be told.
//!
//! In: the three parts of a ring in guest memory, split or packed. Out: chains to serve, one at a time; used
//! elements go back the other way. Promises: every index of the driver is bounded before it is used; what was
//! used is published only by [`Ring::publish`], so that a batch shows at once and costs one store; event
//! suppression follows virtio 1.3 §2.7 and §2.8.
//! Refuses: an available index further ahead than the queue is long, a head that is no descriptor, a packed
//! chain that runs over its ring. These are [`RingError`]s: they break this ring, because nothing is known
//! that could be given back.

pub mod packed;
pub mod split;

use thiserror::Error;

use crate::chain::{Chain, Limits, Malformed};
pub use crate::descriptor::Descriptor;
use crate::inflight::{Corrupt, Replay, Tracker};
use crate::memory::Memory;
use packed::PackedRing;
use split::SplitRing;

/// Where a front-end says the parts of a ring are, in its own addresses, and which features shape it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Entries: at most 32768, and a power of two if split.
    pub size: u16,
    /// Descriptor table; packed: descriptor ring.
    pub descriptor: u64,
    /// Available ring; packed: driver event suppression.
    pub available: u64,
    /// Used ring; packed: device event suppression.
    pub used: u64,
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
}

/// What must go back to the driver for a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Head (split) or buffer id (packed).
    pub id: u16,
    /// Entries of the ring that it took (packed).
    pub slots: u16,
}

/// A chain that was taken, well formed or not, if there was one; or a ring that is broken.
pub type Take = Result<Option<(Taken, Result<(), Malformed>)>, RingError>;

/// The device's side of a virtqueue of either kind.
// One a queue, and both kinds are a few words.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Ring {
    /// Virtio 1.3 §2.7.
    Split(SplitRing),
    /// Virtio 1.3 §2.8.
    Packed(PackedRing),
}

impl Ring {
    /// Finds the ring in memory; `base` says where to go on (vhost-user SET_VRING_BASE). `None` when a part is
    /// unaligned or not wholly inside one region, or size or base make no sense.
    pub fn new(memory: &Memory, layout: &Layout, base: u32) -> Option<Ring> {
        if layout.packed {
            return PackedRing::new(memory, layout, base).map(Ring::Packed);
        }
        SplitRing::new(memory, layout, u16::try_from(base).ok()?).map(Ring::Split)
    }

    /// Base of a ring that begins: packed rings count laps from one.
    pub fn first_base(packed: bool) -> u32 {
        if packed { 0x8000_8000 } else { 0 }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        match self {
            Ring::Split(ring) => ring.size(),
            Ring::Packed(ring) => ring.size(),
        }
    }

    /// Where to go on from after a stop.
    pub fn base(&self) -> u32 {
        match self {
            Ring::Split(ring) => u32::from(ring.base()),
            Ring::Packed(ring) => ring.base(),
        }
    }

    /// Takes the next available chain into `chain`, if there is one; a malformed one must go back. A `tracker` gets
    /// what it needs of it.
    ///
    /// # Errors
    /// [`RingError`]: the ring is broken.
    #[inline]
    pub(crate) fn take(
        &mut self,
        chain: &mut Chain,
        memory: &Memory,
        limits: Limits,
        tracker: Option<&mut Tracker>,
    ) -> Take {
        match self {
            Ring::Packed(ring) => ring.take(chain, memory, limits, tracker.and_then(Tracker::packed)),
            Ring::Split(ring) => {
                let Some(head) = ring.next()? else { return Ok(None) };
                Ok(Some((Taken { id: head, slots: 1 }, chain.load(ring, head, memory, limits))))
            }
        }
    }

    /// Takes a chain into `chain` once more that whoever served the ring before had taken.
    pub(crate) fn retake(
        &self,
        replay: &Replay,
        chain: &mut Chain,
        memory: &Memory,
        limits: Limits,
    ) -> Result<(), Malformed> {
        match self {
            Ring::Split(ring) => chain.load(ring, replay.taken.id, memory, limits),
            Ring::Packed(_) => packed::retake(&replay.descriptors, chain, memory, limits),
        }
    }

    /// Whether there seems to be an available chain. Nothing is taken or checked.
    #[inline]
    pub fn has_next(&self) -> bool {
        match self {
            Ring::Split(ring) => ring.has_next(),
            Ring::Packed(ring) => ring.has_next(),
        }
    }

    /// Fills the next used entry. The driver sees it after [`Ring::publish`].
    #[inline]
    pub fn push_used(&mut self, taken: Taken, written_bytes: u32) {
        match self {
            Ring::Split(ring) => ring.push_used(taken.id, written_bytes),
            Ring::Packed(ring) => ring.push_used(taken, written_bytes),
        }
    }

    /// Shows the driver all that was pushed. `true`: it wants an interrupt for it.
    pub fn publish(&mut self) -> bool {
        match self {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// Asks the driver not to notify while we are looking anyway.
    pub fn disarm(&mut self) {
        match self {
            Ring::Split(ring) => ring.disarm(),
            Ring::Packed(ring) => ring.disarm(),
        }
    }

    /// Asks for a notification of the next chain. `true`: one came meanwhile, look again instead of waiting.
    pub fn arm(&mut self) -> bool {
        match self {
            Ring::Split(ring) => ring.arm(),
            Ring::Packed(ring) => ring.arm(),
        }
    }
}

/// The other side asked to hear when index `event` is passed; did the step from `old` to `new` pass it?
/// (virtio 1.3 §2.7.7.1, §2.7.10.1)
#[inline]
pub fn event_wanted(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

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
    #[error("Available entry names descriptor or buffer {0}, which the queue does not have")]
    Head(u16),
    /// A head was made available again before it was used.
    #[error("Descriptor or buffer {0} was made available while it is in flight")]
    InFlight(u16),
    /// A packed chain is longer than the ring, or runs into entries that are not available (§2.8.6).
    #[error("Chain runs over entries that are not available")]
    Chain,
    /// What a worker before us left of the ring makes no sense.
    #[error("In-flight region is corrupt: {0}")]
    Inflight(Corrupt),
    /// The ring's memory cannot be reached.
    #[error("Ring memory cannot be read")]
    Memory,
}

//! What can be asked of a volume, and what a volume keeps.
//!
//! An [`Op`] is all there is: a translator answers for each of them, by a match without a rest or by an [`OpSet`] of
//! those that concern it, so that a new one cannot pass by somebody who would have to know of it. [`Keeps`] is what a
//! volume promises to the one above; it is worked out from the leaves upward when a graph is built, and no volume
//! promises what one below does not keep.

/// An operation on a volume. Offsets and lengths are bytes, whole blocks of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// Fill the call's data.
    Read {
        /// From the start of the volume.
        offset: u64,
        /// All of the call's data.
        bytes: u64,
    },
    /// Store the call's data.
    Write {
        /// From the start of the volume.
        offset: u64,
        /// All of the call's data.
        bytes: u64,
        /// Durable when it completes.
        fua: bool,
    },
    /// Make all writes durable that were completed before.
    #[default]
    Flush,
    /// The bytes are of no use any more: reads afterwards give anything.
    Discard {
        /// From the start of the volume.
        offset: u64,
        /// To forget.
        bytes: u64,
    },
    /// Reads afterwards give zeros.
    Zeroes {
        /// From the start of the volume.
        offset: u64,
        /// To zero.
        bytes: u64,
        /// Room may be given back.
        unmap: bool,
    },
    /// Nobody can ever read again what was there (virtio 1.3 §5.2.6, VIRTIO_BLK_T_SECURE_ERASE).
    SecureErase {
        /// From the start of the volume.
        offset: u64,
        /// To erase.
        bytes: u64,
    },
    /// Tell what the bytes from `offset` on are, and for how many the answer holds.
    Extents {
        /// From the start of the volume.
        offset: u64,
        /// That are of interest.
        bytes: u64,
    },
}

impl Op {
    /// Which one it is.
    pub fn kind(&self) -> OpKind {
        match self {
            Op::Read { .. } => OpKind::Read,
            Op::Write { .. } => OpKind::Write,
            Op::Flush => OpKind::Flush,
            Op::Discard { .. } => OpKind::Discard,
            Op::Zeroes { .. } => OpKind::Zeroes,
            Op::SecureErase { .. } => OpKind::SecureErase,
            Op::Extents { .. } => OpKind::Extents,
        }
    }

    /// The first byte and how many, of those that have a place.
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Op::Read { offset, bytes }
            | Op::Write { offset, bytes, .. }
            | Op::Discard { offset, bytes }
            | Op::Zeroes { offset, bytes, .. }
            | Op::SecureErase { offset, bytes }
            | Op::Extents { offset, bytes } => Some((offset, bytes)),
            Op::Flush => None,
        }
    }

    /// The same operation at another place.
    pub fn at(mut self, place: u64, length: u64) -> Op {
        match &mut self {
            Op::Read { offset, bytes }
            | Op::Write { offset, bytes, .. }
            | Op::Discard { offset, bytes }
            | Op::Zeroes { offset, bytes, .. }
            | Op::SecureErase { offset, bytes }
            | Op::Extents { offset, bytes } => (*offset, *bytes) = (place, length),
            Op::Flush => {}
        }
        self
    }

    /// It changes what is stored.
    pub fn alters(&self) -> bool {
        match self.kind() {
            OpKind::Write | OpKind::Discard | OpKind::Zeroes | OpKind::SecureErase => true,
            OpKind::Read | OpKind::Flush | OpKind::Extents => false,
        }
    }
}

/// An operation without its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpKind {
    /// [`Op::Read`]
    Read,
    /// [`Op::Write`]
    Write,
    /// [`Op::Flush`]
    Flush,
    /// [`Op::Discard`]
    Discard,
    /// [`Op::Zeroes`]
    Zeroes,
    /// [`Op::SecureErase`]
    SecureErase,
    /// [`Op::Extents`]
    Extents,
}

impl OpKind {
    /// Each once, in the order of their numbers.
    pub const ALL: [OpKind; 7] = [
        OpKind::Read,
        OpKind::Write,
        OpKind::Flush,
        OpKind::Discard,
        OpKind::Zeroes,
        OpKind::SecureErase,
        OpKind::Extents,
    ];

    /// As options and people call it.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Flush => "flush",
            OpKind::Discard => "discard",
            OpKind::Zeroes => "zeroes",
            OpKind::SecureErase => "secure-erase",
            OpKind::Extents => "extents",
        }
    }

    /// Its place in [`OpKind::ALL`].
    pub fn number(self) -> usize {
        usize::from(self as u8)
    }
}

/// Some of the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpSet(u8);

impl OpSet {
    /// None of them.
    pub const NONE: OpSet = OpSet(0);
    /// Each of them.
    pub const ALL: OpSet = OpSet::of(&OpKind::ALL);
    /// Those that change what is stored.
    pub const ALTERING: OpSet =
        OpSet::of(&[OpKind::Write, OpKind::Discard, OpKind::Zeroes, OpKind::SecureErase]);

    /// These.
    pub const fn of(kinds: &[OpKind]) -> OpSet {
        let (mut bits, mut at) = (0, 0);
        while at < kinds.len() {
            bits |= 1 << kinds[at] as u8;
            at += 1;
        }
        OpSet(bits)
    }

    /// Whether this one is among them.
    pub const fn has(self, kind: OpKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }

    /// These and one more.
    pub const fn with(self, kind: OpKind) -> OpSet {
        OpSet(self.0 | 1 << kind as u8)
    }
}

/// What some bytes of a volume are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Anything.
    Data,
    /// Zeros that have room.
    Zero,
    /// Zeros without room.
    Hole,
}

/// The answer to [`Op::Extents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What the bytes are, from the offset that was asked for.
    pub kind: ExtentKind,
    /// For how many bytes that is so: at least one block, at most what was asked for.
    pub bytes: u64,
}

/// How one operation of a kind may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most bytes of one.
    pub max_bytes: u64,
    /// What offsets and lengths are best multiples of.
    pub align_bytes: u32,
}

impl Bounds {
    /// What both keep.
    pub fn least(self, other: Bounds) -> Bounds {
        Bounds {
            max_bytes: self.max_bytes.min(other.max_bytes),
            align_bytes: self.align_bytes.max(other.align_bytes),
        }
    }
}

/// How worn a device is (virtio 1.3 §5.2.6, VIRTIO_BLK_T_GET_LIFETIME; values after eMMC 5.0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// 1 normal, 2 warning (80 % of reserved blocks used), 3 urgent (90 %), 0 undefined.
    pub pre_eol_info: u16,
    /// Tenths of the life of cells of type A that are over, 1 to 11; 0 undefined.
    pub typ_a: u16,
    /// The same of type B.
    pub typ_b: u16,
}

/// What a volume promises to the one above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeps {
    /// Bytes; a multiple of `block_bytes`.
    pub size_bytes: u64,
    /// What offsets and lengths are multiples of: 512 to 4096.
    pub block_bytes: u32,
    /// The smallest write that is not read, changed and written below; a multiple of `block_bytes`.
    pub physical_bytes: u32,
    /// The best size of an operation; 0: any.
    pub optimal_bytes: u32,
    /// What changes it fails.
    pub read_only: bool,
    /// A flush makes completed writes durable. Without it nothing ever is.
    pub flush: bool,
    /// A write with `fua` is durable when it completes. Without it the device flushes after it.
    pub fua: bool,
    /// [`Op::Discard`] is taken.
    pub discard: Option<Bounds>,
    /// [`Op::Zeroes`] is taken, and takes less than writing zeros.
    pub zeroes: Option<Bounds>,
    /// [`Op::Zeroes`] may give room back.
    pub unmap: bool,
    /// [`Op::SecureErase`] is taken, and keeps its word.
    pub secure_erase: Option<Bounds>,
    /// [`Op::Extents`] is taken.
    pub extents: bool,
    /// How worn it is, where that is known.
    pub lifetime: Option<Lifetime>,
}

impl Keeps {
    /// A volume of this size that only reads, writes and forgets.
    pub fn plain(size_bytes: u64, block_bytes: u32) -> Keeps {
        Keeps {
            size_bytes,
            block_bytes,
            physical_bytes: block_bytes,
            optimal_bytes: 0,
            read_only: false,
            flush: false,
            fua: false,
            discard: None,
            zeroes: None,
            unmap: false,
            secure_erase: None,
            extents: false,
            lifetime: None,
        }
    }

    /// Which operations it takes: nobody above sends others.
    pub fn ops(&self) -> OpSet {
        let altering = [
            (OpKind::Write, true),
            (OpKind::Discard, self.discard.is_some()),
            (OpKind::Zeroes, self.zeroes.is_some()),
            (OpKind::SecureErase, self.secure_erase.is_some()),
        ];
        let kept = altering.into_iter().filter(|(_, kept)| *kept && !self.read_only).map(|(kind, _)| kind);
        let ops = kept.fold(OpSet::of(&[OpKind::Read, OpKind::Flush]), OpSet::with);
        if self.extents { ops.with(OpKind::Extents) } else { ops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_not_taken() {
        let all = Bounds { max_bytes: 1 << 20, align_bytes: 512 };
        let plain = Keeps::plain(1 << 20, 512);
        let writable = [OpKind::Read, OpKind::Write, OpKind::Flush];
        assert_eq!(plain.ops(), OpSet::of(&writable));
        let full =
            Keeps { discard: Some(all), zeroes: Some(all), secure_erase: Some(all), extents: true, ..plain };
        assert_eq!(full.ops(), OpSet::ALL);
        let read_only = [OpKind::Read, OpKind::Flush, OpKind::Extents];
        assert_eq!(Keeps { read_only: true, ..full }.ops(), OpSet::of(&read_only));
    }

    #[test]
    fn each_kind_has_its_number() {
        for (number, kind) in OpKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.number(), number);
            assert!(OpSet::ALL.has(kind) && !OpSet::NONE.has(kind));
            assert!(OpSet::of(&[kind]).has(kind) && OpSet::of(&[kind]) != OpSet::ALL);
        }
    }

    #[test]
    fn an_operation_keeps_its_kind_elsewhere() {
        let zeroes = Op::Zeroes { offset: 1, bytes: 2, unmap: true };
        assert_eq!(zeroes.at(3, 4), Op::Zeroes { offset: 3, bytes: 4, unmap: true });
        assert_eq!(zeroes.at(3, 4).range(), Some((3, 4)));
        assert_eq!(Op::Flush.at(3, 4), Op::Flush);
    }
}

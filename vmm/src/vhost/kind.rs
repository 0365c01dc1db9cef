//! What is known of device types: a name, the defaults, and what a daemon of the type must look like.
//!
//! Nothing here is needed to *run* a device: `virtio-ID` takes any type by its number, asks the daemon for
//! everything, and checks nothing. A name adds two things: what to assume where a daemon does not say, and
//! [`DeviceKind::check`]. vhost-user has no message that asks for the type, so a daemon of another type can
//! only be told by what it offers: feature bits that the type does not have, too few queues, a configuration
//! space that is too short, or one where there should be none.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

/// Feature bits that belong to a device type; 24-49 are those of rings and transports (virtio 1.3 §2.2).
const TYPE_BITS: u64 = bits(0, 23) | bits(50, 63);
/// Most bytes of configuration space that vhost-user can carry.
const MAX_CONFIG_BYTES: u16 = 256;
/// Device ids of virtio-pci end at 0x107f (virtio 1.3 §4.1.2.1).
const MAX_DEVICE_TYPE: u16 = 0x3f;

/// What a daemon offered at connect.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Features, as the daemon gave them.
    pub features: u64,
    /// Queues, if it said how many (MQ).
    pub queues: Option<u16>,
    /// Configuration space, if it has any (CONFIG).
    pub config: Option<Vec<u8>>,
}

/// Where configuration space says how many queues there are, for drivers that believe it.
#[derive(Clone, Copy, Debug)]
pub struct QueueCount {
    /// Offset of the number.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Queues that it does not count.
    pub others: u16,
}

/// One type of the table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    /// As it stands in an error: "a block device".
    noun: &'static str,
    id: u16,
    class: u32,
    /// Queues: fewest a device of this type has, and what is assumed where the daemon does not say.
    queues: (u16, u16),
    /// The type has this many queues and never more.
    max_queues: u16,
    /// Bytes of configuration space: fewest that make sense, and most that the specification knows.
    config: RangeInclusive<u16>,
    /// Feature bits of the type, those of legacy drivers included.
    features: u64,
    /// At least one of these is offered by every daemon of the type; 0 if nothing can be said.
    marks: u64,
    /// Features to leave out where the daemon has no configuration space; `None` if the type needs one.
    without_config: Option<u64>,
    queue_count: Option<QueueCount>,
    /// Our own daemon for it.
    daemon: Option<&'static str>,
}

const DEFAULTS: Row = Row {
    name: "",
    noun: "",
    id: 0,
    class: 0xff_00_00,
    queues: (1, 1),
    max_queues: u16::MAX,
    config: 0..=MAX_CONFIG_BYTES,
    features: TYPE_BITS,
    marks: 0,
    without_config: None,
    queue_count: None,
    daemon: None,
};

/// virtio 1.3 §5, with the class codes that drivers and people expect.
static ROWS: [Row; 11] = [
    Row {
        name: "net",
        noun: "a network device",
        id: 1,
        class: 0x02_00_00,
        queues: (2, 3),
        config: 6..=24,
        // MRG_RXBUF, STATUS, CTRL_VQ.
        marks: bits(15, 17),
        // MTU, MAC, STATUS, MQ, HASH_REPORT, RSS, SPEED_DUPLEX are about fields of that space.
        without_config: Some(1 << 3 | 1 << 5 | 1 << 16 | 1 << 22 | 1 << 57 | 1 << 60 | 1 << 63),
        daemon: Some("outboard-net"),
        ..DEFAULTS
    },
    Row {
        name: "blk",
        noun: "a block device",
        id: 2,
        class: 0x01_80_00,
        config: 36..=96,
        features: bits(0, 2) | bits(4, 7) | bits(9, 17),
        queue_count: Some(QueueCount { offset: 34, bytes: 2, others: 0 }),
        daemon: Some("outboard-blk"),
        ..DEFAULTS
    },
    Row {
        name: "console",
        noun: "a console",
        id: 3,
        class: 0x07_80_00,
        queues: (2, 2),
        config: 12..=12,
        features: bits(0, 2),
        // SIZE, MULTIPORT.
        without_config: Some(0b11),
        daemon: Some("outboard-console"),
        ..DEFAULTS
    },
    Row {
        name: "rng",
        noun: "an entropy device",
        id: 4,
        max_queues: 1,
        config: 0..=0,
        features: 0,
        without_config: Some(0),
        daemon: Some("outboard-rng"),
        ..DEFAULTS
    },
    Row {
        name: "balloon",
        noun: "a memory balloon",
        id: 5,
        queues: (2, 2),
        max_queues: 5,
        config: 16..=16,
        features: bits(0, 5),
        daemon: Some("outboard-balloon"),
        ..DEFAULTS
    },
    Row {
        name: "scsi",
        noun: "a SCSI host",
        id: 8,
        class: 0x01_00_00,
        queues: (3, 3),
        config: 36..=36,
        queue_count: Some(QueueCount { offset: 0, bytes: 4, others: 2 }),
        ..DEFAULTS
    },
    Row {
        name: "gpu",
        noun: "a GPU",
        id: 16,
        class: 0x03_80_00,
        queues: (2, 2),
        config: 12..=16,
        ..DEFAULTS
    },
    Row {
        name: "input",
        noun: "an input device",
        id: 18,
        class: 0x09_80_00,
        queues: (2, 2),
        config: 8..=136,
        ..DEFAULTS
    },
    Row {
        name: "vsock",
        noun: "a socket device",
        id: 19,
        class: 0x07_80_00,
        queues: (3, 3),
        config: 8..=8,
        ..DEFAULTS
    },
    Row {
        name: "sound",
        noun: "a sound device",
        id: 25,
        class: 0x04_01_00,
        queues: (4, 4),
        config: 12..=16,
        ..DEFAULTS
    },
    Row {
        name: "fs",
        noun: "a file system",
        id: 26,
        class: 0x01_80_00,
        queues: (2, 2),
        config: 40..=44,
        queue_count: Some(QueueCount { offset: 36, bytes: 4, others: 1 }),
        ..DEFAULTS
    },
];

/// A type of device: one of the table, or any by its number.
#[derive(Clone, Copy)]
pub struct DeviceKind {
    id: u16,
    row: &'static Row,
}

impl DeviceKind {
    /// The type that is called so; `virtio-ID` is any.
    ///
    /// # Errors
    /// The text to show behind the name.
    pub fn parse(name: &str) -> Result<DeviceKind, String> {
        if let Some(number) = name.strip_prefix("virtio-") {
            let id = number.parse().ok().filter(|id| (1..=MAX_DEVICE_TYPE).contains(id));
            let id = id.ok_or_else(|| format!("ID is a number from 1 to {MAX_DEVICE_TYPE}"))?;
            return Ok(DeviceKind { id, row: &DEFAULTS });
        }
        let row = ROWS.iter().find(|row| row.name == name).ok_or_else(|| {
            let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
            format!("use one of {}, or virtio-ID with the number of any other", names.join(", "))
        })?;
        Ok(DeviceKind { id: row.id, row })
    }

    /// Virtio device type.
    pub fn id(self) -> u16 {
        self.id
    }

    /// PCI class code.
    pub fn class(self) -> u32 {
        self.row.class
    }

    /// Queues of a daemon that does not say how many it has.
    pub fn default_queues(self) -> u16 {
        self.row.queues.1
    }

    /// Sizes to ask for configuration space with, the best first. Strict daemons refuse more than they have.
    pub fn config_sizes(self) -> impl Iterator<Item = u16> {
        let range = self.row.config.clone();
        let (least, most) = (*range.start(), *range.end());
        (least..=most).rev().filter(|size| *size > 0)
    }

    /// Fewest bytes of configuration space that make sense.
    pub fn least_config_bytes(self) -> u16 {
        *self.row.config.start()
    }

    /// The type has no configuration space.
    pub fn is_without_config(self) -> bool {
        *self.row.config.end() == 0
    }

    /// Features to keep from the guest where there is no configuration space.
    pub fn features_of_config(self) -> u64 {
        self.row.without_config.unwrap_or(0)
    }

    /// Where the configuration space counts queues.
    pub fn queue_count(self) -> Option<QueueCount> {
        self.row.queue_count
    }

    /// Queue pairs and a control queue: the number cannot be lowered, since the last one has a meaning.
    pub fn has_fixed_queues(self) -> bool {
        self.row.name == "net"
    }

    /// Whether writes to the configuration space are settings, which a daemon that comes back must be told of. The
    /// one field of a console that can be written prints a character (emerg_wr, virtio 1.3 §5.3.4).
    pub fn keeps_config(self) -> bool {
        self.row.name != "console"
    }

    /// How to start what should be on the socket.
    pub fn start_hint(self, socket: &Path) -> String {
        match self.row.daemon {
            Some(daemon) => format!("start {daemon} --socket-path {}", socket.display()),
            None => format!("start a vhost-user daemon for {self} there"),
        }
    }

    /// Whether what a daemon offers can be a device of this type.
    ///
    /// # Errors
    /// What it looks like, as a whole clause.
    pub fn check(self, offer: &Offer) -> Result<(), String> {
        let Err(reason) = self.row.fits(offer) else { return Ok(()) };
        let ours = ROWS.iter().filter(|row| row.daemon.is_some() && row.fits(offer).is_ok());
        let likely: Vec<_> = ours.map(|row| row.noun).collect();
        let guess = match likely.as_slice() {
            [only] => format!(", it looks like {only}"),
            _ => String::new(),
        };
        Err(format!("the daemon there offers no {}: {reason}{guess}", self.bare_noun()))
    }

    /// The noun without its article.
    fn bare_noun(self) -> &'static str {
        self.row.noun.split_once(' ').map_or(self.row.noun, |(_, noun)| noun)
    }
}

impl Row {
    fn fits(&self, offer: &Offer) -> Result<(), String> {
        let foreign = offer.features & TYPE_BITS & !self.features;
        if foreign != 0 {
            return Err(format!("its features {:#x} are not those of {}", offer.features, self.noun));
        }
        if self.marks != 0 && offer.features & self.marks == 0 {
            return Err(format!("its features {:#x} have none that {} has", offer.features, self.noun));
        }
        match offer.queues {
            Some(queues) if queues < self.queues.0 => {
                return Err(format!("it has {queues} queues, {} has at least {}", self.noun, self.queues.0));
            }
            Some(queues) if queues > self.max_queues => {
                return Err(format!("it has {queues} queues, {} has at most {}", self.noun, self.max_queues));
            }
            _ => {}
        }
        self.fits_config(offer.config.as_deref())
    }

    fn fits_config(&self, config: Option<&[u8]>) -> Result<(), String> {
        let least = usize::from(*self.config.start());
        match config {
            None if self.without_config.is_none() && least > 0 => {
                Err(format!("it has no configuration space, {} has one", self.noun))
            }
            Some(config) if config.len() < least => {
                Err(format!("its configuration space has fewer than the {least} bytes of {}", self.noun))
            }
            // A daemon may pad what it has not with zeros.
            Some(config) if *self.config.end() == 0 && config.iter().any(|byte| *byte != 0) => {
                Err(format!("it has a configuration space, {} has none", self.noun))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row.name {
            "" => write!(f, "virtio-{}", self.id),
            name => f.write_str(name),
        }
    }
}

impl fmt::Debug for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for DeviceKind {
    fn eq(&self, other: &DeviceKind) -> bool {
        self.id == other.id && self.row.name == other.row.name
    }
}

impl Eq for DeviceKind {}

/// A mask of the bits `first` to `last`.
const fn bits(first: u32, last: u32) -> u64 {
    u64::MAX.wrapping_shl(first) & u64::MAX.wrapping_shr(63u32.saturating_sub(last))
}

#[cfg(test)]
#[path = "kind_tests.rs"]
mod tests;

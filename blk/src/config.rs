//! Options of `outboard-blk`.

use std::path::PathBuf;

use backends::daemon::{Failure, Program};
use backends::kept::Kept;
use backends::opened::Opened;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::device::Blk;
use crate::source::Source;
use crate::storage::image::Image;
use crate::tool::BlkTool;
use crate::uevents;
use crate::wire::ID_BYTES;

/// Most queues: a vhost-user message names one by a byte, and more than CPUs are of no use to a guest.
const MAX_QUEUES: i64 = 256;

/// What the command line adds to the options of every daemon.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The disk: a raw image file or a block device; nobody else may use it meanwhile
    #[arg(long, alias = "blk-file", value_name = "PATH", required_unless_present = "graph")]
    pub image: Option<PathBuf>,

    /// The disk: a graph of volumes; try `outboard-blk graph --help`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "read_only", "direct", "block_size"])]
    pub graph: Option<PathBuf>,

    /// Refuse writes, and share the image with others that only read it
    #[arg(long)]
    pub read_only: bool,

    /// Pass the host's page cache by (O_DIRECT)
    #[arg(long)]
    pub direct: bool,

    /// Request queues; a guest uses at most one for each of its CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_QUEUES))]
    pub queues: u16,

    /// Serial number that the guest sees, of at most 20 letters, digits and signs
    #[arg(long, value_name = "S", default_value = "", hide_default_value = true, value_parser = serial)]
    pub serial: String,

    /// Bytes of a logical block
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = block_size())]
    pub block_size: u32,
}

impl Program for Options {
    type Device = Blk;
    type Tool = BlkTool;
    const NAME: &'static str = "outboard-blk";
    const TYPE: &'static str = "block";
    const ABOUT: &'static str = "vhost-user block device: the disk of one virtual machine";
    const POLICY: &'static str = include_str!("../policy/seccomp.policy");
    const EXAMPLES: &'static str = "Examples:\n  \
        outboard-blk --socket-path /run/outboard/vm1/blk.sock \\\n      \
        --image /srv/vm1.img --queues 4\n  \
        outboard-blk --socket-path /run/outboard/vm1/blk.sock \\\n      \
        --graph /etc/outboard/vm1.vol\n  \
        outboard run ... --device blk,socket=/run/outboard/vm1/blk.sock\n  \
        qemu-system-x86_64 ... \\\n      \
        -chardev socket,id=disk,path=/run/outboard/vm1/blk.sock \\\n      \
        -device vhost-user-blk-pci,chardev=disk";
    const CAPABILITIES: &'static [&'static str] = &["read-only", "blk-file"];

    fn check(&self) -> Result<(), Failure> {
        self.source().check()
    }

    fn prepare(&self, opened: &mut Opened) -> Result<(), Failure> {
        self.source().prepare(opened)
    }

    fn open(self, kept: &Kept) -> Result<Blk, Failure> {
        let live = self.source().find(kept)?;
        let blk = Blk::new(live, kept, self.queues, &self.serial).map_err(Failure::host)?;
        Ok(blk.hearing(kept.take(uevents::NAME)))
    }
}

impl Options {
    fn source(&self) -> Source {
        match (&self.graph, &self.image) {
            (Some(path), _) => Source::Graph(path.clone()),
            (None, image) => Source::Image(Image {
                // One of the two is there.
                path: image.clone().unwrap_or_default(),
                read_only: self.read_only,
                direct: self.direct,
                block_bytes: self.block_size,
            }),
        }
    }
}

fn block_size() -> impl TypedValueParser<Value = u32> {
    PossibleValuesParser::new(["512", "4096"]).try_map(|value| value.parse::<u32>())
}

fn serial(value: &str) -> Result<String, String> {
    if value.len() > ID_BYTES {
        return Err(format!("{} bytes are too long; use at most {ID_BYTES}", value.len()));
    }
    if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("only printable ASCII without blanks can be shown to a guest".to_owned());
    }
    Ok(value.to_owned())
}

//! `outboard-blk extents`: which parts of a disk hold data, which are zeros, and which take no room.
//!
//! In: an image or a graph. Out: its parts in their order, each as large as can be. The graph is asked as a guest's request
//! would ask it, from its top: what a translator hides, moves or adds is seen so. Nothing is locked: while a daemon writes
//! to it, the answer is of some moment for each part.

use std::path::PathBuf;

use backends::daemon::Failure;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{graph, say};
use crate::graph::Graph;
use crate::graph::kinds::KINDS;
use crate::graph::plan::Plan;
use crate::graph::runner::Runner;
use crate::graph::show::Picture;
use crate::graph::volfile::VolumeText;
use crate::op::{ExtentKind, Op};

/// What `--help` says last.
pub const EXAMPLES: &str = "\
Examples:
  outboard-blk extents --image /srv/vm1.img
  outboard-blk extents --graph /etc/outboard/vm1.vol --json

Kinds of parts:
  data  anything may be there
  zero  zeros that have room
  hole  zeros that take no room

JSON is as qemu-img map --output=json has it: start, length, zero, data.";

/// Whose parts.
#[derive(Debug, Args)]
#[group(required = true, multiple = false, id = "disk")]
pub struct Disk {
    /// A raw image file or a block device
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,

    /// A file with a graph
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
}

/// What is asked.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    disk: Disk,

    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Part {
    start: u64,
    length: u64,
    /// Reads give zeros.
    zero: bool,
    /// It takes room.
    data: bool,
}

impl Options {
    /// Tells of all parts.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn run(&self) -> Result<(), Failure> {
        let (plan, graph) = self.disk.open()?;
        if let Some(volume) = Picture::of(&plan, &graph, false).to_blame("extents") {
            let (name, kind) = (&volume.name, &volume.kind);
            let message =
                format!("Volume {name}: {kind} cannot tell which parts hold data; ask what is below it");
            return Err(Failure { message, code: 3 });
        }
        let parts = parts(&graph)?;
        if self.json {
            return say(json!(parts));
        }
        let lines =
            parts.iter().map(|part| format!("\n{:>16}  {:>16}  {}", part.start, part.length, part.kind()));
        say(format_args!("{:>16}  {:>16}  kind{}", "start", "bytes", lines.collect::<String>()))
    }
}

impl Disk {
    fn open(&self) -> Result<(Plan, Graph), Failure> {
        if let Some(file) = &self.graph {
            return graph::load(file);
        }
        let path = self.image.clone().unwrap_or_default();
        let mut image = VolumeText::new("image", "storage/file");
        let option = |key: &str, value: String| (key.to_owned(), value, 0);
        image.options =
            vec![option("path", path.to_string_lossy().into_owned()), option("read-only", "on".into())];
        let looked = Plan::of(vec![image], KINDS).and_then(graph::look);
        looked.map_err(|error| error.failure("--image".as_ref()))
    }
}

impl Part {
    fn kind(&self) -> &'static str {
        match (self.data, self.zero) {
            (true, false) => "data",
            (true, true) => "zero",
            (false, _) => "hole",
        }
    }
}

fn parts(graph: &Graph) -> Result<Vec<Part>, Failure> {
    let disk = graph.disk();
    let mut runner = Runner::new(graph).map_err(Failure::host)?;
    let mut parts: Vec<Part> = Vec::new();
    let mut start = 0;
    while start < disk.size_bytes {
        let op = Op::Extents { offset: start, bytes: disk.size_bytes.saturating_sub(start) };
        let (outcome, extent) = runner.extent(op, &[]);
        outcome
            .map_err(|errno| Failure::host(format_args!("Cannot tell what is at byte {start}: {errno}")))?;
        let Some(extent) = extent.filter(|extent| extent.bytes > 0) else {
            return Err(Failure::host(format_args!("Nothing is told of what is at byte {start}")));
        };
        let (zero, data) = match extent.kind {
            ExtentKind::Data => (false, true),
            ExtentKind::Zero => (true, true),
            ExtentKind::Hole => (true, false),
        };
        add(&mut parts, Part { start, length: extent.bytes, zero, data });
        start = start.saturating_add(extent.bytes);
    }
    Ok(parts)
}

/// Joins it with the one before it, if that is of its kind.
fn add(parts: &mut Vec<Part>, part: Part) {
    match parts.last_mut().filter(|last| last.kind() == part.kind()) {
        Some(last) => last.length = last.length.saturating_add(part.length),
        None => parts.push(part),
    }
}

//! `outboard-blk graph`: looks at graphs without serving them.
//!
//! In: a file with a graph. Out: whether it can be served, or what it would be. The files of its leaves are opened as the
//! daemon would open them, but not locked: a graph that a daemon is serving can be looked at too.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use backends::daemon::Failure;
use backends::opened::Opened;
use clap::Subcommand;
use serde_json::Value;

use super::{live, say};
use crate::graph::Graph;
use crate::graph::error::{GraphError, Shown, nearest};
use crate::graph::kinds::KINDS;
use crate::graph::options::{Preset, Setting, in_units};
use crate::graph::plan::{Plan, wanted};
use crate::graph::registry::{Kind, Purpose};
use crate::graph::show::Picture;
use crate::graph::volfile::MAX_BYTES;

/// What `--help` says last.
pub const EXAMPLES: &str = "\
Examples:
  outboard-blk graph check /etc/outboard/vm1.vol
  outboard-blk graph show /etc/outboard/vm1.vol
  outboard-blk graph types features/throttle
  outboard-blk graph apply /etc/outboard/vm1.vol \\
      --control-socket /run/outboard/vm1/blk.control
  outboard-blk graph show --control-socket /run/outboard/vm1/blk.control

A graph:
  # Volumes stand on those before them; the last one is the disk.
  volume image
      type storage/file
      option path /srv/vm1.img
  end-volume
  volume slow
      type features/throttle
      option ops 1000
      subvolumes image
  end-volume

Exit codes:
  0  the graph can be served
  1  failure, as an image that this user may not open
  2  bad option, or a graph that is wrong; the line says where and what to do";

/// What is done with graphs.
#[derive(Debug, Subcommand)]
pub enum GraphTool {
    /// Say whether a graph can be served, and if not, which line is wrong
    Check {
        /// The graph
        file: PathBuf,
    },
    /// Draw a graph: what each volume is, how it is set, what it keeps, and why it does not keep the rest
    Show {
        /// The graph
        #[arg(required_unless_present = "control_socket")]
        file: Option<PathBuf>,
        /// The graph that this daemon serves, with its counters
        #[arg(long, value_name = "PATH", conflicts_with = "file")]
        control_socket: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a daemon serve this graph from now on, while its guest goes on
    Apply {
        /// The graph
        file: PathBuf,
        /// Control socket of the daemon
        #[arg(long, value_name = "PATH")]
        control_socket: PathBuf,
    },
    /// Have a volume of type features/quiesce hold still: no request passes, all that was written is durable
    Hold {
        /// Its name
        volume: String,
        /// Control socket of the daemon
        #[arg(long, value_name = "PATH")]
        control_socket: PathBuf,
    },
    /// Have a volume that holds still go on
    Release {
        /// Its name
        volume: String,
        /// Control socket of the daemon
        #[arg(long, value_name = "PATH")]
        control_socket: PathBuf,
    },
    /// List the types of volumes, or all options of one
    Types {
        /// The type, as storage/file
        name: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl GraphTool {
    /// Does it.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn run(&self) -> Result<(), Failure> {
        match self {
            GraphTool::Check { file } => {
                let (plan, graph) = load(file)?;
                let (file, size) = (file.display(), in_units(&graph.disk().size_bytes));
                say(format_args!("{file}: can be served, {size} from {} volumes", plan.volumes().len()))
            }
            GraphTool::Apply { file, control_socket } => live::apply(file, control_socket),
            GraphTool::Hold { volume, control_socket } => live::hold(volume, control_socket),
            GraphTool::Release { volume, control_socket } => live::release(volume, control_socket),
            GraphTool::Show { control_socket: Some(socket), json, .. } => live::show(socket, *json),
            GraphTool::Show { file, json, .. } => {
                let (plan, graph) = load(file.as_deref().unwrap_or(Path::new("")))?;
                let picture = Picture::of(&plan, &graph, false);
                if *json { say(picture.to_json()) } else { say(picture.to_string().trim_end()) }
            }
            GraphTool::Types { name: None, json: true } => {
                say(Value::from_iter(KINDS.iter().map(|kind| kind.to_json())))
            }
            GraphTool::Types { name: None, json: false } => say(list(KINDS).trim_end()),
            GraphTool::Types { name: Some(name), json } => {
                let kind = find(name)?;
                if *json { say(kind.to_json()) } else { say(told(kind).trim_end()) }
            }
        }
    }
}

/// The graph of a file, for a look.
///
/// # Errors
/// The file cannot be read, or the line that is wrong.
pub fn load(file: &Path) -> Result<(Plan, Graph), Failure> {
    let plan = Plan::read(&read(file)?);
    plan.and_then(look).map_err(|error| error.failure(file))
}

/// A plan with its graph, for a look.
///
/// # Errors
/// What it says cannot be opened or does not fit.
pub fn look(plan: Plan) -> Result<(Plan, Graph), GraphError> {
    let mut opened = Opened::default();
    plan.prepare(Purpose::Look, &mut opened)?;
    let graph = plan.graph(&opened.into_kept().0)?;
    Ok((plan, graph))
}

/// The bytes of a file, and one more if there are too many.
///
/// # Errors
/// It cannot be read.
pub fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let read = File::open(file).and_then(|file| file.take(most).read_to_end(&mut bytes));
    let told =
        |cause| format!("{}: {cause}; give a file with a graph that this user may read", file.display());
    read.map(|_| bytes).map_err(|cause| Failure::option(told(cause)))
}

fn find(name: &str) -> Result<&'static Kind, Failure> {
    let names = || KINDS.iter().map(|kind| kind.name);
    KINDS.iter().copied().find(|kind| kind.name == name).ok_or_else(|| {
        let cure = match nearest(name, names()) {
            Some(meant) => format!("{meant} is meant, perhaps"),
            None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
        };
        Failure::option(format_args!("graph types {}: there is no such type; {cure}", Shown(name)))
    })
}

/// A line for each kind.
pub fn list(kinds: &[&Kind]) -> String {
    let width = kinds.iter().map(|kind| kind.name.len()).max().unwrap_or(0);
    kinds.iter().map(|kind| format!("{:width$}  {}\n", kind.name, kind.about)).collect()
}

/// All that a kind takes.
pub fn told(kind: &Kind) -> String {
    let below = wanted(&kind.subvolumes);
    let mut text = format!("{}: {}\nStands on {below}.\n", kind.name, kind.about);
    for setting in kind.options {
        text.push_str(&format!(
            "\n  option {}\n      {}\n      {}\n",
            setting.name,
            setting.about,
            taken(setting)
        ));
    }
    text
}

/// What an option takes, and what it is without being said.
pub fn taken(setting: &Setting) -> String {
    let takes = setting.kind.to_string();
    match setting.preset {
        Preset::Required => format!("{takes}; required"),
        Preset::Absent => takes,
        Preset::Is(text) => format!("{takes}; {text} unless told"),
    }
}

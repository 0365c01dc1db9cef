//! What `outboard-blk` does beside serving a disk, each by a subcommand.
//!
//! In: a command line whose first word is none of the daemon's options. Out: what it asks for, on standard output, for
//! people or as JSON; a failure is one line with the daemons' exit codes. Nothing is confined here: these run with the
//! rights of whoever calls them, for as long as it takes, on files of the operator's own.

use std::fmt::Display;
use std::io::{self, Write};

use backends::daemon::{Failure, Tool};
use clap::Subcommand;

use crate::create;

pub mod extents;
pub mod graph;
pub mod grow;
mod live;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum BlkTool {
    /// Make an image
    #[command(long_about = create::ABOUT, after_help = create::EXAMPLES)]
    Create(create::Options),
    /// Check, draw and explain graphs of volumes
    #[command(subcommand, arg_required_else_help = false, after_help = graph::EXAMPLES)]
    Graph(graph::GraphTool),
    /// Tell which parts of a disk hold data
    #[command(after_help = extents::EXAMPLES)]
    Extents(extents::Options),
    /// Make a disk larger while it is used
    #[command(long_about = grow::ABOUT, after_help = grow::EXAMPLES)]
    Grow(grow::Options),
}

impl Tool for BlkTool {
    fn run(self) -> Result<(), Failure> {
        match self {
            BlkTool::Create(options) => options.run(),
            BlkTool::Graph(tool) => tool.run(),
            BlkTool::Extents(options) => options.run(),
            BlkTool::Grow(options) => options.run(),
        }
    }
}

/// Lines on standard output.
pub(crate) fn say(lines: impl Display) -> Result<(), Failure> {
    let said = writeln!(io::stdout(), "{lines}");
    said.map_err(|cause| Failure::host(format!("Cannot write to standard output: {cause}")))
}

//! Options of `outboard-console`.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;

use backends::daemon::{Failure, Program};
use backends::kept::Kept;
use backends::opened::Opened;

use crate::device::Console;
use crate::host::connect::Connect;
use crate::host::pty::{Pty, PtyError};
use crate::host::stdio::Stdio;
use crate::host::unix::Unix;

/// What the command line adds to the options of every daemon: exactly one host side.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Options {
    /// Connect the guest's console to standard input and output; a terminal is made raw
    #[arg(long)]
    pub stdio: bool,

    /// Connect it to a new pseudo-terminal, to which this symbolic link leads
    #[arg(long, value_name = "LINK")]
    pub pty: Option<PathBuf>,

    /// Connect it to clients of this unix socket, one at a time
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,

    /// Connect it to whoever listens on this unix socket, again whenever that is lost
    #[arg(long, value_name = "PATH")]
    pub connect: Option<PathBuf>,
}

impl Program for Options {
    type Device = Console;
    type Tool = Infallible;
    const NAME: &'static str = "outboard-console";
    const TYPE: &'static str = "console";
    const ABOUT: &'static str =
        "vhost-user console device: a virtual machine's hvc0 on a terminal, a pty or a socket";
    const POLICY: &'static str = include_str!("../policy/seccomp.policy");
    const EXAMPLES: &'static str = "While somebody reads, nothing is lost: a slow reader holds the guest back. While nobody does, the guest goes on \
        and the last 64 KiB it wrote wait for the next reader.\n\n\
        Examples:\n  \
        outboard-console --socket-path /run/outboard/vm1/console.sock \\\n      \
        --listen /run/outboard/vm1/hvc0.sock\n  \
        socat -,raw,echo=0 UNIX-CONNECT:/run/outboard/vm1/hvc0.sock\n\n  \
        outboard-console --socket-path /run/outboard/vm1/console.sock \\\n      \
        --connect /run/log.sock\n\n  \
        outboard-console --socket-path /run/outboard/vm1/console.sock \\\n      \
        --pty /run/outboard/vm1/hvc0\n  \
        screen /run/outboard/vm1/hvc0";

    fn check(&self) -> Result<(), Failure> {
        if let Some(link) = &self.pty {
            Pty::check(link)?;
        }
        if let Some(path) = &self.listen {
            Unix::check(path)?;
        }
        if let Some(path) = &self.connect {
            Connect::check(path)?;
        }
        Ok(())
    }

    fn parts(&self) -> &'static [&'static str] {
        if self.connect.is_some() { &["connect"] } else { &[] }
    }

    fn prepare(&self, opened: &mut Opened) -> Result<(), Failure> {
        match self {
            Options { pty: Some(link), .. } => Ok(Pty::prepare(link, opened)?),
            Options { listen: Some(path), .. } => Ok(Unix::prepare(path, opened)?),
            Options { connect: Some(path), .. } => Ok(Connect::prepare(path, opened)?),
            _ => Stdio::prepare(opened).map_err(stdio_failed),
        }
    }

    fn open(self, kept: &Kept) -> Result<Console, Failure> {
        if self.pty.is_some() {
            let pty = Pty::open(kept).map_err(Failure::host)?;
            let terminal = pty.terminal();
            return Ok(Console::new(|| pty, terminal));
        }
        if let Some(path) = self.listen {
            let unix = Unix::open(path, kept).map_err(Failure::host)?;
            return Ok(Console::new(|| unix, None));
        }
        if let Some(path) = self.connect {
            let kept = kept.clone();
            return Ok(Console::new(|| Connect::new(path, kept), None));
        }
        let stdio = Stdio::open(kept).map_err(stdio_failed)?;
        let terminal = stdio.terminal();
        Ok(Console::new(|| stdio, terminal))
    }
}

fn stdio_failed(cause: io::Error) -> Failure {
    Failure::host(format!("--stdio: cannot use standard input and output: {cause}; leave both open"))
}

impl From<PtyError> for Failure {
    fn from(error: PtyError) -> Failure {
        match error {
            PtyError::Taken(_) => Failure::option(error),
            PtyError::Open { .. } | PtyError::Link { .. } => Failure::host(error),
        }
    }
}

//! Why `outboard ctl` did not do what it was asked. Each text is one line with the cure.

use std::io;
use std::path::PathBuf;

use backends::control::client::ClientError;
use thiserror::Error;

use super::settings::SettingError;
use crate::error::{EXIT_FAILURE, EXIT_OPTION};

/// What went wrong.
#[derive(Debug, Error)]
pub enum CtlError {
    /// Nobody to ask.
    #[error("--socket is missing: name the control socket to ask; {0}")]
    NoSocket(String),
    /// A list of one thing.
    #[error("--socket {}: `list` asks all sockets of a directory; leave --socket out, or use `state`", .0.display())]
    ListOfOne(PathBuf),
    /// No answer.
    #[error("--socket {}: {cause}", .socket.display())]
    NoAnswer {
        /// Who was asked.
        socket: PathBuf,
        /// Why.
        cause: ClientError,
    },
    /// An answer that says no.
    #[error("--socket {}: {text}", .socket.display())]
    Refused {
        /// Who was asked.
        socket: PathBuf,
        /// HTTP's.
        status: u16,
        /// What it said.
        text: String,
    },
    /// Something that the program on the socket does not have.
    #[error("--socket {}: `{command}` is for {whom}, and something else listens there; `outboard ctl list` shows what", .socket.display())]
    WrongProgram {
        /// Who was asked.
        socket: PathBuf,
        /// What it was asked for.
        command: &'static str,
        /// Who would know it.
        whom: &'static str,
    },
    /// An answer that makes no sense.
    #[error("--socket {}: its answer cannot be read ({cause}); is it a program of another version?", .socket.display())]
    BadAnswer {
        /// Who was asked.
        socket: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// No setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Not a directory to look in.
    #[error("{}: {cause}; name the directory with the control sockets", .dir.display())]
    Directory {
        /// As given.
        dir: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// A log that is no file.
    #[error("--reopen: its log goes to standard error; name a file to go on in, --reopen FILE")]
    NoLogFile,
    /// A log file that cannot be had.
    #[error("--reopen {}: {cause}; name a file that this user can write", .path.display())]
    LogFile {
        /// The file.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// The old worker went, or should have, and the next one does not answer.
    #[error("--socket {}: no other worker serves after {seconds} s; the daemon's log says why", .socket.display())]
    NoUpgrade {
        /// Who was asked.
        socket: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Nobody can see it.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl CtlError {
    /// The exit code of the process: was it the command line, or the world?
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::NoSocket(_) | CtlError::ListOfOne(_) | CtlError::WrongProgram { .. } => EXIT_OPTION,
            CtlError::Setting(_)
            | CtlError::Directory { .. }
            | CtlError::NoLogFile
            | CtlError::LogFile { .. } => EXIT_OPTION,
            CtlError::Refused { status: 400 | 422, .. } => EXIT_OPTION,
            _ => EXIT_FAILURE,
        }
    }
}

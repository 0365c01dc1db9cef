//! Where the log goes, as the options have it.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use clap::ValueEnum;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use thiserror::Error;
use tracing::Level;

use super::Format;
use crate::options::check_directory;

/// Where journald listens for fields (sd_journal_print(3)).
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
/// Who may read a log: it names files and sockets of the host.
const FILE_MODE: u32 = 0o640;

/// What the log is made of.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// Log as text for people, as json, or as journal: fields in systemd's journal [default: journal if standard error goes there, else text]
    #[arg(long, value_name = "FORMAT", value_enum, hide_possible_values = true)]
    pub log_format: Option<Format>,

    /// Log what matters this much: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to the end of this file instead of standard error
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,

    /// Where journald listens
    #[arg(long, hide = true, value_name = "PATH", default_value = JOURNAL_SOCKET)]
    pub journal_socket: PathBuf,
}

/// Why there is no log.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file cannot be written.
    #[error("--log-file {}: {cause}; its directory must exist and be writable for this user", path.display())]
    File {
        /// Path.
        path: PathBuf,
        /// Error of the host.
        cause: io::Error,
    },
    /// journald does not listen.
    #[error("--log-format journal: {}: {cause}; start systemd-journald, or use text or json", path.display())]
    Journal {
        /// Its socket.
        path: PathBuf,
        /// Error of the host.
        cause: io::Error,
    },
    /// Two places for one log.
    #[error("--log-file does not go with --log-format journal; use text or json with a file")]
    FileAndJournal,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        let journal_socket = JOURNAL_SOCKET.into();
        LogOptions { log_format: None, log_level: Level::INFO, log_file: None, journal_socket }
    }
}

impl LogOptions {
    /// Looks at what the options name, and leaves it as it is.
    ///
    /// # Errors
    /// As a start would.
    pub fn check(&self) -> Result<(), LogError> {
        self.choose()?;
        let Some(path) = &self.log_file else { return Ok(()) };
        let access = match path.metadata() {
            Ok(file) if file.is_dir() => Err(Errno::ISDIR.into()),
            Ok(_) => accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).map_err(io::Error::from),
            Err(_) => check_directory(path),
        };
        access.map_err(|cause| self.refuse(cause))
    }

    /// The file that takes the place of standard error, and its whole path.
    pub(super) fn open_file(&self) -> Result<Option<(OwnedFd, PathBuf)>, LogError> {
        let Some(path) = &self.log_file else { return Ok(None) };
        let open = || {
            let file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)?;
            Ok((file.into(), self.whole_path().unwrap_or_default()))
        };
        open().map(Some).map_err(|cause| self.refuse(cause))
    }

    pub(super) fn refuse(&self, cause: io::Error) -> LogError {
        LogError::File { path: self.log_file.clone().unwrap_or_default(), cause }
    }

    /// The path of the file, for those who stand somewhere else.
    pub(super) fn whole_path(&self) -> Option<PathBuf> {
        std::path::absolute(self.log_file.as_ref()?).ok()
    }

    /// How lines look, and the socket if that is journald's. Nobody asked for it and it is not to be had: then they are
    /// text, which reaches the journal by standard error.
    pub(super) fn choose(&self) -> Result<(Format, Option<UnixDatagram>), LogError> {
        match (self.log_format, &self.log_file) {
            (Some(Format::Journal), Some(_)) => Err(LogError::FileAndJournal),
            (Some(Format::Journal), None) => self.connect().map(|socket| (Format::Journal, Some(socket))),
            (Some(format), _) => Ok((format, None)),
            (None, None) if stderr_is_the_journal() => match self.connect() {
                Ok(socket) => Ok((Format::Journal, Some(socket))),
                Err(_) => Ok((Format::Text, None)),
            },
            (None, _) => Ok((Format::Text, None)),
        }
    }

    fn connect(&self) -> Result<UnixDatagram, LogError> {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(&self.journal_socket)?;
            Ok(socket)
        };
        connect().map_err(|cause| LogError::Journal { path: self.journal_socket.clone(), cause })
    }

    /// For the keeper, which parses no options.
    pub(crate) fn to_arg(&self) -> OsString {
        let mut arg = OsString::from(format!("{},{},", super::format(), super::level()));
        arg.push(&self.journal_socket);
        arg
    }

    /// What [`LogOptions::to_arg`] made.
    pub(crate) fn from_arg(arg: &OsStr) -> Option<LogOptions> {
        let mut parts = arg.as_bytes().splitn(3, |byte| *byte == b',');
        let (format, level, socket) = (parts.next()?, parts.next()?, parts.next()?);
        Some(LogOptions {
            log_format: Some(Format::from_str(std::str::from_utf8(format).ok()?, false).ok()?),
            log_level: std::str::from_utf8(level).ok()?.parse().ok()?,
            log_file: None,
            journal_socket: OsStr::from_bytes(socket).into(),
        })
    }
}

/// Whether standard error is the stream that a service manager connected to the journal (systemd.exec(5)): then the
/// same lines can go there with their fields.
fn stderr_is_the_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stat = rustix::fs::fstat(rustix::stdio::stderr());
    stat.is_ok_and(|stat| stream == *format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    fn options() -> LogOptions {
        LogOptions { journal_socket: "/nowhere/a,b".into(), ..LogOptions::default() }
    }

    #[test]
    fn a_keeper_gets_the_log_by_an_argument() {
        let read = LogOptions::from_arg(&options().to_arg()).unwrap();
        assert_eq!(read.journal_socket, Path::new("/nowhere/a,b"));
        assert_eq!((read.log_format, read.log_level), (Some(Format::Text), Level::INFO));
        for wrong in ["", "text", "text,info", "xml,info,/s", "text,loud,/s"] {
            assert!(LogOptions::from_arg(OsStr::new(wrong)).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_journal_that_was_asked_for_must_be_there() {
        let asked = LogOptions { log_format: Some(Format::Journal), ..options() };
        let error = asked.check().unwrap_err().to_string();
        assert!(error.starts_with("--log-format journal: /nowhere/a,b: No such file"), "{error}");
        assert!(error.ends_with("start systemd-journald, or use text or json"), "{error}");
        let both = LogOptions { log_file: Some("/tmp/x".into()), ..asked };
        assert!(matches!(both.check(), Err(LogError::FileAndJournal)));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in [dir.path().join("no/such"), dir.path().to_path_buf()] {
            let options = LogOptions { log_file: Some(wrong.clone()), ..options() };
            let told = options.open_file().unwrap_err().to_string();
            assert!(told.starts_with(&format!("--log-file {}: ", wrong.display())), "{told}");
        }
        let good = LogOptions { log_file: Some(dir.path().join("log")), ..options() };
        good.check().unwrap();
        assert!(!dir.path().join("log").exists());
        let (_, path) = good.open_file().unwrap().unwrap();
        let mode = path.metadata().unwrap().mode();
        assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
    }
}

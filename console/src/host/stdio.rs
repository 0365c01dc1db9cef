//! Standard input and output as the host side.
//!
//! They may be a terminal, pipes, sockets or files. A terminal is raw from the first front-end to the end of
//! the daemon, so that every key goes to the guest, ^C too; `kill` or the end of the machine ends the daemon.
//! Input that ends stays ended. Output that breaks stays broken: then nobody reads.
//!
//! Descriptors are opened again where the kernel allows it, because O_NONBLOCK would otherwise be seen by
//! every program that shares the terminal, after our end too. Where it does not (sockets), the flag is taken
//! back at the end. Files block for a disk at most, and keep the position they share.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use backends::device::Source;
use backends::engine::Interest;
use backends::kept::Kept;
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::{Call, Channel, HostIo, HostSide, Moved, modes};

const INPUT: Source = Source(0);
const OUTPUT: Source = Source(1);
/// Descriptors below are the standard ones, also when a copy is made.
const FIRST_FREE_FD: i32 = 3;
/// Name under which a file with the terminal's modes is kept.
const KEPT_MODES: &str = "console.modes";

/// Standard input and output.
pub struct Stdio {
    input: Channel,
    output: Channel,
    terminal: Option<Terminal>,
    _flags: [Option<SharedFlags>; 2],
}

impl Stdio {
    /// Takes over this process's standard input and output.
    ///
    /// # Errors
    /// They cannot be duplicated.
    pub fn open(kept: &Kept) -> io::Result<Stdio> {
        let (input, output) = (io::stdin(), io::stdout());
        let (read, read_flags) = own(input.as_fd(), OFlags::RDONLY)?;
        let (write, write_flags) = own(output.as_fd(), OFlags::WRONLY)?;
        Ok(Stdio {
            input: Channel::new(read, INPUT),
            output: Channel::new(write, OUTPUT),
            terminal: [input.as_fd(), output.as_fd()].into_iter().find_map(|fd| Terminal::new(fd, kept)),
            _flags: [read_flags, write_flags],
        })
    }

    /// The terminal, to ask for its size.
    pub fn terminal(&self) -> Option<OwnedFd> {
        fcntl_dupfd_cloexec(&self.terminal.as_ref()?.fd, FIRST_FREE_FD).ok()
    }
}

impl HostSide for Stdio {
    fn start(&mut self, io: &mut HostIo<'_>) -> io::Result<()> {
        if let Some(terminal) = &self.terminal {
            terminal.make_raw()?;
        }
        self.input.watch(Interest::Read, io)?;
        self.output.watch(Interest::Write, io)
    }

    fn ready(&mut self, source: Source, _: &mut HostIo<'_>) {
        match source {
            INPUT => self.input.refresh(),
            _ => self.output.refresh(),
        }
    }

    fn read(&mut self, call: Call<'_>) -> Moved {
        self.input.read(call)
    }

    fn write(&mut self, call: Call<'_>) -> Moved {
        self.output.write(call)
    }

    fn writer(&self) -> Option<OwnedFd> {
        self.output.takes_output().then(|| self.output.as_fd().try_clone_to_owned().ok()).flatten()
    }
}

/// A descriptor of our own for what `fd` is open on, non-blocking where it can block.
fn own(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<(OwnedFd, Option<SharedFlags>)> {
    if FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::RegularFile {
        return Ok((fcntl_dupfd_cloexec(fd, FIRST_FREE_FD)?, None));
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if let Ok(own) = openat(CWD, path, flags, Mode::empty()) {
        return Ok((own, None));
    }
    let own = fcntl_dupfd_cloexec(fd, FIRST_FREE_FD)?;
    let shared = SharedFlags::make_nonblocking(&own)?;
    Ok((own, shared))
}

/// A description that we share with other programs and made non-blocking; taken back when dropped.
struct SharedFlags {
    fd: OwnedFd,
    before: OFlags,
}

impl SharedFlags {
    /// `None`: it is non-blocking already, by another's wish or because input and output share it.
    fn make_nonblocking(fd: &OwnedFd) -> io::Result<Option<SharedFlags>> {
        let before = fcntl_getfl(fd)?;
        if before.contains(OFlags::NONBLOCK) {
            return Ok(None);
        }
        fcntl_setfl(fd, before | OFlags::NONBLOCK)?;
        Ok(Some(SharedFlags { fd: fd.try_clone()?, before }))
    }
}

impl Drop for SharedFlags {
    fn drop(&mut self) {
        let _ = fcntl_setfl(&self.fd, self.before);
    }
}

/// A terminal and how it was; so again when dropped.
struct Terminal {
    fd: OwnedFd,
    before: Termios,
    kept: Kept,
}

impl Terminal {
    /// A worker that was killed left it raw: how it was before that is in a file that was kept.
    fn new(fd: BorrowedFd<'_>, kept: &Kept) -> Option<Terminal> {
        let mut before = isatty(fd).then(|| tcgetattr(fd)).and_then(Result::ok)?;
        match kept.take(KEPT_MODES) {
            Some(file) => modes::load(&file, &mut before),
            None => {
                if let Ok(file) = modes::save(&before) {
                    kept.keep(KEPT_MODES, file.as_fd());
                }
            }
        }
        Some(Terminal { fd: fcntl_dupfd_cloexec(fd, FIRST_FREE_FD).ok()?, before, kept: kept.clone() })
    }

    fn make_raw(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        Ok(tcsetattr(&self.fd, OptionalActions::Now, &raw)?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !self.kept.goes_on() {
            let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.before);
        }
    }
}

//! Standard input and output as the host side.
//!
//! They may be a terminal, pipes, sockets or files. A terminal is raw from the first front-end to the end of
//! the daemon, so that every key goes to the guest, ^C too; `kill` or the end of the machine ends the daemon.
//! Input that ends stays ended. Output that breaks stays broken: then nobody reads.
//!
//! Descriptors are opened again where the kernel allows it, because O_NONBLOCK would otherwise be seen by
//! every program that shares the terminal, after our end too. Where it does not (sockets), the flag is taken
//! back at the end. Files block for a disk at most, and keep the position they share. How the terminal was before it was
//! made raw is in a file of the keeper's: a worker that was killed leaves it raw.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use backends::device::Source;
use backends::engine::Interest;
use backends::kept::Kept;
use backends::opened::Opened;
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::{Call, Channel, HostIo, HostSide, Moved, modes};

const INPUT: Source = Source(0);
const OUTPUT: Source = Source(1);
/// Descriptors below are the standard ones, also when a copy is made.
const FIRST_FREE_FD: i32 = 3;
/// Names of what is prepared: the two streams, whichever of them has flags to be taken back, the terminal, and a file with
/// its modes.
const STREAMS: [&str; 2] = ["console.input", "console.output"];
const FLAGS: [&str; 2] = ["console.input-flags", "console.output-flags"];
const TERMINAL: &str = "console.terminal";
const MODES: &str = "console.modes";

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
    pub fn prepare(opened: &mut Opened) -> io::Result<()> {
        let (input, output) = (io::stdin(), io::stdout());
        let streams = [(input.as_fd(), OFlags::RDONLY), (output.as_fd(), OFlags::WRONLY)];
        for ((fd, access), (name, flags)) in streams.into_iter().zip(STREAMS.into_iter().zip(FLAGS)) {
            let (own, shared) = own(fd, access)?;
            opened.insert(name, own);
            shared.into_iter().for_each(|shared| opened.insert(flags, shared));
        }
        match [input.as_fd(), output.as_fd()].into_iter().find(|fd| isatty(fd)) {
            Some(terminal) => prepare_terminal(terminal, opened),
            None => Ok(()),
        }
    }

    /// What was prepared.
    ///
    /// # Errors
    /// Nothing was.
    pub fn open(kept: &Kept) -> io::Result<Stdio> {
        let [input, output] = STREAMS.map(|name| kept.opened(name));
        let flags = |name| kept.take(name).map(|fd| SharedFlags { fd, kept: kept.clone() });
        Ok(Stdio {
            input: Channel::new(input?, INPUT),
            output: Channel::new(output?, OUTPUT),
            terminal: Terminal::of(kept),
            _flags: FLAGS.map(flags),
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

/// The terminal, and how it is; one that a keeper before had made raw goes on being what it was before that.
fn prepare_terminal(terminal: BorrowedFd<'_>, opened: &mut Opened) -> io::Result<()> {
    opened.insert(TERMINAL, fcntl_dupfd_cloexec(terminal, FIRST_FREE_FD)?);
    opened.go_on(MODES);
    if opened.get(MODES).is_none() {
        opened.insert(MODES, modes::save(&tcgetattr(terminal)?)?);
    }
    Ok(())
}

/// A descriptor of our own for what `fd` is open on, non-blocking where it can block; the same again if that is to be
/// taken back at the end.
fn own(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    if FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::RegularFile {
        return Ok((fcntl_dupfd_cloexec(fd, FIRST_FREE_FD)?, None));
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if let Ok(own) = openat(CWD, path, flags, Mode::empty()) {
        return Ok((own, None));
    }
    let own = fcntl_dupfd_cloexec(fd, FIRST_FREE_FD)?;
    let before = fcntl_getfl(&own)?;
    if before.contains(OFlags::NONBLOCK) {
        // By another's wish, or because input and output share it.
        return Ok((own, None));
    }
    fcntl_setfl(&own, before | OFlags::NONBLOCK)?;
    let shared = own.try_clone()?;
    Ok((own, Some(shared)))
}

/// A description that we share with other programs and made non-blocking; taken back at the end of the daemon.
struct SharedFlags {
    fd: OwnedFd,
    kept: Kept,
}

impl Drop for SharedFlags {
    fn drop(&mut self) {
        if !self.kept.goes_on()
            && let Ok(now) = fcntl_getfl(&self.fd)
        {
            let _ = fcntl_setfl(&self.fd, now.difference(OFlags::NONBLOCK));
        }
    }
}

/// A terminal and how it was; so again when dropped.
struct Terminal {
    fd: OwnedFd,
    before: Termios,
    kept: Kept,
}

impl Terminal {
    fn of(kept: &Kept) -> Option<Terminal> {
        let fd = kept.take(TERMINAL)?;
        let mut before = tcgetattr(&fd).ok()?;
        modes::load(&kept.take(MODES)?, &mut before);
        Some(Terminal { fd, before, kept: kept.clone() })
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

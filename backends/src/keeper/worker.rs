//! The worker process, as its keeper sees it: started, asked, ended, reaped.
//!
//! In: an executable and the daemon's own arguments. Out: a [`Worker`] that is ready, with a [`Channel`] and, while a
//! front-end is served, a connection that carries its messages. Promises: [`Worker::end`] returns when it is dead and
//! reaped; no answer is waited for without a deadline.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::fs::fstat;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Stop;
use super::holdings::Holdings;
use super::role::AS_WORKER;
use super::signals::Signals;
use crate::failpoint;
use crate::kept::FENCE;
use crate::kept::channel::{Begun, Channel, Note, Standing};
use crate::log;
use crate::proto::wire::Header;
use crate::proto::{Connection, Frame, Request, TransportError};

/// How long a worker may take for one message: longer than a ring may take to drain.
const MUTE: Duration = Duration::from_secs(40);
/// How long a worker may take to open its device.
const START: Duration = Duration::from_secs(40);
/// How long a worker that ends may take for it: longer than it drains.
const GRACE: Duration = Duration::from_secs(8);
/// Notes taken at a time: more than a channel holds.
const MAX_NOTES: usize = 1024;
/// What systemd told us, and nobody else.
const OURS: [&str; 7] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// What to start.
#[derive(Debug)]
pub(super) struct Program {
    /// The executable: what its path named when it was opened.
    pub(super) exe: OwnedFd,
    /// Name and arguments that the daemon was started with.
    pub(super) args: Vec<OsString>,
}

/// A worker that is ready.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    pidfd: OwnedFd,
    channel: Channel,
    /// The front-end's session, by its number.
    session: Option<(u32, Connection)>,
    /// What it gave to be kept and what it dropped, in order, since it was last taken.
    gifts: Vec<Gift>,
    /// Somebody asked it for an upgrade.
    upgrade: bool,
    /// Device and inode of its fence.
    fence: Option<(u64, u64)>,
}

/// A descriptor to keep under a name; none: the name is not needed any more.
pub(super) type Gift = (String, Option<OwnedFd>);

impl Worker {
    /// Starts one, which finds `holdings` on its channel, and `fence`; it has yet to say that it is ready.
    pub(super) fn spawn(
        program: &Program,
        holdings: &Holdings,
        standing: Standing,
        fence: OwnedFd,
    ) -> io::Result<Worker> {
        let (channel, theirs) = Channel::pair()?;
        channel.send(&Note::Standing(standing), &[])?;
        channel.send(&log::note(), &[])?;
        for (name, fd) in holdings.iter().chain([(FENCE, &fence)]) {
            channel.send(&Note::Kept(name.to_owned()), &[fd.as_fd()])?;
        }
        let (name, args) = program.args.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.exe.as_raw_fd()));
        // Before the others, where nothing makes it anything but an option.
        command.arg0(name).arg(AS_WORKER).arg(theirs.as_fd().as_raw_fd().to_string()).args(args);
        for variable in OURS {
            command.env_remove(variable);
        }
        // Nothing else runs in this process that could inherit it by accident.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let mut child = command.spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => {
                let fence = identity(&fence);
                Ok(Worker { child, pidfd, channel, session: None, gifts: Vec::new(), upgrade: false, fence })
            }
            Err(errno) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(errno.into())
            }
        }
    }

    /// Waits until its device is open.
    ///
    /// # Errors
    /// [`Stop::Unready`]: it ended instead.
    pub(super) fn ready(&mut self, signals: &Signals) -> Result<(), Stop> {
        let mut deadline = Instant::now() + START;
        loop {
            match self.note() {
                Ok(Some(Note::Ready)) => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err(Stop::Unready(self.end(signals)?)),
            }
            let silent = signals.wait([self.channel.as_fd()], Some(deadline))? == [false];
            // Or it has said everything but that.
            if silent || Instant::now() > deadline {
                self.signal(Signal::KILL);
                deadline += START;
            }
        }
    }

    /// Process number.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when it has sent a note, or ended.
    pub(super) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Takes all notes that have arrived. One that never ends sending them is not heard out.
    pub(super) fn notes(&mut self) -> Result<Vec<Gift>, Stop> {
        for _ in 0..MAX_NOTES {
            match self.note() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Stop::Worker(error.to_string()));
                }
                Err(error) => return Err(self.refuse(&error.to_string())),
            }
        }
        Ok(self.gifts())
    }

    /// What it gave to be kept since this was last asked.
    pub(super) fn gifts(&mut self) -> Vec<Gift> {
        std::mem::take(&mut self.gifts)
    }

    /// Whether it was asked for an upgrade since this was last asked.
    pub(super) fn take_upgrade(&mut self) -> bool {
        std::mem::take(&mut self.upgrade)
    }

    /// Takes one note, if one has arrived.
    fn note(&mut self) -> io::Result<Option<Note>> {
        let Some((note, mut fds)) = self.channel.try_recv()? else { return Ok(None) };
        // Held here, its fence would never be closed, and no worker come after it.
        fds.retain(|fd| identity(fd) != self.fence);
        match &note {
            // Nobody gives so much: it is not heard any more.
            Note::Keep(_) | Note::Drop(_) if self.gifts.len() >= MAX_NOTES => {}
            Note::Keep(name) => self.gifts.push((name.clone(), fds.into_iter().next())),
            Note::Drop(name) => self.gifts.push((name.clone(), None)),
            Note::Upgrade => self.upgrade = true,
            Note::Log { level, file } => log::follow(*level, file, fds.first()),
            _ => {}
        }
        Ok(Some(note))
    }

    /// The session's socket, if there is one.
    pub(super) fn session(&self) -> Option<&Connection> {
        self.session.as_ref().map(|(_, connection)| connection)
    }

    /// Begins a session.
    pub(super) fn begin(&mut self, session: Begun) -> Result<(), Stop> {
        let begun = || -> Result<Connection, io::Error> {
            let (ours, theirs) = UnixStream::pair()?;
            self.channel.send(&Note::Session(session), &[theirs.as_fd()])?;
            Connection::new(ours).map_err(io::Error::other)
        };
        let connection = begun().map_err(|error| self.refuse(&format!("it takes no session: {error}")))?;
        self.session = Some((session.number, connection));
        Ok(())
    }

    /// The front-end is gone.
    pub(super) fn finish(&mut self) {
        self.session = None;
    }

    /// Sends a message and waits for what it is answered with, an ack or a value.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        need_reply: bool,
        fds: &[OwnedFd],
        signals: &Signals,
    ) -> Result<Frame, Stop> {
        let mute = if failpoint::removed("keeper.mute") { Duration::from_secs(1) } else { MUTE };
        let deadline = Instant::now() + mute;
        self.tell(request, need_reply, fds)?;
        loop {
            let Some((_, session)) = &mut self.session else { return Err(no_session()) };
            match session.try_recv() {
                Ok(Some(frame))
                    if frame.header.is_reply() && frame.header.request == request.code() as u32 =>
                {
                    return Ok(frame);
                }
                Ok(Some(_)) => return Err(self.refuse("it answers what was not asked")),
                Ok(None) => {}
                Err(error) => return Err(self.lost(&error)),
            }
            if signals.wait([session.as_fd()], Some(deadline))? == [false] {
                return Err(self.refuse("it does not answer"));
            }
        }
    }

    /// Sends a message that is not answered.
    pub(super) fn tell(&mut self, request: &Request, need_reply: bool, fds: &[OwnedFd]) -> Result<(), Stop> {
        let Some((_, session)) = &mut self.session else { return Err(no_session()) };
        let payload = request.payload();
        let header = Header::request(request.code(), payload.len(), need_reply);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let sent = session.send(header, &payload, &fds, Instant::now() + MUTE);
        sent.map_err(|error| self.lost(&error))
    }

    /// Something came on the session's socket though nothing was asked: it can only be its end.
    pub(super) fn unasked(&mut self) -> Stop {
        let received = self.session.as_mut().map(|(_, session)| session.try_recv());
        match received {
            Some(Err(error)) => self.lost(&error),
            _ => self.refuse("it speaks without being asked"),
        }
    }

    /// The session's socket failed: by the worker's own decision, which it told before, or because it died.
    fn lost(&mut self, error: &TransportError) -> Stop {
        let number = self.session.as_ref().map(|(number, _)| *number);
        for _ in 0..MAX_NOTES {
            let Ok(Some(note)) = self.note() else { break };
            if let Note::Over(over) = note
                && Some(over) == number
            {
                return Stop::FrontEnd("the worker ended its session".into());
            }
        }
        match error {
            TransportError::Closed => Stop::Worker(error.to_string()),
            _ => self.refuse(&error.to_string()),
        }
    }

    /// Nothing more is to be had of it, though it may live: it is not waited for.
    pub(super) fn refuse(&mut self, why: &str) -> Stop {
        self.signal(Signal::KILL);
        Stop::Worker(why.into())
    }

    /// Asks it to end because another one goes on.
    pub(super) fn leave(&self) {
        // One that does not hear it takes away with it what it made, as at the end of the daemon.
        let _ = self.channel.send(&Note::Leave, &[]);
        self.signal(Signal::TERM);
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until it has ended, and reaps it. One that goes on is killed.
    pub(super) fn end(&mut self, signals: &Signals) -> Result<ExitStatus, Stop> {
        self.session = None;
        if signals.wait([self.pidfd.as_fd()], Some(Instant::now() + GRACE))? == [false] {
            self.signal(Signal::KILL);
            signals.wait([self.pidfd.as_fd()], None)?;
        }
        self.child.wait().map_err(Stop::Failed)
    }

    /// Asks it to end, and waits as long as that may take. What the operator asked for is being done already.
    pub(super) fn terminate(&mut self) -> Option<ExitStatus> {
        self.session = None;
        self.signal(Signal::TERM);
        for patience in [GRACE, GRACE] {
            if super::signals::readable_within(&self.pidfd, patience) {
                return self.child.wait().ok();
            }
            self.signal(Signal::KILL);
        }
        None
    }
}

impl Drop for Worker {
    /// One that nobody waited for, because the daemon was asked to end meanwhile.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
        }
    }
}

/// Device and inode of what is open.
fn identity(fd: &OwnedFd) -> Option<(u64, u64)> {
    fstat(fd).ok().map(|file| (file.st_dev, file.st_ino))
}

fn no_session() -> Stop {
    Stop::Worker("it has no session".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A process that does nothing, the worker's end of its channel, and its fence.
    fn worker() -> (Worker, Channel, OwnedFd) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let (channel, theirs) = Channel::pair().unwrap();
        let fence = OwnedFd::from(std::io::pipe().unwrap().1);
        let (gifts, fence_is) = (Vec::new(), identity(&fence));
        let worker = Worker { child, pidfd, channel, session: None, gifts, upgrade: false, fence: fence_is };
        (worker, theirs, fence)
    }

    #[test]
    fn its_fence_is_held_by_nobody_else() {
        let (mut worker, theirs, fence) = worker();
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        theirs.send(&Note::Keep("a".into()), &[fence.as_fd()]).unwrap();
        theirs.send(&Note::Keep("b".into()), &[fence.as_fd(), file.as_fd()]).unwrap();
        let gifts = worker.notes().unwrap();
        assert!(gifts.iter().flat_map(|(_, fd)| fd).all(|fd| identity(fd) == identity(&file)), "{gifts:?}");
        assert_eq!(gifts.len(), 2);
    }

    #[test]
    fn one_that_never_ends_telling_is_not_heard_out() {
        let (mut worker, theirs, _fence) = worker();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let _ = theirs.send(&Note::Drop("x".into()), &[]);
                    }
                });
            }
            for _ in 0..20 {
                assert!(worker.notes().unwrap().len() <= MAX_NOTES);
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn one_that_tells_nonsense_is_killed_at_once() {
        let (mut worker, theirs, _fence) = worker();
        rustix::io::write(&theirs, &[77, 0, 0, 0, 0]).unwrap();
        assert!(matches!(worker.notes(), Err(Stop::Worker(_))));
        assert!(super::super::signals::readable_within(&worker.pidfd, GRACE / 2));
    }
}

//! The keeper: the process that holds a front-end's connection while workers come and go.
//!
//! ```text
//!              messages, one at a time                      messages
//! front-end ◄────────────────────────► keeper ◄──────────────────────────► worker
//!     │                                  │ record of the session             │
//!     └── memory, eventfds ──────────────┴── by descriptor, passed on ───────┘   the data path does not come here
//! ```
//! In: front-ends, one after the other. Out: each of their messages handed to a worker process of the same program,
//! and the answers handed back. Promises: a worker that dies at any moment is followed by another that is brought to
//! where the session was ([`record`]) and given the message that was not answered ([`proxy`]); the front-end sees a
//! pause and no disconnect; the next worker starts when the one before is reaped ([`worker`]) and the host has ended all
//! that it had begun for it; a worker that keeps dying is started again ever more slowly ([`pace`]); nothing but the host
//! is waited for without a deadline; guest memory is never mapped here. Refuses: to go on with a front-end whose message
//! was the end of three workers, or whose session no worker takes any more.
//!
//! The daemon is started as one process, which opens everything and then becomes the keeper ([`role`]). SIGTERM and
//! SIGINT end both, SIGHUP starts the next worker from what the executable's path names now, with the same front-end.
//! If the keeper is killed the worker is, too. Under a service manager that stores descriptors the next keeper then goes
//! on with the same front-end ([`store`]), and also after SIGTERM, if there is a next one.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod holdings;
mod pace;
mod proxy;
mod record;
pub mod role;
mod signals;
pub(crate) mod store;
mod worker;

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use sd_notify::NotifyState;
use tracing::Level;

use crate::kept::channel::Standing;
use crate::kept::{FENCE, SOCKET};
use crate::log::{self, Class, Line};
use crate::opened::Unlink;
use crate::proto::Connection;
use holdings::Holdings;
use pace::Pace;
use proxy::{FrontEnd, With};
use signals::Signals;
use store::{Entry, Kind, Store};
use worker::{Program, Worker};

/// How long an accept that failed for want of descriptors or memory is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After what time without anything to do the keeper makes itself small.
const QUIET: Duration = Duration::from_millis(100);
/// How long the I/O of a worker that died may take before that is told, and again after twice that time.
const FENCE_PATIENCE: Duration = Duration::from_secs(1);

/// What keeps the keeper from going on as it was.
#[derive(Debug)]
enum Stop {
    /// The daemon is to end.
    Asked,
    /// The front-end is gone, or given up; why.
    FrontEnd(String),
    /// The worker died, or is as good as dead; why.
    Worker(String),
    /// The worker cannot open its device; it has said why.
    Unready(ExitStatus),
    /// The host does not let the keeper go on.
    Failed(io::Error),
}

/// Where front-ends come from.
#[derive(Debug)]
enum Door {
    /// Each connection is one front-end, one after the other.
    Listening(UnixListener),
    /// The only front-end; the daemon ends with it.
    Single,
}

/// One daemon's keeper.
#[derive(Debug)]
struct Keeper {
    program: Program,
    /// The executable, to start it anew from there when it was replaced.
    path: PathBuf,
    /// An executable that has not been found good yet takes the place of this one, which has.
    proven: Option<OwnedFd>,
    signals: Signals,
    door: Door,
    /// A worker has been ready once: from now on one is had, however often that has to be tried.
    begun: bool,
    worker: Option<Worker>,
    pace: Pace,
    front_end: Option<FrontEnd>,
    sessions: u32,
    /// What its workers are told about themselves.
    standing: Standing,
    holdings: Holdings,
    /// Hangs up when nothing of the last worker is in flight at the host any more.
    fence: Option<OwnedFd>,
    /// Something was done since memory was last given back.
    stirred: bool,
    /// What was made at paths, removed with the keeper.
    made: Vec<Unlink>,
    store: Store,
}

impl Keeper {
    /// Runs until the daemon is to end; how the worker ended then, if there was one.
    fn run(&mut self) -> Result<Option<ExitStatus>, Stop> {
        let stop = loop {
            let went = match self.turn() {
                Err(Stop::Worker(why)) => self.bury(&why),
                Err(Stop::FrontEnd(why)) => self.hang_up(&why),
                other => other,
            };
            if let Err(stop) = went {
                break stop;
            }
        };
        self.save();
        if self.store.is_there() && self.front_end.is_some() {
            // Another keeper goes on: what it needs of ours stays.
            self.made.iter_mut().for_each(Unlink::leave);
            self.worker.iter().for_each(Worker::leave);
        }
        let ended = self.worker.take().map(|mut worker| worker.terminate());
        if matches!(stop, Stop::Asked) { Ok(ended.flatten()) } else { Err(stop) }
    }

    /// One step: a worker, what it has to hear, and the next thing that happens.
    fn turn(&mut self) -> Result<(), Stop> {
        self.save();
        if self.worker.is_none() {
            self.start()?;
        }
        self.stirred = true;
        if let (Some(worker), Some(front_end)) = (&mut self.worker, &mut self.front_end) {
            let with = &mut With { worker, signals: &self.signals };
            if with.worker.session().is_none() {
                self.sessions = self.sessions.wrapping_add(1);
                with.worker.begin(front_end.session(self.sessions))?;
                if let Err(stop) = front_end.resume(with) {
                    return Err(self.take_back(stop));
                }
            }
            front_end.deliver(with)?;
            self.save();
        }
        self.proven = None;
        self.listen()
    }

    /// Waits for the front-end, the worker or the operator.
    fn listen(&mut self) -> Result<(), Stop> {
        let Some(worker) = &mut self.worker else { return Ok(()) };
        let (front, deadline) = match (&self.front_end, &self.door) {
            (Some(front_end), _) => (front_end.connection().as_fd(), front_end.deadline()),
            (None, Door::Listening(listener)) => (listener.as_fd(), None),
            (None, Door::Single) => return Err(Stop::Asked),
        };
        let session: BorrowedFd<'_> = worker.session().map_or(worker.channel(), |session| session.as_fd());
        let fds = [front, session, worker.channel(), self.signals.upgrade()];
        if std::mem::take(&mut self.stirred)
            && !self.signals.wait(fds, Some(Instant::now() + QUIET))?.contains(&true)
        {
            crate::sys::drop_clean_pages();
        }
        match self.signals.wait(fds, deadline)? {
            [_, _, _, true] if self.signals.take_upgrade() => self.upgrade(),
            [_, true, _, _] if worker.session().is_some() => Err(worker.unasked()),
            [_, _, true, _] => {
                let (gifts, upgrade) = (worker.notes()?, worker.take_upgrade());
                self.holdings.take(gifts);
                if upgrade { self.upgrade() } else { Ok(()) }
            }
            [true, ..] => {
                self.front_end.as_mut().map_or(Ok(()), FrontEnd::receive).and_then(|()| self.admit())
            }
            _ => Err(Stop::FrontEnd("it did not finish a message".into())),
        }
    }

    /// Takes the next front-end, if there is none.
    fn admit(&mut self) -> Result<(), Stop> {
        let (None, Door::Listening(listener)) = (&self.front_end, &self.door) else { return Ok(()) };
        match listener.accept() {
            Ok((stream, _)) => self.front_end = Connection::new(stream).ok().map(FrontEnd::new),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It waits in the backlog, and so do we for a moment.
            Err(_) => self.signals.pause(ACCEPT_PAUSE)?,
        }
        Ok(())
    }

    /// Has a worker that is ready, however often that has to be tried; the first one has one try.
    fn start(&mut self) -> Result<(), Stop> {
        loop {
            match self.try_start() {
                Ok(()) => break,
                Err(Stop::Asked) => return Err(Stop::Asked),
                Err(stop) if !self.begun => return Err(stop),
                Err(stop) => self.start_failed(&stop)?,
            }
        }
        self.pace.started();
        self.begin();
        Ok(())
    }

    fn try_start(&mut self) -> Result<(), Stop> {
        self.await_fence()?;
        let (fence, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Stop::Failed(errno.into()))?;
        // Stored before anything can be in flight behind it.
        self.fence = Some(fence);
        self.save();
        self.standing.workers = self.standing.workers.saturating_add(1);
        let worker = Worker::spawn(&self.program, &self.holdings, self.standing, theirs);
        let mut worker = worker.map_err(Stop::Failed)?;
        if !self.begun {
            // While it begins: nobody waits for this.
            crate::sys::cut_clean_mappings();
            crate::sys::drop_clean_pages();
        }
        let ready = worker.ready(&self.signals);
        self.holdings.take(worker.gifts());
        ready.map(|()| self.worker = Some(worker))
    }

    /// What a worker that was killed had begun at the host may still reach the image, and guest memory: no other worker
    /// is there before that has ended.
    fn await_fence(&mut self) -> Result<(), Stop> {
        let Some(fence) = &self.fence else { return Ok(()) };
        let (since, mut patience) = (Instant::now(), FENCE_PATIENCE);
        while self.signals.wait([fence.as_fd()], Some(since + patience))? == [false] {
            let seconds = patience.as_secs();
            say(
                Level::WARN,
                format_args!(
                    "The host has not ended the I/O of the worker before in {seconds} s; the next one waits"
                ),
            );
            patience *= 2;
        }
        Ok(())
    }

    /// Tries again a little later; with the executable from before, if another was to take its place.
    fn start_failed(&mut self, stop: &Stop) -> Result<(), Stop> {
        // Other reasons the worker has told by itself.
        if let Stop::Failed(error) = stop {
            let line = Line::new(Level::ERROR).message("No worker can be started, trying again");
            say_of(Class::WorkerStart, line.with("error", error));
        }
        if let Some(proven) = self.proven.take() {
            self.program.exe = proven;
            say(Level::ERROR, "The new executable does not start, going on with the one before");
        }
        self.signals.pause(self.pace.failed())
    }

    /// The session cannot go on in this worker. If its executable is a new one, that of before may do better.
    fn take_back(&mut self, stop: Stop) -> Stop {
        let (Stop::FrontEnd(why) | Stop::Worker(why)) = &stop else { return stop };
        let (Some(worker), Some(proven)) = (&mut self.worker, self.proven.take()) else { return stop };
        let stop = worker.refuse(why);
        self.program.exe = proven;
        say(Level::ERROR, "The new executable does not take the session, going on with the one before");
        stop
    }

    /// Goes on where the keeper before was killed or replaced, as if only its worker had died.
    fn inherit(&mut self) {
        match self.store.take_back() {
            Some(entries) if entries.is_empty() => {}
            stored => match stored.and_then(front_end_before) {
                Some(front_end) => {
                    self.front_end = front_end.or(self.front_end.take());
                    self.begin();
                }
                None => {
                    say(
                        Level::WARN,
                        "What the keeper before this one had stored makes no sense, beginning afresh",
                    );
                }
            },
        }
    }

    /// Stores what the next keeper has to know, if it changed.
    fn save(&mut self) {
        if !self.store.is_there() {
            return;
        }
        let mut entries = Vec::new();
        if let Door::Listening(listener) = &self.door {
            entries.push(Entry::new(Kind::Kept, SOCKET, [listener]));
        }
        let kept = self.holdings.iter().chain(self.fence.iter().map(|fence| (FENCE, fence)));
        entries.extend(kept.map(|(name, fd)| Entry::new(Kind::Kept, name, [fd])));
        entries.extend(self.front_end.iter().flat_map(FrontEnd::entries));
        if let Err(error) = self.store.save(&entries) {
            let line =
                Line::new(Level::WARN).message("The service manager does not store for the next keeper");
            say_of(Class::StoreRefused, line.with("error", error));
        }
    }

    /// The first worker is ready, or one was before this keeper: now front-ends are let in.
    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            let _ = sd_notify::notify(&[NotifyState::Ready]);
            say(Level::INFO, "Listening");
        }
    }

    /// Reaps the worker, and gives it a successor when that is due.
    fn bury(&mut self, why: &str) -> Result<(), Stop> {
        let Some(mut worker) = self.worker.take() else { return Ok(()) };
        let status = worker.end(&self.signals);
        let gifts = worker.notes().unwrap_or_else(|_| worker.gifts());
        self.holdings.take(gifts);
        let (pid, status) = (worker.pid(), status?);
        let line = Line::new(Level::WARN)
            .message(format_args!("Worker {pid} ended ({status}), another one goes on: {why}"));
        say_of(Class::WorkerEnded, line);
        if let Some(front_end) = &mut self.front_end
            && let Err(Stop::FrontEnd(why)) = front_end.worker_died()
        {
            self.hang_up(&why)?;
        }
        let delay = self.pace.died(Instant::now());
        self.signals.pause(delay)
    }

    /// The front-end is done with.
    fn hang_up(&mut self, why: &str) -> Result<(), Stop> {
        self.front_end = None;
        if let Some(worker) = &mut self.worker {
            worker.finish();
        }
        say_of(Class::SessionOver, Line::new(Level::INFO).message(format_args!("Front-end gone: {why}")));
        if matches!(self.door, Door::Single) { Err(Stop::Asked) } else { Ok(()) }
    }

    /// Asks the worker to end; its successor is what the executable's path names now.
    fn upgrade(&mut self) -> Result<(), Stop> {
        match rustix::fs::open(&self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(exe) => {
                let before = std::mem::replace(&mut self.program.exe, exe);
                self.proven.get_or_insert(before);
            }
            Err(errno) => {
                say(Level::ERROR, format_args!("Cannot upgrade: {}: {errno}", self.path.display()));
                return Ok(());
            }
        }
        if let Some(worker) = &self.worker {
            worker.leave();
        }
        Err(Stop::Worker("upgrade".into()))
    }
}

/// A line for the log that only the operator or this host can cause.
fn say(level: Level, what: impl Display) {
    log::write(&Line::new(level).message(what));
}

/// A line for the log that others can cause.
fn say_of(class: Class, line: Line) {
    if line.level() <= log::level()
        && let Some(left_out) = class.pass()
    {
        log::write(&line.of(class.name(), left_out));
    }
}

/// The front-end of the keeper before, from what that one stored. None: it makes no sense.
fn front_end_before(entries: Vec<Entry<OwnedFd>>) -> Option<Option<FrontEnd>> {
    let mut front_end: Option<FrontEnd> = None;
    for entry in entries {
        match entry.kind {
            // The first process of this daemon has looked at it.
            Kind::Kept => {}
            Kind::FrontEnd => front_end = Some(FrontEnd::back(&entry.bytes, entry.fds)?),
            Kind::Said | Kind::Pending => front_end.as_mut()?.again(entry)?,
        }
    }
    Some(front_end)
}

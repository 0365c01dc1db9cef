//! A daemon with its front-end, one of which is about to lose the other.
//!
//! In: a daemon's options and how it is to be restarted. Out: rings that are served, a way to kill whoever serves
//! them, and the session back again: by the keeper, without the front-end doing anything; or by a front-end that
//! connects to the next daemon and hands it the region in which the one before it kept what was in flight.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::load::{Fault, Load};
use crate::daemon::{Counts, Daemon, Launch};
use crate::frontend::{Frontend, FrontendError, Region, Wants};
use crate::guest::format::RingKind;
use crate::guest::memory::Ram;
use crate::guest::ring::Ring;
use crate::wait;

/// RAM of the guest.
const RAM_BYTES: u64 = 32 << 20;
/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 64;

/// What is killed, and who brings the session back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The worker; its keeper starts another, and the front-end notices nothing.
    Keeper,
    /// The whole daemon; it is started again, and the front-end connects again.
    Reconnect,
}

/// A daemon, its front-end and the guest's memory.
#[derive(Debug)]
pub struct Rig {
    /// The daemon.
    pub daemon: Daemon,
    /// Its front-end.
    pub frontend: Frontend,
    mode: Mode,
    wants: Wants,
    inflight: Option<Region>,
    queues: u16,
}

impl Rig {
    /// Starts the daemon and a session of so many queues, all of it negotiated that both know.
    ///
    /// # Panics
    /// It does not serve.
    pub fn start(launch: Launch, mode: Mode, wants: Wants, queues: u16) -> Rig {
        let launch = match mode {
            Mode::Keeper => launch,
            Mode::Reconnect => launch.args(["--keeper", "off"]),
        };
        let daemon = launch.serve().unwrap_or_else(|e| panic!("daemon: {e}"));
        Rig::on(daemon, mode, wants, queues)
    }

    /// A session with a daemon that listens.
    ///
    /// # Panics
    /// It does not serve.
    pub fn on(daemon: Daemon, mode: Mode, wants: Wants, queues: u16) -> Rig {
        let session = session(&daemon, wants, queues);
        let (frontend, inflight) =
            session.unwrap_or_else(|e| panic!("session: {e}; it said: {}", daemon.stderr()));
        Rig { daemon, frontend, mode, wants, inflight, queues }
    }

    /// As [`Rig::on`] with its first ring started, for a daemon that may die of it.
    ///
    /// # Errors
    /// It did, or refused something.
    pub fn try_on(daemon: &Daemon, wants: Wants, queues: u16) -> Result<(), FrontendError> {
        let (mut frontend, _region) = session(daemon, wants, queues)?;
        frontend.start_new(0, QUEUE_SIZE)?;
        frontend.sync()
    }

    /// All its rings, started.
    ///
    /// # Panics
    /// They are refused.
    pub fn start_rings(&mut self) -> Vec<Ring> {
        let mut start = |index| self.frontend.start_new(index, QUEUE_SIZE);
        (0..self.queues)
            .map(|index| start(u8::try_from(index).unwrap_or(0)).unwrap_or_else(|e| panic!("{e}")))
            .collect()
    }

    /// How it is restarted.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The process that serves.
    pub fn server(&self) -> u32 {
        match self.mode {
            Mode::Keeper => self.daemon.worker_pid(),
            Mode::Reconnect => self.daemon.pid(),
        }
    }

    /// Resources of the process that serves, and of its keeper.
    pub fn counts(&mut self) -> Vec<Counts> {
        // Notes that the worker has sent to its keeper are taken before the second message.
        let _ = self.frontend.sync().and_then(|()| self.frontend.sync());
        match self.mode {
            Mode::Keeper => vec![self.daemon.counts(), self.daemon.keeper_counts()],
            Mode::Reconnect => vec![self.daemon.counts()],
        }
    }

    /// The process that serves now, to be seen dying.
    ///
    /// # Panics
    /// There is none.
    pub fn watch(&self) -> Watch {
        let pid = i32::try_from(self.server()).ok().and_then(Pid::from_raw);
        let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Watch(pidfd.unwrap_or_else(|| panic!("nobody serves; it said: {}", self.daemon.stderr())))
    }

    /// Kills the process that serves, takes what had come back by its end, and gives the moment of the blow.
    ///
    /// # Errors
    /// What came back is wrong.
    pub fn kill(&mut self, load: &mut dyn Load) -> Result<Instant, Fault> {
        let at = self.kill_server();
        self.gone(load)?;
        Ok(at)
    }

    /// Kills the process that serves and returns when it is gone, with the moment of the blow.
    ///
    /// # Panics
    /// Nobody serves.
    pub fn kill_server(&self) -> Instant {
        let server = self.watch();
        let at = Instant::now();
        let _ = pidfd_send_signal(&server.0, Signal::KILL);
        server.wait();
        at
    }

    /// Whoever served is gone: takes what had come back by then.
    ///
    /// # Errors
    /// What came back is wrong.
    pub fn gone(&mut self, load: &mut dyn Load) -> Result<(), Fault> {
        load.killed(self.mode == Mode::Reconnect)?;
        load.salvage().map(drop)
    }

    /// Brings the session back, if that is not the keeper's task.
    ///
    /// # Errors
    /// The next daemon refuses it.
    ///
    /// # Panics
    /// There is no next daemon.
    pub fn recover(&mut self, load: &mut dyn Load) -> Result<(), Fault> {
        match self.mode {
            Mode::Keeper => load.recovered(false),
            Mode::Reconnect => self.reconnect(load),
        }
    }

    /// Kills the daemon if it lives, starts it again, and connects to it with what the one before left in flight.
    ///
    /// # Errors
    /// The next daemon refuses it.
    ///
    /// # Panics
    /// There is no next daemon.
    pub fn reconnect(&mut self, load: &mut dyn Load) -> Result<(), Fault> {
        self.daemon.restart().unwrap_or_else(|e| panic!("daemon: {e}"));
        self.resume(load)
    }

    /// Connects to a daemon that was started again, with what the one before left in flight.
    ///
    /// # Errors
    /// It refuses it.
    pub fn resume(&mut self, load: &mut dyn Load) -> Result<(), Fault> {
        load.recovered(true)?;
        self.connect()?;
        for (index, ring) in (0..).zip(load.rings()) {
            self.frontend.start(index, ring, remembered_base(ring))?;
            ring.kick();
        }
        Ok(())
    }

    /// As [`Rig::resume`] without its rings.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn connect(&mut self) -> Result<(), FrontendError> {
        let ram = Arc::clone(self.frontend.ram());
        self.frontend = Frontend::session(self.daemon.socket(), &ram, self.wants)?;
        self.track()
    }

    /// Hands over the region, as front-ends do before they start a device's rings.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn track(&mut self) -> Result<(), FrontendError> {
        self.inflight.as_ref().map_or(Ok(()), |region| self.frontend.set_inflight(region))
    }
}

/// A process that is going to die.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Waits until it is dead; `false` when it lives on.
    pub fn wait(&self) -> bool {
        wait::one_readable(&self.0, wait::deadline())
    }
}

/// Everything before the first ring, with a region for what is in flight if the daemon knows such.
fn session(daemon: &Daemon, wants: Wants, queues: u16) -> Result<(Frontend, Option<Region>), FrontendError> {
    let mut frontend = Frontend::session(daemon.socket(), &Ram::new(RAM_BYTES), wants)?;
    if !frontend.tracks() {
        return Ok((frontend, None));
    }
    let region = frontend.inflight(queues, QUEUE_SIZE)?;
    frontend.set_inflight(&region)?;
    Ok((frontend, Some(region)))
}

/// What a front-end knows of a ring whose back-end died, as QEMU does it: of a split ring the used index; of a packed
/// one nothing but where it began. What was in flight stands in the region.
pub fn remembered_base(ring: &Ring) -> u32 {
    match ring.shape().kind {
        RingKind::Split => ring.raw().used_idx().into(),
        RingKind::Packed => ring.shape().first_base(),
    }
}

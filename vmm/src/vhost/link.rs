//! The thread of a device: it holds the connection to the daemon, and makes the daemon agree to what the driver
//! wants ([`Agreement`]).
//!
//! ```text
//!          ┌──────────── lost: closed, mute, garbled, unasked ────────────┐
//!          ▼                                                              │
//!       waiting ─connect─► greeted ─is it this device?─► agreeing ◄─► listening
//!          ▲                  │ no
//!          └──────────────────┘
//! ```
//! *Agreeing* compares what the daemon was told in this connection with the wish, and tells it the difference:
//! after a driver's reset to give queues back, after a reconnect everything, queues from their used indices on
//! ([`super::restore`]). A queue that goes on is kicked once, and its driver interrupted once, for what was lost
//! between them.
//!
//! A daemon that went is waited for without end. One that lies, or is mute for longer than [`DEADLINES`], is hung up
//! on, and called again later and later. All of this happens in this thread: no vCPU and no other device notices.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use backends::log::{self, Class, Gate};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::agreement::Agreement;
use super::daemon::{Daemon, Kept, Trouble};
use super::device::VhostBackend;
use super::frontend::{Frontend, FrontendError, within};
use super::restore::Contract;
use super::socket;
use super::spec::DeviceSpec;
use crate::kvm::event::Event;
use crate::memory::GuestRam;
use crate::pci::virtio::VirtioPci;

/// How long a daemon may take for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// One that needs no more than its attention; nobody waits for it.
    pub run: Duration,
    /// The one that a queue is drained.
    pub drain: Duration,
}

/// Where no test has less time. An fdatasync of over a second is nothing unusual; the daemons of this project give up
/// draining by themselves, and hang up, after 30 s.
pub const DEADLINES: Deadlines = Deadlines { run: Duration::from_secs(5), drain: Duration::from_secs(35) };
/// How often a socket is looked for on which nobody listens, in the first [`SOON`] and after it.
const LOOK: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(15)];
/// How long a daemon may be away and be expected any moment.
const SOON: Duration = Duration::from_secs(10);
/// How long a daemon is left alone that was there: after it agreed and went, and at most if it did not agree.
const REST: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// Why there is no use in a daemon at the moment.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Nobody is there.
    #[error("its socket cannot be reached: {0}")]
    Socket(Errno),
    /// It went, or does not speak as it should.
    #[error("{0}")]
    Conversation(#[from] FrontendError),
    /// It is there, and cannot be what the guest knows.
    #[error("the daemon there is not that of this device: {0}")]
    Another(String),
}

/// What the thread has from the beginning.
pub struct Link {
    /// Name and socket, for messages.
    pub label: String,
    /// Where the daemon listens.
    pub spec: DeviceSpec,
    /// What the guest was told.
    pub contract: Contract,
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// What the driver wants.
    pub agreement: Arc<Agreement>,
    /// The function whose driver is told.
    pub function: Weak<VirtioPci<VhostBackend>>,
    /// What daemons raise when they find a ring broken.
    pub errors: Event,
    /// [`DEADLINES`], unless a test has less time.
    pub deadlines: Deadlines,
}

impl Link {
    /// Serves the device until it is gone, beginning with a daemon that has been greeted.
    pub fn run(self, greeted: Frontend) {
        let (mut kept, mut pace) = (Kept::default(), Pace::default());
        // Each device has its own: a host that restarts all daemons is told of all of them.
        let (outages, returns) = (Gate::new(), Gate::new());
        let mut next = Some(greeted);
        while let Some(frontend) = next {
            let Err(lost) = self.serve(Daemon::new(frontend), &mut kept, &mut pace) else { return };
            self.agreement.lose();
            log::line!(
                warn,
                Class::DaemonLost.by(&outages),
                "device {}: waits for its daemon: {lost}",
                self.label
            );
            next = self.wait_for_daemon(&mut pace, &lost);
            if next.is_some() {
                log::line!(info, Class::DaemonLost.by(&returns), "device {}: its daemon is back", self.label);
            }
        }
    }

    /// Brings the daemon to each wish, and listens to it in between. `Ok` when the device is gone. The connection
    /// is closed either way.
    fn serve(&self, mut daemon: Daemon, kept: &mut Kept, pace: &mut Pace) -> Result<(), Lost> {
        while let Some((wish, number)) = self.agreement.wish() {
            match daemon.agree(self, kept, &wish) {
                Ok(()) => {}
                Err(Trouble::Lost(lost)) => return Err(lost),
                Err(Trouble::Driver(what)) => {
                    if self.agreement.refuse(&wish.session) {
                        let label = &self.label;
                        log::line!(warn, Class::DeviceRefused.once(), "device {label}: {what} (said once)");
                    }
                    continue;
                }
            }
            self.agreement.reach(number);
            *pace = Pace::default();
            self.tell(|function| function.attend(|| self.agreement.take_fault()));
            self.listen(&mut daemon)?;
        }
        Ok(())
    }

    /// Waits until there is another wish, or something of the daemon.
    fn listen(&self, daemon: &mut Daemon) -> Result<(), FrontendError> {
        let errors = if daemon.content { PollFlags::IN } else { PollFlags::empty() };
        let mut watched = [
            PollFd::new(self.agreement.changed(), PollFlags::IN),
            PollFd::new(&daemon.frontend, PollFlags::IN | PollFlags::RDHUP),
            PollFd::new(&self.errors, errors),
        ];
        wait(&mut watched, None);
        self.agreement.changed().take();
        daemon.frontend.look()?;
        if daemon.content && self.errors.take() && !daemon.queues.is_empty() {
            // Once a session is enough, whatever the daemon does.
            daemon.content = false;
            if self.agreement.blame(&daemon.session) {
                let what = "the daemon found a queue broken; its driver was told to reset the device";
                let label = &self.label;
                log::line!(warn, Class::DeviceRefused.once(), "device {label}: {what} (said once)");
            }
        }
        Ok(())
    }

    /// Until there is a daemon that can serve the device; `None` when the device is gone.
    fn wait_for_daemon(&self, pace: &mut Pace, lost: &Lost) -> Option<Frontend> {
        let (since, mut said) = (Instant::now(), false);
        let mut pause = pace.after(lost, since);
        while self.rest(pause) {
            let lost = match self.call() {
                Ok(frontend) => return Some(frontend),
                Err(lost) => lost,
            };
            if matches!(lost, Lost::Another(_)) && !std::mem::replace(&mut said, true) {
                let label = &self.label;
                log::line!(
                    warn,
                    Class::DaemonLost.once(),
                    "device {label}: still waits for its daemon: {lost}"
                );
            }
            pause = pace.after(&lost, since);
        }
        None
    }

    /// Waits for that long; false when the device is gone. What a driver wishes in the meantime has to wait, too.
    fn rest(&self, pause: Duration) -> bool {
        let until = within(pause);
        while wait(&mut [PollFd::new(self.agreement.changed(), PollFlags::IN)], Some(until)) {
            self.agreement.changed().take();
            if self.agreement.wish().is_none() {
                return false;
            }
        }
        true
    }

    /// Connects, and sees whether what answers is the daemon of this device.
    fn call(&self) -> Result<Frontend, Lost> {
        let deadline = within(self.deadlines.run);
        let stream = socket::reach(&self.spec.socket, deadline).map_err(Lost::Socket)?;
        let mut frontend = Frontend::new(stream).map_err(FrontendError::Lost)?;
        let offer = frontend.greet(self.spec.kind, deadline)?;
        let config = self.contract.check(&offer).map_err(Lost::Another)?;
        if self.agreement.regain(config, self.spec.kind.keeps_config()) {
            self.tell(VirtioPci::config_changed);
        }
        Ok(frontend)
    }

    /// Does something with the function, if there still is one.
    fn tell(&self, what: impl FnOnce(&VirtioPci<VhostBackend>)) {
        if let Some(function) = self.function.upgrade() {
            what(&function);
        }
    }
}

/// How long to wait before the next call.
#[derive(Default)]
struct Pace {
    /// Daemons in a row that were there but did not agree.
    bad: u32,
}

impl Pace {
    fn after(&mut self, lost: &Lost, since: Instant) -> Duration {
        let ([soon, later], [least, most]) = (LOOK, REST);
        match lost {
            Lost::Socket(_) if since.elapsed() < SOON => soon,
            Lost::Socket(_) => later,
            _ => {
                let pause = least.saturating_mul(2u32.saturating_pow(self.bad)).min(most);
                self.bad = self.bad.saturating_add(1);
                pause
            }
        }
    }
}

/// Waits for one of these until then; false if the time came first.
fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> bool {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    poll(fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

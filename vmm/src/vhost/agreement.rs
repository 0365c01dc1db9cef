//! What a driver wants of its device, and how far the daemon has been brought to it.
//!
//! vCPU threads change the [`Wish`]; the device's own thread ([`super::link`]) reads it and makes the daemon
//! agree, whichever daemon that is by then: the wish is also all that is needed to start a queue again in a
//! daemon that came back. Each change has a number, and the thread says which number it has reached.
//!
//! A vCPU that changes something waits for that, but never longer than [`PATIENCE`], and not at all while the
//! daemon is away or still busy with an earlier change. So a daemon costs a vCPU next to nothing whatever it does.
//! While the daemon is away nothing of it touches the guest: everything is at rest.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::frontend::RingAddresses;
use crate::kvm::event::Event;
use crate::pci::virtio::{Fault, Ring};

/// How long a vCPU waits at most until the daemon has done what its driver asked for.
pub const PATIENCE: Duration = Duration::from_millis(40);

/// A driver's session with its device, from DRIVER_OK to reset. Two are the same if they are the same `Arc`.
#[derive(Debug)]
pub struct Session {
    /// Features that the driver took.
    pub features: u64,
}

/// A virtqueue that a driver has set up, for its whole life. Two are the same if they are the same `Arc`.
pub struct Queue {
    /// As the driver described it.
    pub ring: Ring,
    /// Where a daemon finds its parts.
    pub at: RingAddresses,
}

/// A driver's write to the device configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWrite {
    /// Offset of the first byte.
    pub offset: u32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// What a driver wants.
#[derive(Clone, Default)]
pub struct Wish {
    /// Its session; none before DRIVER_OK.
    pub session: Option<Arc<Session>>,
    /// Its queues.
    pub queues: BTreeMap<u16, Arc<Queue>>,
    /// Writes to the device configuration that the daemon has not been told of.
    pub writes: Vec<ConfigWrite>,
}

/// How things stand between a device and its daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// There is a daemon, and it serves the device or is about to.
    pub connected: bool,
    /// Since when that is so.
    pub since: Instant,
    /// How often a daemon came back.
    pub returns: u64,
}

/// The shared state of a device's vCPU threads and its own thread.
pub struct Agreement {
    state: Mutex<State>,
    /// Something was reached, or the daemon went.
    moved: Condvar,
    /// Raised when the wish is another, or the device is gone.
    changed: Event,
}

struct State {
    wish: Wish,
    /// Number of the wish.
    number: u64,
    /// Number of the wish that the daemon was brought to last.
    reached: u64,
    link: LinkState,
    /// The device configuration, with what its driver wrote.
    config: Vec<u8>,
    /// As the daemon told it when it was greeted.
    told: Vec<u8>,
    /// Writes that daemons took from this session's driver: a daemon that comes back must know of them.
    taken: Vec<ConfigWrite>,
    fault: bool,
    /// A driver's mistake has been said; a guest must not be able to fill the log.
    blamed: bool,
    ended: bool,
}

impl Agreement {
    /// With a daemon that is connected and has this device configuration; nothing is wished for.
    ///
    /// # Errors
    /// There is no eventfd to be had.
    pub fn new(config: Vec<u8>) -> io::Result<Agreement> {
        let state = State {
            wish: Wish::default(),
            number: 0,
            reached: 0,
            link: LinkState { connected: true, since: Instant::now(), returns: 0 },
            told: config.clone(),
            config,
            taken: Vec::new(),
            fault: false,
            blamed: false,
            ended: false,
        };
        Ok(Agreement { state: Mutex::new(state), moved: Condvar::new(), changed: Event::new()? })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For vCPU threads.
impl Agreement {
    /// Changes the wish, and waits a moment for the daemon to agree.
    pub fn ask(&self, change: impl FnOnce(&mut Wish)) {
        let mut state = self.lock();
        let was_behind = !state.is_at_rest();
        change(&mut state.wish);
        state.number = state.number.wrapping_add(1);
        self.changed.raise();
        if !was_behind {
            let waited = self.moved.wait_timeout_while(state, PATIENCE, |state| !state.is_at_rest());
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The driver's session is over, and with it what it wrote to the device configuration.
    pub fn end_session(&self) {
        let mut state = self.lock();
        state.taken.clear();
        let is_over = state.wish.session.is_none() && state.wish.writes.is_empty();
        drop(state);
        if !is_over {
            self.ask(|wish| *wish = Wish::default());
        }
        // Nobody is to be told of a fault any more.
        let _ = self.take_fault();
    }

    /// The daemon has been brought to the wish, or is away.
    pub fn is_at_rest(&self) -> bool {
        self.lock().is_at_rest()
    }

    /// Waits until [`Agreement::is_at_rest`]: as long as a daemon may take to drain its queues, or to be given up.
    pub fn wait_at_rest(&self) {
        let waited = self.moved.wait_while(self.lock(), |state| !state.is_at_rest());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes the fault that nobody was told of yet.
    ///
    /// # Errors
    /// There is one.
    pub fn take_fault(&self) -> Result<(), Fault> {
        let fault = std::mem::take(&mut self.lock().fault);
        if fault { Err(Fault) } else { Ok(()) }
    }

    /// Reads the device configuration; zeros beyond its end.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let state = self.lock();
        let from = state.config.get(offset..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// Has the daemon told of a write to the device configuration, if it lies inside.
    pub fn write_config(&self, offset: usize, data: &[u8]) {
        let end = offset.checked_add(data.len());
        let inside = end.is_some_and(|end| end <= self.lock().config.len()) && !data.is_empty();
        let Some(offset) = u32::try_from(offset).ok().filter(|_| inside) else { return };
        // If the daemon does not take it nothing changes, and that is all the driver gets to know.
        self.ask(|wish| remember(&mut wish.writes, ConfigWrite { offset, data: data.to_vec() }));
    }

    /// How things stand.
    pub fn link(&self) -> LinkState {
        self.lock().link.clone()
    }

    /// The device is gone; so is its thread as soon as it can.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.raise();
    }
}

/// For the device's own thread.
impl Agreement {
    /// Raised when there is another wish, or the device is gone.
    pub fn changed(&self) -> &Event {
        &self.changed
    }

    /// The wish and its number; `None` when the device is gone.
    pub fn wish(&self) -> Option<(Wish, u64)> {
        let state = self.lock();
        (!state.ended).then(|| (state.wish.clone(), state.number))
    }

    /// The daemon has been brought to the wish of this number.
    pub fn reach(&self, number: u64) {
        self.lock().reached = number;
        self.moved.notify_all();
    }

    /// The session cannot be: it is wished for no more, and its driver is to be told. True if that is to be said.
    pub fn refuse(&self, session: &Option<Arc<Session>>) -> bool {
        let say = self.blame(session);
        let mut state = self.lock();
        if is_same(&state.wish.session, session) {
            state.wish = Wish::default();
        }
        say
    }

    /// The session's driver is to be told of a fault, unless it is gone. True if that is to be said: once.
    pub fn blame(&self, session: &Option<Arc<Session>>) -> bool {
        let mut state = self.lock();
        let is_here = is_same(&state.wish.session, session);
        state.fault |= is_here;
        is_here && !std::mem::replace(&mut state.blamed, true)
    }

    /// The daemon took a write to the device configuration, or refused it.
    pub fn wrote(&self, write: &ConfigWrite, taken: bool) {
        let mut state = self.lock();
        state.wish.writes.retain(|wished| wished != write);
        if taken {
            let place = usize::try_from(write.offset).ok().and_then(|at| state.config.get_mut(at..));
            place.unwrap_or_default().iter_mut().zip(&write.data).for_each(|(to, from)| *to = *from);
            remember(&mut state.taken, write.clone());
        }
    }

    /// There is no daemon any more.
    pub fn lose(&self) {
        let mut state = self.lock();
        state.link = LinkState { connected: false, since: Instant::now(), ..state.link };
        self.moved.notify_all();
    }

    /// There is a daemon again, with this device configuration. True if that is not as the last one told it. If
    /// writes to it are settings, the daemon has to be told of all of them anew.
    pub fn regain(&self, config: Vec<u8>, tell_writes: bool) -> bool {
        let mut state = self.lock();
        let returns = state.link.returns.saturating_add(1);
        state.link = LinkState { connected: true, since: Instant::now(), returns };
        // It has not been brought to anything yet.
        state.number = state.number.wrapping_add(1);
        if tell_writes {
            let later = std::mem::take(&mut state.wish.writes);
            state.wish.writes = std::mem::take(&mut state.taken);
            later.into_iter().for_each(|write| remember(&mut state.wish.writes, write));
        }
        let is_other = state.told != config;
        if is_other {
            state.config.clone_from(&config);
            state.told = config;
        }
        is_other
    }
}

impl State {
    fn is_at_rest(&self) -> bool {
        !self.link.connected || self.reached == self.number
    }
}

/// Whether two sessions are one.
pub fn is_same<T>(one: &Option<Arc<T>>, other: &Option<Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Adds a write as the last one. It takes the place of one to the same bytes, so that a guest cannot fill memory.
fn remember(writes: &mut Vec<ConfigWrite>, write: ConfigWrite) {
    writes.retain(|old| (old.offset, old.data.len()) != (write.offset, write.data.len()));
    writes.push(write);
}

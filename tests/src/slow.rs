//! A disk as slow as a test wants it: one file whose reads, writes and flushes are answered when the test says so, and
//! as bad, if some of them are to fail.
//!
//! In: a file, over which this is mounted ([`crate::fuse`]). Out: the same file for whoever opens it from then on, of
//! zeros, with a handle to hold its answers back and to let them go.

use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::fuse::{Answers, Io, Mount, Request, Serve};
use crate::wait;

/// What a write that is cut short writes.
const SHORT_BYTES: usize = 512;

/// The disk; it goes when this is dropped, and whoever waits for an answer gets an error.
#[derive(Debug)]
pub struct SlowDisk(Mount<Slow>);

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, of zeros too.
    Write,
    /// Making writes durable, also those that ask for it themselves (O_DSYNC).
    Sync,
}

#[derive(Debug)]
struct Slow {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    content: Vec<u8>,
    holding: bool,
    failing: Vec<(Kind, Errno)>,
    /// Writes that are still to go wrong somehow.
    stutters: u32,
    held: Vec<Request>,
    writes: usize,
    /// Some request came while another one was held.
    overlapped: bool,
}

impl SlowDisk {
    /// Mounts a disk of so many bytes over the file at `path`.
    ///
    /// # Errors
    /// Why that cannot be done here.
    ///
    /// # Panics
    /// The host has no descriptor left.
    pub fn over(path: &Path, bytes: usize) -> Result<SlowDisk, String> {
        let state = Mutex::new(State { content: vec![0; bytes], ..State::default() });
        Mount::over(path, Slow { state, changed: Condvar::new() }).map(SlowDisk)
    }

    /// From now on nothing is answered.
    pub fn hold(&self) {
        self.state().holding = true;
    }

    /// From now on these fail so.
    pub fn fail(&self, kind: Kind, errno: Errno) {
        self.state().failing.push((kind, errno));
    }

    /// The next so many writes are cut short, interrupted, or put off (EINTR, EAGAIN), in turn.
    pub fn stutter(&self, writes: u32) {
        self.state().stutters = writes;
    }

    /// Writes that are still to stutter.
    pub fn stutters(&self) -> u32 {
        self.state().stutters
    }

    /// From now on nothing fails any more.
    pub fn mend(&self) {
        self.state().failing.clear();
    }

    /// Waits until so many requests are held.
    ///
    /// # Panics
    /// They do not come within the deadline.
    pub fn await_held(&self, count: usize) {
        let (until, mut state) = (wait::deadline(), self.state());
        while state.held.len() < count {
            let left = until.saturating_duration_since(std::time::Instant::now());
            assert!(!left.is_zero(), "{} of {count} requests reach the disk", state.held.len());
            let woken = self.0.served.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Answers what was held, and all that comes.
    pub fn release(&self) {
        let mut state = self.state();
        state.holding = false;
        for request in std::mem::take(&mut state.held) {
            state.answer(&request, &self.0.answers);
        }
    }

    /// Writes that were answered, and whether any request came while another one was held.
    pub fn seen(&self) -> (usize, bool) {
        let state = self.state();
        (state.writes, state.overlapped)
    }

    /// What is on the disk.
    pub fn content(&self) -> Vec<u8> {
        self.state().content.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.served.state()
    }
}

impl Slow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serve for Slow {
    fn bytes(&self) -> usize {
        self.state().content.len()
    }

    fn take(&self, request: Request, answers: &Answers) {
        let mut state = self.state();
        state.overlapped |= !state.held.is_empty();
        if state.holding {
            state.held.push(request);
            self.changed.notify_all();
            return;
        }
        state.answer(&request, answers);
    }
}

impl State {
    fn answer(&mut self, request: &Request, answers: &Answers) {
        if let (Io::Write { at, data, .. }, 1..) = (&request.io, self.stutters) {
            self.stutters -= 1;
            let short =
                Io::Write { at: *at, data: data[..data.len().min(SHORT_BYTES)].to_vec(), durable: false };
            return match self.stutters % 3 {
                0 => answers.give(request, Err(Errno::INTR)),
                1 => answers.give(request, Err(Errno::AGAIN)),
                _ => {
                    self.carry_out(&short);
                    answers.give_short(request, SHORT_BYTES);
                }
            };
        }
        let done = self.fails(&request.io).map_or_else(|| Ok(self.carry_out(&request.io)), Err);
        answers.give(request, done);
    }

    fn fails(&self, io: &Io) -> Option<Errno> {
        let needs: &[Kind] = match io {
            Io::Read { .. } => &[Kind::Read],
            Io::Write { durable: true, .. } => &[Kind::Write, Kind::Sync],
            Io::Write { .. } | Io::Clear { .. } => &[Kind::Write],
            Io::Sync => &[Kind::Sync],
        };
        self.failing.iter().find(|(failing, _)| needs.contains(failing)).map(|(_, errno)| *errno)
    }

    fn carry_out(&mut self, io: &Io) -> Vec<u8> {
        match io {
            Io::Read { at, bytes } => return self.content[*at..*at + *bytes].to_vec(),
            Io::Write { at, data, .. } => {
                self.content[*at..*at + data.len()].copy_from_slice(data);
                self.writes += 1;
            }
            Io::Clear { at, bytes } => self.content[*at..*at + *bytes].fill(0),
            Io::Sync => {}
        }
        Vec::new()
    }
}

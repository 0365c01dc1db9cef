//! A disk as slow as a test wants it: one file whose reads, writes and flushes are answered when the test says so, and
//! as bad, if flushes are to fail.
//!
//! In: a file, over which this is mounted (FUSE; root and /dev/fuse are needed). Out: the same file for whoever opens it
//! from then on, of zeros, with a handle to hold its answers back and to let them go. What a process has asked for stays
//! asked for when it is killed, as with a disk: direct I/O in flight is ended by the answer and by nothing else.
//! One request is one packet, `fuse_in_header` and its arguments; one answer is `fuse_out_header` and its own (linux/fuse.h).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{Mode, OFlags};

use crate::wait;

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// FORGET, INTERRUPT, BATCH_FORGET: nobody waits for an answer.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// Bytes before a request's arguments, and before an answer's.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// Where in the arguments of READ and WRITE the offset and the length are, and where WRITE's data begin.
const OFFSET: usize = 8;
const LENGTH: usize = 16;
const DATA: usize = 40;
/// FUSE_ASYNC_READ, FUSE_BIG_WRITES, FUSE_ASYNC_DIO: direct I/O does not wait for its answer.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 15;
const MAX_WRITE: u32 = 128 << 10;
const REQUEST_BYTES: usize = (256 << 10) + 4096;
const EIO: i32 = 5;
const ENOSYS: i32 = 38;
const REGULAR: u32 = 0o100_600;

/// The disk; it goes when this is dropped, and whoever waits for an answer gets an error.
#[derive(Debug)]
pub struct SlowDisk {
    path: PathBuf,
    shared: Arc<Shared>,
    stop: OwnedFd,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// /dev/fuse.
    connection: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    content: Vec<u8>,
    holding: bool,
    failing: bool,
    held: Vec<Request>,
    writes: usize,
    /// Some request came while another one was held.
    overlapped: bool,
}

#[derive(Debug)]
struct Request {
    code: u32,
    unique: u64,
    args: Vec<u8>,
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
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let connection = rustix::fs::open("/dev/fuse", flags, Mode::empty());
        let connection = connection.map_err(|errno| format!("/dev/fuse: {errno}"))?;
        let given = connection.try_clone().map_err(|error| format!("/dev/fuse: {error}"))?;
        // mount(8) hands on its standard input.
        let options = ["-i", "-t", "fuse", "-o", "fd=0,rootmode=100000,user_id=0,group_id=0", "slow"];
        run(Command::new("mount").args(options).arg(path).stdin(given))?;
        let state = Mutex::new(State { content: vec![0; bytes], ..State::default() });
        let shared = Arc::new(Shared { connection, state, changed: Condvar::new() });
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap_or_else(|e| panic!("eventfd: {e}"));
        let (stopped, own) = (stop.try_clone(), Arc::clone(&shared));
        let stopped = stopped.unwrap_or_else(|e| panic!("eventfd: {e}"));
        let server = std::thread::spawn(move || own.serve(&stopped));
        Ok(SlowDisk { path: path.to_owned(), shared, stop, server: Some(server) })
    }

    /// From now on nothing is answered.
    pub fn hold(&self) {
        self.shared.state().holding = true;
    }

    /// Whether it fails to make writes durable.
    pub fn fail(&self, failing: bool) {
        self.shared.state().failing = failing;
    }

    /// Waits until so many requests are held.
    ///
    /// # Panics
    /// They do not come within the deadline.
    pub fn await_held(&self, count: usize) {
        let (until, mut state) = (wait::deadline(), self.shared.state());
        while state.held.len() < count {
            let left = until.saturating_duration_since(std::time::Instant::now());
            assert!(!left.is_zero(), "{} of {count} requests reach the disk", state.held.len());
            let woken = self.shared.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Answers what was held, and all that comes.
    pub fn release(&self) {
        let mut state = self.shared.state();
        state.holding = false;
        for request in std::mem::take(&mut state.held) {
            self.shared.answer(&mut state, &request);
        }
    }

    /// Writes that were answered, and whether any request came while another one was held.
    pub fn seen(&self) -> (usize, bool) {
        let state = self.shared.state();
        (state.writes, state.overlapped)
    }

    /// What is on the disk.
    pub fn content(&self) -> Vec<u8> {
        self.shared.state().content.clone()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        self.server.take().map(JoinHandle::join);
        let _ = run(Command::new("umount").arg("-l").arg(&self.path));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the handle is dropped.
    fn serve(&self, stop: &OwnedFd) {
        let mut bytes = vec![0; REQUEST_BYTES];
        loop {
            let mut fds =
                [stop.as_fd(), self.connection.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            let polled = poll(&mut fds, None);
            if !fds[0].revents().is_empty() || polled.is_err() {
                return;
            }
            if let Ok(count) = rustix::io::read(&self.connection, &mut bytes) {
                self.take(&bytes[..count]);
            }
        }
    }

    fn take(&self, bytes: &[u8]) {
        let (code, unique) = (word(bytes, 4), long(bytes, 8));
        let request = Request { code, unique, args: bytes[IN_HEADER..].to_vec() };
        let mut state = self.state();
        if UNANSWERED.contains(&code) {
            return;
        }
        if matches!(code, READ | WRITE | FSYNC) {
            state.overlapped |= !state.held.is_empty();
            if state.holding {
                state.held.push(request);
                self.changed.notify_all();
                return;
            }
        }
        self.answer(&mut state, &request);
    }

    fn answer(&self, state: &mut State, Request { code, unique, args }: &Request) {
        let (error, answer) = match *code {
            INIT => (0, init()),
            GETATTR | SETATTR => (0, attributes(state.content.len() as u64)),
            OPEN => (0, vec![0; 16]),
            READ => (0, state.content[range(args)].to_vec()),
            WRITE => {
                state.content[range(args)].copy_from_slice(&args[DATA..]);
                state.writes += 1;
                (0, [&args[LENGTH..LENGTH + 4], &[0; 4]].concat())
            }
            FSYNC if state.failing => (-EIO, Vec::new()),
            FSYNC | FLUSH | RELEASE => (0, Vec::new()),
            _ => (-ENOSYS, Vec::new()),
        };
        let length = u32::try_from(OUT_HEADER + answer.len()).unwrap_or(u32::MAX);
        let header = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes()].concat();
        // An answer to a request that was given up meanwhile is not taken.
        let _ = rustix::io::write(&self.connection, &[header, answer].concat());
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(said()) }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// What READ and WRITE are about.
fn range(args: &[u8]) -> std::ops::Range<usize> {
    let start = usize::try_from(long(args, OFFSET)).unwrap_or(usize::MAX);
    start..start + word(args, LENGTH) as usize
}

/// `fuse_init_out` of version 7.31.
fn init() -> Vec<u8> {
    let background = 64u32 << 16 | 64;
    let words = [7, 31, MAX_WRITE, FLAGS, background, MAX_WRITE, 1, 0];
    [words.map(u32::to_ne_bytes).concat(), vec![0; 32]].concat()
}

/// `fuse_attr_out`: a file of so many bytes, nothing of which is to be remembered.
fn attributes(bytes: u64) -> Vec<u8> {
    let times = [0u8; 24 + 12];
    let owner = [REGULAR, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
    let sizes = [1, bytes, bytes / 512].map(u64::to_ne_bytes).concat();
    [&[0; 16][..], &sizes, &times, &owner].concat()
}

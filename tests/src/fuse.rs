//! A file that the test answers for: FUSE, as much of it as a disk needs.
//!
//! In: a file, over which this is mounted (root and /dev/fuse are needed), and a [`Serve`] that says what it holds. Out:
//! what processes ask of the file from then on, as [`Request`]s, each to be answered once, in any order. What a process
//! has asked for stays asked for when it is killed, as with a disk: I/O in flight is ended by the answer and by nothing
//! else. Whoever still waits when the mount is dropped gets an error.
//! One request is one packet, `fuse_in_header` and its arguments; one answer is `fuse_out_header` and its own (linux/fuse.h).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const FALLOCATE: u32 = 43;
/// FORGET, INTERRUPT, BATCH_FORGET: nobody waits for an answer.
const UNANSWERED: [u32; 3] = [2, 36, 42];

/// Bytes before a request's arguments, and before an answer's.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// Where in the arguments of READ and WRITE the offset and the length are, where WRITE's open flags are and where its
/// data begin.
const OFFSET: usize = 8;
const LENGTH: usize = 16;
const WRITE_FLAGS: usize = 32;
const DATA: usize = 40;
/// Of a descriptor, or of one write; `OFlags::DSYNC` has the bit of O_SYNC besides.
const O_DSYNC: u32 = 0o10000;
/// FUSE_ASYNC_READ, FUSE_BIG_WRITES, FUSE_ASYNC_DIO: direct I/O does not wait for its answer.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 15;
const MAX_WRITE: u32 = 128 << 10;
const REQUEST_BYTES: usize = (256 << 10) + 4096;
const REGULAR: u32 = 0o100_600;

/// What somebody wants of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Io {
    /// So many bytes from here on.
    Read {
        /// From where.
        at: usize,
        /// How many.
        bytes: usize,
    },
    /// These bytes are to stand from here on.
    Write {
        /// From where.
        at: usize,
        /// What.
        data: Vec<u8>,
        /// And are to be durable when that is answered (O_DSYNC).
        durable: bool,
    },
    /// What was written is to be durable (fsync, fdatasync).
    Sync,
    /// Zeros are to be read here from now on (a hole, or a range of zeros).
    Clear {
        /// From where.
        at: usize,
        /// How many bytes.
        bytes: usize,
    },
}

/// One [`Io`], which somebody waits for.
#[derive(Debug)]
pub struct Request {
    /// What it is about.
    pub io: Io,
    unique: u64,
}

/// Where answers go.
#[derive(Debug)]
pub struct Answers {
    /// /dev/fuse.
    connection: OwnedFd,
}

impl Answers {
    /// Answers a request: with what was read, with nothing, or by an error.
    pub fn give(&self, request: &Request, answer: Result<Vec<u8>, Errno>) {
        let answer = answer.map(|data| match &request.io {
            Io::Write { data, .. } => long_of(data.len()).to_vec(),
            _ => data,
        });
        self.send(request.unique, answer);
    }

    /// Answers a write of which only the first bytes were written.
    pub fn give_short(&self, request: &Request, bytes: usize) {
        self.send(request.unique, Ok(long_of(bytes).to_vec()));
    }

    fn send(&self, unique: u64, answer: Result<Vec<u8>, Errno>) {
        let error = answer.as_ref().err().map_or(0, |errno| -errno.raw_os_error());
        let answer = answer.unwrap_or_default();
        let length = u32::try_from(OUT_HEADER + answer.len()).unwrap_or(u32::MAX);
        let header = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes()].concat();
        // An answer to a request that was given up meanwhile is not taken.
        let _ = rustix::io::write(&self.connection, &[header, answer].concat());
    }
}

/// Who knows what the file holds.
pub trait Serve: Send + Sync + 'static {
    /// Bytes of the file.
    fn bytes(&self) -> usize;

    /// Somebody asks for something; it is answered now or later.
    fn take(&self, request: Request, answers: &Answers);

    /// Nobody asks for anything more at this moment; `true` if there is something left to do.
    fn rest(&self, answers: &Answers) -> bool {
        let _ = answers;
        false
    }
}

/// The file, in its place until this is dropped.
#[derive(Debug)]
pub struct Mount<S> {
    /// Who answers.
    pub served: Arc<S>,
    /// Where answers go that are given later.
    pub answers: Arc<Answers>,
    path: PathBuf,
    stop: OwnedFd,
    server: Option<JoinHandle<()>>,
}

impl<S: Serve> Mount<S> {
    /// Puts it over the file at `path`.
    ///
    /// # Errors
    /// Why that cannot be done here.
    ///
    /// # Panics
    /// The host has no descriptor left.
    pub fn over(path: &Path, served: S) -> Result<Mount<S>, String> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let connection = rustix::fs::open("/dev/fuse", flags, Mode::empty());
        let connection = connection.map_err(|errno| format!("/dev/fuse: {errno}"))?;
        let given = connection.try_clone().map_err(|error| format!("/dev/fuse: {error}"))?;
        // mount(8) hands on its standard input.
        let options = ["-i", "-t", "fuse", "-o", "fd=0,rootmode=100000,user_id=0,group_id=0", "disk"];
        run(Command::new("mount").args(options).arg(path).stdin(given))?;
        let (served, answers) = (Arc::new(served), Arc::new(Answers { connection }));
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap_or_else(|e| panic!("eventfd: {e}"));
        let stopped = stop.try_clone().unwrap_or_else(|e| panic!("eventfd: {e}"));
        let (own, to) = (Arc::clone(&served), Arc::clone(&answers));
        let server = std::thread::spawn(move || serve(&*own, &to, &stopped));
        Ok(Mount { served, answers, path: path.to_owned(), stop, server: Some(server) })
    }
}

impl<S> Drop for Mount<S> {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        self.server.take().map(JoinHandle::join);
        let _ = run(Command::new("umount").arg("-l").arg(&self.path));
    }
}

/// Until the mount is dropped.
fn serve(served: &impl Serve, answers: &Answers, stop: &OwnedFd) {
    let (mut bytes, mut busy) = (vec![0; REQUEST_BYTES], false);
    loop {
        let mut fds =
            [stop.as_fd(), answers.connection.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let polled = poll(&mut fds, busy.then(Timespec::default).as_ref());
        if !fds[0].revents().is_empty() || polled.is_err() {
            return;
        }
        if fds[1].revents().is_empty() {
            busy = served.rest(answers);
        } else if let Ok(count) = rustix::io::read(&answers.connection, &mut bytes) {
            take(served, answers, &bytes[..count]);
            busy = true;
        }
    }
}

fn take(served: &impl Serve, answers: &Answers, bytes: &[u8]) {
    let (code, unique, args) = (word(bytes, 4), long(bytes, 8), &bytes[IN_HEADER..]);
    if let Some(io) = io(code, args) {
        return served.take(Request { io, unique }, answers);
    }
    let answer = match code {
        INIT => Ok(init()),
        GETATTR | SETATTR => Ok(attributes(served.bytes() as u64)),
        OPEN => Ok(vec![0; 16]),
        FLUSH | RELEASE => Ok(Vec::new()),
        _ => Err(Errno::NOSYS),
    };
    if !UNANSWERED.contains(&code) {
        answers.send(unique, answer);
    }
}

/// What is asked of the disk, if it is that.
fn io(code: u32, args: &[u8]) -> Option<Io> {
    let at = || usize::try_from(long(args, OFFSET)).unwrap_or(usize::MAX);
    let durable = || word(args, WRITE_FLAGS) & O_DSYNC != 0;
    match code {
        READ => Some(Io::Read { at: at(), bytes: word(args, LENGTH) as usize }),
        WRITE => Some(Io::Write { at: at(), data: args[DATA..].to_vec(), durable: durable() }),
        FSYNC => Some(Io::Sync),
        FALLOCATE => {
            Some(Io::Clear { at: at(), bytes: usize::try_from(long(args, LENGTH)).unwrap_or(usize::MAX) })
        }
        _ => None,
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

fn long_of(value: usize) -> [u8; 8] {
    (value as u64).to_ne_bytes()
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

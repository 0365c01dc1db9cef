//! The seam between the device and whatever holds its bytes: jobs of bytes and offsets, nothing of virtio.
//!
//! In: a [`Job`] (an operation, and an owner of buffers), by [`Storage::start`]; later each answer of the
//! host to it, by [`Storage::proceed`]. Out: a [`Step`]: the job is under way at the [`Host`], or it is done
//! and comes back with its outcome. Whoever submits never sees half a transfer: what the host left over is
//! submitted again, what it interrupted is repeated.
//! Promises: a job comes back exactly once; `Ok` means all of it; nothing is allocated or locked.
//! Refuses: bytes past the end of what is stored (an image that was shrunk under us), by `EIO`.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use std::os::fd::RawFd;

use backends::engine::{Buffers, Op};
use backends::memory::Segment;
use rustix::io::Errno;

/// Answers without progress after which a job fails: a host that says "again" for ever must not hold the worker.
const MAX_REPEATS: u8 = 100;

/// Owns the buffers of a job.
pub trait Owner: Buffers {
    /// The first `bytes` of the buffers are done; [`Buffers::segments`] are those that follow.
    fn advance(&mut self, bytes: usize);
}

/// Where jobs are carried out: the engine of the calling worker.
pub trait Host<O: Owner> {
    /// Begins the job's operation on `fd`; the answer goes to [`Storage::proceed`].
    fn submit(&mut self, fd: RawFd, job: Job<O>);
}

/// What holds the bytes of a disk. Shared by all workers.
pub trait Storage: Send + Sync + 'static {
    /// Bytes; a multiple of [`Storage::block_bytes`].
    fn size_bytes(&self) -> u64;

    /// Bytes of a logical block.
    fn block_bytes(&self) -> u32;

    /// Writes fail.
    fn is_read_only(&self) -> bool;

    /// Begins a job within [`Storage::size_bytes`].
    fn start<O: Owner>(&self, job: Job<O>, host: &mut impl Host<O>) -> Step<O>;

    /// Takes the host's answer to a job that is under way.
    fn proceed<O: Owner>(&self, job: Job<O>, answer: Result<u32, Errno>, host: &mut impl Host<O>) -> Step<O>;
}

/// What has become of a job.
#[derive(Debug)]
#[must_use = "a job that is done must be given back to whoever asked for it"]
pub enum Step<O> {
    /// The host has it.
    UnderWay,
    /// It is over: its owner, what it was about at the end, and how it went.
    Done(O, Op, Result<(), Errno>),
}

/// One operation on somebody's buffers.
#[derive(Debug)]
pub struct Job<O> {
    owner: O,
    op: Op,
    /// Bytes to go.
    left: u64,
    repeats: u8,
    /// For storage with two ways to its bytes: the second one is in use.
    detour: bool,
}

impl<O: Owner> Buffers for Job<O> {
    fn segments(&self) -> &[Segment] {
        self.owner.segments()
    }
}

impl<O: Owner> Job<O> {
    /// An operation on all `bytes` of the owner's buffers.
    pub fn new(owner: O, op: Op, bytes: u64) -> Job<O> {
        Job { owner, op, left: bytes, repeats: 0, detour: false }
    }

    /// What is to be done now.
    pub fn op(&self) -> Op {
        self.op
    }

    /// The job must go another way to its bytes from now on.
    pub fn take_detour(&mut self) {
        self.detour = true;
    }

    /// Whether [`Job::take_detour`] was called.
    pub fn on_detour(&self) -> bool {
        self.detour
    }

    /// Whose it is, when the host gave it up.
    pub fn into_owner(self) -> O {
        self.owner
    }

    /// Ends the job.
    pub fn end(self, outcome: Result<(), Errno>) -> Step<O> {
        Step::Done(self.owner, self.op, outcome)
    }

    /// What the host's answer means: the job to submit again, or its end.
    ///
    /// # Errors
    /// There is nothing more to do: the finished job.
    pub fn after(mut self, answer: Result<u32, Errno>) -> Result<Job<O>, Step<O>> {
        match answer {
            Err(Errno::INTR | Errno::AGAIN) if self.repeats < MAX_REPEATS => {
                self.repeats = self.repeats.saturating_add(1);
                Ok(self)
            }
            Err(errno) => Err(self.end(Err(errno))),
            Ok(moved) if self.left <= u64::from(moved) => {
                self.advance(moved);
                Err(self.end(Ok(())))
            }
            // No error and no progress: the end of what is stored.
            Ok(0) => Err(self.end(Err(Errno::IO))),
            Ok(moved) => {
                self.advance(moved);
                Ok(self)
            }
        }
    }

    fn advance(&mut self, moved: u32) {
        let bytes = u64::from(moved);
        self.left = self.left.saturating_sub(bytes);
        self.repeats = 0;
        match &mut self.op {
            Op::Read { offset } | Op::Write { offset, .. } => *offset = offset.saturating_add(bytes),
            Op::Sync | Op::Reserve { .. } => return,
        }
        self.owner.advance(moved as usize);
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;

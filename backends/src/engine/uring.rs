//! The engine on io_uring: one system call submits a batch and waits for the next.
//!
//! Descriptors are watched by multishot polls, which report each wake-up of the descriptor, so that an
//! eventfd needs no read. User data of an entry is a slab number (operations) or a token (polls).
//! The ring belongs to one thread (SINGLE_ISSUER); completions are delivered when it asks (DEFER_TASKRUN).
//!
//! seccomp does not see what a ring is asked to do. So a ring is made before the sandbox closes, still disabled, and is
//! told which operations it will ever take: ours, and nothing of it can be registered or changed any more. The thread
//! that will use it enables it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;

use super::slab::Slab;
use super::{Buffers, Event, Interest, Nap, Op, Token};
use crate::failpoint;
use crate::memory::Segment;
use crate::sys;

/// Entries of the submission queue; a full one is submitted early.
const ENTRIES: u32 = 256;
/// Entries that are submitted as soon as so many wait, while the host has at most [`FEW`] operations: it begins with
/// them while the rest is prepared.
const EARLY: usize = 8;
const FEW: usize = 16;
/// Completions that wait without overflowing: every request of a few full queues, and kicks.
const COMPLETIONS: u32 = 4096;

/// User data: the kind of entry, then a slab number, or a watch's token and generation. A generation tells
/// the end of an old watch from events of a new one with the same token.
const POLL: u64 = 1 << 32;
const IGNORED: u64 = 2 << 32;
const GENERATION_SHIFT: u32 = 34;

/// All that a ring may be asked for.
const OPERATIONS: [u8; 9] = [
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// Times in a row that a poll may end by itself. It happens when completions overflow; a file that is always
/// ready and never wakes anybody (/dev/zero) ends each poll at once, and would be polled for ever.
const MAX_ENDINGS: u8 = 8;

/// One ring and what it watches.
pub(crate) struct Uring {
    ring: IoUring,
    watches: Vec<Watch>,
    /// By slab number: the segments of the operation, for the kernel to read.
    lists: Vec<Vec<Segment>>,
    /// Entries that the submission queue had no room for.
    backlog: VecDeque<squeue::Entry>,
    /// Watches begun so far, within the bits that user data has for it.
    generation: u64,
}

#[derive(Clone, Copy)]
struct Watch {
    token: Token,
    user_data: u64,
    fd: RawFd,
    events: u32,
    /// Polls that ended by themselves since the last one that goes on.
    endings: u8,
}

/// A ring that no thread uses yet.
pub(crate) struct Disabled(IoUring);

impl Disabled {
    /// `fence` goes into the ring's table of files. The kernel lets go of that only when no operation of the ring is left,
    /// even if the process was killed long before: a write to a disk cannot be taken back.
    pub(crate) fn new(fence: Option<BorrowedFd<'_>>) -> io::Result<Disabled> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_r_disabled();
        let ring = builder
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)
            .or_else(|_| IoUring::builder().setup_cqsize(COMPLETIONS).setup_r_disabled().build(ENTRIES))?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "its wait takes no time limit before Linux 5.11",
            ));
        }
        if let Some(fence) = fence {
            ring.submitter().register_files(&[fence.as_raw_fd()])?;
        }
        ring.submitter().register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        Ok(Disabled(ring))
    }

    /// Enabled by the thread that it is for.
    pub(crate) fn enable(self) -> io::Result<Uring> {
        self.0.submitter().register_enable_rings()?;
        let (watches, lists, backlog) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Uring { ring: self.0, watches, lists, backlog, generation: 0 })
    }
}

impl Uring {
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, interest: Interest, token: Token) -> io::Result<()> {
        let events = match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
            Interest::Both => libc::POLLIN | libc::POLLOUT,
        };
        self.generation = (self.generation + 1) % (1 << (u64::BITS - GENERATION_SHIFT));
        let user_data = self.generation << GENERATION_SHIFT | POLL | u64::from(token.0);
        let watch = Watch {
            token,
            user_data,
            fd: fd.as_raw_fd(),
            events: u32::from(events.unsigned_abs()),
            endings: 0,
        };
        self.watches.push(watch);
        self.push(poll_entry(watch));
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, token: Token) {
        let Some(at) = self.watches.iter().position(|watch| watch.token == token) else { return };
        let watch = self.watches.swap_remove(at);
        self.push(opcode::PollRemove::new(watch.user_data).build().user_data(IGNORED));
        // The poll holds its descriptor open until it is gone: let it go before the caller closes it.
        let _ = self.ring.submit();
    }

    pub(crate) fn submit<T: Buffers>(&mut self, fd: RawFd, op: Op, owner: T, slab: &mut Slab<T>) {
        let (key, owner) = slab.insert(owner);
        let at = key as usize;
        if self.lists.len() <= at {
            self.lists.resize_with(at.saturating_add(1), Vec::new);
        }
        if let Some(list) = self.lists.get_mut(at) {
            list.clear();
            list.extend_from_slice(owner.segments().get(..sys::MAX_SEGMENTS).unwrap_or(owner.segments()));
            let entry = operation(Fd(fd), op, list).user_data(u64::from(key));
            self.push(entry);
            self.hurry(slab.len());
        }
    }

    /// Submits early what a host with little to do can begin with.
    fn hurry(&mut self, in_flight: usize) {
        let waiting = self.ring.submission().len();
        if waiting >= EARLY && in_flight.saturating_sub(waiting) <= FEW {
            // Whatever is wrong, the next wait will tell.
            let _ = self.ring.submit();
        }
    }

    pub(crate) fn cancel<T>(&mut self, slab: &Slab<T>, which: impl Fn(&T) -> bool) {
        for (key, _) in slab.iter().filter(|(_, owner)| which(owner)) {
            self.push(opcode::AsyncCancel::new(u64::from(key)).build().user_data(IGNORED));
        }
    }

    /// Queues an entry; one for which the kernel has no room now waits until something was reaped.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    /// Whether there was room, or became room by submitting.
    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: buffers are guest memory, and the owner that keeps them mapped is in the slab until the completion
        // is reaped. The list of segments is this operation's own, on the heap, and not touched before that either.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return true;
        }
        // It may refuse while completions wait to be reaped; whatever else is wrong, the next wait will tell.
        let _ = self.ring.submit();
        // SAFETY: as above.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    /// Something to submit, to reap, or to let the kernel finish.
    pub(crate) fn is_ready(&mut self) -> bool {
        if !self.ring.completion().is_empty() {
            return true;
        }
        let submissions = self.ring.submission();
        !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
    }

    pub(crate) fn wait<T>(
        &mut self,
        nap: Nap,
        slab: &mut Slab<T>,
        events: &mut VecDeque<Event<T>>,
    ) -> io::Result<()> {
        self.refill();
        let nap = if self.ring.completion().is_empty() { nap } else { Nap::None };
        let submissions = self.ring.submission();
        if nap == Nap::None && submissions.is_empty() && !submissions.taskrun() && !submissions.cq_overflow()
        {
            drop(submissions);
            self.reap(slab, events);
            return Ok(());
        }
        drop(submissions);
        match self.enter(nap) {
            Ok(_) => {}
            // Interrupted, the time is over, or the completion queue must be emptied first: all end by looking.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN)
                ) => {}
            Err(e) => return Err(e),
        }
        if slab.len() > 0 {
            failpoint::reach("engine.submitted");
        }
        self.reap(slab, events);
        Ok(())
    }

    /// The system call. Its time limit is relative, on the monotonic clock.
    fn enter(&self, nap: Nap) -> io::Result<usize> {
        match nap {
            Nap::None => self.ring.submit(),
            Nap::Endless => self.ring.submit_and_wait(1),
            Nap::AtMost(time) => {
                let limit = Timespec::from(time);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        }
    }

    fn reap<T>(&mut self, slab: &mut Slab<T>, events: &mut VecDeque<Event<T>>) {
        let mut ended = Vec::new();
        for entry in self.ring.completion() {
            let data = entry.user_data();
            if data & (POLL | IGNORED) == 0 {
                if let Some(owner) = u32::try_from(data).ok().and_then(|key| slab.remove(key)) {
                    events.push_back(Event::Done(owner, outcome(entry.result())));
                }
            } else if data & POLL != 0 {
                let Some(watch) = self.watches.iter_mut().find(|watch| watch.user_data == data) else {
                    continue;
                };
                let token = watch.token;
                match watch.after(&entry) {
                    Next::GoesOn => events.push_back(Event::Ready(token)),
                    Next::Ended => {
                        events.push_back(Event::Ready(token));
                        ended.push(*watch);
                    }
                    Next::Useless => {
                        events.push_back(Event::Deaf(token));
                        self.watches.retain(|watch| watch.token != token);
                    }
                }
            }
        }
        ended.into_iter().for_each(|watch| self.push(poll_entry(watch)));
    }

    /// Waits for everything in flight and drops it.
    pub(crate) fn drain<T>(&mut self, slab: &mut Slab<T>) {
        self.watches.clear();
        let mut events = VecDeque::new();
        while slab.len() > 0 && self.wait(Nap::Endless, slab, &mut events).is_ok() {
            events.clear();
        }
    }
}

/// What a completion of a poll means for it.
enum Next {
    GoesOn,
    Ended,
    Useless,
}

impl Watch {
    fn after(&mut self, entry: &cqueue::Entry) -> Next {
        if cqueue::more(entry.flags()) {
            self.endings = 0;
            return Next::GoesOn;
        }
        self.endings = self.endings.saturating_add(1);
        if entry.result() < 0 || self.endings > MAX_ENDINGS { Next::Useless } else { Next::Ended }
    }
}

fn poll_entry(watch: Watch) -> squeue::Entry {
    opcode::PollAdd::new(Fd(watch.fd), watch.events).multi(true).build().user_data(watch.user_data)
}

/// One segment goes without a list: the kernel has one thing less to copy.
fn operation(fd: Fd, op: Op, segments: &[Segment]) -> squeue::Entry {
    let count = u32::try_from(segments.len()).unwrap_or(u32::MAX);
    let list = segments.as_ptr().cast::<libc::iovec>();
    match (op, segments) {
        (Op::Read { offset }, [one]) => {
            opcode::Read::new(fd, one.as_ptr(), length(one)).offset(offset).build()
        }
        (Op::Write { offset, durable }, [one]) => {
            opcode::Write::new(fd, one.as_ptr(), length(one)).offset(offset).rw_flags(sync(durable)).build()
        }
        (Op::Read { offset }, _) => opcode::Readv::new(fd, list, count).offset(offset).build(),
        (Op::Write { offset, durable }, _) => {
            opcode::Writev::new(fd, list, count).offset(offset).rw_flags(sync(durable)).build()
        }
        (Op::Sync, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        (Op::Reserve { room, offset, bytes }, _) => {
            opcode::Fallocate::new(fd, bytes).offset(offset).mode(room.mode()).build()
        }
    }
}

/// Flags of a write.
fn sync(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

fn length(segment: &Segment) -> u32 {
    u32::try_from(segment.len()).unwrap_or(u32::MAX)
}

fn outcome(result: i32) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| Errno::from_raw_os_error(result.saturating_neg()))
}

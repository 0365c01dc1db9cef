//! One client: what it has sent, and what it is being answered.
//!
//! ```text
//! Idle ──► Asking ──► Answering ──► Idle (keep-alive)
//!             └──────────┴─────────► Leaving (the last answer is out: what still comes is thrown away) ──► gone
//! ```
//! In: "the socket is ready", "time has passed". Out: whether the client stays. Promises: no call here waits; one
//! request is answered a turn, and nothing is read while an answer is on its way, so that a client which does not read
//! gets no further and keeps at most one request and one answer in memory; every stage has its patience, and while
//! others wait a client's place is another's after its answer. A client that is refused while it still sends is heard
//! to its end for a moment, or it would not hear why (RFC 9112 §9.6).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, shutdown};

use super::desk::Desk;
use super::http::{BadRequest, CONTINUE, Head, to_bytes};
use super::{Answer, Peer};
use crate::passing;

/// How long a client that asks nothing may stay.
const IDLE: Duration = Duration::from_secs(60);
/// How long a request may take to come, and its answer to be taken.
const WHOLE: Duration = Duration::from_secs(5);
/// How long a client may go on sending what nobody reads.
const LEAVING: Duration = Duration::from_secs(1);
/// How long each of these may take while others wait for their turn.
const PRESSED: Duration = Duration::from_millis(250);
/// Descriptors of a request that are taken in: those beyond are closed, and what is left is one too many already.
const MAX_DESCRIPTORS: usize = 65;
/// Bytes read in one turn.
const READ_BYTES: usize = 8 << 10;

/// The client is to be forgotten.
#[derive(Debug)]
pub(super) struct Gone;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of a request has come.
    Idle,
    /// A part of one has.
    Asking {
        /// Its content was asked for.
        continued: bool,
    },
    /// The answer goes out.
    Answering {
        /// And then the connection ends.
        last: bool,
    },
    Leaving,
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    peer: Peer,
    stage: Stage,
    /// When the stage began.
    since: Instant,
    input: Vec<u8>,
    /// What came with the request: no more than anybody takes, and one.
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    sent_bytes: usize,
    /// Others wait for its place: it has one answer more.
    pressed: bool,
}

impl Connection {
    /// A client that has just been accepted; its socket does not block.
    pub(super) fn new(socket: OwnedFd, peer: Peer, now: Instant) -> Connection {
        Connection {
            socket,
            peer,
            stage: Stage::Idle,
            since: now,
            input: Vec::new(),
            fds: Vec::new(),
            output: Vec::new(),
            sent_bytes: 0,
            pressed: false,
        }
    }

    /// The socket, and what it has to become before the next turn.
    pub(super) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let sends = matches!(self.stage, Stage::Answering { .. });
        (self.socket.as_fd(), if sends { PollFlags::OUT } else { PollFlags::IN })
    }

    /// Whether others wait for its place now.
    pub(super) fn press(&mut self, pressed: bool) {
        self.pressed = pressed;
    }

    /// Until when its stage may last.
    pub(super) fn deadline(&self) -> Instant {
        let patience = match self.stage {
            _ if self.pressed => PRESSED,
            Stage::Idle => IDLE,
            Stage::Asking { .. } | Stage::Answering { .. } => WHOLE,
            Stage::Leaving => LEAVING,
        };
        self.since.checked_add(patience).unwrap_or(self.since)
    }

    /// The socket is ready.
    pub(super) fn turn(&mut self, desk: &Desk, now: Instant) -> Result<(), Gone> {
        match self.stage {
            Stage::Idle | Stage::Asking { .. } => {
                self.receive(now)?;
                self.advance(desk, now)?;
            }
            Stage::Answering { .. } => {}
            Stage::Leaving => return self.discard(),
        }
        self.flush(desk, now)
    }

    /// Its stage has lasted too long.
    pub(super) fn expire(&mut self, desk: &Desk, now: Instant) -> Result<(), Gone> {
        if !matches!(self.stage, Stage::Asking { .. }) {
            return Err(Gone);
        }
        self.refuse(&BadRequest::Late, desk, now);
        self.flush(desk, now)
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        (self.stage, self.since) = (stage, now);
    }

    fn receive(&mut self, now: Instant) -> Result<(), Gone> {
        let mut bytes = [0; READ_BYTES];
        let received = match passing::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return Ok(()),
            Err(_) => return Err(Gone),
            Ok(received) => received,
        };
        let came = bytes.get(..received.bytes).filter(|came| !came.is_empty()).ok_or(Gone)?;
        self.input.extend(came);
        self.fds.extend(received.fds);
        self.fds.truncate(MAX_DESCRIPTORS);
        if self.stage == Stage::Idle {
            self.enter(Stage::Asking { continued: false }, now);
        }
        Ok(())
    }

    /// Answers the request that is at the front of the input, if all of it is there.
    fn advance(&mut self, desk: &Desk, now: Instant) -> Result<(), Gone> {
        match Head::parse(&self.input) {
            Ok(None) => Ok(()),
            Ok(Some(head)) if self.input.len() < whole_bytes(&head) => self.ask_for_rest(&head),
            Ok(Some(head)) => {
                let body = self.take(&head);
                let answer = desk.answer(&head, body, std::mem::take(&mut self.fds), self.peer);
                self.say(&answer, self.pressed || !head.keep_alive, head.method == "HEAD", now);
                Ok(())
            }
            Err(bad) => {
                self.refuse(&bad, desk, now);
                Ok(())
            }
        }
    }

    /// The content of the request, which leaves the input.
    fn take(&mut self, head: &Head) -> Vec<u8> {
        let rest = self.input.split_off(whole_bytes(head).min(self.input.len()));
        let mut request = std::mem::replace(&mut self.input, rest);
        request.split_off(head.head_bytes.min(request.len()))
    }

    /// Tells a client that waits for it to send the content.
    fn ask_for_rest(&mut self, head: &Head) -> Result<(), Gone> {
        if self.stage == (Stage::Asking { continued: false }) && head.expects_continue {
            self.stage = Stage::Asking { continued: true };
            // A client that has asked for this has room for it, or is none.
            let sent = passing::send(&self.socket, CONTINUE, &[], SendFlags::DONTWAIT);
            return sent.ok().filter(|sent| *sent == CONTINUE.len()).map(drop).ok_or(Gone);
        }
        Ok(())
    }

    fn refuse(&mut self, bad: &BadRequest, desk: &Desk, now: Instant) {
        desk.tell_refused(self.peer, bad);
        self.say(&bad.answer(), true, false, now);
    }

    fn say(&mut self, answer: &Answer, last: bool, bare: bool, now: Instant) {
        (self.output, self.sent_bytes) = (to_bytes(answer, last, bare), 0);
        self.enter(Stage::Answering { last }, now);
    }

    /// Sends what is left of the answer, as much as the client takes.
    fn flush(&mut self, desk: &Desk, now: Instant) -> Result<(), Gone> {
        let Stage::Answering { last } = self.stage else { return Ok(()) };
        let left = self.output.get(self.sent_bytes..).unwrap_or_default();
        match passing::send(&self.socket, left, &[], SendFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return Ok(()),
            Err(_) => return Err(Gone),
            Ok(sent) => self.sent_bytes = self.sent_bytes.saturating_add(sent),
        }
        if self.sent_bytes < self.output.len() {
            return Ok(());
        }
        self.output = Vec::new();
        if last { self.leave(now) } else { self.next_request(desk, now) }
    }

    fn leave(&mut self, now: Instant) -> Result<(), Gone> {
        (self.input, self.fds) = Default::default();
        self.enter(Stage::Leaving, now);
        shutdown(&self.socket, Shutdown::Write).map_err(|_| Gone)
    }

    /// What came behind the request is the next one; its answer goes out in the next turn.
    fn next_request(&mut self, desk: &Desk, now: Instant) -> Result<(), Gone> {
        if self.input.is_empty() {
            self.input = Vec::new();
            self.enter(Stage::Idle, now);
            return Ok(());
        }
        self.enter(Stage::Asking { continued: false }, now);
        self.advance(desk, now)
    }

    fn discard(&mut self) -> Result<(), Gone> {
        match passing::recv(&self.socket, &mut [0; READ_BYTES], RecvFlags::DONTWAIT) {
            Ok(received) if received.bytes > 0 => Ok(()),
            Err(Errno::AGAIN) => Ok(()),
            _ => Err(Gone),
        }
    }
}

/// Bytes of the whole request.
fn whole_bytes(head: &Head) -> usize {
    head.head_bytes.saturating_add(head.body_bytes)
}

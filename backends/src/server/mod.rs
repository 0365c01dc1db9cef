//! The control thread: accepts a front-end, feeds its messages to a session, and carries out the effects.
//!
//! In: a listening or connected socket. Out: rings that workers serve. One front-end is served at a time;
//! others wait in the listener's backlog. Promises: a message that stops half-way, or an answer that is not
//! taken, ends the connection after a deadline; a connection that ends for any reason leaves workers, memory
//! and descriptors as they were before it; SIGTERM and SIGINT end the daemon after what is in flight.
//! Refuses: a protocol violation, by a non-zero ack if one was asked for, else by hanging up where the
//! request has an answer that we cannot give. What messages do to memory and rings is in `host`.

mod host;
pub mod seen;
mod transfer;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;

use crate::clock;
use crate::cpus::CpuList;
use crate::device::{Announcer, Device};
use crate::engine::EngineKind;
use crate::failpoint;
use crate::inflight::Region;
use crate::kept::Kept;
use crate::kept::channel::{Begun, Channel, Note};
use crate::log::{self, Class};
use crate::memory::dirty::DirtyLog;
use crate::memory::{Memory, guard};
use crate::notify::Signal;
use crate::proto::transport::MESSAGE_DEADLINE;
use crate::proto::wire::{BackendCode, DecodeError, Header};
use crate::proto::{Connection, Frame, ProtocolFeatures, Reply, Request, TransportError};
use crate::sandbox::Filter;
use crate::session::{Direction, Offer, Refusal, Session};
use crate::stats::Stats;
use crate::sys;
use crate::worker::Workers;
use seen::Seen;

/// Ring and transport features of every daemon.
const COMMON_FEATURES: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1
    | 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED
    | 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_RESET
    | 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
    | 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
const IN_ORDER: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER;
const PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::DEVICE_STATE);
/// How long a front-end waits for a ring to drain before we hang up on it: host I/O may be slow.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// How long the daemon's end waits for it.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// After what time without anything to do the process makes itself small.
const QUIET: Duration = Duration::from_millis(100);

/// How long an accept that failed for want of descriptors or memory is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a front-end may take to make room on its channel for our requests.
const ANNOUNCE_PATIENCE: Duration = Duration::from_millis(100);

/// Where front-ends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// Each connection is one front-end, one after the other.
    Listening(UnixListener),
    /// The only front-end; when it goes the daemon ends.
    Connected(UnixStream),
    /// A keeper holds the front-ends and hands on their messages; when it goes the worker ends.
    Kept(Arc<Channel>),
}

impl Endpoint {
    /// A unix socket that listens, or is connected.
    ///
    /// # Errors
    /// It is no socket.
    pub fn of(socket: OwnedFd) -> Result<Endpoint, Errno> {
        let listening = socket_acceptconn(&socket)?;
        Ok(if listening { Endpoint::Listening(socket.into()) } else { Endpoint::Connected(socket.into()) })
    }
}

/// How a server serves.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How workers wait and do I/O.
    pub engine: EngineKind,
    /// Where workers run.
    pub cpus: CpuList,
    /// Refuse memory whose file can be cut short.
    pub require_sealed_memory: bool,
    /// Stays open as long as anything of this server is in flight at the host ([`crate::engine::Engine::fenced`]).
    pub fence: Option<Arc<OwnedFd>>,
}

/// A daemon that serves one device.
pub struct Server<D: Device> {
    device: Arc<D>,
    settings: Settings,
    /// Rung when a front-end cut its memory short under us.
    torn: OwnedFd,
    /// Rung when the device's configuration space changed.
    announced: OwnedFd,
    workers: Workers<D>,
    stats: Stats,
    /// Unsealed memory has been told of.
    unsealed: bool,
    front_end: FrontEnd,
    seen: Seen,
    /// Something was done since memory was last given back.
    stirred: Cell<bool>,
    /// Since when the front-end's rings are being taken back because it went.
    closing: Option<Instant>,
    /// Readable when the daemon is to end.
    end: Option<OwnedFd>,
}

/// What belongs to the connected front-end, and goes with it.
#[derive(Default)]
struct FrontEnd {
    memory: Arc<Memory>,
    log: Option<Arc<DirtyLog>>,
    /// Where requests in flight are marked.
    inflight: Option<Region>,
    /// For our own requests.
    channel: Option<Connection>,
    /// Device state that is to be carried once its request is answered.
    transfer: Option<(Direction, OwnedFd)>,
    state_is_good: bool,
}

impl FrontEnd {
    /// It cut short what it shares, and that was noticed.
    fn is_torn(&self) -> bool {
        self.memory.is_torn() || self.inflight.as_ref().is_some_and(Region::is_torn)
    }
}

/// Why a connection ended, if it was not the front-end's wish.
#[derive(Debug, thiserror::Error)]
enum Hangup {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{0}")]
    Refused(Refusal),
    #[error("{0}")]
    Decode(DecodeError),
    #[error("the front-end cut short the memory it shares")]
    Torn,
    #[error("the daemon was asked to end")]
    Asked,
}

impl<D: Device> Server<D> {
    /// A server for `device`, which goes on with the counters that are `kept`; nothing runs yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(device: D, settings: Settings, kept: &Kept) -> io::Result<Server<D>> {
        let device = Arc::new(device);
        let stats = Stats::kept(kept, device.queues())?;
        let Settings { engine, cpus, fence, .. } = &settings;
        let workers = Workers::fenced(Arc::clone(&device), *engine, cpus.clone(), fence.as_deref())?;
        let torn = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        guard::ring_when_torn(torn.try_clone()?);
        let announced = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Server {
            device,
            settings,
            torn,
            announced,
            workers,
            stats,
            unsealed: false,
            front_end: FrontEnd::default(),
            seen: Seen::default(),
            stirred: Cell::new(true),
            closing: None,
            end: None,
        })
    }

    /// What it serves.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// How its workers wait and do I/O.
    pub fn engine(&self) -> EngineKind {
        self.workers.engine()
    }

    /// The front-end that is connected.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Has the threads that serve queues take on this filter.
    pub fn confine(&mut self, filter: Filter) {
        self.workers.confine(filter);
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Serves front-ends until `end` becomes readable or the only connection is over.
    ///
    /// # Errors
    /// The listener itself fails.
    pub fn serve(&mut self, endpoint: Endpoint, end: BorrowedFd<'_>) -> io::Result<()> {
        self.end = Some(end.try_clone_to_owned()?);
        // Not before: a device may start threads of its own, and what confines this process confines them too then.
        self.device.attach(Announcer(Signal::new(Some(self.announced.try_clone()?))));
        match endpoint {
            Endpoint::Connected(stream) => {
                self.serve_front_end(stream, None, end);
            }
            Endpoint::Kept(keeper) => self.serve_keeper(&keeper, end)?,
            Endpoint::Listening(listener) => {
                listener.set_nonblocking(true)?;
                while self.wait(listener.as_fd(), end, None)? != Wake::End {
                    let stream = match listener.accept() {
                        Ok((stream, _)) => stream,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) => {
                            self.accept_failed(&error, end)?;
                            continue;
                        }
                    };
                    if self.serve_front_end(stream, None, end) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// A connection that went away before it was accepted, or for which there is no descriptor or memory now,
    /// ends nothing: it waits in the backlog, and so do we for a moment.
    fn accept_failed(&mut self, error: &io::Error, end: BorrowedFd<'_>) -> io::Result<()> {
        log::line!(warn, Class::FrontEndWaits, %error, "Front-end could not be accepted, trying again");
        self.wait(end, end, Some(Instant::now() + ACCEPT_PAUSE)).map(drop)
    }

    /// Serves the sessions that a keeper hands over, until that ends.
    fn serve_keeper(&mut self, keeper: &Channel, end: BorrowedFd<'_>) -> io::Result<()> {
        keeper.send(&Note::Ready, &[])?;
        while self.wait(keeper.as_fd(), end, None)? != Wake::End {
            match keeper.try_recv() {
                Ok(Some((Note::Session(begun), fds))) => {
                    let Some(fd) = fds.into_iter().next() else { continue };
                    if self.serve_front_end(fd.into(), Some((keeper, begun)), end) {
                        break;
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// One connection, from first to last message. `true`: the daemon was asked to end. A keeper is told whether the
    /// end of the session is meant: without that it takes us for dead.
    fn serve_front_end(
        &mut self,
        stream: UnixStream,
        keeper: Option<(&Channel, Begun)>,
        end: BorrowedFd<'_>,
    ) -> bool {
        log::line!(info, Class::FrontEndConnected, "Front-end connected");
        if keeper.is_none_or(|(_, begun)| !begun.again) {
            self.stats.session_began();
            self.device.reset();
        }
        let connected_ms = keeper.map_or_else(clock::unix_ms, |(_, begun)| begun.connected_ms);
        let mut session = Session::new(self.offer());
        let over = match Connection::new(stream) {
            Ok(mut connection) => {
                let over = self.converse(&mut session, &mut connection, connected_ms, end);
                if let (Some((keeper, Begun { number, .. })), false) = (keeper, matches!(over, Hangup::Asked))
                {
                    // A keeper that is gone needs to know nothing.
                    let _ = keeper.send(&Note::Over(number), &[]);
                }
                over
            }
            Err(error) => error.into(),
        };
        let asked = matches!(over, Hangup::Asked);
        self.closing = Some(Instant::now());
        if let Err(refusal) = session.close(self) {
            log::line!(warn, Class::QueueUnserved, %refusal, "A queue goes on draining without its front-end");
        }
        self.closing = None;
        self.front_end = FrontEnd::default();
        self.seen.put(None);
        log::line!(info, Class::FrontEndGone, reason = %over, "Front-end disconnected");
        asked
    }

    fn converse(
        &mut self,
        session: &mut Session,
        connection: &mut Connection,
        connected_ms: u64,
        end: BorrowedFd<'_>,
    ) -> Hangup {
        loop {
            self.seen.set(connected_ms, session, &self.front_end);
            let deadline = connection.partial_since().map(|since| since + MESSAGE_DEADLINE);
            if self.front_end.is_torn() {
                return Hangup::Torn;
            }
            match self.wait(connection.as_fd(), end, deadline) {
                Ok(Wake::Ready) => {}
                Ok(Wake::Torn) => continue,
                Ok(Wake::Announced) => {
                    self.announce();
                    continue;
                }
                Ok(Wake::End) => return Hangup::Asked,
                Ok(Wake::Late) => return TransportError::Deadline.into(),
                Err(error) => return TransportError::Socket(error).into(),
            }
            match connection.try_recv() {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    if let Err(over) = self.answer(session, connection, frame) {
                        return over;
                    }
                }
                Err(over) => return over.into(),
            }
        }
    }

    /// Handles one message and sends what it is answered with.
    fn answer(
        &mut self,
        session: &mut Session,
        connection: &mut Connection,
        frame: Frame,
    ) -> Result<(), Hangup> {
        let Frame { header, payload, fds } = frame;
        let wants_ack = header.needs_reply() && session.reply_ack();
        let request = match Request::decode(header, &payload, fds.len()) {
            Ok(request) => request,
            Err(error) => {
                self.tell_refused(&error);
                drop(fds);
                // Not knowing the request we cannot know whether it waits for an answer.
                return if wants_ack {
                    self.reply(connection, header, &Reply::U64(1))
                } else {
                    Err(Hangup::Decode(error))
                };
            }
        };
        let code = request.code();
        let answered = code.rule().answered;
        failpoint::reach(format_args!("session.message.{code:?}.before"));
        let handled = session.handle(request, fds, self);
        failpoint::reach(format_args!("session.message.{code:?}.after"));
        match handled {
            Ok(Some(reply)) => {
                self.reply(connection, header, &reply)?;
                self.carry_state();
                Ok(())
            }
            Ok(None) if wants_ack => self.reply(connection, header, &Reply::U64(0)),
            Ok(None) => Ok(()),
            Err(refusal @ Refusal::Drain(_)) => Err(Hangup::Refused(refusal)),
            Err(refusal) => {
                self.tell_refused(&refusal);
                match (wants_ack, answered) {
                    (true, _) => self.reply(connection, header, &Reply::U64(1)),
                    (false, true) => Err(Hangup::Refused(refusal)),
                    (false, false) => Ok(()),
                }
            }
        }
    }

    /// Sends an answer; the descriptor of an in-flight region goes with its shape.
    fn reply(&self, connection: &mut Connection, to: Header, reply: &Reply) -> Result<(), Hangup> {
        let payload = reply.payload();
        let header = Header::reply(to.request, payload.len());
        let region = self.front_end.inflight.as_ref();
        let fd = region.filter(|region| *reply == Reply::Inflight(region.shape())).map(Region::as_fd);
        Ok(connection.send(header, &payload, fd.as_slice(), Instant::now() + MESSAGE_DEADLINE)?)
    }

    /// Tells the front-end that the configuration space changed. It is not asked for an ack, so it can be neither
    /// waited for nor believed to have heard; one that reads nothing loses its channel.
    fn announce(&mut self) {
        let Some(channel) = &mut self.front_end.channel else { return };
        let header = Header::backend_request(BackendCode::ConfigChange);
        if let Err(error) = channel.send(header, &[], &[], Instant::now() + ANNOUNCE_PATIENCE) {
            log::line!(warn, Class::FrontEndDeaf, %error, "Front-end does not take our requests; it will not hear of changes any more");
            self.front_end.channel = None;
        }
    }

    /// Carries device state, if that was asked for. The answer is out, so the other side is at its end of it.
    fn carry_state(&mut self) {
        let Some((direction, fd)) = self.front_end.transfer.take() else { return };
        let carried = match direction {
            Direction::Save => transfer::save(&fd, &self.device.save()),
            Direction::Load => transfer::load(&fd).map(|state| self.device.load(&state)),
        };
        self.front_end.state_is_good = carried.unwrap_or_else(|error| {
            log::line!(warn, Class::StateLost, %error, ?direction, "Device state was not carried");
            false
        });
    }

    fn tell_refused(&mut self, reason: &dyn std::fmt::Display) {
        log::line!(warn, Class::MessageRefused, %reason, "Message refused");
    }

    /// How long rings may take to drain: less once the daemon is asked to end.
    fn patience(&self) -> Duration {
        let asked = self.end.as_ref().is_some_and(|end| {
            let mut fds = [PollFd::new(end, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
        });
        if asked { EXIT_PATIENCE } else { DRAIN_PATIENCE }
    }

    /// Waits until `fd` is readable, `end` is, memory was torn, or the deadline has passed. When it was quiet for a while
    /// the code that it took to get here is given back.
    fn wait(&self, fd: BorrowedFd<'_>, end: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Wake> {
        let quiet = Instant::now() + QUIET;
        if deadline.is_none_or(|deadline| quiet < deadline) && self.stirred.get() {
            match self.wait_until(fd, end, Some(quiet))? {
                Wake::Late => {
                    self.stirred.set(false);
                    sys::drop_clean_pages();
                }
                wake => return Ok(wake),
            }
        }
        let wake = self.wait_until(fd, end, deadline);
        self.stirred.set(true);
        wake
    }

    fn wait_until(
        &self,
        fd: BorrowedFd<'_>,
        end: BorrowedFd<'_>,
        deadline: Option<Instant>,
    ) -> io::Result<Wake> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [end, self.torn.as_fd(), self.announced.as_fd(), fd]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(Wake::Late),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let [end, torn, announced, _] = fds.map(|fd| !fd.revents().is_empty());
            if end {
                return Ok(Wake::End);
            }
            if announced {
                let _ = rustix::io::read(&self.announced, &mut [0; 8]);
                return Ok(Wake::Announced);
            }
            if torn {
                // Emptied here; whether it concerns the memory in use is for the caller to see.
                let _ = rustix::io::read(&self.torn, &mut [0; 8]);
                return Ok(Wake::Torn);
            }
            return Ok(Wake::Ready);
        }
    }

    fn offer(&self) -> Offer {
        Offer {
            features: self.device.features()
                | COMMON_FEATURES
                | if self.device.in_order() { IN_ORDER } else { 0 },
            protocol: PROTOCOL_FEATURES | self.device.protocol_features(),
            queues: self.device.queues(),
        }
    }
}

/// What ended a wait.
#[derive(Debug, PartialEq, Eq)]
enum Wake {
    Ready,
    Torn,
    Announced,
    End,
    Late,
}

//! One front-end's session: each of its messages taken to the worker, and the answer back.
//!
//! In: messages of the front-end, one at a time. Out: the worker's answers, and a [`Record`] of what was accepted.
//! Promises: a front-end sees what it would see of the worker itself, whether that worker lived all the time or not;
//! a message is forgotten only when it was answered, so that one whose worker died is repeated to the next; nothing
//! waits without a deadline. Refuses, as the session does, what cannot be decoded or belongs to a feature that this
//! front-end did not negotiate: the worker negotiated more, with the keeper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::Stop;
use super::record::Record;
use super::signals::Signals;
use super::store::{Entry, Kind};
use super::worker::Worker;
use crate::kept::channel::Begun;
use crate::proto::transport::MESSAGE_DEADLINE;
use crate::proto::wire::Header;
use crate::proto::{Code, Connection, Frame, Inflight, ProtocolFeatures, Reply, Request};
use crate::session::MAX_QUEUE_SIZE;

/// What the keeper negotiates for itself, where the worker offers it: an ack for each message, the number of queues,
/// a region for what is in flight, and memory tables of any length.
const OWN: ProtocolFeatures = ProtocolFeatures::REPLY_ACK
    .union(ProtocolFeatures::MQ)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
/// Workers that may die over one message before its front-end is given up.
const DEATHS_PER_MESSAGE: u32 = 3;

/// A connected front-end.
#[derive(Debug)]
pub(super) struct FrontEnd {
    connection: Connection,
    record: Record,
    /// What the keeper negotiated for itself with the worker at hand.
    own: ProtocolFeatures,
    /// The in-flight region is the keeper's: a ring that the front-end stops is drained.
    drains: bool,
    pending: Option<Pending>,
    /// When it connected, in milliseconds of Unix time.
    connected_ms: u64,
    /// A worker has served it.
    served: bool,
}

/// A message that has not been answered.
#[derive(Debug)]
struct Pending {
    header: Header,
    request: Request,
    fds: Vec<OwnedFd>,
    /// Workers that died over it.
    deaths: u32,
}

/// A worker with which to carry out something.
pub(super) struct With<'a> {
    pub(super) worker: &'a mut Worker,
    pub(super) signals: &'a Signals,
}

impl With<'_> {
    fn ask(&mut self, request: &Request, need_reply: bool, fds: &[OwnedFd]) -> Result<Frame, Stop> {
        self.worker.ask(request, need_reply, fds, self.signals)
    }

    /// Asks for a value.
    fn value(&mut self, request: &Request) -> Result<u64, Stop> {
        let frame = self.ask(request, false, &[])?;
        match Reply::decode(request.code(), &frame.payload) {
            Some(Reply::U64(value)) => Ok(value),
            _ => Err(self.worker.refuse("its answer makes no sense")),
        }
    }

    /// Says something, and whether it was accepted.
    fn accepted(&mut self, request: &Request, fds: &[OwnedFd]) -> Result<bool, Stop> {
        let frame = self.ask(request, !request.code().rule().answered, fds)?;
        Ok(Reply::decode(request.code(), &frame.payload) == Some(Reply::U64(0)))
    }
}

impl FrontEnd {
    /// A front-end that has said nothing yet.
    pub(super) fn new(connection: Connection) -> FrontEnd {
        let (record, own) = (Record::new(), ProtocolFeatures::empty());
        let connected_ms = crate::clock::unix_ms();
        FrontEnd { connection, record, own, drains: false, pending: None, connected_ms, served: false }
    }

    /// The session that a worker is to begin for it, by this number.
    pub(super) fn session(&mut self, number: u32) -> Begun {
        let again = std::mem::replace(&mut self.served, true);
        Begun { number, again, connected_ms: self.connected_ms }
    }

    /// All of it, for the keeper after this one.
    pub(super) fn entries(&self) -> Vec<Entry<BorrowedFd<'_>>> {
        let mut bytes = self.record.protocol.bits().to_le_bytes().to_vec();
        bytes.extend(self.connected_ms.to_le_bytes());
        bytes.extend([u8::from(self.drains), u8::from(self.record.state_under_way())]);
        let message =
            |header: Header, request: &Request| [&header.to_bytes()[..], &request.payload()].concat();
        let mut all = vec![Entry::new(Kind::FrontEnd, bytes, [&self.connection])];
        for (request, fds) in self.record.replay() {
            let header = Header::request(request.code(), request.payload().len(), false);
            all.push(Entry::new(Kind::Said, message(header, request), fds));
        }
        if let Some(Pending { header, request, fds, .. }) = &self.pending {
            all.push(Entry::new(Kind::Pending, message(*header, request), fds));
        }
        all
    }

    /// The front-end of the keeper before, from the first of its entries.
    pub(super) fn back(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Option<FrontEnd> {
        let (protocol, rest) = bytes.split_first_chunk()?;
        let (connected_ms, [drains, state_lost]) = rest.split_first_chunk()? else { return None };
        let mut front_end = FrontEnd::new(Connection::new(fds.pop()?.into()).ok()?);
        front_end.record.protocol = ProtocolFeatures::from_bits_retain(u64::from_le_bytes(*protocol));
        front_end.record.state_lost = *state_lost != 0;
        front_end.drains = *drains != 0;
        (front_end.connected_ms, front_end.served) = (u64::from_le_bytes(*connected_ms), true);
        Some(front_end)
    }

    /// One of the other entries: a message that it has sent.
    pub(super) fn again(&mut self, Entry { kind, bytes, fds }: Entry<OwnedFd>) -> Option<()> {
        let (header, payload) = bytes.split_first_chunk()?;
        let header = Header::from_bytes(*header);
        let request = Request::decode(header, payload, fds.len()).ok()?;
        if kind == Kind::Pending {
            self.pending = Some(Pending { header, request, fds, deaths: 0 });
        } else {
            self.record.accept(request, fds, None);
        }
        Some(())
    }

    /// Its socket.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// When the message that is arriving has to be whole.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.connection.partial_since().map(|since| since + MESSAGE_DEADLINE)
    }

    /// Its worker died.
    ///
    /// # Errors
    /// [`Stop::FrontEnd`]: too many did, over the same message.
    pub(super) fn worker_died(&mut self) -> Result<(), Stop> {
        self.record.worker_died();
        let Some(pending) = &mut self.pending else { return Ok(()) };
        pending.deaths += 1;
        if pending.deaths < DEATHS_PER_MESSAGE {
            return Ok(());
        }
        Err(Stop::FrontEnd(format!("{:?} was the end of {} workers", pending.request.code(), pending.deaths)))
    }

    /// Brings a worker that knows nothing to where the session is.
    ///
    /// # Errors
    /// [`Stop::FrontEnd`]: it cannot be brought there.
    pub(super) fn resume(&mut self, with: &mut With<'_>) -> Result<(), Stop> {
        let offered = ProtocolFeatures::from_bits_retain(with.value(&Request::GetProtocolFeatures)?);
        let cannot = |what: String| Err(Stop::FrontEnd(format!("the new worker does not take {what}")));
        let missing = self.record.protocol.difference(offered);
        if !missing.is_empty() {
            return cannot(format!("protocol features {:#x}", missing.bits()));
        }
        self.own = OWN.intersection(offered);
        // The message after which acks are given is given none.
        let negotiated = self.negotiated();
        with.worker.tell(&Request::SetProtocolFeatures(negotiated.bits()), false, &[])?;
        for (request, fds) in self.record.replay() {
            let accepted = with.accepted(request, fds)?;
            // A ring whose memory was taken away did not run before either.
            if !accepted && request.code() != Code::SetVringKick {
                return cannot(format!("{:?} again", request.code()));
            }
        }
        self.record.kick_all();
        Ok(())
    }

    /// Takes what has arrived from the front-end.
    pub(super) fn receive(&mut self) -> Result<(), Stop> {
        match self.connection.try_recv() {
            Ok(None) => Ok(()),
            Ok(Some(frame)) => self.admit(frame),
            Err(error) => Err(Stop::FrontEnd(error.to_string())),
        }
    }

    /// A message that this front-end may send waits for a worker; another one is refused.
    fn admit(&mut self, Frame { header, payload, fds }: Frame) -> Result<(), Stop> {
        let request = match Request::decode(header, &payload, fds.len()) {
            Ok(request) => request,
            Err(error) => return self.refuse(header, true, error.to_string()),
        };
        let rule = request.code().rule();
        if !self.record.protocol.contains(rule.needs) {
            let why = format!("{:?} needs a protocol feature that was not negotiated", request.code());
            return self.refuse(header, rule.answered, why);
        }
        self.pending = Some(Pending { header, request, fds, deaths: 0 });
        Ok(())
    }

    /// The rules of a refusal: an ack says so where it was asked for; where an answer is waited for that cannot be
    /// given, the connection ends.
    fn refuse(&mut self, header: Header, waits: bool, why: String) -> Result<(), Stop> {
        match (self.wants_ack(header), waits) {
            (true, _) => self.send(header, &Reply::U64(1).payload(), &[]),
            (false, true) => Err(Stop::FrontEnd(why)),
            (false, false) => Ok(()),
        }
    }

    /// What the worker is told to be negotiated: what both sides want, and what the keeper needs.
    fn negotiated(&self) -> ProtocolFeatures {
        let both = self.record.protocol.union(self.own);
        if self.drains { both.difference(ProtocolFeatures::GET_VRING_BASE_INFLIGHT) } else { both }
    }

    fn wants_ack(&self, header: Header) -> bool {
        header.needs_reply() && self.record.protocol.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Carries the message at hand to the worker, and the answer to the front-end. With none this does nothing.
    pub(super) fn deliver(&mut self, with: &mut With<'_>) -> Result<(), Stop> {
        let Some(pending) = &self.pending else { return Ok(()) };
        match pending.request.code() {
            Code::SetVringKick if !self.record.has_inflight() => self.track(with)?,
            Code::CheckDeviceState if self.record.state_lost => return self.answer_lost_state(),
            _ => {}
        }
        let Some(Pending { header, request, fds, .. }) = &self.pending else { return Ok(()) };
        let (wants_ack, answered) = (self.wants_ack(*header), request.code().rule().answered);
        let frame = match request {
            Request::SetProtocolFeatures(bits) => {
                let both = ProtocolFeatures::from_bits_retain(*bits).union(self.own);
                with.ask(&Request::SetProtocolFeatures(both.bits()), true, &[])?
            }
            // A value of 1 could not be told from a refusal, so that is asked for only where the front-end does.
            request => with.ask(request, !answered || wants_ack, fds)?,
        };
        self.settle(frame, answered, wants_ack)
    }

    /// The worker has answered: noted, passed on, done with.
    fn settle(&mut self, frame: Frame, answered: bool, wants_ack: bool) -> Result<(), Stop> {
        let Some(Pending { header, request, fds, .. }) = self.pending.take() else { return Ok(()) };
        let reply = Reply::decode(request.code(), &frame.payload);
        if answered || reply == Some(Reply::U64(0)) {
            self.record.accept(request, fds, reply.as_ref());
        }
        if !answered && !wants_ack {
            return Ok(());
        }
        self.send(header, &frame.payload, &frame.fds)?;
        // The region that was asked for is in use from then on, whether or not the front-end says so.
        if let Some(Reply::Inflight(given)) = reply
            && !frame.fds.is_empty()
        {
            self.record.accept(Request::SetInflightFd(given), frame.fds, None);
        }
        Ok(())
    }

    /// The state that was on its way when a worker died did not arrive.
    fn answer_lost_state(&mut self) -> Result<(), Stop> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.record.state_lost = false;
        self.send(pending.header, &Reply::U64(1).payload(), &[])
    }

    /// Has the worker track what is in flight, for a front-end that does not.
    fn track(&mut self, with: &mut With<'_>) -> Result<(), Stop> {
        if !self.own.contains(ProtocolFeatures::INFLIGHT_SHMFD | ProtocolFeatures::MQ) {
            return Ok(());
        }
        // Only who has the region can leave requests in it.
        self.drains = true;
        with.ask(&Request::SetProtocolFeatures(self.negotiated().bits()), true, &[])?;
        let queues = u16::try_from(with.value(&Request::GetQueueNum)?).unwrap_or(u16::MAX);
        let wanted = Inflight { queues, queue_size: MAX_QUEUE_SIZE, ..Inflight::default() };
        let frame = with.ask(&Request::GetInflightFd(wanted), false, &[])?;
        let (Some(Reply::Inflight(given)), Some(fd)) =
            (Reply::decode(Code::GetInflightFd, &frame.payload), frame.fds.into_iter().next())
        else {
            return Err(with.worker.refuse("it gives no region for what is in flight"));
        };
        let request = Request::SetInflightFd(given);
        if with.accepted(&request, std::slice::from_ref(&fd))? {
            self.record.accept(request, vec![fd], None);
        }
        Ok(())
    }

    fn send(&mut self, to: Header, payload: &[u8], fds: &[OwnedFd]) -> Result<(), Stop> {
        let header = Header::reply(to.request, payload.len());
        let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
        let sent = self.connection.send(header, payload, &fds, Instant::now() + MESSAGE_DEADLINE);
        sent.map_err(|error| Stop::FrontEnd(error.to_string()))
    }
}

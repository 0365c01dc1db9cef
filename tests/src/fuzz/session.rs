//! Session messages: bytes as a front-end may send them, against a host that records what is asked of it.
//!
//! In: records of `number, control, length, payload`; the low half of `control` is how many descriptors come with
//! the message, the high half what the host will refuse meanwhile. Promises that are looked at after each message:
//! - what is decoded encodes to the same meaning;
//! - a refused message leaves session, memory and running rings as they were;
//! - descriptors are held if, and only if, something that was accepted still needs them;
//! - rings start once, complete, within memory; memory, log and device change under no running ring;
//! - afterwards a front-end that sets up a ring by the book gets it, and the end of the session lets go of all.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use backends::inflight::RegionError;
use backends::memory::MemoryError;
use backends::notify::Signal;
use backends::proto::wire::{F_PROTOCOL_FEATURES, Header};
use backends::proto::{Code, Inflight, MemoryRegion, ProtocolFeatures, Reply, Request, VringAddr, VringFd};
use backends::ring::Layout;
use backends::session::{Direction, Host, Offer, Refusal, RingStart, Session};
use backends::worker::Stop;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::Input;

/// VERSION_1, RING_PACKED, EVENT_IDX, INDIRECT_DESC.
const OFFERED: u64 = 1 << 32 | 1 << 34 | 1 << 29 | 1 << 28;
const QUEUES: u16 = 3;
const MAX_MESSAGES: usize = 64;
/// What a host may refuse, in the high half of `control`.
const REFUSE_MEMORY: u8 = 0x10;
const REFUSE_RINGS: u8 = 0x20;
const REFUSE_START: u8 = 0x40;
const REFUSE_STOP: u8 = 0x80;

/// Number of a message; descriptors are known by the message they came with.
type Message = usize;

/// A host that does nothing but remember.
#[derive(Default)]
struct Recorder {
    mood: u8,
    /// The message that is being handled.
    message: Message,
    regions: Vec<(MemoryRegion, OwnedFd, Message)>,
    running: BTreeMap<u16, RingStart>,
    log: Option<(OwnedFd, Message)>,
    channel: Option<(OwnedFd, Message)>,
    transfer: Option<(OwnedFd, Message)>,
    inflight: Option<(OwnedFd, Message)>,
    config: Vec<u8>,
    stops: usize,
}

impl Recorder {
    fn refuses(&self, what: u8) -> bool {
        self.mood & what != 0
    }

    fn stands_still(&self, what: &str) {
        assert!(self.running.is_empty(), "{what} changes under a running ring");
    }

    fn overlaps(&self, region: &MemoryRegion) -> bool {
        self.regions.iter().any(|(other, ..)| other.guest_addr == region.guest_addr)
    }

    /// What must be the same after a message that was refused.
    fn effects(&self) -> String {
        let rings = self.running.values().map(|ring| (ring.index, ring.layout, ring.base, ring.features));
        let regions = self.regions.iter().map(|(region, _, message)| (region, message));
        format!(
            "{:?} {:?} {:?} {:?}",
            rings.collect::<Vec<_>>(),
            regions.collect::<Vec<_>>(),
            self.config,
            [&self.log, &self.channel, &self.transfer, &self.inflight]
        )
    }

    fn holds(&self) -> impl Iterator<Item = Message> {
        let single = [&self.log, &self.channel, &self.transfer, &self.inflight];
        let single = single.into_iter().flatten().map(|(_, message)| *message);
        self.regions.iter().map(|(.., message)| *message).chain(single)
    }
}

impl Host for Recorder {
    fn set_memory(&mut self, table: Vec<(MemoryRegion, OwnedFd)>) -> Result<(), MemoryError> {
        self.stands_still("memory");
        if self.refuses(REFUSE_MEMORY) {
            return Err(MemoryError::Slots);
        }
        let message = self.message;
        self.regions = table.into_iter().map(|(region, fd)| (region, fd, message)).collect();
        Ok(())
    }

    fn add_memory(&mut self, region: MemoryRegion, fd: OwnedFd) -> Result<(), MemoryError> {
        self.stands_still("memory");
        if self.refuses(REFUSE_MEMORY) || self.overlaps(&region) {
            return Err(MemoryError::Overlap(region));
        }
        self.regions.push((region, fd, self.message));
        Ok(())
    }

    fn remove_memory(&mut self, region: MemoryRegion) -> Result<(), MemoryError> {
        self.stands_still("memory");
        let place = self.regions.iter().position(|(other, ..)| other.guest_addr == region.guest_addr);
        self.regions.remove(place.ok_or(MemoryError::Unknown(region))?);
        Ok(())
    }

    fn has_memory(&self) -> bool {
        !self.regions.is_empty()
    }

    fn ring_fits(&self, layout: &Layout) -> bool {
        assert!(layout.size > 0 && layout.size <= 1 << 15, "{layout:?}");
        assert!(layout.packed || layout.size.is_power_of_two(), "{layout:?}");
        !self.refuses(REFUSE_RINGS) && layout.descriptor.is_multiple_of(16)
    }

    fn start_ring(&mut self, ring: RingStart) -> Result<(), Refusal> {
        assert!(ring.index < QUEUES && self.has_memory(), "{ring:?}");
        assert!(self.ring_fits(&ring.layout), "{ring:?} was not looked at");
        assert_eq!(ring.layout.packed, ring.features & 1 << 34 != 0);
        assert!(ring.log_used.is_none() || ring.log_writes, "{ring:?}");
        if self.refuses(REFUSE_START) {
            return Err(Refusal::RingAddress(ring.index.into()));
        }
        assert!(self.running.insert(ring.index, ring).is_none(), "a ring was started twice");
        Ok(())
    }

    fn stop_ring(&mut self, index: u16, _: Stop) -> Result<u32, Refusal> {
        self.stops += 1;
        let ring = self.running.remove(&index).unwrap_or_else(|| panic!("queue {index} does not run"));
        if self.refuses(REFUSE_STOP) { Err(Refusal::Drain(index.into())) } else { Ok(ring.base) }
    }

    fn inflight(&mut self, queues: u16, queue_size: u16, idle: bool) -> Inflight {
        assert_eq!(idle, self.running.is_empty());
        Inflight { size_bytes: 0, mmap_offset: 0, queues, queue_size }
    }

    fn set_inflight(&mut self, _: Inflight, fd: OwnedFd, _: bool) -> Result<(), RegionError> {
        self.stands_still("the in-flight region");
        if self.refuses(REFUSE_MEMORY) {
            return Err(RegionError::Memory(MemoryError::Slots));
        }
        self.inflight = Some((fd, self.message));
        Ok(())
    }

    fn forget_inflight(&mut self, _: Option<(u16, bool)>) {}

    fn set_call(&mut self, index: u16, call: Signal) {
        let ring = self.running.get_mut(&index);
        ring.unwrap_or_else(|| panic!("queue {index} does not run")).call = call;
    }

    fn set_log(&mut self, _: u64, _: u64, fd: OwnedFd) -> Result<(), MemoryError> {
        self.stands_still("the log");
        if self.refuses(REFUSE_MEMORY) {
            return Err(MemoryError::Slots);
        }
        self.log = Some((fd, self.message));
        Ok(())
    }

    fn set_channel(&mut self, fd: OwnedFd) {
        self.channel = Some((fd, self.message));
    }

    fn transfer_state(&mut self, _: Direction, fd: OwnedFd) -> bool {
        self.stands_still("device state");
        self.transfer = Some((fd, self.message));
        true
    }

    fn state_is_good(&self) -> bool {
        self.transfer.is_some()
    }

    fn reset_device(&mut self) {
        self.stands_still("the device");
    }

    fn set_mtu(&mut self, mtu_bytes: u16) -> bool {
        mtu_bytes >= 68
    }

    fn send_rarp(&mut self, mac: [u8; 6]) -> bool {
        mac[0] & 1 == 0
    }

    fn config(&self) -> Vec<u8> {
        self.config.clone()
    }

    fn negotiated(&mut self, _: u64) {}

    fn set_config(&mut self, offset: usize, data: &[u8]) -> bool {
        self.config[offset..offset + data.len()].copy_from_slice(data);
        true
    }
}

/// Which eventfd of a queue a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Kick,
    Call,
    Error,
}

/// A connection, and what should be held because of it.
struct Play {
    session: Session,
    host: Recorder,
    /// Reading ends: one hangs up when all descriptors of its message are closed.
    pipes: Vec<OwnedFd>,
    slots: BTreeMap<(Role, u8), Message>,
}

/// Messages of a whole connection.
pub fn session(data: &[u8]) {
    let mut play = Play::new();
    let mut input = Input(data);
    for _ in 0..MAX_MESSAGES {
        if input.is_empty() {
            break;
        }
        let (number, control, length) = (input.u8(), input.u8(), input.u16());
        let payload = input.bytes(length.into());
        play.host.mood = control & 0xf0;
        let fds = usize::from(control & 0xf);
        let header = Header { request: number.into(), ..Header::request(Code::GetFeatures, 0, false) };
        let Ok(request) = Request::decode(header, payload, fds) else { continue };
        if !play.say(request, fds) {
            play.ends();
        }
        play.holds_what_it_needs();
    }
    play.serves_a_front_end();
    assert!(play.session.close(&mut play.host).is_ok());
    play.host.stands_still("the connection");
    play.ends();
}

impl Play {
    fn new() -> Play {
        let offer = Offer { features: OFFERED, protocol: ProtocolFeatures::all(), queues: QUEUES };
        let host = Recorder { config: vec![1, 2, 3, 4], ..Recorder::default() };
        Play { session: Session::new(offer), host, pipes: Vec::new(), slots: BTreeMap::new() }
    }

    /// Descriptors that come with the next message.
    fn descriptors(&mut self, count: usize) -> Vec<OwnedFd> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap_or_else(|e| panic!("pipe: {e}"));
        self.pipes.push(read);
        let again = |_| write.try_clone().unwrap_or_else(|e| panic!("dup: {e}"));
        (0..count).map(again).collect()
    }

    /// One message. `false`: it ended the session.
    fn say(&mut self, request: Request, fds: usize) -> bool {
        means_the_same(&request, fds);
        let fds = self.descriptors(fds);
        self.host.message = self.pipes.len() - 1;
        let (before, stops) = ((format!("{:?}", self.session), self.host.effects()), self.host.stops);
        match self.session.handle(request.clone(), fds, &mut self.host) {
            Ok(reply) => {
                answers(&request, reply.as_ref());
                self.accepted(&request);
            }
            Err(Refusal::Drain(_)) => return false,
            Err(refusal) => {
                // Rings that were stopped for it learn their base, and may be kept from going on by the host.
                let resumed = self.host.stops > stops;
                if !resumed {
                    assert_eq!(before.0, format!("{:?}", self.session), "{request:?}: {refusal}");
                }
                if !resumed || !self.host.refuses(REFUSE_RINGS | REFUSE_START) {
                    assert_eq!(before.1, self.host.effects(), "{request:?}: {refusal}");
                }
            }
        }
        true
    }

    /// Which descriptors are needed from now on.
    fn accepted(&mut self, request: &Request) {
        let message = self.host.message;
        let set = |role, vring: &VringFd| ((role, vring.index), vring.has_fd.then_some(message));
        let (slot, now) = match request {
            Request::SetVringKick(vring) => set(Role::Kick, vring),
            Request::SetVringCall(vring) => set(Role::Call, vring),
            Request::SetVringErr(vring) => set(Role::Error, vring),
            Request::GetVringBase { index } => ((Role::Kick, u8::try_from(*index).unwrap_or(u8::MAX)), None),
            Request::ResetDevice | Request::SetStatus(0) => {
                return self.slots.retain(|(role, _), _| *role != Role::Kick);
            }
            _ => return,
        };
        self.slots.remove(&slot);
        self.slots.extend(now.map(|message| (slot, message)));
    }

    fn open(&self) -> BTreeSet<Message> {
        let mut ends: Vec<PollFd<'_>> =
            self.pipes.iter().map(|end| PollFd::new(end, PollFlags::empty())).collect();
        poll(&mut ends, Some(&rustix::time::Timespec::default())).unwrap_or_else(|e| panic!("poll: {e}"));
        let open = |end: &PollFd<'_>| !end.revents().contains(PollFlags::HUP);
        ends.iter().enumerate().filter(|(_, end)| open(end)).map(|(message, _)| message).collect()
    }

    fn holds_what_it_needs(&self) {
        let needed: BTreeSet<_> = self.slots.values().copied().chain(self.host.holds()).collect();
        assert_eq!(self.open(), needed, "messages whose descriptors are open");
    }

    /// Whatever was said before: a front-end that begins anew gets its ring.
    fn serves_a_front_end(&mut self) {
        self.host.mood = 0;
        let (index, region) =
            (1, MemoryRegion { guest_addr: 0, size_bytes: 4096, user_addr: 0, mmap_offset: 0 });
        let eventfd = |index| VringFd { index, has_fd: true };
        let addr = VringAddr { index, flags: 0, descriptor: 0, used: 0x800, available: 0x400, log: 0 };
        let by_the_book = [
            (Request::SetProtocolFeatures(ProtocolFeatures::all().bits()), 0),
            (Request::ResetDevice, 0),
            (Request::SetFeatures(1 << 32 | F_PROTOCOL_FEATURES), 0),
            (Request::SetMemTable(vec![region]), 1),
            (Request::SetVringNum { index, num: 16 }, 0),
            (Request::SetVringBase { index, base: 5 }, 0),
            (Request::SetVringAddr(addr), 0),
            (Request::SetVringCall(eventfd(1)), 1),
            (Request::SetVringKick(eventfd(1)), 1),
            (Request::SetVringEnable { index, enable: 1 }, 0),
        ];
        for (request, count) in by_the_book {
            let fds = self.descriptors(count);
            self.host.message = self.pipes.len() - 1;
            let done = self.session.handle(request.clone(), fds, &mut self.host);
            assert!(done.is_ok(), "{request:?}: {done:?}");
        }
        let ring = self.host.running.get(&1).map(|ring| (ring.base, ring.layout.size));
        assert_eq!(ring, Some((5, 16)), "a ring set up by the book");
    }

    /// The connection is over, and another one begins.
    fn ends(&mut self) {
        let Play { session, host, .. } = Play::new();
        (self.session, self.host) = (session, host);
        self.slots.clear();
        assert!(self.open().is_empty(), "messages whose descriptors outlive the session: {:?}", self.open());
    }
}

/// What was understood is what was meant: encoded again, it is understood the same.
fn means_the_same(request: &Request, fds: usize) {
    let payload = request.payload();
    let header = Header::request(request.code(), payload.len(), false);
    assert_eq!(Request::decode(header, &payload, fds).as_ref(), Ok(request));
}

/// Requests that have an answer get one, of the right kind; others get none.
fn answers(request: &Request, reply: Option<&Reply>) {
    let code = request.code();
    assert_eq!(reply.is_some(), code.rule().answered, "{request:?}: {reply:?}");
    if let Some(reply) = reply {
        let understood = Reply::decode(code, &reply.payload()).map(|reply| reply.payload());
        assert_eq!(understood, Some(reply.payload()), "{request:?}");
    }
}

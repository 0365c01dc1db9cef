//! The front-end's half of a vhost-user conversation: each request with a deadline, each answer checked.
//!
//! In: requests as values. Out: what the daemon said, or a [`FrontendError`] that names the request. Acks are
//! asked for where the daemon offers REPLY_ACK; where it does not, [`Frontend::fence`] makes sure that it has
//! got everything so far. Nothing waits beyond the deadline it was given, whatever the daemon sends or does not
//! send. Descriptors that come with an answer are closed, except the one of GET_INFLIGHT_FD.
//!
//! After [`FrontendError::Refused`] the conversation goes on; after any other error it is out of step and must
//! be ended.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use backends::proto::wire::F_PROTOCOL_FEATURES;
use backends::proto::{
    Code, Connection, Frame, Header, Inflight, MemoryRegion, ProtocolFeatures, Reply, Request,
    TransportError, VringAddr, VringFd,
};

use rustix::fs::{FallocateFlags, fallocate, fstat};

use super::kind::{DeviceKind, Offer};
use crate::pci::virtio::{MAX_QUEUES, Ring};

/// Protocol features that are taken if offered. Memory slots are not among them: guest RAM is two regions at
/// most, which one SET_MEM_TABLE carries.
const WANTED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::INFLIGHT_SHMFD);
/// How much of a configuration space that should not be there is looked at.
const LOOK_BYTES: u16 = 8;
/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The connection failed or the deadline passed.
    #[error("{} failed: {cause}", name(*.code))]
    Transport {
        /// The request.
        code: Code,
        /// What happened.
        cause: TransportError,
    },
    /// What came is no answer to the request.
    #[error("The answer to {} is not vhost-user: {what}", name(*.code))]
    Garbage {
        /// The request.
        code: Code,
        /// What is wrong with it.
        what: String,
    },
    /// The daemon answered that it did not do it.
    #[error("{} was refused", name(*.code))]
    Refused {
        /// The request.
        code: Code,
    },
    /// Something came although nothing was asked.
    #[error("A message came that nobody asked for")]
    Unasked,
    /// The daemon closed the connection, or it failed, while nothing was being asked.
    #[error("{0}")]
    Lost(TransportError),
}

impl FrontendError {
    /// The daemon understood and said no; nothing is lost.
    pub fn is_refusal(&self) -> bool {
        matches!(self, FrontendError::Refused { .. })
    }
}

/// Addresses of a virtqueue for a daemon, in the address space that [`MemoryRegion::user_addr`] opens.
#[derive(Clone, Copy, Debug)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptor: u64,
    /// Available ring (packed: driver event suppression).
    pub available: u64,
    /// Used ring (packed: device event suppression).
    pub used: u64,
}

/// What a daemon wrote down of requests in flight ("Inflight I/O tracking"), kept for the one that comes after it.
#[derive(Debug)]
pub struct InflightRegion {
    file: OwnedFd,
    what: Inflight,
}

impl InflightRegion {
    /// Makes it new: nothing is in flight for a driver that begins, whatever happened to the one before.
    fn clear(&self) -> rustix::io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, punch, self.what.mmap_offset, self.what.size_bytes)
    }

    /// Not empty, and wholly in its file.
    fn is_sound(&self) -> bool {
        let file = fstat(&self.file).ok().and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0);
        let end = self.what.mmap_offset.checked_add(self.what.size_bytes);
        self.what.size_bytes > 0 && end.is_some_and(|end| end <= file)
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection,
    /// The daemon offered F_PROTOCOL_FEATURES, so rings begin disabled.
    has_protocol_features: bool,
    protocol: ProtocolFeatures,
}

impl Frontend {
    /// Takes over a connected socket; nothing is said yet.
    pub fn new(socket: UnixStream) -> Result<Frontend, TransportError> {
        let connection = Connection::new(socket)?;
        Ok(Frontend { connection, has_protocol_features: false, protocol: ProtocolFeatures::empty() })
    }

    /// Gets to know the daemon: features, protocol features, queues, configuration space.
    ///
    /// # Errors
    /// Any, but never because the daemon lacks something optional.
    pub fn greet(&mut self, kind: DeviceKind, deadline: Instant) -> Result<Offer, FrontendError> {
        let features = self.ask(&Request::GetFeatures, deadline)?;
        self.has_protocol_features = features & F_PROTOCOL_FEATURES != 0;
        if self.has_protocol_features {
            let offered = self.ask(&Request::GetProtocolFeatures, deadline)?;
            let taken = ProtocolFeatures::from_bits_truncate(offered) & WANTED;
            self.tell(&Request::SetProtocolFeatures(taken.bits()), &[], deadline)?;
            self.protocol = taken;
        }
        self.tell(&Request::SetOwner, &[], deadline)?;
        let queues = self.queues(deadline)?;
        let config = self.config(kind, deadline)?;
        Ok(Offer { features, queues, config })
    }

    /// Tries whether the daemon takes virtqueues of this size, as far as it tells.
    pub fn try_queue_size(&mut self, size: u16, deadline: Instant) -> Result<(), FrontendError> {
        self.tell(&Request::SetVringNum { index: 0, num: size.into() }, &[], deadline)
    }

    /// A driver begins: its features, and the memory.
    pub fn begin(
        &mut self,
        features: u64,
        regions: &[MemoryRegion],
        memory: BorrowedFd<'_>,
        deadline: Instant,
    ) -> Result<(), FrontendError> {
        let front_end_only = if self.has_protocol_features { F_PROTOCOL_FEATURES } else { 0 };
        self.tell(&Request::SetFeatures(features | front_end_only), &[], deadline)?;
        let fds: Vec<_> = regions.iter().map(|_| memory).collect();
        self.tell(&Request::SetMemTable(regions.to_vec()), &fds, deadline)
    }

    /// Asks for a region in which the daemon tracks what is in flight in this many virtqueues of this size at
    /// most; `None` if it tracks nothing.
    pub fn get_inflight(
        &mut self,
        queues: u16,
        queue_size: u16,
        deadline: Instant,
    ) -> Result<Option<InflightRegion>, FrontendError> {
        if !self.protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let code = Code::GetInflightFd;
        let wanted = Inflight { size_bytes: 0, mmap_offset: 0, queues, queue_size };
        self.send(&Request::GetInflightFd(wanted), &[], false, deadline)?;
        let mut frame = self.receive_frame(code, deadline)?;
        let (reply, file) = (decode(code, &frame)?, frame.fds.pop());
        let (Reply::Inflight(told), Some(file), true) = (reply, file, frame.fds.is_empty()) else {
            return Err(garbage(code, "it does not carry one descriptor".to_owned()));
        };
        let region = InflightRegion { file, what: Inflight { queues, queue_size, ..told } };
        if !region.is_sound() {
            return Err(garbage(code, format!("{told:?} is not what its file holds")));
        }
        region.clear().map_err(|errno| garbage(code, format!("its file cannot be cleared: {errno}")))?;
        Ok(Some(region))
    }

    /// Hands a region back, with what the daemon before this one was doing.
    pub fn set_inflight(&mut self, region: &InflightRegion, deadline: Instant) -> Result<(), FrontendError> {
        self.tell(&Request::SetInflightFd(region.what), &[region.file.as_fd()], deadline)
    }

    /// The daemon tracks what is in flight.
    pub fn has_inflight(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// Hands a virtqueue to the daemon, to go on at `base`. It raises `error` when it finds the ring broken.
    pub fn start_ring(
        &mut self,
        ring: &Ring,
        at: RingAddresses,
        base: u32,
        error: BorrowedFd<'_>,
        deadline: Instant,
    ) -> Result<(), FrontendError> {
        let index = u32::from(ring.index);
        self.tell(&Request::SetVringNum { index, num: ring.queue.size.into() }, &[], deadline)?;
        self.tell(&Request::SetVringBase { index, base }, &[], deadline)?;
        let RingAddresses { descriptor, available, used } = at;
        let addresses = VringAddr { index, flags: 0, descriptor, used, available, log: 0 };
        self.tell(&Request::SetVringAddr(addresses), &[], deadline)?;
        let vring = VringFd { index: u8::try_from(ring.index).unwrap_or(u8::MAX), has_fd: true };
        self.tell(&Request::SetVringCall(vring), &[ring.call.as_fd()], deadline)?;
        // A daemon that tells of no errors is none the worse for it.
        let told = self.tell(&Request::SetVringErr(vring), &[error], deadline);
        told.or_else(|error| if error.is_refusal() { Ok(()) } else { Err(error) })?;
        self.tell(&Request::SetVringKick(vring), &[ring.kick.as_fd()], deadline)?;
        // Without protocol features rings begin enabled, and the message must not be sent.
        if self.has_protocol_features {
            self.tell(&Request::SetVringEnable { index, enable: 1 }, &[], deadline)?;
        }
        Ok(())
    }

    /// Takes a virtqueue back; the daemon answers when nothing of it is in flight.
    pub fn stop_ring(&mut self, index: u16, deadline: Instant) -> Result<(), FrontendError> {
        let request = Request::GetVringBase { index: index.into() };
        match self.call(&request, deadline)? {
            // Where the daemon stopped does not matter: the next driver begins at the beginning.
            Reply::VringState { index: answered, .. } if answered == u32::from(index) => Ok(()),
            other => Err(garbage(request.code(), format!("{other:?} for queue {index}"))),
        }
    }

    /// Hands on a driver's write to configuration space. `false` if the daemon takes none.
    pub fn set_config(&mut self, offset: u32, data: &[u8], deadline: Instant) -> Result<bool, FrontendError> {
        if !self.protocol.contains(ProtocolFeatures::CONFIG) {
            return Ok(false);
        }
        self.tell(&Request::SetConfig { offset, data: data.to_vec().into() }, &[], deadline)?;
        Ok(true)
    }

    /// Waits until the daemon has taken everything that was said. With acks it has already.
    pub fn fence(&mut self, deadline: Instant) -> Result<(), FrontendError> {
        if !self.protocol.contains(ProtocolFeatures::REPLY_ACK) {
            self.ask(&Request::GetFeatures, deadline)?;
        }
        Ok(())
    }

    /// Looks at the socket when nothing was asked.
    ///
    /// # Errors
    /// The connection is lost, or something came.
    pub fn look(&mut self) -> Result<(), FrontendError> {
        match self.connection.try_recv() {
            Ok(None) if self.connection.partial_since().is_none() => Ok(()),
            Ok(_) => Err(FrontendError::Unasked),
            Err(cause) => Err(FrontendError::Lost(cause)),
        }
    }

    fn queues(&mut self, deadline: Instant) -> Result<Option<u16>, FrontendError> {
        if !self.protocol.contains(ProtocolFeatures::MQ) {
            return Ok(None);
        }
        let queues = self.ask(&Request::GetQueueNum, deadline)?;
        Ok(Some(u16::try_from(queues).unwrap_or(MAX_QUEUES).min(MAX_QUEUES)))
    }

    /// The longest configuration space that the daemon gives; empty if that is less than the type has.
    fn config(&mut self, kind: DeviceKind, deadline: Instant) -> Result<Option<Vec<u8>>, FrontendError> {
        if !self.protocol.contains(ProtocolFeatures::CONFIG) {
            return Ok(None);
        }
        // A daemon may pad what it has with zeros, but has nothing to give from an offset beyond its end.
        if let Some(last) = kind.least_config_bytes().checked_sub(1)
            && self.get_config(last, 1, deadline)?.is_empty()
        {
            return Ok(Some(Vec::new()));
        }
        let look = kind.is_without_config().then_some(LOOK_BYTES);
        for size in kind.config_sizes().chain(look) {
            let data = self.get_config(0, size, deadline)?;
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
        Ok(Some(Vec::new()))
    }

    /// Bytes of configuration space; none if the daemon refuses.
    fn get_config(&mut self, offset: u16, size: u16, deadline: Instant) -> Result<Vec<u8>, FrontendError> {
        let request = Request::GetConfig { offset: offset.into(), size: size.into() };
        match self.call(&request, deadline)? {
            Reply::Config { data, .. } if data.is_empty() || data.len() == usize::from(size) => Ok(data),
            other => Err(garbage(request.code(), format!("{other:?} for {size} bytes"))),
        }
    }

    /// A request that is answered by a number.
    fn ask(&mut self, request: &Request, deadline: Instant) -> Result<u64, FrontendError> {
        match self.call(request, deadline)? {
            Reply::U64(value) => Ok(value),
            other => Err(garbage(request.code(), format!("{other:?}"))),
        }
    }

    /// A request that has no answer of its own, and an ack where acks are to be had.
    fn tell(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), FrontendError> {
        let ack = self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        self.send(request, fds, ack, deadline)?;
        if !ack {
            return Ok(());
        }
        match self.receive(request.code(), deadline)? {
            Reply::U64(0) => Ok(()),
            _ => Err(FrontendError::Refused { code: request.code() }),
        }
    }

    fn call(&mut self, request: &Request, deadline: Instant) -> Result<Reply, FrontendError> {
        self.send(request, &[], false, deadline)?;
        self.receive(request.code(), deadline)
    }

    fn send(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        ack: bool,
        deadline: Instant,
    ) -> Result<(), FrontendError> {
        let (code, payload) = (request.code(), request.payload());
        let header = Header::request(code, payload.len(), ack);
        let sent = self.connection.send(header, &payload, fds, deadline);
        sent.map_err(|cause| FrontendError::Transport { code, cause })
    }

    fn receive(&mut self, code: Code, deadline: Instant) -> Result<Reply, FrontendError> {
        let frame = self.receive_frame(code, deadline)?;
        decode(code, &frame)
    }

    fn receive_frame(&mut self, code: Code, deadline: Instant) -> Result<Frame, FrontendError> {
        let received = self.connection.recv(deadline);
        let frame = received.map_err(|cause| match cause {
            TransportError::TooLong(_) => garbage(code, cause.to_string()),
            cause => FrontendError::Transport { code, cause },
        })?;
        frame.header.check().map_err(|error| garbage(code, error.to_string()))?;
        if !frame.header.is_reply() || frame.header.request != code as u32 {
            return Err(garbage(code, format!("its header is that of message {}", frame.header.request)));
        }
        Ok(frame)
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn decode(code: Code, frame: &Frame) -> Result<Reply, FrontendError> {
    let length = || garbage(code, format!("its payload has {} bytes", frame.payload.len()));
    Reply::decode(code, &frame.payload).ok_or_else(length)
}

/// The moment that is so far from now.
pub fn within(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now)
}

fn garbage(code: Code, what: String) -> FrontendError {
    FrontendError::Garbage { code, what }
}

/// The request as the specification writes it: GET_FEATURES.
fn name(code: Code) -> String {
    let mut name = String::new();
    for char in format!("{code:?}").chars() {
        if char.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(char.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
#[path = "frontend_tests.rs"]
mod tests;

//! A front-end: plays the VMM to a real daemon socket, well behaved or not.
//!
//! In: a connected socket, guest RAM, and [`Wants`]: what to negotiate and how to hand over memory. Out: the
//! handshake, queues set up and started, stopped, reset; configuration read and written. `tell` and `ask`
//! send any request of the codec in any order; `raw` sends bytes and descriptors the codec would never make.
//! Every wait has a deadline. A refusal (non-zero ack) is an error value that names the request.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use backends::proto::wire::{F_PROTOCOL_FEATURES, Header};
use backends::proto::{
    Code, Connection, MemoryRegion, ProtocolFeatures, Reply, Request, TransportError, VringAddr, VringFd,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use thiserror::Error;

use crate::guest::format::{RingKind, Shape};
use crate::guest::memory::Ram;
use crate::guest::ring::Ring;
use crate::wait;

mod inflight;
mod moving;
mod wants;

pub use inflight::Region;
pub use wants::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1, Memory, Wants};

/// Most descriptors one raw message carries (the kernel allows 253).
const MAX_RAW_FDS: usize = 253;

/// What a daemon did not do.
#[derive(Debug, Error)]
pub enum FrontendError {
    /// Nothing accepts connections there.
    #[error("Cannot connect to {path}")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection ended or stood still.
    #[error("{code:?}: connection lost")]
    Transport {
        /// Request at hand.
        code: Code,
        /// Why.
        #[source]
        source: TransportError,
    },
    /// The ack was not zero.
    #[error("{code:?} was refused with {ack}")]
    Refused {
        /// Request at hand.
        code: Code,
        /// The ack.
        ack: u64,
    },
    /// What came back is no answer to the request.
    #[error("{code:?} was answered by {header:?} with {bytes} bytes")]
    Nonsense {
        /// Request at hand.
        code: Code,
        /// Header of what came.
        header: Header,
        /// Its payload's length.
        bytes: usize,
    },
}

impl FrontendError {
    /// The back-end refused by an ack, and the connection goes on.
    pub fn is_refusal(&self) -> bool {
        matches!(self, FrontendError::Refused { .. })
    }

    /// The back-end closed the connection.
    pub fn is_hangup(&self) -> bool {
        matches!(self, FrontendError::Transport { source: TransportError::Closed, .. })
    }
}

/// A front-end with its connection and its guest.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection,
    ram: Arc<Ram>,
    features: u64,
    protocol: ProtocolFeatures,
    ack: bool,
}

type Result<T, E = FrontendError> = std::result::Result<T, E>;

impl Frontend {
    /// Connects without saying anything.
    ///
    /// # Errors
    /// Nothing listens there.
    pub fn connect(path: &Path, ram: &Arc<Ram>) -> Result<Frontend> {
        let socket = UnixStream::connect(path)
            .map_err(|source| FrontendError::Connect { path: path.display().to_string(), source })?;
        Frontend::on(socket, ram)
    }

    /// Takes a connected socket.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn on(socket: UnixStream, ram: &Arc<Ram>) -> Result<Frontend> {
        let connection = Connection::new(socket)
            .map_err(|source| FrontendError::Transport { code: Code::GetFeatures, source })?;
        let protocol = ProtocolFeatures::empty();
        Ok(Frontend { connection, ram: Arc::clone(ram), features: 0, protocol, ack: false })
    }

    /// Connects and does the whole handshake, in QEMU's order.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn session(path: &Path, ram: &Arc<Ram>, wants: Wants) -> Result<Frontend> {
        let mut frontend = Frontend::connect(path, ram)?;
        frontend.handshake(wants)?;
        Ok(frontend)
    }

    /// Features, protocol features, owner, memory.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn handshake(&mut self, wants: Wants) -> Result<()> {
        let offered = self.ask_u64(Request::GetFeatures)?;
        let mut features = wants.among(offered);
        if let Some(protocol) = wants.protocol.filter(|_| offered & F_PROTOCOL_FEATURES != 0) {
            features |= F_PROTOCOL_FEATURES;
            let offered = self.ask_u64(Request::GetProtocolFeatures)?;
            self.set_protocol_features(ProtocolFeatures::from_bits_truncate(offered) & protocol)?;
        }
        self.tell(Request::SetOwner, &[])?;
        self.tell(Request::SetFeatures(features), &[])?;
        self.features = features;
        match wants.memory {
            Memory::Table => self.set_mem_table(),
            Memory::Slots => self.add_all_regions(),
            Memory::None => Ok(()),
        }
    }

    /// SET_PROTOCOL_FEATURES; acks are asked for from the next request on, if REPLY_ACK is among them.
    ///
    /// # Errors
    /// Connection lost.
    pub fn set_protocol_features(&mut self, protocol: ProtocolFeatures) -> Result<()> {
        self.tell(Request::SetProtocolFeatures(protocol.bits()), &[])?;
        self.protocol = protocol;
        self.ack = protocol.contains(ProtocolFeatures::REPLY_ACK);
        Ok(())
    }

    /// Negotiated device features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Negotiated protocol features.
    pub fn protocol(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// SET_MEM_TABLE with all regions of the guest.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn set_mem_table(&mut self) -> Result<()> {
        let ram = Arc::clone(&self.ram);
        let table = ram.regions().iter().map(|region| region.table).collect();
        let fds: Vec<_> = ram.regions().iter().map(|region| region.fd()).collect();
        self.tell(Request::SetMemTable(table), &fds)
    }

    fn add_all_regions(&mut self) -> Result<()> {
        let ram = Arc::clone(&self.ram);
        ram.regions().iter().try_for_each(|region| self.add_region(region.table, region.fd()))
    }

    /// ADD_MEM_REG.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn add_region(&mut self, region: MemoryRegion, fd: BorrowedFd<'_>) -> Result<()> {
        self.tell(Request::AddMemReg(region), &[fd])
    }

    /// REM_MEM_REG.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn remove_region(&mut self, region: MemoryRegion) -> Result<()> {
        self.tell(Request::RemMemReg(region), &[])
    }

    /// A ring of `size` entries as negotiated, set up and started as queue `index`.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn start_new(&mut self, index: u8, size: u16) -> Result<Ring> {
        let ring = self.new_ring(size);
        self.start(index, &ring, ring.base())?;
        Ok(ring)
    }

    /// A ring as negotiated; the daemon knows nothing of it yet.
    pub fn new_ring(&self, size: u16) -> Ring {
        Ring::new(&self.ram, self.shape(size))
    }

    /// A ring as negotiated after `base`; the daemon knows nothing of it yet.
    pub fn new_ring_at(&self, size: u16, base: u32) -> Ring {
        Ring::starting_at(&self.ram, self.shape(size), base)
    }

    /// What rings of this size are by the features that were negotiated.
    pub fn shape(&self, size: u16) -> Shape {
        let has = |feature| self.features & feature != 0;
        Shape {
            kind: if has(F_RING_PACKED) { RingKind::Packed } else { RingKind::Split },
            size,
            event_idx: has(F_EVENT_IDX),
            in_order: has(F_IN_ORDER),
        }
    }

    /// Everything from SET_VRING_NUM to SET_VRING_ENABLE.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn start(&mut self, index: u8, ring: &Ring, base: u32) -> Result<()> {
        self.set_up(index, ring, base)?;
        self.enable(index, true)
    }

    /// Everything from SET_VRING_NUM to SET_VRING_KICK.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn set_up(&mut self, index: u8, ring: &Ring, base: u32) -> Result<()> {
        let queue = u32::from(index);
        self.tell(Request::SetVringNum { index: queue, num: u32::from(ring.layout().size) }, &[])?;
        self.tell(Request::SetVringBase { index: queue, base }, &[])?;
        self.tell(Request::SetVringAddr(self.vring_addr(queue, ring)), &[])?;
        let vring = VringFd { index, has_fd: true };
        self.tell(Request::SetVringErr(vring), &[ring.err.as_fd()])?;
        self.tell(Request::SetVringCall(vring), &[ring.call.as_fd()])?;
        self.tell(Request::SetVringKick(vring), &[ring.kick.as_fd()])
    }

    /// SET_VRING_ADDR's payload for a ring: user addresses.
    pub fn vring_addr(&self, index: u32, ring: &Ring) -> VringAddr {
        let layout = ring.layout();
        VringAddr {
            index,
            flags: 0,
            descriptor: self.ram.user_addr(layout.desc),
            used: self.ram.user_addr(layout.used),
            available: self.ram.user_addr(layout.avail),
            log: 0,
        }
    }

    /// SET_VRING_ENABLE; says nothing where protocol features were not negotiated, as rings are enabled then.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn enable(&mut self, index: u8, on: bool) -> Result<()> {
        if self.features & F_PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.tell(Request::SetVringEnable { index: u32::from(index), enable: u32::from(on) }, &[])
    }

    /// GET_VRING_BASE: stops the ring and says where it stood.
    ///
    /// # Errors
    /// Connection lost or nonsense.
    pub fn stop(&mut self, index: u8) -> Result<u32> {
        let code = Code::GetVringBase;
        match self.ask(Request::GetVringBase { index: u32::from(index) })? {
            Reply::VringState { index: said, base } if said == u32::from(index) => Ok(base),
            _ => Err(FrontendError::Nonsense { code, header: Header::reply(code as u32, 8), bytes: 8 }),
        }
    }

    /// GET_CONFIG. Empty when the back-end refuses.
    ///
    /// # Errors
    /// Connection lost or nonsense.
    pub fn config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>> {
        match self.ask(Request::GetConfig { offset, size })? {
            Reply::Config { data, .. } => Ok(data),
            _ => Ok(Vec::new()),
        }
    }

    /// SET_CONFIG.
    ///
    /// # Errors
    /// Refused or connection lost.
    pub fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        self.tell(Request::SetConfig { offset, data: data.to_vec().into() }, &[])
    }

    /// Sends a request that is not answered by a value; waits for the ack where REPLY_ACK was negotiated.
    ///
    /// # Errors
    /// Refused, connection lost or nonsense.
    pub fn tell(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let code = request.code();
        self.send(&request, fds, self.ack)?;
        if !self.ack {
            return Ok(());
        }
        match self.receive(code)? {
            Reply::U64(0) => Ok(()),
            Reply::U64(ack) => Err(FrontendError::Refused { code, ack }),
            _ => unreachable!("{code:?} is decoded as a number"),
        }
    }

    /// Sends a request that is answered by a value and takes it.
    ///
    /// # Errors
    /// Connection lost or nonsense.
    pub fn ask(&mut self, request: Request) -> Result<Reply> {
        self.send(&request, &[], false)?;
        self.receive(request.code())
    }

    /// As [`Frontend::ask`] for answers that are one number.
    ///
    /// # Errors
    /// Connection lost or nonsense.
    pub fn ask_u64(&mut self, request: Request) -> Result<u64> {
        let code = request.code();
        match self.ask(request)? {
            Reply::U64(value) => Ok(value),
            _ => Err(FrontendError::Nonsense { code, header: Header::reply(code as u32, 0), bytes: 0 }),
        }
    }

    /// Returns when everything sent before has been handled: messages are handled in order.
    ///
    /// # Errors
    /// Connection lost.
    pub fn sync(&mut self) -> Result<()> {
        self.ask_u64(Request::GetFeatures).map(drop)
    }

    /// Sends a request and waits for nothing.
    ///
    /// # Errors
    /// Connection lost.
    pub fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>], need_reply: bool) -> Result<()> {
        let (code, payload) = (request.code(), request.payload());
        let header = Header::request(code, payload.len(), need_reply);
        let sent = self.connection.send(header, &payload, fds, wait::deadline());
        sent.map_err(|source| FrontendError::Transport { code, source })
    }

    /// Takes the answer to `code`.
    ///
    /// # Errors
    /// Connection lost or nonsense.
    pub fn receive(&mut self, code: Code) -> Result<Reply> {
        let (header, reply, fds) = self.receive_with_fds(code)?;
        let bytes = reply.payload().len();
        if fds.is_empty() { Ok(reply) } else { Err(FrontendError::Nonsense { code, header, bytes }) }
    }

    fn receive_with_fds(&mut self, code: Code) -> Result<(Header, Reply, Vec<OwnedFd>)> {
        let frame = self.connection.recv(wait::deadline());
        let frame = frame.map_err(|source| FrontendError::Transport { code, source })?;
        let (header, bytes) = (frame.header, frame.payload.len());
        let fits = header.is_reply() && header.check().is_ok() && header.request == code as u32;
        let reply = Reply::decode(code, &frame.payload).filter(|_| fits);
        let reply = reply.ok_or(FrontendError::Nonsense { code, header, bytes })?;
        Ok((header, reply, frame.fds))
    }

    /// Takes an answer that is one number, to a request the codec need not know.
    ///
    /// # Errors
    /// Connection lost; a header that is no answer to `request`, or another payload than a number.
    pub fn receive_number(&mut self, request: u32) -> Result<u64> {
        let code = Code::from_number(request).unwrap_or(Code::GetFeatures);
        let frame = self.connection.recv(wait::deadline());
        let frame = frame.map_err(|source| FrontendError::Transport { code, source })?;
        let number = frame.payload.as_slice().try_into().map(u64::from_le_bytes);
        let header = frame.header;
        match number {
            Ok(number) if header.is_reply() && header.request == request => Ok(number),
            _ => Err(FrontendError::Nonsense { code, header, bytes: frame.payload.len() }),
        }
    }

    /// Sends any bytes with any descriptors, as one `sendmsg`; the codec has no say.
    ///
    /// # Errors
    /// The peer closed the connection, or its receive buffer is full.
    pub fn raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_RAW_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let sent = sendmsg(&self.connection, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        if sent == bytes.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
    }

    /// Sends a header made by hand and a payload that need not fit it.
    ///
    /// # Errors
    /// As [`Frontend::raw`].
    pub fn raw_message(&self, header: Header, payload: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        self.raw(&[&header.to_bytes()[..], payload].concat(), fds)
    }

    /// Waits until the back-end has closed the connection; `false` when it answers or goes on instead.
    pub fn hung_up(&mut self) -> bool {
        matches!(self.connection.recv(wait::deadline()), Err(TransportError::Closed))
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
#[path = "frontend_tests.rs"]
mod tests;

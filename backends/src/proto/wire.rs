//! vhost-user messages as plain values, and the pure functions between values and bytes.
//!
//! In: a header and a payload as they came from the socket. Out: a [`Request`] (front-end to back-end) or a
//! [`Reply`] (back-end to front-end). Promises: every length is checked against [`Code::rule`] before a byte
//! is read, nothing here allocates more than the message itself, nothing here does I/O. Refuses: a payload
//! whose length is not the one its request has, a region or queue count over the protocol's limit.
//!
//! All integers on the wire are in host byte order, which is little-endian on every machine we run on
//! (vhost-user "Message Specification"; virtio 1.3 §1.4).

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

use thiserror::Error;

use crate::log::GuestData;

pub use super::code::{BackendCode, Code, MAX_CONFIG_BYTES, MAX_TABLE_REGIONS, ProtocolFeatures, Rule};

/// Bytes of a message header: request, flags, size.
pub const HEADER_BYTES: usize = 12;
/// Longest payload that is accepted. The longest regular one is SET_CONFIG's: 12 bytes and the space itself.
pub const MAX_PAYLOAD_BYTES: usize = 4096;
/// Device feature bit 26: writes to guest memory are logged. Never offered to a guest.
pub const F_LOG_ALL: u64 = 1 << 26;
/// Device feature bit 30: the front-end and the back-end speak about protocol features. Never offered to a guest.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const VRING_INDEX_MASK: u64 = 0xff;
const VRING_NO_FD: u64 = 1 << 8;

/// Why bytes are not a message. Each leaves the stream in step: header and payload have been consumed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The version bits of the header are not 1.
    #[error("Header flags {0:#x} are not those of protocol version 1")]
    Version(u32),
    /// A request number that this back-end does not know.
    #[error("Unknown request {0}")]
    Unknown(u32),
    /// The payload has another length than the request.
    #[error("{code:?} with {got} payload bytes")]
    Length {
        /// Request.
        code: Code,
        /// Bytes that came.
        got: usize,
    },
    /// More memory regions than the protocol allows.
    #[error("SET_MEM_TABLE with {0} regions, at most {MAX_TABLE_REGIONS} are allowed")]
    Regions(u32),
    /// The message carries another number of descriptors than it should.
    #[error("{code:?} with {got} file descriptors")]
    Descriptors {
        /// Request.
        code: Code,
        /// Descriptors that came.
        got: usize,
    },
}

/// First twelve bytes of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request number, [`Code`] where it is known.
    pub request: u32,
    /// Version, reply and need-reply bits.
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

impl Header {
    /// Header of a request, with the need-reply bit if an ack is wanted (REPLY_ACK).
    pub fn request(code: Code, payload_bytes: usize, need_reply: bool) -> Header {
        let need = if need_reply { FLAG_NEED_REPLY } else { 0 };
        Header { request: code as u32, flags: VERSION | need, size: len32(payload_bytes) }
    }

    /// Header of a back-end's request, which wants no ack.
    pub fn backend_request(code: BackendCode) -> Header {
        Header { request: code as u32, flags: VERSION, size: 0 }
    }

    /// Header of the answer to the request numbered `request`.
    pub fn reply(request: u32, payload_bytes: usize) -> Header {
        Header { request, flags: VERSION | FLAG_REPLY, size: len32(payload_bytes) }
    }

    /// The header in these bytes; whether it makes sense is for [`Header::check`] to say.
    pub fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Header {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Header {
            request: u32::from_le_bytes([a, b, c, d]),
            flags: u32::from_le_bytes([e, f, g, h]),
            size: u32::from_le_bytes([i, j, k, l]),
        }
    }

    /// The header as it goes over the socket.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        for (to, from) in out.chunks_exact_mut(4).zip([self.request, self.flags, self.size]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        out
    }

    /// Protocol version 1.
    pub fn check(self) -> Result<(), DecodeError> {
        if self.flags & VERSION_MASK == VERSION { Ok(()) } else { Err(DecodeError::Version(self.flags)) }
    }

    /// This message answers another.
    pub fn is_reply(self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// The sender wants an ack (counts only where REPLY_ACK was negotiated).
    pub fn needs_reply(self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }
}

/// A region of guest memory as the front-end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First guest-physical address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// First address in the front-end's own address space, which ring addresses are given in.
    pub user_addr: u64,
    /// Where the region begins in its file.
    pub mmap_offset: u64,
}

/// Payload of SET_VRING_ADDR. Addresses are the front-end's own, except `log`, which is guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    /// Queue.
    pub index: u32,
    /// Bit 0: writes to the used ring are logged.
    pub flags: u32,
    /// Descriptor table.
    pub descriptor: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub available: u64,
    /// Where the used ring is logged.
    pub log: u64,
}

/// Payload of GET_INFLIGHT_FD, its answer and SET_INFLIGHT_FD ("Inflight I/O tracking").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inflight {
    /// Length of the region; of no meaning in the request.
    pub size_bytes: u64,
    /// Where the region begins in its file; of no meaning in the request.
    pub mmap_offset: u64,
    /// Queues that have a part of it.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
}

/// Payload of SET_VRING_KICK, CALL and ERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFd {
    /// Queue, 0 to 255.
    pub index: u8,
    /// An eventfd came with it; otherwise the front-end polls (CALL, ERR) or wants to be polled (KICK).
    pub has_fd: bool,
}

/// A request with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<MemoryRegion>),
    SetVringNum { index: u32, num: u32 },
    SetVringAddr(VringAddr),
    SetVringBase { index: u32, base: u32 },
    GetVringBase { index: u32 },
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { index: u32, enable: u32 },
    GetConfig { offset: u32, size: u32 },
    SetConfig { offset: u32, data: GuestData<Vec<u8>> },
    GetInflightFd(Inflight),
    SetInflightFd(Inflight),
    GetMaxMemSlots,
    AddMemReg(MemoryRegion),
    RemMemReg(MemoryRegion),
    SetLogBase { size_bytes: u64, mmap_offset: u64 },
    SetLogFd,
    SendRarp { mac: [u8; 6] },
    NetSetMtu { mtu_bytes: u64 },
    SetBackendReqFd,
    ResetDevice,
    SetStatus(u64),
    GetStatus,
    SetDeviceStateFd { direction: u32, phase: u32 },
    CheckDeviceState,
}

impl Request {
    /// Its number.
    pub fn code(&self) -> Code {
        match self {
            Request::GetFeatures => Code::GetFeatures,
            Request::SetFeatures(_) => Code::SetFeatures,
            Request::SetOwner => Code::SetOwner,
            Request::ResetOwner => Code::ResetOwner,
            Request::SetMemTable(_) => Code::SetMemTable,
            Request::SetVringNum { .. } => Code::SetVringNum,
            Request::SetVringAddr(_) => Code::SetVringAddr,
            Request::SetVringBase { .. } => Code::SetVringBase,
            Request::GetVringBase { .. } => Code::GetVringBase,
            Request::SetVringKick(_) => Code::SetVringKick,
            Request::SetVringCall(_) => Code::SetVringCall,
            Request::SetVringErr(_) => Code::SetVringErr,
            Request::GetProtocolFeatures => Code::GetProtocolFeatures,
            Request::SetProtocolFeatures(_) => Code::SetProtocolFeatures,
            Request::GetQueueNum => Code::GetQueueNum,
            Request::SetVringEnable { .. } => Code::SetVringEnable,
            Request::GetConfig { .. } => Code::GetConfig,
            Request::SetConfig { .. } => Code::SetConfig,
            Request::GetInflightFd(_) => Code::GetInflightFd,
            Request::SetInflightFd(_) => Code::SetInflightFd,
            Request::GetMaxMemSlots => Code::GetMaxMemSlots,
            Request::AddMemReg(_) => Code::AddMemReg,
            Request::RemMemReg(_) => Code::RemMemReg,
            Request::SetLogBase { .. } => Code::SetLogBase,
            Request::SetLogFd => Code::SetLogFd,
            Request::SendRarp { .. } => Code::SendRarp,
            Request::NetSetMtu { .. } => Code::NetSetMtu,
            Request::SetBackendReqFd => Code::SetBackendReqFd,
            Request::ResetDevice => Code::ResetDevice,
            Request::SetStatus(_) => Code::SetStatus,
            Request::GetStatus => Code::GetStatus,
            Request::SetDeviceStateFd { .. } => Code::SetDeviceStateFd,
            Request::CheckDeviceState => Code::CheckDeviceState,
        }
    }

    /// The request in a payload, after header, length and number of descriptors have been checked.
    ///
    /// # Errors
    /// [`DecodeError`] says which rule was broken; the message has been consumed whole either way.
    pub fn decode(header: Header, payload: &[u8], descriptors: usize) -> Result<Request, DecodeError> {
        header.check()?;
        let code = Code::from_number(header.request).ok_or(DecodeError::Unknown(header.request))?;
        let rule = code.rule();
        if !rule.payload_bytes.contains(&payload.len()) {
            return Err(DecodeError::Length { code, got: payload.len() });
        }
        if !rule.descriptors.contains(&descriptors) {
            return Err(DecodeError::Descriptors { code, got: descriptors });
        }
        let request =
            Fields(payload).request(code).ok_or(DecodeError::Length { code, got: payload.len() })??;
        request.check_descriptors(descriptors)?;
        Ok(request)
    }

    /// A table carries one descriptor a region; a kick, call or error message one unless it says none.
    fn check_descriptors(&self, got: usize) -> Result<(), DecodeError> {
        let want = match self {
            Request::SetMemTable(regions) => regions.len(),
            Request::SetVringKick(v) | Request::SetVringCall(v) | Request::SetVringErr(v) => {
                usize::from(v.has_fd)
            }
            _ => got,
        };
        if got == want { Ok(()) } else { Err(DecodeError::Descriptors { code: self.code(), got }) }
    }

    /// The payload as it goes over the socket.
    pub fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Request::GetFeatures
            | Request::SetOwner
            | Request::ResetOwner
            | Request::GetProtocolFeatures
            | Request::GetQueueNum
            | Request::GetMaxMemSlots
            | Request::SetLogFd
            | Request::SetBackendReqFd
            | Request::ResetDevice
            | Request::GetStatus
            | Request::CheckDeviceState => {}
            Request::SetFeatures(v)
            | Request::SetProtocolFeatures(v)
            | Request::SetStatus(v)
            | Request::NetSetMtu { mtu_bytes: v } => put64(&mut out, &[*v]),
            Request::SetLogBase { size_bytes, mmap_offset } => put64(&mut out, &[*size_bytes, *mmap_offset]),
            Request::SendRarp { mac } => {
                out.extend_from_slice(mac);
                out.extend_from_slice(&[0; 2]);
            }
            Request::SetDeviceStateFd { direction, phase } => put32(&mut out, &[*direction, *phase]),
            Request::SetMemTable(regions) => {
                put32(&mut out, &[len32(regions.len()), 0]);
                regions.iter().for_each(|region| put_region(&mut out, region));
            }
            Request::SetVringNum { index, num: value }
            | Request::SetVringBase { index, base: value }
            | Request::SetVringEnable { index, enable: value } => put32(&mut out, &[*index, *value]),
            Request::GetVringBase { index } => put32(&mut out, &[*index, 0]),
            Request::SetVringAddr(a) => {
                put32(&mut out, &[a.index, a.flags]);
                put64(&mut out, &[a.descriptor, a.used, a.available, a.log]);
            }
            Request::SetVringKick(v) | Request::SetVringCall(v) | Request::SetVringErr(v) => {
                put64(&mut out, &[u64::from(v.index) | if v.has_fd { 0 } else { VRING_NO_FD }]);
            }
            Request::GetConfig { offset, size } => {
                put32(&mut out, &[*offset, *size, 0]);
                out.extend(std::iter::repeat_n(0, usize::try_from(*size).unwrap_or(0)));
            }
            Request::SetConfig { offset, data } => {
                put32(&mut out, &[*offset, len32(data.len()), 0]);
                out.extend_from_slice(data);
            }
            Request::GetInflightFd(inflight) | Request::SetInflightFd(inflight) => {
                put_inflight(&mut out, inflight);
            }
            Request::AddMemReg(region) | Request::RemMemReg(region) => {
                put64(&mut out, &[0]);
                put_region(&mut out, region);
            }
        }
        out
    }
}

/// What a back-end answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_MAX_MEM_SLOTS; an ack: 0 done, else refused.
    U64(u64),
    /// GET_VRING_BASE.
    VringState {
        /// Queue.
        index: u32,
        /// Next available index (split).
        base: u32,
    },
    /// GET_CONFIG. Empty data says that it failed.
    Config {
        /// Offset asked for.
        offset: u32,
        /// Bytes of the space.
        data: Vec<u8>,
    },
    /// GET_INFLIGHT_FD. The descriptor of the region comes with it; a length of 0 says that it failed.
    Inflight(Inflight),
}

impl Reply {
    /// The payload as it goes over the socket.
    pub fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Reply::U64(value) => put64(&mut out, &[*value]),
            Reply::VringState { index, base } => put32(&mut out, &[*index, *base]),
            Reply::Config { data, .. } if data.is_empty() => {}
            Reply::Config { offset, data } => {
                put32(&mut out, &[*offset, len32(data.len()), 0]);
                out.extend_from_slice(data);
            }
            Reply::Inflight(inflight) => put_inflight(&mut out, inflight),
        }
        out
    }

    /// The answer to `code` in these bytes, for front-ends. `None` when the length is wrong.
    pub fn decode(code: Code, payload: &[u8]) -> Option<Reply> {
        let mut fields = Fields(payload);
        let reply = match code {
            Code::GetVringBase => Reply::VringState { index: fields.u32()?, base: fields.u32()? },
            Code::GetConfig if payload.is_empty() => Reply::Config { offset: 0, data: Vec::new() },
            Code::GetConfig => {
                let (offset, size, _flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
                Reply::Config { offset, data: fields.bytes(usize::try_from(size).ok()?)?.to_vec() }
            }
            Code::GetInflightFd => Reply::Inflight(fields.inflight()?),
            _ => Reply::U64(fields.u64()?),
        };
        fields.0.is_empty().then_some(reply)
    }
}

/// Takes fields off the front of a payload; `None` when it is too short.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    fn region(&mut self) -> Option<MemoryRegion> {
        Some(MemoryRegion {
            guest_addr: self.u64()?,
            size_bytes: self.u64()?,
            user_addr: self.u64()?,
            mmap_offset: self.u64()?,
        })
    }

    /// What follows the four fields is padding.
    fn inflight(&mut self) -> Option<Inflight> {
        let (size_bytes, mmap_offset) = (self.u64()?, self.u64()?);
        let (queues, queue_size) = (self.u16()?, self.u16()?);
        self.0 = &[];
        Some(Inflight { size_bytes, mmap_offset, queues, queue_size })
    }

    fn single_region(&mut self) -> Option<MemoryRegion> {
        let _padding = self.u64()?;
        self.region()
    }

    /// Outer `None`: too short or too long. Inner error: a count over its limit.
    fn request(mut self, code: Code) -> Option<Result<Request, DecodeError>> {
        let request = match code {
            Code::GetFeatures => Request::GetFeatures,
            Code::SetFeatures => Request::SetFeatures(self.u64()?),
            Code::SetOwner => Request::SetOwner,
            Code::ResetOwner => Request::ResetOwner,
            Code::SetMemTable => match self.mem_table()? {
                Ok(regions) => Request::SetMemTable(regions),
                Err(error) => return Some(Err(error)),
            },
            Code::SetVringNum => Request::SetVringNum { index: self.u32()?, num: self.u32()? },
            Code::SetVringAddr => Request::SetVringAddr(self.vring_addr()?),
            Code::SetVringBase => Request::SetVringBase { index: self.u32()?, base: self.u32()? },
            Code::GetVringBase => {
                let (index, _base) = (self.u32()?, self.u32()?);
                Request::GetVringBase { index }
            }
            Code::SetVringKick => Request::SetVringKick(self.vring_fd()?),
            Code::SetVringCall => Request::SetVringCall(self.vring_fd()?),
            Code::SetVringErr => Request::SetVringErr(self.vring_fd()?),
            Code::GetProtocolFeatures => Request::GetProtocolFeatures,
            Code::SetProtocolFeatures => Request::SetProtocolFeatures(self.u64()?),
            Code::GetQueueNum => Request::GetQueueNum,
            Code::SetVringEnable => Request::SetVringEnable { index: self.u32()?, enable: self.u32()? },
            Code::GetConfig => {
                let (offset, size, _flags) = (self.u32()?, self.u32()?, self.u32()?);
                self.bytes(usize::try_from(size).ok()?)?;
                Request::GetConfig { offset, size }
            }
            Code::SetConfig => {
                let (offset, size, _flags) = (self.u32()?, self.u32()?, self.u32()?);
                Request::SetConfig { offset, data: self.bytes(usize::try_from(size).ok()?)?.to_vec().into() }
            }
            Code::GetInflightFd => Request::GetInflightFd(self.inflight()?),
            Code::SetInflightFd => Request::SetInflightFd(self.inflight()?),
            Code::GetMaxMemSlots => Request::GetMaxMemSlots,
            Code::AddMemReg => Request::AddMemReg(self.single_region()?),
            Code::RemMemReg => Request::RemMemReg(self.single_region()?),
            Code::SetLogBase => Request::SetLogBase { size_bytes: self.u64()?, mmap_offset: self.u64()? },
            Code::SetLogFd | Code::SetBackendReqFd => {
                // Front-ends differ in whether they pad these.
                self.0 = &[];
                if code == Code::SetLogFd { Request::SetLogFd } else { Request::SetBackendReqFd }
            }
            Code::SendRarp => {
                let mac = self.bytes(6)?.try_into().ok()?;
                self.bytes(2)?;
                Request::SendRarp { mac }
            }
            Code::NetSetMtu => Request::NetSetMtu { mtu_bytes: self.u64()? },
            Code::ResetDevice => Request::ResetDevice,
            Code::SetStatus => Request::SetStatus(self.u64()?),
            Code::GetStatus => Request::GetStatus,
            Code::SetDeviceStateFd => {
                Request::SetDeviceStateFd { direction: self.u32()?, phase: self.u32()? }
            }
            Code::CheckDeviceState => Request::CheckDeviceState,
        };
        self.0.is_empty().then_some(Ok(request))
    }

    /// QEMU sends room for all eight regions whatever the count: what follows the last one is not read.
    fn mem_table(&mut self) -> Option<Result<Vec<MemoryRegion>, DecodeError>> {
        let (count, _padding) = (self.u32()?, self.u32()?);
        let regions = usize::try_from(count).ok()?;
        if regions > MAX_TABLE_REGIONS {
            return Some(Err(DecodeError::Regions(count)));
        }
        let table = (0..regions).map(|_| self.region()).collect::<Option<Vec<_>>>()?;
        self.0 = &[];
        Some(Ok(table))
    }

    fn vring_addr(&mut self) -> Option<VringAddr> {
        Some(VringAddr {
            index: self.u32()?,
            flags: self.u32()?,
            descriptor: self.u64()?,
            used: self.u64()?,
            available: self.u64()?,
            log: self.u64()?,
        })
    }

    fn vring_fd(&mut self) -> Option<VringFd> {
        let value = self.u64()?;
        // Bits over the index and the no-descriptor flag are reserved: a number that does not fit is no queue.
        if value & !(VRING_INDEX_MASK | VRING_NO_FD) != 0 {
            return None;
        }
        let index = u8::try_from(value & VRING_INDEX_MASK).ok()?;
        Some(VringFd { index, has_fd: value & VRING_NO_FD == 0 })
    }
}

fn len32(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
}

/// With the padding of the C struct, which front-ends wait for.
fn put_inflight(out: &mut Vec<u8>, inflight: &Inflight) {
    put64(out, &[inflight.size_bytes, inflight.mmap_offset]);
    put32(out, &[u32::from(inflight.queues) | u32::from(inflight.queue_size) << 16, 0]);
}

fn put_region(out: &mut Vec<u8>, region: &MemoryRegion) {
    put64(out, &[region.guest_addr, region.size_bytes, region.user_addr, region.mmap_offset]);
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

//! The numbers of messages, and the table of what each looks like.
//!
//! In: a request number. Out: its [`Rule`]: how long its payload may be, how many descriptors it may carry, whether
//! the back-end answers it with a value, and which protocol feature it belongs to. A message that breaks its rule
//! is refused before a byte of its payload is read.

use std::ops::RangeInclusive;

pub use vhost::vhost_user::message::VhostUserProtocolFeatures as ProtocolFeatures;

/// Most regions of one SET_MEM_TABLE (vhost-user "Memory regions description").
pub const MAX_TABLE_REGIONS: usize = 8;
/// Most bytes of device configuration space in one message (vhost-user "Virtio device config space").
pub const MAX_CONFIG_BYTES: usize = 256;
/// Bytes of a memory region in a message.
const REGION_BYTES: usize = 32;

/// Requests of a front-end, with their numbers (vhost-user "Front-end message types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Code {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetLogFd = 7,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SendRarp = 19,
    NetSetMtu = 20,
    SetBackendReqFd = 21,
    GetConfig = 24,
    SetConfig = 25,
    GetInflightFd = 31,
    SetInflightFd = 32,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
    SetStatus = 39,
    GetStatus = 40,
    SetDeviceStateFd = 42,
    CheckDeviceState = 43,
}

/// Requests of a back-end on the channel that SET_BACKEND_REQ_FD opens ("Back-end message types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BackendCode {
    /// BACKEND_CONFIG_CHANGE_MSG: the configuration space is another than before.
    ConfigChange = 2,
}

/// What the table says about a request.
pub struct Rule {
    /// Lengths a payload may have.
    pub payload_bytes: RangeInclusive<usize>,
    /// Descriptors it may carry.
    pub descriptors: RangeInclusive<usize>,
    /// The back-end always answers it with a value of its own (and so never with an ack).
    pub answered: bool,
    /// Protocol feature without which it must not come.
    pub needs: ProtocolFeatures,
}

impl Code {
    /// Every request this codec knows.
    pub const ALL: [Code; 33] = [
        Code::GetFeatures,
        Code::SetFeatures,
        Code::SetOwner,
        Code::ResetOwner,
        Code::SetMemTable,
        Code::SetLogBase,
        Code::SetLogFd,
        Code::SetVringNum,
        Code::SetVringAddr,
        Code::SetVringBase,
        Code::GetVringBase,
        Code::SetVringKick,
        Code::SetVringCall,
        Code::SetVringErr,
        Code::GetProtocolFeatures,
        Code::SetProtocolFeatures,
        Code::GetQueueNum,
        Code::SetVringEnable,
        Code::SendRarp,
        Code::NetSetMtu,
        Code::SetBackendReqFd,
        Code::GetConfig,
        Code::SetConfig,
        Code::GetInflightFd,
        Code::SetInflightFd,
        Code::ResetDevice,
        Code::GetMaxMemSlots,
        Code::AddMemReg,
        Code::RemMemReg,
        Code::SetStatus,
        Code::GetStatus,
        Code::SetDeviceStateFd,
        Code::CheckDeviceState,
    ];

    /// The request with this number, if this codec knows it.
    pub fn from_number(number: u32) -> Option<Code> {
        Code::ALL.into_iter().find(|code| *code as u32 == number)
    }

    /// The table: lengths, descriptors, kind of answer, feature it belongs to.
    pub fn rule(self) -> Rule {
        use Code::*;
        let config = 12..=12 + MAX_CONFIG_BYTES;
        let none = ProtocolFeatures::empty();
        let (payload_bytes, descriptors, answered, needs) = match self {
            GetFeatures | GetProtocolFeatures => (0..=0, 0..=0, true, none),
            GetQueueNum => (0..=0, 0..=0, true, ProtocolFeatures::MQ),
            GetMaxMemSlots => (0..=0, 0..=0, true, ProtocolFeatures::CONFIGURE_MEM_SLOTS),
            SetOwner | ResetOwner => (0..=0, 0..=0, false, none),
            SetFeatures | SetProtocolFeatures => (8..=8, 0..=0, false, none),
            SetMemTable => (8..=8 + MAX_TABLE_REGIONS * REGION_BYTES, 0..=MAX_TABLE_REGIONS, false, none),
            SetVringNum | SetVringBase | SetVringEnable => (8..=8, 0..=0, false, none),
            GetVringBase => (8..=8, 0..=0, true, none),
            SetVringAddr => (40..=40, 0..=0, false, none),
            SetVringKick | SetVringCall | SetVringErr => (8..=8, 0..=1, false, none),
            SetLogBase => (16..=16, 1..=1, true, ProtocolFeatures::LOG_SHMFD),
            SetLogFd => (0..=8, 1..=1, false, ProtocolFeatures::LOG_SHMFD),
            SendRarp => (8..=8, 0..=0, false, ProtocolFeatures::RARP),
            NetSetMtu => (8..=8, 0..=0, false, ProtocolFeatures::MTU),
            SetBackendReqFd => (0..=8, 1..=1, false, ProtocolFeatures::BACKEND_REQ),
            ResetDevice => (0..=0, 0..=0, false, ProtocolFeatures::RESET_DEVICE),
            SetStatus => (8..=8, 0..=0, false, ProtocolFeatures::STATUS),
            GetStatus => (0..=0, 0..=0, true, ProtocolFeatures::STATUS),
            SetDeviceStateFd => (8..=8, 1..=1, true, ProtocolFeatures::DEVICE_STATE),
            CheckDeviceState => (0..=0, 0..=0, true, ProtocolFeatures::DEVICE_STATE),
            GetConfig => (config, 0..=0, true, ProtocolFeatures::CONFIG),
            SetConfig => (config, 0..=0, false, ProtocolFeatures::CONFIG),
            // Eight bytes twice and two bytes twice; what most front-ends send is the C struct with its padding.
            GetInflightFd => (20..=24, 0..=0, true, ProtocolFeatures::INFLIGHT_SHMFD),
            SetInflightFd => (20..=24, 1..=1, false, ProtocolFeatures::INFLIGHT_SHMFD),
            AddMemReg => (40..=40, 1..=1, false, ProtocolFeatures::CONFIGURE_MEM_SLOTS),
            // The text lets REM_MEM_REG carry a descriptor, which the back-end closes (older QEMU sends one).
            RemMemReg => (40..=40, 0..=1, false, ProtocolFeatures::CONFIGURE_MEM_SLOTS),
        };
        Rule { payload_bytes, descriptors, answered, needs }
    }
}

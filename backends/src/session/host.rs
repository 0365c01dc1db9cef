//! What a session asks of the daemon around it.
//!
//! In: effects of messages, by the trait [`Host`]. Out: whether they are done, or a [`Refusal`], which also names
//! every rule that a session itself finds broken.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;

use super::MAX_QUEUE_SIZE;
use crate::inflight::RegionError;
use crate::memory::MemoryError;
use crate::notify::Signal;
use crate::proto::{Code, Inflight, MemoryRegion};
use crate::ring::Layout;
use crate::worker::Stop;

/// Which rule a request broke. The session goes on as if it had not come.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum Refusal {
    /// Bits that were not offered.
    #[error("Features {0:#x} were not offered")]
    Features(u64),
    /// Features change while rings run.
    #[error("Features cannot change while rings are running")]
    Running,
    /// A message of a protocol feature that was not negotiated.
    #[error("{0:?} needs a protocol feature that was not negotiated")]
    NotNegotiated(Code),
    /// A queue the device does not have.
    #[error("Queue {index} of {queues}")]
    NoQueue { index: u32, queues: usize },
    /// A queue size that is 0, too large, or for a split ring no power of two (virtio 1.3 §2.7, §2.8.10.1).
    #[error("Queue size {0} is not 1 to {MAX_QUEUE_SIZE}, and a power of two where rings are split")]
    Size(u32),
    /// A base that is no place in the ring: split, a 16-bit index; packed, two places with their laps.
    #[error("Ring base {0:#x} is no place in the ring")]
    Base(u32),
    /// Something that a running ring does not allow.
    #[error("Queue {index} is running, {code:?} must wait until it is stopped")]
    RingRunning { index: u32, code: Code },
    /// Ring addresses that are unaligned or not wholly in one memory region.
    #[error("Ring of queue {0} is not aligned within one memory region")]
    RingAddress(u32),
    /// A kick without a descriptor asks us to poll the ring, which we do not.
    #[error("Queue {0} has no kick descriptor")]
    Polled(u8),
    /// Memory was refused.
    #[error("Memory refused: {0}")]
    Memory(#[from] MemoryError),
    /// Configuration space that is not there or not writable.
    #[error("Configuration bytes {offset}+{size} cannot be accessed")]
    Config { offset: u32, size: usize },
    /// A device status of more than eight bits (virtio 1.3 §2.1).
    #[error("Device status {0:#x} has more than eight bits")]
    Status(u64),
    /// Something the device does not take.
    #[error("The device does not take {0:?} with that value")]
    Device(Code),
    /// A host error while a ring began.
    #[error("Queue cannot be started: {0}")]
    Start(std::io::Error),
    /// A region for requests in flight that makes no sense.
    #[error("In-flight region refused: {0}")]
    Inflight(#[from] RegionError),
    /// A region for requests in flight while there are some.
    #[error("An in-flight region cannot be taken while rings are running")]
    InflightRunning,
    /// A ring for which the region has no room: its front-end asked for fewer queues or a shorter one.
    #[error(
        "The in-flight region has no room for queue {0}; ask for as many queues and entries as there are"
    )]
    Untracked(u32),
    /// A ring did not come to rest in time; nothing sensible can be answered any more.
    #[error("Queue {0} did not drain in time")]
    Drain(u32),
}

/// A ring that is to be served.
#[derive(Debug)]
pub struct RingStart {
    /// Queue.
    pub index: u16,
    /// Where it is.
    pub layout: Layout,
    /// Where to go on.
    pub base: u32,
    /// Features agreed on.
    pub features: u64,
    /// Driver to device.
    pub kick: Arc<OwnedFd>,
    /// Device to driver.
    pub call: Signal,
    /// Raised when the driver breaks the ring.
    pub error: Signal,
    /// Writes to guest memory are logged.
    pub log_writes: bool,
    /// Guest-physical address under which writes to the used ring are logged, if they are.
    pub log_used: Option<u64>,
}

/// Effects of a session on the rest of the daemon.
pub trait Host {
    /// Replaces all memory. No ring is running.
    ///
    /// # Errors
    /// The table is refused; the old memory stays.
    fn set_memory(&mut self, table: Vec<(MemoryRegion, OwnedFd)>) -> Result<(), MemoryError>;
    /// Adds a region.
    ///
    /// # Errors
    /// The region is refused.
    fn add_memory(&mut self, region: MemoryRegion, fd: OwnedFd) -> Result<(), MemoryError>;
    /// Removes a region. No ring is running.
    ///
    /// # Errors
    /// There is no such region.
    fn remove_memory(&mut self, region: MemoryRegion) -> Result<(), MemoryError>;
    /// Any memory at all.
    fn has_memory(&self) -> bool;
    /// The ring lies aligned in memory.
    fn ring_fits(&self, layout: &Layout) -> bool;
    /// Begins to serve a ring.
    ///
    /// # Errors
    /// The host refuses.
    fn start_ring(&mut self, ring: RingStart) -> Result<(), Refusal>;
    /// The region in which requests in flight are marked, for GET_INFLIGHT_FD; a new one when no ring is running
    /// (`idle`). Its length is 0 when there is none to be had.
    fn inflight(&mut self, queues: u16, queue_size: u16, idle: bool) -> Inflight;
    /// Takes a region into use that the front-end kept, for rings started from now on.
    ///
    /// # Errors
    /// It makes no sense for this device and this kind of ring.
    fn set_inflight(&mut self, shape: Inflight, fd: OwnedFd, packed: bool) -> Result<(), RegionError>;
    /// Forgets what was in flight: of one queue with this kind of ring, or of all.
    fn forget_inflight(&mut self, queue: Option<(u16, bool)>);
    /// Stops a ring and waits until nothing of it is in flight, or nothing but what is marked in the region; the base to
    /// go on from.
    ///
    /// # Errors
    /// [`Refusal::Drain`]
    fn stop_ring(&mut self, index: u16, how: Stop) -> Result<u32, Refusal>;
    /// Gives a running ring another call eventfd.
    fn set_call(&mut self, index: u16, call: Signal);
    /// Takes a dirty log into use, for rings started from now on.
    ///
    /// # Errors
    /// The bitmap is not within its file.
    fn set_log(&mut self, size_bytes: u64, mmap_offset: u64, fd: OwnedFd) -> Result<(), MemoryError>;
    /// Takes the channel for our own requests.
    fn set_channel(&mut self, fd: OwnedFd);
    /// Begins to carry device state, once the answer to the request is sent. `false`: not with these values.
    fn transfer_state(&mut self, direction: Direction, fd: OwnedFd) -> bool;
    /// Whether the last transfer of state went well.
    fn state_is_good(&self) -> bool;
    /// The driver has acknowledged these features.
    fn negotiated(&mut self, features: u64);
    /// The device goes back to where it began.
    fn reset_device(&mut self);
    /// The largest packet that the guest will be given; `false` refuses.
    fn set_mtu(&mut self, mtu_bytes: u16) -> bool;
    /// Tells the network where a guest is now; `false` refuses.
    fn send_rarp(&mut self, mac: [u8; 6]) -> bool;
    /// The configuration space.
    fn config(&self) -> Vec<u8>;
    /// A driver's write to it; `false` refuses.
    fn set_config(&mut self, offset: usize, data: &[u8]) -> bool;
}

/// Which way device state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// We write it.
    Save,
    /// We read it.
    Load,
}

//! What messages do to the daemon: memory mapped, rings handed to workers and taken back.
//!
//! In: effects that a session asks for. Out: the same, done, or why not. Memory changes only while no ring is
//! running; a mapping goes when the last queue that uses it has drained.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use super::Server;
use crate::device::Device;
use crate::inflight::{Part, Region, RegionError};
use crate::log::{self, Class};
use crate::memory::dirty::DirtyLog;
use crate::memory::{Memory, MemoryError};
use crate::notify::Signal;
use crate::proto::{Connection, Inflight, MemoryRegion};
use crate::queue::{Queue, QueueSetup, WriteLog};
use crate::ring::{Layout, Ring};
use crate::session::{Direction, Host, Refusal, RingStart};
use crate::worker::Stop;

impl<D: Device> Server<D> {
    /// Takes new memory into use, if it is safe enough for this user.
    fn adopt(&mut self, memory: Memory) -> Result<(), MemoryError> {
        if !memory.is_sealed() {
            if self.settings.require_sealed_memory {
                return Err(MemoryError::Unsealed);
            }
            if !std::mem::replace(&mut self.unsealed, true) {
                log::line!(
                    info,
                    Class::MemoryUnsealed.once(),
                    "Guest memory is not sealed against shrinking; it is used behind a guard (said once)"
                );
            }
        }
        self.front_end.memory = Arc::new(memory);
        Ok(())
    }

    /// Where a ring's writes are logged, if they are. A split ring's used part is logged under the address that
    /// came with it. A packed ring is written to in its descriptors and in the device's event area; front-ends
    /// give the address of either one (QEMU of the event area), so both are found by where they lie.
    fn write_log(&self, start: &RingStart) -> Option<WriteLog> {
        let pages = self.front_end.log.as_ref().filter(|_| start.log_writes)?;
        let Layout { size, descriptor, used, packed, .. } = start.layout;
        let guest_addr = |addr| self.front_end.memory.guest_addr(addr);
        let parts = match start.log_used {
            None => [None, None],
            Some(addr) if !packed => [Some((addr, u64::from(size).saturating_mul(8) + 6)), None],
            Some(_) => [
                guest_addr(descriptor).map(|addr| (addr, u64::from(size).saturating_mul(16))),
                guest_addr(used).map(|addr| (addr, 4)),
            ],
        };
        let ring = parts.into_iter().flatten().collect();
        Some(WriteLog { pages: Arc::clone(pages), ring })
    }
}

/// Effects of messages on this daemon.
impl<D: Device> Host for Server<D> {
    fn set_memory(&mut self, table: Vec<(MemoryRegion, OwnedFd)>) -> Result<(), MemoryError> {
        self.adopt(Memory::map(table)?)
    }

    fn add_memory(&mut self, region: MemoryRegion, fd: OwnedFd) -> Result<(), MemoryError> {
        self.adopt(self.front_end.memory.with(region, fd)?)
    }

    fn remove_memory(&mut self, region: MemoryRegion) -> Result<(), MemoryError> {
        self.front_end.memory = Arc::new(self.front_end.memory.without(region)?);
        Ok(())
    }

    fn has_memory(&self) -> bool {
        self.front_end.memory.regions() > 0
    }

    fn ring_fits(&self, layout: &Layout) -> bool {
        Ring::new(&self.front_end.memory, layout, Ring::first_base(layout.packed)).is_some()
    }

    fn start_ring(&mut self, start: RingStart) -> Result<(), Refusal> {
        let refused = Refusal::RingAddress(u32::from(start.index));
        let ring = Ring::new(&self.front_end.memory, &start.layout, start.base).ok_or(refused)?;
        let stats = self.stats.queue(start.index).unwrap_or_default();
        let log = self.write_log(&start);
        let inflight = match &self.front_end.inflight {
            Some(region) => Some(
                region
                    .part(start.index, start.layout.size, start.layout.packed)
                    .ok_or(Refusal::Untracked(u32::from(start.index)))?,
            ),
            None => None,
        };
        let setup = QueueSetup {
            index: start.index,
            features: start.features,
            max_chain_bytes: self.device.max_chain_bytes(),
            call: start.call,
            error: start.error,
            stats,
            log,
            inflight,
        };
        let queue = Queue::new(ring, Arc::clone(&self.front_end.memory), setup);
        self.workers.start(queue, start.kick).map_err(Refusal::Start)
    }

    fn inflight(&mut self, queues: u16, queue_size: u16, idle: bool) -> Inflight {
        match &self.front_end.inflight {
            Some(region) if !idle => return region.shape(),
            Some(region) if region.is_ours(queues, queue_size) => {
                region.clear();
                return region.shape();
            }
            _ => {}
        }
        match Region::create(queues, queue_size, self.device.queues()) {
            Ok(region) => self.front_end.inflight.insert(region).shape(),
            Err(error) => {
                self.tell_refused(&error);
                Inflight::default()
            }
        }
    }

    fn set_inflight(&mut self, shape: Inflight, fd: OwnedFd, packed: bool) -> Result<(), RegionError> {
        self.front_end.inflight = Some(Region::adopt(fd, shape, self.device.queues(), packed)?);
        Ok(())
    }

    fn forget_inflight(&mut self, queue: Option<(u16, bool)>) {
        match (&self.front_end.inflight, queue) {
            (Some(region), Some((index, packed))) => {
                region.part(index, 1, packed).iter().for_each(Part::forget);
            }
            (Some(region), None) => region.clear(),
            (None, _) => {}
        }
    }

    fn stop_ring(&mut self, index: u16, how: Stop) -> Result<u32, Refusal> {
        let since = self.closing.unwrap_or_else(Instant::now);
        let stopped = self.workers.stop(index, how, || since.elapsed() < self.patience());
        stopped.ok_or(Refusal::Drain(u32::from(index)))
    }

    fn set_call(&mut self, index: u16, call: Signal) {
        self.workers.set_call(index, call);
    }

    fn set_log(&mut self, size_bytes: u64, mmap_offset: u64, fd: OwnedFd) -> Result<(), MemoryError> {
        self.front_end.log = Some(Arc::new(DirtyLog::map(fd, size_bytes, mmap_offset)?));
        Ok(())
    }

    fn set_channel(&mut self, fd: OwnedFd) {
        // What cannot be made non-blocking is no socket, and is done without.
        self.front_end.channel = Connection::new(UnixStream::from(fd)).ok();
    }

    fn transfer_state(&mut self, direction: Direction, fd: OwnedFd) -> bool {
        self.front_end.state_is_good = false;
        self.front_end.transfer = Some((direction, fd));
        true
    }

    fn state_is_good(&self) -> bool {
        self.front_end.state_is_good
    }

    fn negotiated(&mut self, features: u64) {
        self.device.negotiated(features);
    }

    fn reset_device(&mut self) {
        self.device.reset();
    }

    fn set_mtu(&mut self, mtu_bytes: u16) -> bool {
        self.device.set_mtu(mtu_bytes)
    }

    fn send_rarp(&mut self, mac: [u8; 6]) -> bool {
        self.device.send_rarp(mac)
    }

    fn config(&self) -> Vec<u8> {
        self.device.config()
    }

    fn set_config(&mut self, offset: usize, data: &[u8]) -> bool {
        self.device.set_config(offset, data)
    }
}

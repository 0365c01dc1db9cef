//! `null-client`: a load on any vhost-user-blk socket, by the `virtio-driver` crate.
//!
//! In: a socket, a ring kind, a depth, a number of requests. Out: one line of JSON, see [`Figures`]. Reads of 4 KiB
//! are kept in flight on one queue: a request that came back is sent again in the same round, all of a round with
//! one notification, and none that the device does not want. Between rounds the client sleeps on its eventfd, or with
//! `--poll` looks until something came. It wants interrupts only while it sleeps, as Linux does.
//!
//! A latency is from the round that sent a request to the round that found it done. So the clock is read twice a
//! round, not twice a request.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tests::guest::memory::{RAM_BASE, Ram};
use tests::wait;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{GuestAddress, GuestMemoryBackend};

const BLOCK_BYTES: usize = 4096;
/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u16 = 3;
/// Blocks of the disk that are read.
const BLOCKS: u64 = 1 << 12;

/// Reads from a vhost-user-blk back-end as fast as it answers, and tells how fast that was
#[derive(Debug, Parser)]
struct Options {
    /// The back-end's socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 128)]
    depth: u16,

    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    requests: usize,

    /// A packed ring, not a split one; with event indices the crate loses notifications
    #[arg(long, conflicts_with = "event_idx")]
    packed: bool,

    /// Event indices (VIRTIO_F_EVENT_IDX), not flags
    #[arg(long)]
    event_idx: bool,

    /// Look for completions instead of sleeping
    #[arg(long)]
    poll: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let mut transport = connect(&options)?;
    let ram = Ram::new(u64::from(options.depth) * BLOCK_BYTES as u64);
    let buffers = register(&mut *transport, &ram)?;
    let size = (options.depth * DESCRIPTORS).next_power_of_two();
    let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, size)?;
    let queue = queues.pop().ok_or("the crate made no queue")?;
    let (kick, call) = (transport.get_submission_notifier(0), transport.get_completion_fd(0));
    let mut load = Load { queue, kick, call, buffers, poll: options.poll };
    println!("{}", load.run(usize::from(options.depth), options.requests)?);
    Ok(())
}

/// The crate's transport with exactly the ring features that were asked for.
fn connect(options: &Options) -> Result<Box<VirtioBlkTransport>, Box<dyn Error>> {
    let mut features = VirtioFeatureFlags::VERSION_1;
    features.set(VirtioFeatureFlags::RING_PACKED, options.packed);
    features.set(VirtioFeatureFlags::RING_EVENT_IDX, options.event_idx);
    let path = options.socket.to_str().ok_or("--socket: the path is not UTF-8")?;
    let all = features.bits() | VirtioBlkFeatureFlags::all().bits();
    let transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, all)?);
    let lacking = features.bits() & !transport.get_features();
    if lacking != 0 {
        return Err(format!("{path}: the back-end does not offer feature bits {lacking:#x}").into());
    }
    Ok(transport)
}

/// Makes `ram` known to the back-end under its addresses here, which are returned: one for each request in flight.
fn register(transport: &mut VirtioBlkTransport, ram: &Ram) -> Result<Vec<*mut u8>, Box<dyn Error>> {
    let region = &ram.regions()[0];
    let bytes = usize::try_from(region.table.size_bytes)?;
    let start = ram.memory().get_host_address(GuestAddress(RAM_BASE))?;
    let offset = i64::try_from(region.table.mmap_offset)?;
    transport.map_mem_region(start as usize, bytes, region.fd().as_raw_fd(), offset)?;
    Ok((0..bytes).step_by(BLOCK_BYTES).map(|at| start.wrapping_add(at)).collect())
}

/// A queue under load.
struct Load<'a> {
    queue: VirtioBlkQueue<'a, (usize, Instant)>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffers: Vec<*mut u8>,
    poll: bool,
}

impl Load<'_> {
    /// Keeps `depth` requests in flight until `requests` are done; the figures.
    fn run(&mut self, depth: usize, requests: usize) -> Result<serde_json::Value, Box<dyn Error>> {
        // Touched before the clock starts: nothing is paged in while it runs.
        let mut latencies_ns = vec![1; requests];
        latencies_ns.clear();
        self.queue.set_used_notif_enabled(false);
        let mut free: Vec<usize> = (0..depth).collect();
        let mut sent = 0;
        let (wall, cpu) = (Instant::now(), cpu_us());
        while latencies_ns.len() < requests {
            sent += self.send(&mut free, requests - sent)?;
            self.reap(&mut free, &mut latencies_ns)?;
        }
        let (seconds, cpu_us) = (wall.elapsed().as_secs_f64(), cpu_us() - cpu);
        latencies_ns.sort_unstable();
        let percentile = |percent: usize| f64::from(latencies_ns[(requests - 1) * percent / 100]) / 1e3;
        Ok(json!({
            "iops": requests as f64 / seconds,
            "p50_us": percentile(50),
            "p99_us": percentile(99),
            "client_cpu_us": cpu_us / requests as f64,
        }))
    }

    /// Sends as many as are free and still wanted; how many.
    fn send(&mut self, free: &mut Vec<usize>, wanted: usize) -> Result<usize, Box<dyn Error>> {
        let (now, count) = (Instant::now(), wanted.min(free.len()));
        for slot in free.drain(free.len() - count..) {
            let offset = slot as u64 % BLOCKS * BLOCK_BYTES as u64;
            // SAFETY: a buffer of its own for each request in flight, in RAM that lives until the program ends.
            unsafe { self.queue.read_raw(offset, self.buffers[slot], BLOCK_BYTES, (slot, now))? };
        }
        if count > 0 && self.queue.avail_notif_needed() {
            self.kick.notify()?;
        }
        Ok(count)
    }

    /// Waits for completions and takes all there are.
    fn reap(&mut self, free: &mut Vec<usize>, latencies_ns: &mut Vec<u32>) -> Result<(), Box<dyn Error>> {
        self.wait()?;
        let now = Instant::now();
        for done in self.queue.completions() {
            let (slot, sent) = done.context;
            if done.ret != 0 {
                return Err(format!("a read failed with {}", done.ret).into());
            }
            free.push(slot);
            latencies_ns.push(u32::try_from((now - sent).as_nanos())?);
        }
        Ok(())
    }

    /// Returns when something is done.
    fn wait(&mut self) -> Result<(), Box<dyn Error>> {
        while self.poll && !self.queue.completions().has_next() {
            std::hint::spin_loop();
        }
        while !self.queue.completions().has_next() {
            // What comes before this is seen by the next look; with EVENT_IDX the crate moves used_event here only.
            self.queue.set_used_notif_enabled(true);
            if !self.queue.completions().has_next() {
                self.sleep()?;
            }
            self.queue.set_used_notif_enabled(false);
        }
        Ok(())
    }

    /// Returns after an interrupt. The back-end may have made the descriptor non-blocking for both of us.
    fn sleep(&self) -> Result<(), Box<dyn Error>> {
        if !wait::one_readable(&*self.call, wait::deadline()) {
            return Err("no completion within the deadline".into());
        }
        self.call.read()?;
        Ok(())
    }
}

/// CPU time of this program so far.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

//! `blk-client`: a load on any vhost-user-blk socket, by the `virtio-driver` crate.
//!
//! In: a socket, a ring kind, a number of queues, and what to read: how much at a time, in which order, of how much of
//! the disk, with how many in flight. Out: one line of JSON, see [`run`]. Each queue has a thread of its own
//! and as many requests. A request that came back is sent again in the same round, all of a round with one notification,
//! and none that the device does not want. Between rounds a thread sleeps on its eventfd, or with `--poll` looks until
//! something came. It wants interrupts only while it sleeps, as Linux does.
//!
//! A latency is from the round that sent a request to the round that found it done. So the clock is read twice a
//! round, not twice a request.

use std::error::Error;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use clap::Parser;
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde_json::json;
use tests::guest::memory::{RAM_BASE, Ram};
use tests::random::Random;
use tests::wait;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u16 = 3;

type Failure = Box<dyn Error + Send + Sync>;

/// Reads from a vhost-user-blk back-end as fast as it answers, and tells how fast that was
#[derive(Debug, Parser)]
struct Options {
    /// The back-end's socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Requests in flight on each queue
    #[arg(long, value_name = "N", default_value_t = 128)]
    depth: u16,

    /// Requests of each queue in all
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    requests: usize,

    /// Queues, a thread for each
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: usize,

    /// Bytes of a request
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    bytes: usize,

    /// Bytes from the start of the disk that are read
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    span: u64,

    /// One after the other, not at random
    #[arg(long)]
    sequential: bool,

    /// A packed ring, not a split one; with event indices the crate loses notifications
    #[arg(long, conflicts_with = "event_idx")]
    packed: bool,

    /// Event indices (VIRTIO_F_EVENT_IDX), not flags
    #[arg(long)]
    event_idx: bool,

    /// Look for completions instead of sleeping
    #[arg(long)]
    poll: bool,

    /// Stay connected when all is done and told, until standard input ends
    #[arg(long)]
    stay: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let mut transport = connect(&options)?;
    let buffers = usize::from(options.depth) * options.queues;
    let ram = Ram::new((buffers * options.bytes) as u64);
    let buffers = register(&mut *transport, &ram, options.bytes)?;
    let size = (options.depth * DESCRIPTORS).next_power_of_two();
    let queues = VirtioBlkQueue::setup_queues(&mut *transport, options.queues, size)?;
    let parts = buffers.chunks(usize::from(options.depth));
    let loads = queues.into_iter().zip(parts).enumerate().map(|(index, (queue, buffers))| Load {
        queue,
        kick: transport.get_submission_notifier(index),
        call: transport.get_completion_fd(index),
        buffers: buffers.to_vec(),
        places: Places::new(&options, index),
        poll: options.poll,
        latencies_ns: touched(options.requests),
    });
    println!("{}", run(loads.collect(), options.requests).map_err(|failure| failure.to_string())?);
    if options.stay {
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

/// Room for as many: nothing is paged in while the clock runs.
fn touched(count: usize) -> Vec<u32> {
    let mut room = vec![1; count];
    room.clear();
    room
}

/// Loads all queues at once; the figures of all together.
fn run(loads: Vec<Load<'_>>, requests: usize) -> Result<serde_json::Value, Failure> {
    let (wall, cpu) = (Instant::now(), cpu_us());
    let latencies_ns = thread::scope(|scope| {
        let threads: Vec<_> = loads.into_iter().map(|load| scope.spawn(move || load.run(requests))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
        joined.collect::<Result<Vec<_>, Failure>>()
    })?;
    let (seconds, cpu_us) = (wall.elapsed().as_secs_f64(), cpu_us() - cpu);
    let ended = clock_gettime(ClockId::Monotonic);
    let mut latencies_ns = latencies_ns.concat();
    latencies_ns.sort_unstable();
    let count = latencies_ns.len();
    let percentile = |percent: usize| f64::from(latencies_ns[(count - 1) * percent / 100]) / 1e3;
    Ok(json!({
        "iops": count as f64 / seconds,
        "p50_us": percentile(50),
        "p99_us": percentile(99),
        "client_cpu_us": cpu_us / count as f64,
        "ended_us": micros(ended),
    }))
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
fn register(
    transport: &mut VirtioBlkTransport,
    ram: &Ram,
    each_bytes: usize,
) -> Result<Vec<Buffer>, Box<dyn Error>> {
    let region = &ram.regions()[0];
    let bytes = usize::try_from(region.table.size_bytes)?;
    let start = ram.memory().get_host_address(GuestAddress(RAM_BASE))?;
    let offset = i64::try_from(region.table.mmap_offset)?;
    transport.map_mem_region(start as usize, bytes, region.fd().as_raw_fd(), offset)?;
    Ok((0..bytes / each_bytes).map(|at| Buffer(start as usize + at * each_bytes)).collect())
}

/// An address in RAM that lives until the program ends.
#[derive(Clone, Copy)]
struct Buffer(usize);

/// Where requests read.
struct Places {
    each_bytes: usize,
    /// How many there are.
    count: u64,
    /// The next one; none if they are at random.
    next: Option<u64>,
    random: Random,
}

impl Places {
    fn new(options: &Options, queue: usize) -> Places {
        let next = options.sequential.then_some(0);
        let count = options.span / options.bytes as u64;
        Places { each_bytes: options.bytes, count, next, random: Random::new(queue as u64 + 1) }
    }

    /// Bytes from the start of the disk.
    fn next(&mut self) -> u64 {
        let place = match &mut self.next {
            Some(next) => std::mem::replace(next, (*next + 1) % self.count),
            None => self.random.below(self.count),
        };
        place * self.each_bytes as u64
    }
}

/// A queue under load.
struct Load<'a> {
    queue: VirtioBlkQueue<'a, (usize, Instant)>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    /// One for each request in flight.
    buffers: Vec<Buffer>,
    places: Places,
    poll: bool,
    /// Of requests that are done.
    latencies_ns: Vec<u32>,
}

impl Load<'_> {
    /// Keeps requests in flight until `requests` are done; how long they took.
    fn run(mut self, requests: usize) -> Result<Vec<u32>, Failure> {
        self.queue.set_used_notif_enabled(false);
        let mut free: Vec<usize> = (0..self.buffers.len()).collect();
        let mut sent = 0;
        while self.latencies_ns.len() < requests {
            sent += self.send(&mut free, requests - sent)?;
            self.reap(&mut free)?;
        }
        Ok(self.latencies_ns)
    }

    /// Sends as many as are free and still wanted; how many.
    fn send(&mut self, free: &mut Vec<usize>, wanted: usize) -> Result<usize, Failure> {
        let (now, count) = (Instant::now(), wanted.min(free.len()));
        for slot in free.drain(free.len() - count..) {
            let (offset, bytes) = (self.places.next(), self.places.each_bytes);
            let buffer = self.buffers[slot].0 as *mut u8;
            // SAFETY: a buffer of its own for each request in flight, in RAM that lives until the program ends.
            unsafe { self.queue.read_raw(offset, buffer, bytes, (slot, now))? };
        }
        if count > 0 && self.queue.avail_notif_needed() {
            self.kick.notify()?;
        }
        Ok(count)
    }

    /// Waits for completions and takes all there are.
    fn reap(&mut self, free: &mut Vec<usize>) -> Result<(), Failure> {
        self.wait()?;
        let now = Instant::now();
        for done in self.queue.completions() {
            let (slot, sent) = done.context;
            if done.ret != 0 {
                return Err(format!("a read failed with {}", done.ret).into());
            }
            free.push(slot);
            self.latencies_ns.push(u32::try_from((now - sent).as_nanos())?);
        }
        Ok(())
    }

    /// Returns when something is done.
    fn wait(&mut self) -> Result<(), Failure> {
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
    fn sleep(&self) -> Result<(), Failure> {
        if !wait::one_readable(&*self.call, wait::deadline()) {
            return Err("no completion within the deadline".into());
        }
        self.call.read()?;
        Ok(())
    }
}

/// CPU time of this program so far.
fn cpu_us() -> f64 {
    micros(clock_gettime(ClockId::ProcessCPUTime))
}

fn micros(time: Timespec) -> f64 {
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

//! The `virtio-driver` crate drives `outboard-blk`: a driver and front-end whose author never saw our code.
//!
//! It hands over memory by ADD_MEM_REG with guest addresses equal to its own, asks for an ack on everything,
//! and keeps many requests in flight on several queues, split and packed.

use std::fs;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::io::Errno;
use tests::daemon::Daemon;
use tests::guest::memory::{RAM_BASE, Ram};
use tests::machine::{BLK, DISK_SECTORS};
use tests::random::Random;
use tests::wait;
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{GuestAddress, GuestMemoryBackend};

const QUEUES: usize = 2;
const DEPTH: u16 = 64;
const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 256;

/// RAM that is registered with the daemon, one block of it for each block of the disk.
struct Blocks(Arc<Ram>);

impl Blocks {
    fn register(transport: &mut VirtioBlkTransport) -> Blocks {
        let bytes = BLOCKS * BLOCK_BYTES;
        assert_eq!(bytes as u64, DISK_SECTORS * 512);
        let blocks = Blocks(Ram::new(bytes as u64));
        let region = &blocks.0.regions()[0];
        let offset = i64::try_from(region.table.mmap_offset).unwrap();
        transport.map_mem_region(blocks.at(0) as usize, bytes, region.fd().as_raw_fd(), offset).unwrap();
        blocks
    }

    fn at(&self, block: usize) -> *mut u8 {
        self.0.memory().get_host_address(GuestAddress(Self::addr(block))).unwrap()
    }

    fn addr(block: usize) -> u64 {
        RAM_BASE + (block * BLOCK_BYTES) as u64
    }

    fn fill(&self, block: usize, bytes: &[u8]) {
        self.0.write(Self::addr(block), bytes);
    }

    fn content(&self, block: usize) -> Vec<u8> {
        self.0.read(Self::addr(block), BLOCK_BYTES)
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    In,
    Out,
}

/// Moves every block between disk and memory, spread over the queues, as deep as they are.
fn transfer(
    transport: &VirtioBlkTransport,
    queues: &mut [VirtioBlkQueue<'_, usize>],
    blocks: &Blocks,
    way: Way,
) {
    let mut moved = vec![0; BLOCKS];
    // A request takes three descriptors where it is not indirect.
    let depth = usize::from(DEPTH) / 4;
    for batch in (0..BLOCKS).collect::<Vec<_>>().chunks(depth * QUEUES) {
        for block in batch {
            submit(&mut queues[block % QUEUES], blocks, *block, way);
        }
        for (index, queue) in queues.iter_mut().enumerate() {
            transport.get_submission_notifier(index).notify().unwrap();
            let mine = batch.iter().filter(|block| *block % QUEUES == index).count();
            reap(transport, index, queue, mine).into_iter().for_each(|block| moved[block] += 1);
        }
    }
    assert!(moved.iter().all(|times| *times == 1), "each request comes back once: {moved:?}");
}

fn submit(queue: &mut VirtioBlkQueue<'_, usize>, blocks: &Blocks, block: usize, way: Way) {
    let (offset, buffer) = ((block * BLOCK_BYTES) as u64, blocks.at(block));
    let queued = match way {
        // SAFETY: `buffer` is a block of a mapping that outlives the request, which is reaped before `blocks`
        // goes; nothing else in this process touches the block meanwhile.
        Way::In => unsafe { queue.read_raw(offset, buffer, BLOCK_BYTES, block) },
        // SAFETY: as above.
        Way::Out => unsafe { queue.write_raw(offset, buffer, BLOCK_BYTES, block) },
    };
    queued.unwrap();
}

/// Waits for `count` completions of a queue; their contexts.
fn reap(
    transport: &VirtioBlkTransport,
    index: usize,
    queue: &mut VirtioBlkQueue<'_, usize>,
    count: usize,
) -> Vec<usize> {
    let (call, until) = (transport.get_completion_fd(index), wait::deadline());
    let mut done = Vec::new();
    loop {
        for completion in queue.completions() {
            assert_eq!(completion.ret, 0, "block {}", completion.context);
            done.push(completion.context);
        }
        if done.len() >= count {
            return done;
        }
        assert!(wait::one_readable(&*call, until), "{} of {count} completions came", done.len());
        call.read().unwrap();
    }
}

/// Flushes on every queue.
fn flush(transport: &VirtioBlkTransport, queues: &mut [VirtioBlkQueue<'_, usize>]) {
    for (index, queue) in queues.iter_mut().enumerate() {
        queue.flush(index).unwrap();
        transport.get_submission_notifier(index).notify().unwrap();
        assert_eq!(reap(transport, index, queue, 1), [index]);
    }
}

/// The crate's transport, with every block feature that is offered.
fn connect(daemon: &Daemon, features: VirtioFeatureFlags) -> Box<VirtioBlkTransport> {
    let features = features.bits() | VirtioBlkFeatureFlags::all().bits();
    Box::new(VhostUser::new(daemon.socket().to_str().unwrap(), features).unwrap())
}

/// Writes the whole disk, flushes, reads it back; compares with the image on the host.
fn write_and_read_back(engine: &str, features: VirtioFeatureFlags) {
    let daemon = BLK.launch().args(["--engine", engine]).serve().unwrap();
    let mut transport = connect(&daemon, features);
    assert!(VirtioFeatureFlags::from_bits_truncate(transport.get_features()).contains(features));
    let blocks = Blocks::register(&mut *transport);
    let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, QUEUES, DEPTH).unwrap();
    // Without this the crate never moves used_event, and EVENT_IDX gives one interrupt in 65,536 requests.
    queues.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));
    let content = Random::from_env().bytes(BLOCKS * BLOCK_BYTES);
    content.chunks(BLOCK_BYTES).enumerate().for_each(|(block, bytes)| blocks.fill(block, bytes));
    transfer(&*transport, &mut queues, &blocks, Way::Out);
    flush(&*transport, &mut queues);
    assert!(fs::read(daemon.dir().join("disk.img")).unwrap() == content, "the image is what was written");
    (0..BLOCKS).for_each(|block| blocks.fill(block, &[0; BLOCK_BYTES]));
    transfer(&*transport, &mut queues, &blocks, Way::In);
    for (block, bytes) in content.chunks(BLOCK_BYTES).enumerate() {
        assert!(blocks.content(block) == bytes, "block {block} is what was written");
    }
}

#[test]
fn two_queues_full_of_requests_are_written_flushed_and_read() {
    let bare = VirtioFeatureFlags::VERSION_1;
    let usual = bare | VirtioFeatureFlags::RING_INDIRECT_DESC | VirtioFeatureFlags::RING_EVENT_IDX;
    let packed = VirtioFeatureFlags::RING_PACKED;
    for engine in ["io-uring", "epoll"] {
        for features in [bare, usual, bare | packed, usual | packed] {
            write_and_read_back(engine, features);
        }
    }
}

#[test]
fn the_disk_is_described() {
    let daemon = BLK.launch().args(["--block-size", "4096", "--read-only"]).serve().unwrap();
    let transport = connect(&daemon, VirtioFeatureFlags::VERSION_1);
    let offered = VirtioBlkFeatureFlags::from_bits_truncate(transport.get_features());
    assert!(
        offered.contains(
            VirtioBlkFeatureFlags::RO | VirtioBlkFeatureFlags::BLK_SIZE | VirtioBlkFeatureFlags::MQ
        )
    );
    let config = transport.get_config().unwrap();
    assert_eq!(u64::from(config.capacity), DISK_SECTORS);
    assert_eq!(u32::from(config.blk_size), 4096);
    assert_eq!(usize::from(u16::from(config.num_queues)), QUEUES);
    assert_eq!(transport.max_queues(), Some(QUEUES));
}

#[test]
fn errors_reach_the_driver() {
    let daemon = BLK.launch().serve().unwrap();
    let mut transport = connect(&daemon, VirtioFeatureFlags::VERSION_1);
    let blocks = Blocks::register(&mut *transport);
    let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, DEPTH).unwrap();
    let beyond = DISK_SECTORS * 512;
    // SAFETY: as in `submit`; the request is reaped below.
    unsafe { queues[0].read_raw(beyond, blocks.at(0), 512, 0).unwrap() };
    transport.get_submission_notifier(0).notify().unwrap();
    let call = transport.get_completion_fd(0);
    let until = wait::deadline();
    let failed = loop {
        if let Some(completion) = queues[0].completions().next() {
            break completion;
        }
        assert!(wait::one_readable(&*call, until), "no completion within the deadline");
        call.read().unwrap();
    };
    assert_eq!((failed.context, failed.ret), (0, -Errno::IO.raw_os_error()));
    submit(&mut queues[0], &blocks, 0, Way::In);
    transport.get_submission_notifier(0).notify().unwrap();
    assert_eq!(reap(&*transport, 0, &mut queues[0], 1), [0]);
}

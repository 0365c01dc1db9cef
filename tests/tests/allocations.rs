//! Nothing is allocated per request: once a queue has grown to its load, more of it allocates nothing.
//!
//! The block device runs in this process over an image, alone and under a graph of several layers, so that queue, chain,
//! device, layers, storage and engine are all in it; so does a device whose every request is a task, with a sleep and a read. This program's allocator counts what every thread but the test's own asks for; it is the only test here,
//! because another one's threads would be counted too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, io};

use backends::device::{Device, Handler, Io, Queues, Turn};
use backends::engine::{Buffers, EngineKind, Op};
use backends::memory::Segment;
use backends::opened::Opened;
use backends::queue::{Queue, Request as QueueRequest};
use backends::server::Settings;
use backends::task::Spawner;
use outboard_blk::cipher::KEY_BYTES;
use outboard_blk::device::Blk;
use outboard_blk::graph::live::Live;
use outboard_blk::graph::plan::Plan;
use outboard_blk::graph::registry::Purpose;
use outboard_blk::source::Source;
use outboard_blk::storage::image::Image;
use rustix::io::Errno;
use tempfile::TempDir;
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{FLUSH, Request};
use tests::guest::chain::Chain;
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;
use tests::guest::ring::Ring;
use tests::served::Served;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// What this thread allocates is the test's own.
    static TEST: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: all work is the system allocator's; counting touches no memory that is being managed.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !TEST.try_with(Cell::get).unwrap_or(true) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests of a batch, of one to five data buffers each.
const BATCH: u64 = 48;

/// Of the image.
const DISK_BYTES: u64 = 1 << 20;

/// Reads, writes and flushes, all in flight together.
fn batch(ring: &mut Ring) {
    for number in 0..BATCH {
        let request = match number % 3 {
            0 => Request::read(number * 8, 4096),
            1 => Request::write(number * 8, &[7; 4096]),
            _ => Request::bare(FLUSH),
        };
        let header = Chain::new().readable(&request.header());
        let pieces = usize::try_from(number % 5).unwrap() + 1;
        let out = request.data_out.chunks(4096 / pieces + 1);
        let chain = out.fold(header, |chain, piece| chain.readable(piece));
        let chain = if request.data_in > 0 { chain.writable(request.data_in) } else { chain };
        ring.add(&chain.writable(1));
    }
    ring.notify();
    let completions = ring.wait_all().unwrap();
    assert!(completions.iter().all(|completion| completion.data.last() == Some(&0)));
}

/// A device that has a task for each request: it sleeps, reads, and gives the request back.
struct TaskDisk(Arc<OwnedFd>);

impl Device for TaskDisk {
    type Handler = TaskHandler;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> io::Result<TaskHandler> {
        let file = Rc::new(self.0.try_clone()?);
        Ok(TaskHandler { file, over: Rc::default(), spawner: None })
    }
}

/// A request and where it reads to.
struct Job(QueueRequest);

impl Buffers for Job {
    fn segments(&self) -> &[Segment] {
        self.0.writable()
    }
}

struct TaskHandler {
    file: Rc<OwnedFd>,
    /// Requests whose tasks are over.
    over: Rc<RefCell<VecDeque<(Job, u32)>>>,
    spawner: Option<Spawner<Job>>,
}

impl Handler for TaskHandler {
    type Op = Job;

    fn start(&mut self, io: &mut Io<'_, Job>) -> io::Result<()> {
        let (task_io, file, over) = (io.tasks().io(), Rc::clone(&self.file), Rc::clone(&self.over));
        let slots = usize::try_from(BATCH).unwrap();
        self.spawner = Some(io.tasks().pool(slots, move |job| {
            let (io, file, over) = (task_io.clone(), Rc::clone(&file), Rc::clone(&over));
            async move {
                io.sleep(Duration::from_micros(50)).await;
                let (job, read) = io.submit(&file, Op::Read { offset: 0 }, job).await;
                over.borrow_mut().push_back((job, read.unwrap()));
                io.tell();
            }
        }));
        Ok(())
    }

    fn process(&mut self, queue: &mut Queue, _: &mut Io<'_, Job>) -> Turn {
        while let Some(request) = queue.next() {
            let begun = self.spawner.as_ref().unwrap().spawn(Job(request));
            assert!(begun.is_ok(), "the driver has no more requests than there are slots");
        }
        Turn::Drained
    }

    fn told(&mut self, queues: &mut Queues, _: &mut Io<'_, Job>) {
        let queue = queues.get(0).unwrap();
        self.over.borrow_mut().drain(..).for_each(|(Job(request), read)| queue.complete(request, read));
    }

    fn complete(&mut self, _: &mut Queue, _: Job, _: Result<u32, Errno>, _: &mut Io<'_, Job>) {
        unreachable!("operations are the tasks'");
    }
}

/// Reads of one to five buffers, a task each.
fn task_batch(ring: &mut Ring) {
    for number in 0..BATCH {
        let chain = (0..=number % 5).fold(Chain::new(), |chain, _| chain.writable(64));
        ring.add(&chain);
    }
    ring.notify();
    let completions = ring.wait_all().unwrap();
    assert!(completions.iter().all(|completion| completion.data.iter().all(|byte| *byte == 7)));
}

/// Allocations of a hundred batches, again and again until there are none: what requests leave for the next ones grows
/// to the most that timing ever asks of it. What allocates for each request never comes to none.
fn allocations<D: Device>(device: D, way: (EngineKind, RingKind), batch: fn(&mut Ring)) -> Vec<u64> {
    let (engine, rings) = way;
    let (_served, socket) = Served::new(device, Settings { engine, ..Settings::default() });
    let mut frontend = Frontend::on(socket, &Ram::new(64 << 20)).unwrap();
    frontend.handshake(Wants { rings, ..Wants::default() }).unwrap();
    let mut ring = frontend.start_new(0, 1024).unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&0) && seen.len() < 30 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..100).for_each(|_| batch(&mut ring));
        seen.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    seen
}

/// An image of one megabyte.
fn image(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![7; usize::try_from(DISK_BYTES).unwrap()]).unwrap();
    path
}

#[test]
fn requests_and_tasks_allocate_nothing() {
    TEST.set(true);
    // In memory: how long a real disk takes for flushes says nothing here.
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let path = image(&dir);
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        for rings in [RingKind::Split, RingKind::Packed] {
            let tasks = TaskDisk(Arc::new(fs::File::open(&path).unwrap().into()));
            assert_none(&allocations(tasks, (engine, rings), task_batch), (engine, rings));
            let image = Image { path: path.clone(), read_only: false, direct: false, block_bytes: 512 };
            assert_none(&allocations(disk(&Source::Image(image)), (engine, rings), batch), (engine, rings));
            let seen = allocations(layers(&dir, &path), (engine, rings), batch);
            // `cargo xtask bench` reads this.
            println!("graph: {} in {} requests", seen.last().unwrap_or(&u64::MAX), 100 * BATCH);
            assert_none(&seen, (engine, rings));
        }
    }
}

/// Layers that do something about every request: some move it, one cuts it where it crosses a border, one copies it into
/// memory of its own, of which there is less than for all requests in flight, some count or remember it.
fn layers(dir: &TempDir, image: &Path) -> Blk {
    let key = dir.path().join("key");
    fs::write(&key, (0..=u8::MAX).take(KEY_BYTES).collect::<Vec<_>>()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let border = 24 * 4096 + 512;
    let (image, key, rest) = (image.display(), key.display(), DISK_BYTES - 4096 - border);
    let plan = Plan::parse(&format!(
        "volume image\n type storage/file\n option path {image}\nend-volume\n\
         volume part\n type features/offset\n option offset 4096\n subvolumes image\nend-volume\n\
         volume turned\n type features/map\n option ranges \"part:{rest}+{border} part:0+{rest}\"\n subvolumes part\nend-volume\n\
         volume secret\n type features/crypt\n option key-file {key}\n option memory 1M\n subvolumes turned\nend-volume\n\
         volume slow\n type features/throttle\n option ops 1000000000\n subvolumes secret\nend-volume\n\
         volume traced\n type debug/trace\n subvolumes slow\nend-volume\n\
         volume counted\n type debug/io-stats\n subvolumes traced\nend-volume\n"
    ))
    .unwrap();
    let mut opened = Opened::default();
    plan.prepare(Purpose::Serve, &mut opened).unwrap();
    let (kept, _made) = opened.into_kept();
    let graph = plan.graph(&kept).unwrap();
    Blk::new(Live::new(plan, graph, Vec::new()), &kept, 1, "").unwrap()
}

#[track_caller]
fn assert_none(seen: &[u64], way: (EngineKind, RingKind)) {
    assert_eq!(seen.last(), Some(&0), "{way:?}: {seen:?} in {} requests each", 100 * BATCH);
}

/// A disk as a process has it that is its own keeper.
fn disk(source: &Source) -> Blk {
    let mut opened = Opened::default();
    source.prepare(&mut opened).unwrap();
    let (kept, _made) = opened.into_kept();
    Blk::new(source.find(&kept).unwrap(), &kept, 1, "").unwrap()
}

//! What a layer of the engine costs: 4 KiB reads of a file in the page cache, 128 in flight, one thread.
//!
//! Variants, run in turn each round: `raw` is a bare io_uring loop, the least there can be; `uring` and
//! `epoll` are the two engines of this crate; `async` is the `uring` one under this crate's tasks, one for each request
//! in flight (docs/decisions/0001). Output: one JSON object a line and variant and round.
//!
//! `cargo bench -p backends --bench engine -- [ROUNDS] [MEBIBYTES] [VARIANT]`

// Slots are numbers below 128 that the ring carries as 64 bits.
#![allow(clippy::cast_possible_truncation)]

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Instant;

use backends::engine::{Buffers, Engine, EngineKind, Event, Op};
use backends::memory::{Memory, Segment};
use backends::proto::MemoryRegion;
use backends::task::{Home, Tagged, TaskIo, Tasks};
use io_uring::{IoUring, opcode, types::Fd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::time::{ClockId, clock_gettime};

const BLOCK: u32 = 4096;
const DEPTH: u32 = 128;
const REQUESTS: u64 = 1_000_000;

type Variant = fn(&Disk);

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let mut number = |default: u64| args.next().and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (rounds, mebibytes) = (number(5), number(256));
    let only = args.next();
    let disk = Disk::new(mebibytes << 20);
    let variants: [(&str, Variant); 4] = [
        ("raw", raw),
        ("uring", |d| engine(d, EngineKind::IoUring)),
        ("async", tasks),
        ("epoll", |d| engine(d, EngineKind::Epoll)),
    ];
    for round in 0..rounds {
        for (name, run) in
            variants.into_iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name))
        {
            let (wall, cpu) = (Instant::now(), cpu_seconds());
            run(&disk);
            let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
            let kiops = REQUESTS as f64 / wall / 1e3;
            let cpu_us = cpu * 1e6 / REQUESTS as f64;
            println!(
                "{{\"variant\":\"{name}\",\"round\":{round},\"kiops\":{kiops:.1},\"cpu_us\":{cpu_us:.3}}}"
            );
        }
    }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A file in the page cache, guest memory to read into, and a sequence of offsets.
struct Disk {
    file: File,
    blocks: u64,
    memory: Memory,
}

impl Disk {
    fn new(bytes: u64) -> Disk {
        let dir = std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, Into::into);
        let path = dir.join(format!("engine-bench-{}", std::process::id()));
        let file =
            File::options().read(true).write(true).create_new(true).open(&path).expect("a file to read");
        std::fs::remove_file(&path).expect("the file was just made");
        let chunk = vec![7; 1 << 20];
        (0..bytes >> 20).for_each(|at| file.write_all_at(&chunk, at << 20).expect("room on the disk"));
        let size_bytes = u64::from(BLOCK * DEPTH);
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, size_bytes).expect("a memfd grows");
        let region = MemoryRegion { guest_addr: 0, size_bytes, user_addr: 0, mmap_offset: 0 };
        Disk {
            file,
            blocks: bytes / u64::from(BLOCK),
            memory: Memory::map(vec![(region, fd)]).expect("memory"),
        }
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn buffer(&self, slot: u32) -> Segment {
        self.memory.translate_one(u64::from(slot * BLOCK), BLOCK).expect("a slot")
    }

    /// Offset of request `number`: scattered, the same in every variant.
    fn offset(&self, number: u64) -> u64 {
        offset(number, self.blocks)
    }
}

fn offset(number: u64, blocks: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks * u64::from(BLOCK)
}

struct Slot(Segment);

impl Buffers for Slot {
    fn segments(&self) -> &[Segment] {
        std::slice::from_ref(&self.0)
    }
}

fn engine(disk: &Disk, kind: EngineKind) {
    let mut engine = Engine::new(kind).expect("an engine");
    let mut begun = 0;
    for slot in 0..DEPTH {
        engine.submit(disk.fd(), Op::Read { offset: disk.offset(begun) }, Slot(disk.buffer(slot)));
        begun += 1;
    }
    let mut done = 0;
    while done < REQUESTS {
        engine.wait(true).expect("the engine waits");
        // As a worker does: take the batch that is there, refill, submit with the next wait.
        let mut batch = Vec::with_capacity(DEPTH as usize);
        while let Some(event) = engine.event() {
            let Event::Done(slot, result) = event else { continue };
            assert_eq!(result, Ok(BLOCK));
            done += 1;
            batch.push(slot);
        }
        for slot in batch {
            if begun < REQUESTS {
                engine.submit(disk.fd(), Op::Read { offset: disk.offset(begun) }, slot);
                begun += 1;
            }
        }
    }
}

fn ring() -> IoUring {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(4096).setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
    builder.build(256).expect("io_uring")
}

fn read_entry(disk: &Disk, slot: u32, number: u64) -> io_uring::squeue::Entry {
    let buffer = disk.buffer(slot);
    // The first field of an iovec is the address; this bench alone needs it as a pointer.
    let address = address(&buffer);
    opcode::Read::new(Fd(disk.fd()), address, BLOCK)
        .offset(disk.offset(number))
        .build()
        .user_data(u64::from(slot))
}

fn address(segment: &Segment) -> *mut u8 {
    // SAFETY: `Segment` is a transparent iovec.
    unsafe { (*std::ptr::from_ref(segment).cast::<libc::iovec>()).iov_base.cast() }
}

fn push(ring: &mut IoUring, entry: &io_uring::squeue::Entry) {
    // SAFETY: buffers are slots of `Disk::memory`, which outlives the ring.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().expect("submission");
    }
}

fn raw(disk: &Disk) {
    let mut ring = ring();
    let (mut begun, mut done) = (0, 0);
    for slot in 0..DEPTH {
        push(&mut ring, &read_entry(disk, slot, begun));
        begun += 1;
    }
    let mut batch = Vec::with_capacity(DEPTH as usize);
    while done < REQUESTS {
        ring.submit_and_wait(1).expect("completions");
        for entry in ring.completion() {
            assert_eq!(entry.result(), BLOCK as i32);
            done += 1;
            batch.push(entry.user_data() as u32);
        }
        for slot in batch.drain(..) {
            if begun < REQUESTS {
                push(&mut ring, &read_entry(disk, slot, begun));
                begun += 1;
            }
        }
    }
}

/// Reads one block after the other into one slot.
async fn reader(io: TaskIo<Slot>, file: Rc<OwnedFd>, disk: Rc<Counts>, buffer: Segment) {
    let mut slot = Slot(buffer);
    while let Some(offset) = disk.next() {
        let (back, result) = io.submit(&file, Op::Read { offset }, slot).await;
        assert_eq!(result, Ok(BLOCK));
        disk.done.set(disk.done.get() + 1);
        slot = back;
    }
}

/// What the readers share.
struct Counts {
    blocks: u64,
    begun: Cell<u64>,
    done: Cell<u64>,
}

impl Counts {
    /// Offset of the next request.
    fn next(&self) -> Option<u64> {
        let number = self.begun.get();
        self.begun.set(number + 1);
        (number < REQUESTS).then(|| offset(number, self.blocks))
    }
}

fn tasks(disk: &Disk) {
    let mut engine = Engine::new(EngineKind::IoUring).expect("an engine");
    let mut tasks = Tasks::default();
    let counts = Rc::new(Counts { blocks: disk.blocks, begun: Cell::new(0), done: Cell::new(0) });
    let file = Rc::new(OwnedFd::from(disk.file.try_clone().expect("a descriptor")));
    let (io, shared) = (tasks.io(), Rc::clone(&counts));
    let story = move |buffer| reader(io.clone(), Rc::clone(&file), Rc::clone(&shared), buffer);
    let spawner = tasks.pool(DEPTH as usize, story);
    for slot in 0..DEPTH {
        assert!(spawner.spawn(disk.buffer(slot)).is_ok());
    }
    loop {
        tasks.run(&mut engine);
        if counts.done.get() >= REQUESTS {
            return;
        }
        engine.wait(true).expect("the engine waits");
        while let Some(event) = engine.event() {
            let Event::Done(Tagged { home: Home::Task(key, _), owner }, result) = event else { continue };
            tasks.on_done(key, owner, result);
        }
    }
}

//! Nothing is allocated per request: once a queue has grown to its load, more of it allocates nothing.
//!
//! The block device runs in this process over an image, so that queue, chain, device, storage and engine are all in
//! it. This program's allocator counts what every thread but the test's own asks for; it is the only test here,
//! because another one's threads would be counted too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use backends::engine::EngineKind;
use backends::server::Settings;
use outboard_blk::device::Blk as Device;
use outboard_blk::file::{File, Image};
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

/// Allocations of a hundred batches, again and again until there are none: what requests leave for the next ones grows
/// to the most that timing ever asks of it. What allocates for each request never comes to none.
fn allocations(engine: EngineKind, rings: RingKind) -> Vec<u64> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let image = Image { path, read_only: false, direct: false, block_bytes: 512 };
    let device = Device::new(File::open(&image).unwrap(), 1, "");
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

#[test]
fn requests_allocate_nothing() {
    TEST.set(true);
    for engine in [EngineKind::IoUring, EngineKind::Epoll] {
        for rings in [RingKind::Split, RingKind::Packed] {
            let seen = allocations(engine, rings);
            assert_eq!(
                seen.last(),
                Some(&0),
                "{engine:?} {rings:?}: {seen:?} in {} requests each",
                100 * BATCH
            );
        }
    }
}

//! A region of requests in flight with any content, under a ring in any state.
//!
//! In: kind and size of the ring, its indices, bytes of the ring, and the rest is the region. Promises: a region that is
//! not believed breaks the ring, of which nothing is then handed out or written; otherwise no more requests come than
//! the ring is long, before any new one and after; what is served is used once; whoever comes next finds a region that
//! he believes and nothing to serve again; no byte beyond the region changes.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use backends::inflight::Region;
use backends::notify::Signal;
use backends::proto::Inflight;
use backends::queue::{Queue, QueueSetup};
use backends::ring::{Layout, Ring, RingError};
use backends::stats::QueueStats;

use super::play::{AVAILABLE, DESCRIPTORS, USED};
use super::shadow::Shadow;
use super::{Input, pattern};
use crate::guest::memory::{Backing, memfd};

const PACKED: u8 = 1;
const IN_ORDER: u8 = 2;
const EVENT_IDX: u8 = 4;
/// What of a ring an input may write in one go.
const RING_BYTES: usize = 0x100;
/// Longer than a part of either kind for the longest ring here.
const REGION_BYTES: u64 = 1024;
const BEYOND: usize = 64;

/// Any region under any ring.
pub fn inflight(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u8();
    let sizes: &[u16] = if flags & PACKED != 0 { &[3, 1, 2, 4, 8] } else { &[4, 1, 2, 8] };
    let size = input.pick(sizes);
    let (used, ahead) = (input.u16(), u16::from(input.u8()));
    let mut shadow = Shadow::new();
    for place in [DESCRIPTORS, AVAILABLE, USED] {
        let count = usize::from(input.u8()).min(RING_BYTES);
        shadow.write(place, input.bytes(count));
    }
    if flags & PACKED == 0 {
        shadow.write(USED + 2, &used.to_le_bytes());
        shadow.write(AVAILABLE + 2, &used.wrapping_add(ahead).to_le_bytes());
    }
    let file = region(input.0);
    let first = lives(&shadow, &file, flags, size);
    let beyond = beyond(&file);
    assert!((0..).zip(beyond).all(|(at, byte)| byte == pattern(at)), "bytes beyond the region");
    if first.is_none() {
        // Now the region says what the ring has; a broken one may have requests in flight, and is as it was.
        assert_eq!(lives(&shadow, &file, flags, size), None, "what was settled is not believed");
    }
}

fn region(bytes: &[u8]) -> std::fs::File {
    let file = memfd(REGION_BYTES + BEYOND as u64, Backing::Sealed);
    let room = usize::try_from(REGION_BYTES).unwrap_or(0);
    let after: Vec<u8> = (0..BEYOND as u64).map(pattern).collect();
    let written = file
        .write_all_at(&bytes[..bytes.len().min(room)], 0)
        .and_then(|()| file.write_all_at(&after, REGION_BYTES));
    written.unwrap_or_else(|e| panic!("region: {e}"));
    file
}

fn beyond(file: &std::fs::File) -> [u8; BEYOND] {
    let mut bytes = [0; BEYOND];
    file.read_exact_at(&mut bytes, REGION_BYTES).unwrap_or_else(|e| panic!("region: {e}"));
    bytes
}

/// One worker's life: it recovers, and serves all there is. Why the ring broke, if it did.
fn lives(shadow: &Shadow, file: &std::fs::File, flags: u8, size: u16) -> Option<RingError> {
    let before = used_area(shadow);
    let mut queue = queue(shadow, file, flags, size);
    queue.recover();
    if let Some(error) = queue.broken() {
        assert!(matches!(error, RingError::Inflight(_)), "{error:?}");
        assert!(queue.next().is_none(), "a broken ring is served");
        assert_eq!(used_area(shadow), before, "a broken ring is written");
        return Some(error);
    }
    let mut out: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
    assert!(out.len() <= usize::from(size), "{} requests in flight in a ring of {size}", out.len());
    assert_eq!(usize::from(queue.in_flight()), out.len());
    let error = queue.broken();
    out.drain(..).rev().for_each(|request| queue.complete(request, 0));
    queue.flush();
    assert_eq!(queue.in_flight(), 0);
    error.or(queue.broken())
}

fn used_area(shadow: &Shadow) -> Vec<u8> {
    shadow.ram.read(USED, RING_BYTES)
}

fn queue(shadow: &Shadow, file: &std::fs::File, flags: u8, size: u16) -> Queue {
    let packed = flags & PACKED != 0;
    let user = |addr| shadow.ram.user_addr(addr);
    let (descriptor, available, used) = (user(DESCRIPTORS), user(AVAILABLE), user(USED));
    let event_idx = flags & EVENT_IDX != 0;
    let layout = Layout { size, descriptor, available, used, packed, event_idx };
    // Where nothing is known of the ring, this is.
    let base = if packed { Ring::first_base(true) } else { shadow.u16(USED + 2).into() };
    let ring = Ring::new(&shadow.memory, &layout, base);
    let fd = OwnedFd::from(file.try_clone().unwrap_or_else(|e| panic!("dup: {e}")));
    let shape = Inflight { size_bytes: REGION_BYTES, mmap_offset: 0, queues: 1, queue_size: size };
    let region = Region::adopt(fd, shape, 1, packed).unwrap_or_else(|e| panic!("{e}"));
    let setup = QueueSetup {
        index: 0,
        features: u64::from(flags & IN_ORDER != 0) << 35 | u64::from(packed) << 34,
        max_chain_bytes: 1 << 16,
        call: Signal::default(),
        error: Signal::default(),
        stats: QueueStats::default(),
        log: None,
        inflight: region.part(0, size, packed),
    };
    Queue::new(ring.unwrap_or_else(|| panic!("{layout:?}")), Arc::clone(&shadow.memory), setup)
}

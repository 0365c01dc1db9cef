//! Memory: a bump pointer with one free list for each power of two.
//!
//! Serves Rust's heap and the pages that devices reach by DMA alike. Blocks are aligned to their size,
//! so any alignment up to the block is free of charge; nothing is ever split or merged.

use crate::start_info::StartInfo;
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr::null_mut,
    sync::atomic::{AtomicBool, Ordering},
};

/// Enough for every test here; checked against the memory map at start.
const HEAP_BYTES: usize = 4 << 20;
/// The first CPU's stack lies between image and heap (boot.s).
const BOOT_STACK_BYTES: usize = 0x1_0000;
const SMALLEST: usize = 16;
const CLASSES: usize = 24;

unsafe extern "C" {
    /// End of the image in memory, made by the linker.
    static _end: u8;
}

#[global_allocator]
static HEAP: Heap = Heap {
    locked: AtomicBool::new(false),
    state: UnsafeCell::new(State { next: 0, end: 0, free: [null_mut(); CLASSES] }),
};

struct Heap {
    locked: AtomicBool,
    state: UnsafeCell<State>,
}

// SAFETY: `state` is only reached in `with`, under the lock.
unsafe impl Sync for Heap {}

struct State {
    next: usize,
    end: usize,
    /// Heads of lists of free blocks; each block's first word points to the next.
    free: [*mut u8; CLASSES],
}

/// Places the heap behind image and stack. Must run before anything allocates.
pub fn init(start_info: &StartInfo) {
    let start = ((&raw const _end).addr() + BOOT_STACK_BYTES).next_multiple_of(4096);
    assert!(start_info.is_ram(start as u64, HEAP_BYTES as u64), "no RAM for a heap behind the image");
    HEAP.with(|state| (state.next, state.end) = (start, start + HEAP_BYTES));
}

impl Heap {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        while self.locked.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        // SAFETY: the lock is held, so this is the only reference.
        let result = act(unsafe { &mut *self.state.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

/// Size and list number of the block that serves `layout`.
fn class(layout: Layout) -> (usize, usize) {
    let size = layout.size().max(layout.align()).max(SMALLEST).next_power_of_two();
    (size, size.trailing_zeros() as usize)
}

impl State {
    fn take(&mut self, size: usize, class: usize) -> *mut u8 {
        let Some(&head) = self.free.get(class) else { return null_mut() };
        if !head.is_null() {
            // SAFETY: a block on a free list is ours, aligned to 16, and holds the pointer that `give` wrote.
            self.free[class] = unsafe { head.cast::<*mut u8>().read() };
            return head;
        }
        let start = self.next.next_multiple_of(size);
        if start + size > self.end {
            return null_mut();
        }
        self.next = start + size;
        start as *mut u8
    }

    fn give(&mut self, block: *mut u8, class: usize) {
        // SAFETY: the owner has just given the block up, and it is at least 16 bytes, aligned to 16.
        unsafe { block.cast::<*mut u8>().write(self.free[class]) };
        self.free[class] = block;
    }
}

// SAFETY: blocks lie in RAM that nothing else uses, do not overlap, and are aligned to their size, which
// is at least the alignment asked for.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, class) = class(layout);
        self.with(|state| state.take(size, class))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let (_, class) = class(layout);
        self.with(|state| state.give(block, class));
    }
}

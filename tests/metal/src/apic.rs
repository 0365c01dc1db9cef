//! The local APIC (x2APIC where there is one), traps, and the start of further CPUs.
//!
//! Vectors 0..32 are exceptions: they end the guest with a line that names them. Vectors 32..48 are
//! interrupts: they are counted, acknowledged, and nothing else.

use crate::{cpu, say, serial};
use alloc::vec::Vec;
use core::{
    arch::{asm, x86_64::__cpuid},
    ptr,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

const APIC_BASE: u32 = 0x1B;
const ENABLE: u64 = 1 << 11;
const ENABLE_X2APIC: u64 = 1 << 10;
const XAPIC: u64 = 0xFEE0_0000;

/// Register numbers: offset / 16 in the xAPIC page, added to MSR 0x800 in the x2APIC.
const ID: u32 = 0x02;
const EOI: u32 = 0x0B;
const SPURIOUS: u32 = 0x0F;
const COMMAND: u32 = 0x30;
const COMMAND_HIGH: u32 = 0x31;

const NMI: usize = 2;
const FIRST_INTERRUPT: usize = 32;
const VECTORS: usize = 48;

/// The page where boot.s expects the copy of its real-mode code, as a start-up IPI names it.
const AP_TRAMPOLINE_PAGE: u32 = 0x10;
/// As boot.s has it.
const AP_STACK_BYTES: usize = 0x4000;
const MAX_APS: usize = 255;

static X2APIC: AtomicBool = AtomicBool::new(false);
static TOLERATE_NMI: AtomicBool = AtomicBool::new(false);
static INTERRUPTS: [AtomicU64; VECTORS] = [const { AtomicU64::new(0) }; VECTORS];
static APS_RUNNING: AtomicUsize = AtomicUsize::new(0);
static AP_IDS: [AtomicU64; MAX_APS] = [const { AtomicU64::new(u64::MAX) }; MAX_APS];
/// Gate descriptors, two words each.
static IDT: [AtomicU64; 2 * VECTORS] = [const { AtomicU64::new(0) }; 2 * VECTORS];

unsafe extern "C" {
    static trap_stubs: u8;
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// The lowest address of the next free stack for a further CPU (used by boot.s).
#[unsafe(no_mangle)]
static ap_next_stack: AtomicUsize = AtomicUsize::new(0);

/// What `trap_common` in boot.s leaves on the stack.
#[repr(C)]
struct Frame {
    registers: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Fills the interrupt table, loads it, and turns this CPU's APIC on.
pub fn init() {
    for vector in 0..VECTORS {
        let handler = (&raw const trap_stubs).addr() as u64 + 16 * vector as u64;
        // Intel SDM 3A 6.14.1: present, 64-bit interrupt gate, code segment 0x08.
        let low = handler & 0xFFFF | 0x08 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48;
        IDT[2 * vector].store(low, Ordering::Relaxed);
        IDT[2 * vector + 1].store(handler >> 32, Ordering::Relaxed);
    }
    load_table(VECTORS * 16);
    // The two legacy interrupt controllers stay silent: a PC's firmware leaves its timer running.
    cpu::out8(0x21, 0xFF);
    cpu::out8(0xA1, 0xFF);
    enable();
}

/// Loads an interrupt table of `bytes` bytes; with 0 the next exception cannot be delivered.
pub fn load_table(bytes: usize) {
    let limit = u16::try_from(bytes.saturating_sub(1)).unwrap_or(u16::MAX);
    let pointer = TablePointer { limit, base: (&raw const IDT).addr() as u64 };
    // SAFETY: the table lives as long as the program, and its entries point to the stubs of boot.s.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) }
}

/// Turns the APIC of this CPU on.
fn enable() {
    let x2apic = __cpuid(1).ecx & 1 << 21 != 0;
    let mode = ENABLE | if x2apic { ENABLE_X2APIC } else { 0 };
    // SAFETY: only the APIC's mode changes, and nothing depends on it before this.
    unsafe { cpu::write_msr(APIC_BASE, cpu::read_msr(APIC_BASE) | mode) };
    X2APIC.store(x2apic, Ordering::Relaxed);
    write(SPURIOUS, 0x100 | 0x2F);
}

fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        return (cpu::read_msr(0x800 + register) & 0xFFFF_FFFF) as u32;
    }
    // SAFETY: the APIC's page is mapped one to one, and this is one of its registers.
    unsafe { ptr::read_volatile((XAPIC + 16 * u64::from(register)) as *const u32) }
}

fn write(register: u32, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: an APIC register; it takes nothing away from running code.
        unsafe { cpu::write_msr(0x800 + register, u64::from(value)) };
    } else {
        // SAFETY: the APIC's page is mapped one to one, and this is one of its registers.
        unsafe { ptr::write_volatile((XAPIC + 16 * u64::from(register)) as *mut u32, value) };
    }
}

/// This CPU's APIC ID.
pub fn id() -> u32 {
    let id = read(ID);
    if X2APIC.load(Ordering::Relaxed) { id } else { id >> 24 }
}

/// Sends an inter-processor interrupt: `command` is the low word of the command register.
fn send(apic_id: u32, command: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: reaches only CPUs that run no Rust code yet.
        unsafe { cpu::write_msr(0x800 + COMMAND, u64::from(apic_id) << 32 | u64::from(command)) };
    } else {
        write(COMMAND_HIGH, apic_id << 24);
        write(COMMAND, command);
    }
}

/// How often interrupt `vector` (32..48) came so far.
pub fn interrupts(vector: u8) -> u64 {
    INTERRUPTS[usize::from(vector)].load(Ordering::Acquire)
}

/// From now on a non-maskable interrupt is counted, not fatal: a guest that writes nonsense into an
/// MSI-X table may well send itself one.
pub fn tolerate_nmi() {
    TOLERATE_NMI.store(true, Ordering::Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &Frame) {
    let vector = usize::try_from(frame.vector).unwrap_or(0);
    if vector >= FIRST_INTERRUPT {
        INTERRUPTS[vector].fetch_add(1, Ordering::Release);
        write(EOI, 0);
    } else if !(vector == NMI && TOLERATE_NMI.load(Ordering::Relaxed)) {
        say!("exception {vector} at {:#x}, error code {:#x}", frame.rip, frame.error_code);
        serial::report_panic();
        cpu::halt();
    }
}

/// Starts the CPUs with these APIC IDs, and waits until all of them run. Returns the IDs they report.
pub fn start(apic_ids: &[u32]) -> impl Iterator<Item = u64> {
    assert!(apic_ids.len() <= MAX_APS, "more CPUs than stacks");
    place_trampoline();
    let stacks = Vec::<u8>::leak(Vec::with_capacity(apic_ids.len() * AP_STACK_BYTES + 16));
    ap_next_stack.store(stacks.as_ptr().addr().next_multiple_of(16), Ordering::Relaxed);
    for &apic_id in apic_ids {
        send(apic_id, 0x4500); // INIT
        send(apic_id, 0x4600 | AP_TRAMPOLINE_PAGE); // start-up
    }
    while APS_RUNNING.load(Ordering::Acquire) < apic_ids.len() {
        core::hint::spin_loop();
    }
    AP_IDS[..apic_ids.len()].iter().map(|id| id.load(Ordering::Relaxed))
}

fn place_trampoline() {
    let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    let target = (AP_TRAMPOLINE_PAGE << 12) as *mut u8;
    // SAFETY: both lie in boot.s; the target is RAM below 1 MiB that nothing uses after start.
    unsafe { ptr::copy_nonoverlapping(start, target, end.addr() - start.addr()) };
}

#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    load_table(VECTORS * 16);
    enable();
    record_ap(u64::from(id()));
    cpu::halt()
}

/// Puts this CPU's ID into the first free slot, then counts it.
fn record_ap(id: u64) {
    let free =
        |slot: &&AtomicU64| slot.compare_exchange(u64::MAX, id, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    assert!(AP_IDS.iter().find(free).is_some(), "more CPUs than asked for");
    APS_RUNNING.fetch_add(1, Ordering::Release);
}

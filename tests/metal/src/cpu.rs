//! The few instructions that Rust has no word for: port I/O, model-specific registers, waiting.
//!
//! All functions here are safe to call in this guest because it owns the whole machine: no port or
//! register it may touch breaks a promise that Rust relies on, except those marked `unsafe`.

use core::arch::asm;

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: port I/O touches no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Writes 16 bits to an I/O port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: port I/O touches no memory of this program.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) }
}

/// Reads a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: port I/O touches no memory of this program.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads a model-specific register that exists on every x86-64 CPU.
pub fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a register changes nothing; one that does not exist ends in our own trap handler.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must not take away what running code needs (long mode, the code segment, ...).
pub unsafe fn write_msr(register: u32, value: u64) {
    let (low, high) = (value & 0xFFFF_FFFF, value >> 32);
    // SAFETY: the caller answers for the value.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("rax") low, in("rdx") high, options(nostack, preserves_flags))
    }
}

/// Sleeps until `ready` holds, waking at each interrupt. Interrupts are off before and after.
pub fn sleep_until(ready: impl Fn() -> bool) {
    while !ready() {
        // SAFETY: every vector has a handler. `sti` takes effect after the next instruction, so an
        // interrupt between the check and `hlt` still ends the `hlt`.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
    }
}

/// Lets interrupts that already wait come through now.
pub fn open_window() {
    // SAFETY: every vector has a handler; `nop` is the instruction after which `sti` takes effect.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off nothing runs any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

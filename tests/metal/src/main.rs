//! A bare-metal guest: it boots in microseconds, does one thing to the VMM or to a device, says how it went
//! on the serial port, and powers off.
//!
//! `metal=CASE` on the kernel command line names the test (`cases/`); its options stand beside it. A case
//! that succeeds prints `metal: ok` and powers off (or resets, if the word `then-reset` stands there; with
//! `wait` it first waits for a byte on the serial port); one that fails prints `metal: FAILED: reason` and
//! reports a guest panic. The CPU needs no SSE, and no instruction that a software KVM cannot interpret.
//!
//! ```text
//! boot.s -> main -> start_info -> acpi -> cases -> virtio -> pci, msix
//!                        heap, dma           apic (traps, CPUs), serial, cpu
//! ```

#![no_std]
#![no_main]

extern crate alloc;

mod acpi;

mod apic;
mod cases;
mod cpu;
mod dma;
mod heap;
mod msix;
mod options;
mod pci;
mod random;
mod serial;
mod start_info;
mod virtio;

use core::{arch::global_asm, panic::PanicInfo};

global_asm!(include_str!("boot.s"), options(att_syntax));

/// Where boot.s arrives, on the first CPU, with interrupts off and the first 4 GiB mapped one to one.
#[unsafe(no_mangle)]
extern "C" fn metal_main(start_info: u64) -> ! {
    serial::init();
    // SAFETY: boot.s hands on what the VMM passed.
    let start_info = unsafe { start_info::StartInfo::at(start_info) };
    heap::init(start_info);
    apic::init();
    let machine = cases::Machine::new(start_info);
    if machine.options.has("wait") {
        wait_for_host();
    }
    match cases::run(&machine) {
        Ok(()) => say!("ok"),
        Err(reason) => {
            say!("FAILED: {reason}");
            serial::report_panic();
        }
    }
    if machine.options.has("then-reset") {
        machine.acpi.reset();
    }
    machine.acpi.power_off();
    give_up("still here after power-off")
}

/// Lets the host prepare something: it types a byte when it has.
fn wait_for_host() {
    say!("waiting");
    while serial::read().is_none() {
        core::hint::spin_loop();
    }
}

/// The end of a guest that asked to be stopped. A machine may take a moment for it, but not for ever.
fn give_up(reason: &str) -> ! {
    for _ in 0..1 << 26 {
        core::hint::spin_loop();
    }
    say!("FAILED: {reason}");
    serial::report_panic();
    cpu::halt()
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    say!("FAILED: {info}");
    serial::report_panic();
    cpu::halt()
}

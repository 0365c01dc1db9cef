//! `metal=reset`, `metal=panic`, `metal=triple`: ways for a guest to end other than power-off; and `metal=idle`,
//! which does not end.

use super::{Machine, Outcome};
use crate::{apic, cpu, say, serial};
use core::arch::asm;

/// By the reset register of the FADT.
pub fn reset(machine: &Machine) -> Outcome {
    say!("reset");
    machine.acpi.reset();
    crate::give_up("still here after the reset")
}

/// Never: the host has to end it.
pub fn idle() -> Outcome {
    say!("idle");
    cpu::halt()
}

/// By the pvpanic port; a VMM that ignores it sees a CPU that sleeps for ever.
pub fn panic() -> Outcome {
    say!("panic");
    serial::report_panic();
    cpu::halt()
}

/// By an exception that cannot be delivered.
pub fn triple_fault() -> Outcome {
    say!("triple fault");
    apic::load_table(0);
    // SAFETY: an invalid instruction; without an interrupt table it ends in the shutdown wanted here.
    unsafe { asm!("ud2", options(noreturn)) }
}

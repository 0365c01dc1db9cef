//! `metal=badop`: an instruction that no KVM can emulate: SSE arithmetic on a device register.
//!
//! The VMM must report an internal error with the address and the bytes of this code.

use super::{Machine, Outcome};
use crate::say;
use core::arch::asm;

pub fn run(machine: &Machine) -> Outcome {
    say!("badop");
    // SAFETY: turns SSE on (CR0.EM off, CR0.MP on, CR4.OSFXSR on) and reads the configuration space of the
    // host bridge into a register that this soft-float program does not use.
    unsafe {
        asm!(
            "mov {t}, cr0", "and {t}, -5", "or {t}, 2", "mov cr0, {t}",
            "mov {t}, cr4", "or {t}, 0x600", "mov cr4, {t}",
            "xorps xmm0, [rax]",
            t = out(reg) _, in("rax") machine.acpi.ecam(), options(nostack),
        );
    }
    Err("an instruction that cannot be emulated was".into())
}

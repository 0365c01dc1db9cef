//! `metal=badop`: an instruction that is right, and that a KVM without hardware support may not know.
//!
//! On such a KVM the VMM must report an internal error with the address and the bytes of this code.

use super::Outcome;
use crate::say;
use core::arch::asm;

pub fn run() -> Outcome {
    say!("badop");
    // SAFETY: turns SSE on (CR0.EM off, CR0.MP on, CR4.OSFXSR on) and zeroes a register that this
    // soft-float program does not use.
    unsafe {
        asm!(
            "mov {t}, cr0", "and {t}, -5", "or {t}, 2", "mov cr0, {t}",
            "mov {t}, cr4", "or {t}, 0x600", "mov cr4, {t}",
            "xorps xmm0, xmm0",
            t = out(reg) _, options(nostack),
        );
    }
    say!("badop executed");
    Ok(())
}

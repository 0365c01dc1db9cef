//! `metal=irq`: MSI-X as the PCI specification has it (PCI 3.0, 6.8.2): one interrupt a request while
//! unmasked; none while masked, but a pending bit; exactly one after unmasking.

use super::{Machine, Outcome, rng::Rng};
use crate::{apic, cpu, cpu::sleep_until, say, virtio::FIRST_INTERRUPT};
use alloc::{format, string::String};
use virtio_drivers::transport::DeviceType;

const REQUESTS: u64 = 10;

pub fn run(machine: &Machine) -> Outcome {
    let mut rng = Rng::new(machine.virtio(DeviceType::EntropySource, true)?, 64)?;
    unmasked(&mut rng)?;
    say!("irq unmasked");
    masked(&mut rng)?;
    say!("irq pending");
    unmasked(&mut rng)
}

fn count() -> u64 {
    apic::interrupts(FIRST_INTERRUPT)
}

fn unmasked(rng: &mut Rng) -> Outcome {
    let before = count();
    for _ in 0..REQUESTS {
        rng.fill()?;
    }
    match count() - before {
        REQUESTS => Ok(()),
        other => Err(format!("{other} interrupts for {REQUESTS} requests")),
    }
}

fn masked(rng: &mut Rng) -> Outcome {
    let before = count();
    mask(rng, true)?;
    rng.request()?;
    while !rng.has_answer() || !is_pending(rng)? {
        core::hint::spin_loop();
    }
    cpu::open_window();
    if count() != before {
        return Err("an interrupt came through the mask".into());
    }
    mask(rng, false)?;
    sleep_until(|| count() != before);
    if is_pending(rng)? {
        return Err("the pending bit stays set after delivery".into());
    }
    rng.take().map(|_| ())
}

fn mask(rng: &Rng, masked: bool) -> Outcome {
    rng.transport().msix.as_ref().ok_or("no MSI-X")?.mask(0, masked);
    Ok(())
}

fn is_pending(rng: &Rng) -> Result<bool, String> {
    Ok(rng.transport().msix.as_ref().ok_or("no MSI-X")?.is_pending(0))
}

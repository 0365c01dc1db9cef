//! `metal=smp`: every CPU of the MADT starts by INIT and start-up IPI, and reports the ID it was called by.

use super::{Machine, Outcome};
use crate::{apic, say};
use alloc::{format, vec::Vec};

pub fn run(machine: &Machine) -> Outcome {
    let cpus = machine.acpi.cpus();
    let own = apic::id();
    if !cpus.contains(&own) {
        return Err(format!("the first CPU has APIC ID {own}, the MADT names {cpus:?}"));
    }
    let others: Vec<u32> = cpus.into_iter().filter(|&id| id != own).collect();
    let mut reported: Vec<u64> = apic::start(&others).collect();
    reported.sort_unstable();
    let mut wanted: Vec<u64> = others.iter().copied().map(u64::from).collect();
    wanted.sort_unstable();
    if reported != wanted {
        return Err(format!("started CPUs {wanted:?}, but {reported:?} run"));
    }
    say!("smp {} CPUs", 1 + reported.len());
    Ok(())
}

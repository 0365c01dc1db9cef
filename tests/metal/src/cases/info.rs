//! `metal=info`: prints what the VMM built: memory, tables, CPUs, PCI functions.

use super::{Machine, Outcome};
use crate::say;

pub fn run(machine: &Machine) -> Outcome {
    say!("cmdline {}", machine.options.0);
    for range in machine.start_info.ram() {
        say!("ram {:#x} +{:#x}", range.start, range.bytes);
    }
    machine.acpi.describe();
    let mut bus = machine.bus();
    for function in bus.functions() {
        say!("pci {} {}", function.at, function.info);
        for (index, bar) in bus.bars(function.at)?.iter().enumerate() {
            let Some(bar) = bar else { continue };
            say!("pci {} bar {index} {bar}", function.at);
        }
    }
    Ok(())
}

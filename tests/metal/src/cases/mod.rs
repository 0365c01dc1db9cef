//! The tests, one file each, chosen by `metal=CASE`.

mod badop;
mod blk;
mod console;
mod evil_pci;
mod hold;
mod info;
mod irq;
mod outlive;
mod queues;
mod rng;
mod smp;
mod stop;

use crate::{acpi::Acpi, options::Options, say, start_info::StartInfo, virtio::VirtioPci};
use alloc::{format, string::String};
use virtio_drivers::transport::DeviceType;

/// What every test gets.
pub struct Machine {
    /// What the VMM handed over.
    pub start_info: &'static StartInfo,
    /// The words of the command line.
    pub options: Options,
    /// The firmware tables.
    pub acpi: Acpi,
}

/// A test ends well or with a reason.
pub type Outcome = Result<(), String>;

impl Machine {
    /// Reads the tables that the VMM points to.
    pub fn new(start_info: &'static StartInfo) -> Self {
        let options = Options(start_info.cmdline());
        Self { start_info, options, acpi: Acpi::new(start_info.rsdp()) }
    }

    /// The PCI bus.
    pub fn bus(&self) -> crate::pci::Bus {
        crate::pci::Bus::new(self.acpi.ecam())
    }

    /// The first virtio device of this type. The word `hide=BITS` on the command line hides features.
    pub fn virtio(&self, kind: DeviceType, interrupts: bool) -> Result<VirtioPci, String> {
        let visible = !self.options.number("hide", 0);
        VirtioPci::new(&mut self.bus(), kind, visible, interrupts)
    }
}

/// Runs the test that the command line names.
pub fn run(machine: &Machine) -> Outcome {
    match machine.options.text("metal") {
        Some("hello") => hello(),
        Some("info") => info::run(machine),
        Some("idle") => stop::idle(),
        Some("reset") => stop::reset(machine),
        Some("panic") => stop::panic(),
        Some("triple") => stop::triple_fault(),
        Some("badop") => badop::run(machine),
        Some("smp") => smp::run(machine),
        Some("rng") => rng::run(machine),
        Some("queues") => queues::run(machine),
        Some("irq") => irq::run(machine),
        Some("hold") => hold::run(machine),
        Some("outlive") => outlive::run(machine),
        Some("blk") => blk::run(machine),
        Some("console") => console::run(machine),
        Some("evil-pci") => evil_pci::run(machine),
        other => Err(format!("the command line says metal={}, which is no test", other.unwrap_or(""))),
    }
}

fn hello() -> Outcome {
    say!("hello");
    Ok(())
}

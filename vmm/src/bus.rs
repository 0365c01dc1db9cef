//! Where the exits of a vCPU go: ports and addresses to the few things that live in this process.
//!
//! Called by all vCPU threads at once. What belongs to nobody reads as all ones and swallows writes, as on a PC.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::sync::Arc;

use crate::layout;
use crate::pci::PciRoot;
use crate::power::{self, Request};
use crate::serial::{self, SerialPort};
use crate::timings::Timings;

/// Everything that a guest can reach by an exit.
pub struct Bus {
    pci: Arc<PciRoot>,
    serial: Option<Arc<SerialPort>>,
    timings: Arc<Timings>,
}

impl Bus {
    /// Joins the parts.
    pub fn new(pci: Arc<PciRoot>, serial: Option<Arc<SerialPort>>, timings: Arc<Timings>) -> Bus {
        Bus { pci, serial, timings }
    }

    /// The counters that every exit moves.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Port write. A repeated string instruction arrives with all its bytes; the first one counts for registers.
    pub fn io_write(&self, port: u16, data: &[u8]) -> Option<Request> {
        match (&self.serial, data) {
            (Some(serial), _) if serial::owns(port) => serial.write(port, data),
            (_, [value, ..]) if port == layout::PORT_MARK => self.timings.mark(*value),
            (_, [value, ..]) => return power::write(port, *value),
            _ => {}
        }
        None
    }

    /// Port read.
    pub fn io_read(&self, port: u16, data: &mut [u8]) {
        match &self.serial {
            Some(serial) if serial::owns(port) => serial.read(port, data),
            _ => data.fill(power::read(port).unwrap_or(0xFF)),
        }
    }

    /// Memory write outside RAM.
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.pci.write(gpa, data);
    }

    /// Memory read outside RAM.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        if !self.pci.read(gpa, data) {
            data.fill(0xFF);
        }
    }
}

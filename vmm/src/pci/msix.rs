//! MSI-X of a virtio function (PCI 3.0 §6.8.2): table, pending bits, masks; and the interrupt lines behind them.
//!
//! A function has as many vectors as sources of interrupts: line 0 is the configuration change, line 1 + n is
//! virtqueue n. A driver may point several lines at one vector, or none at all. Each line has an eventfd and a
//! GSI for its whole life ([`IrqLine`]), so whatever a guest does to the table here ends in routes of GSIs and
//! in lines attached or detached, and never in a message to the daemon that raises the eventfd.
//!
//! A vector is *open* when MSI-X is on and neither the function nor the vector is masked. Lines of an open
//! vector are attached. Otherwise their eventfds keep what is raised: that is the pending bit, and it is
//! delivered when the vector opens.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::sync::Arc;

use backends::log::{self, Class};

use crate::kvm::event::Event;
use crate::kvm::irq::{IrqError, IrqLine, IrqRouter, MsiMessage};

/// Capability id of MSI-X.
pub const CAPABILITY_ID: u8 = 0x11;
/// Offset of the message control word in the capability.
pub const CONTROL: usize = 2;
/// Bits of the message control word that a guest may change.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
/// A line that is not pointed at any vector (virtio 1.3 §4.1.5.1.2, VIRTIO_MSI_NO_VECTOR).
pub const NO_VECTOR: u16 = 0xffff;
/// Line of the configuration change.
pub const CONFIG_LINE: usize = 0;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const ENTRY_BYTES: usize = 16;
const ENTRY_MASKED: u8 = 1;

/// Line of a virtqueue.
pub fn queue_line(queue: u16) -> usize {
    usize::from(queue).saturating_add(1)
}

struct Line {
    irq: IrqLine,
    vector: u16,
}

/// One table entry; the last four bytes are the vector control word, of which bit 0 masks.
type Entry = [u8; ENTRY_BYTES];
const RESET_ENTRY: Entry = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ENTRY_MASKED, 0, 0, 0];

/// MSI-X of one function.
pub struct Msix {
    router: Arc<IrqRouter>,
    entries: Vec<Entry>,
    control: u16,
    lines: Vec<Line>,
}

impl Msix {
    /// With a line and a vector for the configuration and each of `queues` queues; everything masked.
    pub fn new(router: &Arc<IrqRouter>, queues: u16) -> Result<Msix, IrqError> {
        let count = queue_line(queues);
        let line = |_| router.line().map(|irq| Line { irq, vector: NO_VECTOR });
        let lines = (0..count).map(line).collect::<Result<Vec<_>, _>>()?;
        Ok(Msix { router: Arc::clone(router), entries: vec![RESET_ENTRY; count], control: 0, lines })
    }

    /// What follows id and next pointer in the capability, with table and pending bits in BAR 0.
    pub fn capability(&self, table: u32, pending: u32) -> Vec<u8> {
        let size = u16::try_from(self.entries.len().saturating_sub(1)).unwrap_or(0);
        let mut body = size.to_le_bytes().to_vec();
        body.extend(table.to_le_bytes());
        body.extend(pending.to_le_bytes());
        body
    }

    /// The eventfd of a line.
    pub fn event(&self, line: usize) -> Option<&Arc<Event>> {
        self.lines.get(line).map(|line| line.irq.event())
    }

    /// The vector a line is pointed at.
    pub fn vector(&self, line: usize) -> u16 {
        self.lines.get(line).map_or(NO_VECTOR, |line| line.vector)
    }

    /// Points a line at a vector; at none if there is no such vector, which the driver learns by reading back.
    pub fn set_vector(&mut self, line: usize, vector: u16) {
        let exists = usize::from(vector) < self.entries.len();
        if let Some(line) = self.lines.get_mut(line) {
            // What was raised while nobody listened is owed to nobody.
            if line.vector == NO_VECTOR {
                line.irq.event().take();
            }
            line.vector = if exists { vector } else { NO_VECTOR };
        }
        self.sync(|index, _| index == line);
    }

    /// The message control word was written.
    pub fn set_control(&mut self, control: u16) {
        if self.control != control & CONTROL_WRITABLE {
            self.control = control & CONTROL_WRITABLE;
            self.sync(|_, _| true);
        }
    }

    /// Serves a read of the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let from = self.entries.as_flattened().get(offset..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// Serves a write of the table.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        let to = self.entries.as_flattened_mut().get_mut(offset..).unwrap_or_default();
        to.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let end = offset.saturating_add(data.len()).saturating_sub(1);
        let touched = offset / ENTRY_BYTES..=end / ENTRY_BYTES;
        self.sync(|_, vector| touched.contains(&usize::from(vector)));
    }

    /// Serves a read of the pending bits: which vectors that are not open have something to deliver.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for line in self.lines.iter().filter(|line| self.message(line.vector).is_none()) {
            let vector = usize::from(line.vector);
            let byte = (vector / 8).checked_sub(offset).and_then(|at| data.get_mut(at));
            if let Some(byte) = byte.filter(|_| line.vector != NO_VECTOR && line.irq.event().is_raised()) {
                *byte |= 1 << (vector % 8);
            }
        }
    }

    /// The virtio device is reset: no line is pointed anywhere, nothing is pending. The table stays.
    pub fn forget_vectors(&mut self) {
        self.lines.iter_mut().for_each(|line| line.vector = NO_VECTOR);
        self.sync(|_, _| true);
        for line in &self.lines {
            line.irq.event().take();
        }
    }

    /// The function is reset.
    pub fn reset(&mut self) {
        self.control = 0;
        self.entries.fill(RESET_ENTRY);
        self.forget_vectors();
    }

    /// Brings the lines that `which` picks, by index and vector, to what the table says.
    fn sync(&mut self, which: impl Fn(usize, u16) -> bool) {
        let messages: Vec<_> = self.lines.iter().map(|line| self.message(line.vector)).collect();
        let mut wanted: Vec<_> = self
            .lines
            .iter_mut()
            .zip(messages)
            .enumerate()
            .filter(|(index, (line, _))| which(*index, line.vector))
            .map(|(_, (line, message))| (&mut line.irq, message))
            .collect();
        if let Err(error) = self.router.apply(&mut wanted) {
            log::line!(error, Class::Interrupts, "Interrupts of a device stay masked: {error}");
        }
    }

    /// What an open vector sends.
    fn message(&self, vector: u16) -> Option<MsiMessage> {
        let open = self.control & CONTROL_WRITABLE == CONTROL_ENABLE;
        let entry = self.entries.get(usize::from(vector)).filter(|_| open)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, control, ..] = *entry;
        (control & ENTRY_MASKED == 0).then(|| MsiMessage {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            data: u32::from_le_bytes([i, j, k, l]),
        })
    }
}

#[cfg(test)]
#[path = "msix_tests.rs"]
mod tests;

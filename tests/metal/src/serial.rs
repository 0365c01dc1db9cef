//! The 8250 at port 0x3f8, and the two one-byte side doors of a test: "marks" and the panic port.
//!
//! Every access is an exit of the VMM, so the transmitter is asked once for each full FIFO (16 bytes),
//! which is correct on a 16550A and costs half.

use crate::cpu::{in8, out8};
use core::fmt::{self, Write};

const DATA: u16 = 0x3F8;
const FIFO_CONTROL: u16 = DATA + 2;
const LINE_STATUS: u16 = DATA + 5;
const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
const FIFO_BYTES: usize = 16;

/// Port whose writes the VMM notes in its `--timings` file.
const MARK: u16 = 0x80;
/// The pvpanic port, and its "guest has panicked" bit.
const PANIC: u16 = 0x505;
const PANICKED: u8 = 1 << 0;

/// The serial port as a [`Write`].
struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for burst in text.as_bytes().chunks(FIFO_BYTES) {
            while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            burst.iter().for_each(|&byte| out8(DATA, byte));
        }
        Ok(())
    }
}

/// Turns the FIFOs on, which [`Serial`] relies on.
pub fn init() {
    out8(FIFO_CONTROL, 0x07);
}

/// Prints one line; the body of [`say!`](crate::say).
pub fn print_line(text: fmt::Arguments) {
    // The port never refuses a byte.
    let _ = Serial
        .write_str("metal: ")
        .and_then(|()| Serial.write_fmt(text))
        .and_then(|()| Serial.write_str("\n"));
}

/// A byte that the host typed, if there is one.
pub fn read() -> Option<u8> {
    (in8(LINE_STATUS) & DATA_READY != 0).then(|| in8(DATA))
}

/// Leaves a mark in the VMM's timings.
pub fn mark(value: u8) {
    out8(MARK, value);
}

/// Tells the VMM that this guest has panicked.
pub fn report_panic() {
    out8(PANIC, PANICKED);
}

/// Prints one line on the serial port, after `metal: `.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => { $crate::serial::print_line(format_args!($($arguments)*)) };
}

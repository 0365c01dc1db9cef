//! The ports by which a guest switches off, resets, or says that it panicked.
//!
//! Pure: a port and a byte in, what the guest wants out. The machine decides what becomes of it.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use crate::boot::acpi::{RESET_VALUE, SLEEP_TYPE_S5};
use crate::layout;

/// `SLP_EN` of the sleep control register (ACPI 6.5, 4.8.3.7): the write takes effect.
const SLEEP_ENABLE: u8 = 1 << 5;
/// `SLP_TYP`: three bits from bit 2.
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
/// i8042 command "pulse the reset line".
const I8042_RESET: u8 = 0xFE;
/// pvpanic events: the guest panicked, or it panicked and its crash kernel is about to run.
const PVPANIC_PANICKED: u8 = 1 << 0;
const PVPANIC_CRASH_LOADED: u8 = 1 << 1;

/// What a guest asked of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Switch off.
    PowerOff,
    /// Start again.
    Reset,
    /// The guest's kernel panicked and cannot go on.
    Panic,
}

/// What a write of `value` to `port` asks for.
pub fn write(port: u16, value: u8) -> Option<Request> {
    match port {
        layout::PORT_SLEEP_CONTROL => {
            let off =
                value & SLEEP_ENABLE != 0 && (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK == SLEEP_TYPE_S5;
            off.then_some(Request::PowerOff)
        }
        layout::PORT_RESET => (value == RESET_VALUE).then_some(Request::Reset),
        layout::PORT_I8042 => (value == I8042_RESET).then_some(Request::Reset),
        // A guest whose crash kernel takes over is still at work: let it write its dump.
        layout::PORT_PVPANIC => (value & PVPANIC_PANICKED != 0).then_some(Request::Panic),
        _ => None,
    }
}

/// What a read of one of these ports returns; `None` for a port that is not one of them.
pub fn read(port: u16) -> Option<u8> {
    match port {
        layout::PORT_SLEEP_CONTROL | layout::PORT_SLEEP_STATUS | layout::PORT_RESET => Some(0),
        // Status of a controller with nothing to say, so that a guest that waits for it goes on.
        layout::PORT_I8042 => Some(0),
        layout::PORT_PVPANIC => Some(PVPANIC_PANICKED | PVPANIC_CRASH_LOADED),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_the_enable_bit_switches_off() {
        assert_eq!(write(layout::PORT_SLEEP_CONTROL, 5 << 2 | 1 << 5), Some(Request::PowerOff));
        assert_eq!(write(layout::PORT_SLEEP_CONTROL, 5 << 2), None);
        assert_eq!(write(layout::PORT_SLEEP_CONTROL, 3 << 2 | 1 << 5), None);
    }

    #[test]
    fn resets_and_panics_need_their_exact_values() {
        assert_eq!(write(layout::PORT_RESET, 1), Some(Request::Reset));
        assert_eq!(write(layout::PORT_RESET, 0), None);
        assert_eq!(write(layout::PORT_I8042, 0xFE), Some(Request::Reset));
        assert_eq!(write(layout::PORT_I8042, 0xD1), None);
        assert_eq!(write(layout::PORT_PVPANIC, 1), Some(Request::Panic));
        assert_eq!(write(layout::PORT_PVPANIC, 2), None);
        assert_eq!(read(layout::PORT_PVPANIC), Some(3));
        assert_eq!(read(0x1234), None);
    }
}

//! Standard input as the keyboard of the serial line.
//!
//! Bytes go to the guest as fast as its FIFO takes them and wait in standard input otherwise: nothing is dropped,
//! nothing grows. On a terminal every key goes to the guest, Ctrl-C too; Ctrl-A then X ends the VMM, Ctrl-A twice
//! sends one Ctrl-A. The terminal is restored when [`Input`] is dropped.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::termios::{InputModes, LocalModes, OptionalActions, Termios};

use crate::serial::SerialPort;

/// Size of the FIFO of the 8250, and so of a useful read.
const READ_BYTES: usize = 64;
/// Ctrl-A, which begins a command to the VMM itself.
const ESCAPE: u8 = 0x01;

/// What became of a piece of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// The guest has taken everything: read on.
    All,
    /// The FIFO is full or the port busy: wait until it is drained.
    Waiting,
    /// There will be no more input.
    Closed,
    /// The operator asked for the end.
    Quit,
}

/// Reads standard input and remembers what the guest could not take yet.
pub struct Input {
    terminal: Option<RawTerminal>,
    escaped: bool,
    pending: Vec<u8>,
}

impl Input {
    /// Prepares standard input; a terminal becomes raw.
    pub fn open() -> io::Result<Input> {
        Ok(Input { terminal: RawTerminal::enter()?, escaped: false, pending: Vec::new() })
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> BorrowedFd<'static> {
        rustix::stdio::stdin()
    }

    /// Reads once and hands the bytes to the guest. Call it when standard input is readable.
    pub fn read_into(&mut self, serial: &SerialPort) -> Fed {
        let mut bytes = [0; READ_BYTES];
        match rustix::io::read(self.fd(), &mut bytes) {
            Ok(0) => Fed::Closed,
            Ok(count) => match self.filter(&bytes[..count]) {
                Fed::Quit => Fed::Quit,
                _ => self.flush_into(serial),
            },
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Fed::All,
            Err(_) => Fed::Closed,
        }
    }

    /// Hands over what was left. Call it when the FIFO is drained.
    pub fn flush_into(&mut self, serial: &SerialPort) -> Fed {
        let taken = serial.input(&self.pending);
        self.pending.drain(..taken);
        if self.pending.is_empty() { Fed::All } else { Fed::Waiting }
    }

    /// Takes the operator's commands out of the input of a terminal.
    fn filter(&mut self, bytes: &[u8]) -> Fed {
        if self.terminal.is_none() {
            self.pending.extend_from_slice(bytes);
            return Fed::All;
        }
        for byte in bytes {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, b'x' | b'X') => return Fed::Quit,
                (false, ESCAPE) => self.escaped = true,
                (_, byte) => self.pending.push(byte),
            }
        }
        Fed::All
    }
}

/// A terminal in raw mode until dropped.
struct RawTerminal {
    saved: Termios,
}

impl RawTerminal {
    /// `None` when standard input is not a terminal.
    fn enter() -> io::Result<Option<RawTerminal>> {
        let stdin = rustix::stdio::stdin();
        if !rustix::termios::isatty(stdin) {
            return Ok(None);
        }
        let saved = rustix::termios::tcgetattr(stdin)?;
        let mut raw = saved.clone();
        // Output processing stays on: messages of the VMM itself still begin at the left margin.
        raw.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN);
        raw.input_modes &= !(InputModes::ICRNL | InputModes::IXON);
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Some(RawTerminal { saved }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing is left to do for a terminal that has gone away.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.saved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (tempfile::TempDir, SerialPort) {
        let dir = tempfile::tempdir().unwrap();
        let port = SerialPort::new(std::fs::File::create(dir.path().join("log")).unwrap()).unwrap();
        (dir, port)
    }

    #[test]
    fn what_the_fifo_does_not_take_waits_in_order() {
        let (_dir, serial) = port();
        let bytes: Vec<u8> = (0..100).collect();
        let mut input = Input { terminal: None, escaped: false, pending: bytes.clone() };
        assert_eq!(input.flush_into(&serial), Fed::Waiting);
        let mut read = [0; 64];
        serial.read(crate::layout::PORT_COM1, &mut read);
        assert_eq!(input.flush_into(&serial), Fed::All);
        let mut rest = [0; 36];
        serial.read(crate::layout::PORT_COM1, &mut rest);
        assert_eq!([&read[..], &rest[..]].concat(), bytes);
    }
}

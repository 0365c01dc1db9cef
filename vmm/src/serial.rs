//! COM1: an 8250 (`vm-superio`) on the usual ports, for early messages.
//!
//! Out: each byte the guest sends is written at once to standard output or a file. In: what the main loop reads
//! from standard input, as much as the 64-byte FIFO takes; [`SerialPort::drained`] tells when there is room again.
//! A vCPU waits while standard output is full, so that no byte is lost, and gives up only when it is to stop
//! ([`SerialPort::hurry`]). The main loop never waits with it: input that finds the port busy stays where it is.
//! Interrupts go by irqfd. With `--serial off` none of this exists and the ports read as all ones.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};

use crate::contended::Contended;
use crate::kvm::event::Event;
use crate::layout;

/// Offset of the modem control register.
const MODEM_CONTROL: u8 = 4;

/// Where the serial line leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialMode {
    /// Standard input and output of the VMM.
    Stdio,
    /// There is no serial line.
    Off,
    /// Output goes to a file, there is no input.
    File(PathBuf),
}

impl std::str::FromStr for SerialMode {
    type Err = String;

    fn from_str(text: &str) -> Result<SerialMode, String> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(SerialMode::Stdio),
            ("off", _) => Ok(SerialMode::Off),
            (_, Some(path)) if !path.is_empty() => Ok(SerialMode::File(path.into())),
            _ => Err("use stdio, off or file=PATH".to_owned()),
        }
    }
}

/// The interrupt line of the 8250: an eventfd that KVM turns into GSI 4.
struct Irq(Arc<Event>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.raise();
        Ok(())
    }
}

/// Tells the main loop that the guest has emptied the FIFO, but only when somebody waits for it.
struct FifoWatch {
    drained: Arc<Event>,
    waited_for: Arc<AtomicBool>,
}

impl SerialEvents for FifoWatch {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.waited_for.swap(false, Ordering::AcqRel) {
            self.drained.raise();
        }
    }
}

/// Unbuffered output that waits while standard output is full, unless it is to hurry.
struct Output {
    file: File,
    hurry: Arc<Event>,
}

impl Output {
    /// Waits until a byte can be written. It looks before it writes, since a write that has begun would wait for
    /// as long as it likes.
    fn wait(&self) -> io::Result<()> {
        let file = PollFd::new(&self.file, PollFlags::OUT);
        let mut watched = [file, PollFd::new(&*self.hurry, PollFlags::IN)];
        while let Err(error) = rustix::event::poll(&mut watched, None) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let [file, _] = watched;
        match file.revents().is_empty() {
            true => Err(ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait()?;
            match self.file.write(bytes) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<Irq, FifoWatch, Output>;

/// The serial line of a machine.
pub struct SerialPort {
    uart: Contended<Uart>,
    irq: Arc<Event>,
    drained: Arc<Event>,
    waited_for: Arc<AtomicBool>,
    hurry: Arc<Event>,
}

impl SerialPort {
    /// A serial line whose output goes to `output`.
    pub fn new(output: File) -> io::Result<SerialPort> {
        let event = || Event::new().map(Arc::new);
        let (irq, drained, hurry) = (event()?, event()?, event()?);
        let waited_for = Arc::new(AtomicBool::new(false));
        let watch = FifoWatch { drained: Arc::clone(&drained), waited_for: Arc::clone(&waited_for) };
        let output = Output { file: output, hurry: Arc::clone(&hurry) };
        let uart = Serial::with_events(Irq(Arc::clone(&irq)), watch, output);
        let uart = Contended::new(uart, Arc::clone(&drained));
        Ok(SerialPort { uart, irq, drained, waited_for, hurry })
    }

    /// A serial line whose output goes to standard output.
    pub fn stdio() -> io::Result<SerialPort> {
        SerialPort::new(File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?))
    }

    /// The event to register as irqfd of [`layout::COM1_GSI`].
    pub fn irq(&self) -> &Event {
        &self.irq
    }

    /// Raised when there is a point in calling [`SerialPort::input`] again after it did not take everything.
    pub fn drained(&self) -> &Event {
        &self.drained
    }

    /// While this is on, output that would have to wait is lost instead. For vCPUs that are to stop.
    pub fn hurry(&self, on: bool) {
        if on {
            self.hurry.raise();
        } else {
            self.hurry.take();
        }
    }

    /// Guest write; a repeated string instruction arrives as several bytes for one port.
    pub fn write(&self, port: u16, data: &[u8]) {
        let Some(offset) = offset(port) else { return };
        let mut uart = self.uart.lock();
        for byte in data {
            // Output that fails (a closed pipe, a full disk) loses the byte, as an unplugged cable would.
            let _ = uart.write(offset, *byte);
        }
        // In loopback mode (a driver's self-test) no input is taken; leaving it makes room without a read.
        if offset == MODEM_CONTROL && self.waited_for.swap(false, Ordering::AcqRel) {
            self.drained.raise();
        }
    }

    /// Guest read.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let Some(offset) = offset(port) else { return };
        let mut uart = self.uart.lock();
        data.fill_with(|| uart.read(offset));
    }

    /// Hands input to the guest; returns how many bytes it took. When not all, `drained` fires later. Never waits.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let Some(mut uart) = self.uart.try_lock() else { return 0 };
        let taken = uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        if taken < bytes.len() {
            self.waited_for.store(true, Ordering::Release);
        }
        taken
    }
}

/// Whether `port` belongs to COM1.
pub fn owns(port: u16) -> bool {
    offset(port).is_some()
}

fn offset(port: u16) -> Option<u8> {
    let offset = u8::try_from(port.checked_sub(layout::PORT_COM1)?).ok()?;
    (offset < layout::PORT_COM1_COUNT).then_some(offset)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn port_to_file() -> (tempfile::TempDir, SerialPort) {
        let dir = tempfile::tempdir().unwrap();
        let port = SerialPort::new(File::create(dir.path().join("log")).unwrap()).unwrap();
        (dir, port)
    }

    #[test]
    fn modes_are_parsed_and_others_refused() {
        assert_eq!("stdio".parse(), Ok(SerialMode::Stdio));
        assert_eq!("off".parse(), Ok(SerialMode::Off));
        assert_eq!("file=/x".parse(), Ok(SerialMode::File("/x".into())));
        assert!("file=".parse::<SerialMode>().is_err());
        assert!("tcp:1".parse::<SerialMode>().is_err());
    }

    #[test]
    fn what_the_guest_sends_is_in_the_file_at_once() {
        let (dir, port) = port_to_file();
        port.write(layout::PORT_COM1, b"hello");
        assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), b"hello");
    }

    #[test]
    fn input_that_does_not_fit_is_announced_when_the_guest_has_read() {
        let (_dir, port) = port_to_file();
        let bytes = [b'x'; 100];
        let taken = port.input(&bytes);
        assert_eq!(taken, 64);
        let mut read = [0; 64];
        port.read(layout::PORT_COM1, &mut read[..63]);
        assert!(!port.drained().take());
        port.read(layout::PORT_COM1, &mut read[63..]);
        assert!(port.drained().take());
        assert_eq!(read, [b'x'; 64]);
        assert_eq!(port.input(&bytes[taken..]), 36);
    }

    #[test]
    fn input_refused_in_loopback_mode_is_asked_for_again_after_it() {
        let (_dir, port) = port_to_file();
        port.write(layout::PORT_COM1 + 4, &[0x10]);
        assert_eq!(port.input(b"x"), 0);
        port.write(layout::PORT_COM1 + 4, &[0]);
        assert!(port.drained().take());
        assert_eq!(port.input(b"x"), 1);
    }

    #[test]
    fn ports_beside_com1_are_not_its_own() {
        assert!(owns(0x3F8) && owns(0x3FF));
        assert!(!owns(0x3F7) && !owns(0x400) && !owns(0));
    }

    /// A port whose output is a pipe without room, and the end to read from.
    fn port_to_full_pipe() -> (File, SerialPort) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
        rustix::io::write(&writer, &vec![b'.'; size]).unwrap();
        (reader.into(), SerialPort::new(writer.into()).unwrap())
    }

    /// Runs `act` while another thread waits to write an `x`, and gives up when `act` takes too long.
    fn while_writing<T: Send + 'static>(
        port: SerialPort,
        act: impl FnOnce(&SerialPort) -> T + Send + 'static,
    ) -> (Arc<SerialPort>, std::thread::JoinHandle<()>, T) {
        let port = Arc::new(port);
        let writing = Arc::clone(&port);
        let writer = std::thread::spawn(move || writing.write(layout::PORT_COM1, b"x"));
        let (said, heard) = std::sync::mpsc::channel();
        let acting = Arc::clone(&port);
        std::thread::spawn(move || said.send(act(&acting)));
        let done = heard.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        (port, writer, done)
    }

    /// Tries to type until the port is busy.
    fn type_in_vain(port: &SerialPort) {
        while port.input(b"y") == 1 {
            port.uart.try_lock().map(|mut uart| uart.read(0));
        }
    }

    #[test]
    fn input_does_not_wait_for_a_full_output_and_is_asked_for_again_after_it() {
        let (mut reader, port) = port_to_full_pipe();
        let (port, writer, ()) = while_writing(port, type_in_vain);
        std::io::Read::read_exact(&mut reader, &mut [0; 8192]).unwrap();
        writer.join().unwrap();
        assert!(port.drained().take());
        assert_eq!(port.input(b"y"), 1);
    }

    #[test]
    fn output_in_a_hurry_does_not_wait() {
        let (_reader, port) = port_to_full_pipe();
        let (port, writer, ()) = while_writing(port, |port| {
            type_in_vain(port);
            port.hurry(true);
        });
        writer.join().unwrap();
        port.write(layout::PORT_COM1, b"lost");
        port.hurry(false);
        assert!(!port.hurry.is_raised());
    }
}
